"""The figure that decides: recall at a fixed rate of false rejections, with intervals by identity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from protocol import Answers, Design, Measured, Task
from sklearn.metrics import average_precision_score, precision_recall_curve

from lcmem_filter.calibration import check_held_out, fit
from lcmem_filter.errors import CalibrationError
from lcmem_filter.types import rejectable

OVERALL = "all domains"
FEW = 3
"""Scores that may lie above a threshold, for it to be drawn again from them alone. With fewer, intervals of 95 % from
such draws hold what they should in about 70 %."""
TAIL = 10


@dataclass(frozen=True)
class Judge:
    """Turns scores into rates.

    Attributes:
        kept: Which of the strangers set thresholds, (S,); the others are near-duplicates of images in the index.
        rate: Share of unseen images that may be rejected.
        draws: How often identities are drawn again for the intervals.

    Raises:
        CalibrationError: too few strangers for the rate.
    """

    design: Design
    kept: np.ndarray
    rate: float
    draws: int
    seed: int

    def __post_init__(self) -> None:
        self.check_number()

    def about(self) -> str:
        """What is measured on validation images, in words."""
        return (
            f"recall at {100 * self.rate:.3g}% false rejection of {int(self.kept.sum()):,} unseen validation images, "
            f"mean of domains, at most {self.design.copies} copies of each, in two indexes of about "
            f"{len(self.design.index_rows(0)):,} images"
        )

    def check_number(self, domains: Sequence[str] = ()) -> None:
        """
        Args:
            domains: Whose strangers set thresholds; all where empty.

        Raises:
            CalibrationError: too few of them for the rate.
        """
        of = np.isin(self.design.test.domains[self.design.strangers], domains) | (not domains)
        for half in (0, 1):
            try:
                check_held_out(int((self._unseen(half) & of).sum()), self.rate)
            except CalibrationError as error:
                raise CalibrationError(
                    f"one image of each test identity that is not enrolled sets the threshold: {error}; give more "
                    "test identities, or a higher --rate"
                ) from None

    def weights(self) -> np.ndarray:
        """(draws, identities): how often each test identity is drawn; the same for every method."""
        people = self.people().max() + 1
        return np.random.default_rng(self.seed).multinomial(people, np.full(people, 1 / people), self.draws)

    def people(self) -> np.ndarray:
        """A number from 0 for the identity of each test image."""
        return np.unique(self.design.test_identity(), return_inverse=True)[1]

    def thresholds(self, measured: Measured) -> np.ndarray:
        """The threshold of each half's index, by the package's own rule."""
        found = []
        for half in (0, 1):
            scores = measured.strangers[self._unseen(half) & ~np.isnan(measured.strangers)]
            found.append(fit(scores.tolist(), self.rate, "", len(scores)).threshold)
        return np.array(found)

    def drawn_thresholds(self, measured: Measured, weights: np.ndarray) -> np.ndarray:
        """(draws, 2): the same rule, with each stranger as often as its identity is drawn; where few scores may lie
        above it, ``spread`` beyond the largest of them, which no draw exceeds."""
        found = np.empty((len(weights), 2))
        for half in (0, 1):
            rows = np.flatnonzero(self._unseen(half) & ~np.isnan(measured.strangers))
            rows = rows[np.argsort(-measured.strangers[rows], kind="stable")]
            drawn = weights[:, self.people()[self.design.strangers[rows]]].cumsum(1)
            allowed = np.maximum(np.floor(self.rate * (drawn[:, -1] + 1) + 1e-9), 1)
            scores, places = measured.strangers[rows], (drawn >= allowed[:, None]).argmax(1)
            # the same for every method, so that gains stay paired
            between = np.random.default_rng([self.seed, half]).random(len(weights))
            few = rejectable(len(rows), self.rate) < FEW
            found[:, half] = spread(scores, places, between) if few else scores[places]
        return found

    def few(self) -> bool:
        """Whether so few scores of a half may lie above its threshold that it has to be drawn beyond them."""
        return any(rejectable(int(self._unseen(half).sum()), self.rate) < FEW for half in (0, 1))

    def rejected_strangers(self, measured: Measured) -> dict[str, dict[str, Any]]:
        """Share of the unseen images that thresholds were set on that lies above them, for each domain."""
        limit = self.thresholds(measured)[1 - self.design.half[self.design.strangers]]
        domains = self.design.test.domains[self.design.strangers]
        used = self.kept & ~np.isnan(measured.strangers)
        return {
            str(domain): {"n": int(of.sum()), "share": float((measured.strangers[of] > limit[of]).mean())}
            for domain in dict.fromkeys(domains)
            if (of := used & (domains == domain)).any()
        }

    def _unseen(self, half: int) -> np.ndarray:
        return self.kept & (self.design.half[self.design.strangers] != half)


def spread(scores: np.ndarray, places: np.ndarray, between: np.ndarray) -> np.ndarray:
    """Order statistics drawn again, smoothed: anywhere between the one at ``places`` and the next larger one; above the
    largest as far as an exponential tail reaches, whose scale is the mean excess of the ten largest.

    Args:
        scores: In descending order.
        places: (draws,) places in ``scores``, 0 the largest.
        between: (draws,) in [0, 1).
    """
    largest = scores[: TAIL + 1]
    scale = (largest[:-1] - largest[-1]).mean()
    beyond = scores[0] - scale * np.log1p(-between)
    larger = scores[np.maximum(places - 1, 0)]
    return np.where(places == 0, beyond, scores[places] + between * (larger - scores[places]))


@dataclass(frozen=True)
class Recalls:
    """A method's recall on a task: of each domain and their mean, as measured and in every draw."""

    share: dict[str, float]
    rejected: dict[str, float]
    drawn: dict[str, np.ndarray]
    n: dict[str, tuple[int, int]]


