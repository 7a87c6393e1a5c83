"""Shares with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

FEW = 5


def share(hits: np.ndarray, clusters: Sequence[str] | None = None) -> dict[str, Any]:
    """The share of ``hits`` (n,) with a 95 % Wilson interval.

    Samples of one prompt resemble each other: with ``clusters`` the interval is that of as many independent samples as
    the spread between clusters tells (n / design effect), and of as many as there are clusters where hits or misses are
    too few, under ``FEW``, to tell how alike those of one cluster are.
    """
    n, count = len(hits), int(np.sum(hits))
    if n == 0:
        return {"count": 0, "n": 0, "share": None, "interval": [0.0, 1.0]}
    effective = n / _design_effect(np.asarray(hits, float), clusters) if clusters is not None else float(n)
    low, high = wilson(count / n, effective)
    result = {"count": count, "n": n, "share": count / n, "interval": [low, high]}
    if clusters is not None:
        result |= {"clusters": len(set(clusters)), "effective_n": effective}
    return result


def mean(values: np.ndarray, clusters: Sequence[str], draws: int = 2000) -> dict[str, Any]:
    """The mean of ``values`` (n,) with a 95 % interval from drawing clusters again."""
    groups = [values[[cluster == name for cluster in clusters]] for name in sorted(set(clusters))]
    draw = np.random.default_rng(0)
    means = [
        np.concatenate([groups[i] for i in draw.integers(len(groups), size=len(groups))]).mean()
        for _ in range(draws)
    ]
    low, high = np.quantile(means, (0.025, 0.975))
    return {
        "mean": float(values.mean()),
        "n": len(values),
        "clusters": len(groups),
        "interval": [float(low), float(high)],
    }


def wilson(proportion: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a proportion of ``n`` samples."""
    centre = (proportion + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(proportion * (1 - proportion) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def realised_range(n_calibration: int, rate: float, n_test: int, mass: float = 0.95) -> tuple[int, int]:
    """How many of ``n_test`` exchangeable images a conformal threshold rejects, in the central ``mass`` of cases.

    The realised rate is Beta(k, n + 1 - k) with k = floor(rate * (n + 1)), hence the count is beta-binomial.
    """
    k = int(rate * (n_calibration + 1))
    a, b = k, n_calibration + 1 - k
    total, low, tail = 0.0, None, (1 - mass) / 2
    for count in range(n_test + 1):
        total += math.exp(
            _log_choose(n_test, count) + _log_beta(count + a, n_test - count + b) - _log_beta(a, b)
        )
        if low is None and total > tail:
            low = count
        if total >= 1 - tail:
            return low or 0, count
    return low or 0, n_test


def _design_effect(hits: np.ndarray, clusters: Sequence[str]) -> float:
    groups = {name: hits[[cluster == name for cluster in clusters]] for name in set(clusters)}
    n, mean = len(hits), hits.mean()
    if min(hits.sum(), n - hits.sum()) < FEW or len(groups) < 2:
        return n / len(groups)
    between = sum((group.sum() - mean * len(group)) ** 2 for group in groups.values())
    between *= len(groups) / (len(groups) - 1)
    return max(1.0, between / (n * mean * (1 - mean)))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
