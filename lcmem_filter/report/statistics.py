"""Counts to intervals, p-values to discoveries, and what chance alone would give."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..types import Calibration
from .results import Chance, Rate


def rate_of(count: int, of: int, confidence: float = 0.95, *, independent: int | None = None) -> Rate:
    """A share with its exact interval (Clopper and Pearson, 1934): the shares p for which neither
    P(Binomial(of, p) >= count) nor P(Binomial(of, p) <= count) is below (1 - ``confidence``) / 2.

    Args:
        independent: Where samples come in groups that resemble each other, how many groups there are: the interval is
            that of so many samples, which is too wide rather than too narrow.
    """
    if independent is not None and independent < of:
        whole = rate_of(math.floor(count * independent / of), independent, confidence)
        above = rate_of(math.ceil(count * independent / of), independent, confidence)
        return Rate(count, of, whole.low, above.high)
    tail = (1 - confidence) / 2
    low = _share_with_tail(of, range(count, of + 1), tail) if count else 0.0
    # the misses' lower end is the hits' upper end
    high = 1 - _share_with_tail(of, range(of - count, of + 1), tail) if count < of else 1.0
    return Rate(count, of, low, high)


def benjamini_hochberg(p_values: Sequence[float], rate: float) -> list[int]:
    """Positions whose p-values are discovered at false-discovery rate ``rate`` (Benjamini and Hochberg, 1995).

    With p_(1) <= ... <= p_(m), the i smallest are discovered for the largest i with p_(i) <= rate i / m. For
    conformal p-values that share their held-out images the rate still holds (Bates et al., 2023, "Testing for
    outliers with conformal p-values", theorem 2).
    """
    order = sorted(range(len(p_values)), key=lambda position: p_values[position])
    m, discovered = len(order), 0
    for i, position in enumerate(order, start=1):
        if p_values[position] <= rate * i / m * (1 + 1e-12):  # p-values are fractions, so ties matter
            discovered = i
    return sorted(order[:discovered])


def smallest_group(tested: int, held_out: int, rate: float) -> int:
    """The fewest copies among ``tested`` that Benjamini-Hochberg could discover: no p-value is below
    1 / (held_out + 1), and c of them there are discovered from 1 / (held_out + 1) <= rate c / tested on."""
    return math.ceil(tested / (rate * (held_out + 1)) - 1e-9)


def held_out_for(copies: int, tested: int, rate: float) -> int:
    """Held-out images needed so that ``copies`` among ``tested`` could be discovered."""
    return math.ceil(tested / (rate * copies) - 1e-9) - 1


def chance_of(calibration: Calibration, tested: int, rejected: int) -> Chance:
    """Rejections among ``tested`` unseen real images: beta-binomial with a = k, b = n + 1 - k, where k of n held-out
    scores lie at the threshold or above (Vovk, 2012, "Conditional validity of inductive conformal predictors")."""
    n = calibration.n
    k = sum(score >= calibration.threshold for score in calibration.scores)
    log_choose = _log_factorials(tested)
    counts = np.arange(tested + 1)
    # lgamma of a + i and of b + tested - i, as sums of logs
    rising = np.concatenate([[0.0], np.cumsum(np.log(k + np.arange(tested)))])
    falling = np.concatenate([[0.0], np.cumsum(np.log(n + 1 - k + np.arange(tested)))])
    total = float(np.log(n + 1 + np.arange(tested)).sum())
    log_pmf = log_choose[tested] - log_choose[counts] - log_choose[tested - counts]
    pmf = np.exp(log_pmf + rising + falling[::-1] - total)
    below = np.cumsum(pmf)
    low, high = (int(np.searchsorted(below, level)) for level in (0.025, 0.975))
    at_least = 1.0 if rejected == 0 else float(pmf[rejected:].sum())
    return Chance(tested * k / (n + 1), low, min(high, tested), min(1.0, at_least))


def _share_with_tail(of: int, counts: range, tail: float) -> float:
    """The share p at which P(Binomial(of, p) in ``counts``) = ``tail``; that probability grows with p."""
    logs = _log_factorials(of)
    successes = np.arange(counts.start, counts.stop)
    log_choose = logs[of] - logs[successes] - logs[of - successes]
    low, high = 0.0, 1.0
    for _ in range(60):
        p = (low + high) / 2
        log_pmf = log_choose + successes * math.log(p) + (of - successes) * math.log1p(-p)
        low, high = (p, high) if float(np.exp(log_pmf).sum()) < tail else (low, p)
    return (low + high) / 2


def _log_factorials(n: int) -> np.ndarray:
    """log 0!, ..., log n!"""
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1, dtype=float)))])