def recalls(
    judge: Judge, measured: Measured, task: Task, weights: np.ndarray, kinds: np.ndarray | None = None
) -> Recalls:
    """A query is found where what is right lies above the threshold, rejected where anything does.

    Args:
        kinds: Of the task's queries, in place of their domains.
    """
    answers = measured.tasks[task.name]
    there = ~np.isnan(answers.top)
    rows, half = task.rows[there], judge.design.half[task.rows[there]]
    limit, drawn_limit = judge.thresholds(measured)[half], judge.drawn_thresholds(measured, weights)
    own, top = answers.own[there], answers.top[there]
    people = judge.people()[rows]
    domains = judge.design.test.domains[rows] if kinds is None else kinds[there]
    result = Recalls({}, {}, {}, {})
    for domain in dict.fromkeys(domains):
        of = domains == domain
        result.share[domain], result.rejected[domain] = (
            float((values[of] > limit[of]).mean()) for values in (own, top)
        )
        hits = own[of][None] > drawn_limit[:, half[of]]
        drawn = weights[:, people[of]]
        result.drawn[domain] = (hits * drawn).sum(1) / np.maximum(drawn.sum(1), 1)
        result.n[domain] = (int(of.sum()), len(set(people[of])))
    if len(result.share) > 1:
        result.share[OVERALL] = float(np.mean(list(result.share.values())))
        result.rejected[OVERALL] = float(np.mean(list(result.rejected.values())))
        result.drawn[OVERALL] = np.mean(list(result.drawn.values()), axis=0)
        result.n[OVERALL] = (int(there.sum()), len(set(people)))
    return result


def deciding(
    judge: Judge, measured: Mapping[str, Measured], task: Task, references: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """For each domain: queries, and for each method recall with its interval, and the lead of each of ``references``
    over it with the paired interval."""
    weights = judge.weights()
    found = {name: recalls(judge, one, task, weights) for name, one in measured.items()}
    domains = dict.fromkeys(domain for one in found.values() for domain in one.share)
    result: dict[str, dict[str, Any]] = {}
    for domain in domains:
        row: dict[str, Any] = {"methods": {}}
        for name, one in found.items():
            if domain not in one.share:
                continue
            row["n"], row["identities"] = one.n[domain]
            cell = {"recall": one.share[domain], "interval": interval(one.drawn[domain])}
            cell["rejected"] = one.rejected[domain]
            cell["leads"] = {
                by: [
                    found[by].share[domain] - one.share[domain],
                    *interval(found[by].drawn[domain] - one.drawn[domain]),
                ]
                for by in references
                if by in found and by != name
            }
            row["methods"][name] = cell
        result[str(domain)] = row
    return result


def curve(judge: Judge, measured: Measured, task: Task, rates: np.ndarray) -> list[float | None]:
    """Mean recall over domains at other rates of false rejection; ``None`` where strangers are too few."""
    answers = measured.tasks[task.name]
    there = ~np.isnan(answers.top)
    half, domains = judge.design.half[task.rows], judge.design.test.domains[task.rows]
    shares: list[float | None] = []
    for rate in rates:
        limits = []
        for h in (0, 1):
            scores = np.sort(measured.strangers[judge._unseen(h) & ~np.isnan(measured.strangers)])[::-1]
            allowed = int(rate * (len(scores) + 1) + 1e-9)
            limits.append(scores[allowed - 1] if allowed else np.nan)
        if np.isnan(limits).any():
            shares.append(None)
            continue
        hit = answers.own > np.array(limits)[half]
        shares.append(
            float(np.mean([hit[there & (domains == d)].mean() for d in dict.fromkeys(domains[there])]))
        )
    return shares


def average_precision(judge: Judge, measured: Measured, task: Task) -> dict[str, float]:
    """Over the best match of every query and stranger: micro-AP, and recall at 90 % precision."""
    answers: Answers = measured.tasks[task.name]
    there = ~np.isnan(answers.top)
    strangers = measured.strangers[judge.kept & ~np.isnan(measured.strangers)]
    right = np.concatenate([answers.own[there] >= answers.top[there], np.zeros(len(strangers), bool)])
    scores = np.concatenate([answers.top[there], strangers])
    share = right.sum() / there.sum()  # queries whose best match is wrong can never be recalled
    precision, recall, _ = precision_recall_curve(right, scores)
    good = recall[precision >= 0.9]
    return {
        "micro_ap": float(average_precision_score(right, scores) * share) if right.any() else 0.0,
        "recall_at_90_precision": float(good.max() * share) if len(good) and right.any() else 0.0,
    }


def interval(drawn: np.ndarray) -> list[float]:
    """The central 95 % of what was drawn."""
    return [float(v) for v in np.quantile(drawn, (0.025, 0.975))]
