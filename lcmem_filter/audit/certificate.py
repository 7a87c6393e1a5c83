"""How far the check itself can be trusted: sensitivity, specificity, consistency (Koeken et al., arXiv 2510.01793)."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

from ..calibration import Judged, judge_images
from ..filter import MemorizationFilter
from ..images import ImageSource
from ..latents import Encoder
from ..report import Certificate, Measured, rate_of
from ..types import Decision
from .near_duplicates import DESCRIPTION, near_duplicates_of

SENSITIVITY_IMAGES = 100
SENSITIVITY_SEEDS = 3
SAME_SCORE = 1e-6
"""Scores this close are those of one image: an image that is scored twice differs by less, in float32."""


@dataclass(frozen=True, slots=True)
class Judge:
    """What decides about images: a filter, and the encoder that leads to it."""

    filter: MemorizationFilter
    encoder: Encoder
    progress: bool

    def decide(self, source: ImageSource, description: str) -> Iterator[tuple[Judged, Decision]]:
        """A decision for each image of ``source`` that can be read."""
        rows = range(len(source))
        judged = judge_images(
            self.filter.index,
            source,
            rows,
            self.encoder,
            self.filter.space,
            progress=self.progress,
            description=description,
        )
        for one in judged:
            if one.scored is not None:
                yield one, self.filter.decide(one.scored)


def certify(
    judge: Judge, training: ImageSource | None, unseen: ImageSource | None, images: int, seeds: int
) -> Certificate:
    """Measure what can be measured with the data that are given.

    Args:
        training: The indexed images; without them neither sensitivity nor consistency can be measured.
        unseen: Real images that neither the pipeline nor the calibration saw, for specificity.
        images: Training images that near-duplicates are made of, drawn at random, always the same.
        seeds: Near-duplicates of each.
    """
    sensitivity, consistency = _near_duplicates(judge, training, images, seeds)
    return Certificate(sensitivity, _specificity(judge, unseen), consistency)


def _near_duplicates(
    judge: Judge, training: ImageSource | None, images: int, seeds: int
) -> tuple[Measured, Measured]:
    if training is None:
        missing = Measured(None, "To have it measured, name the training data (--training DATA).")
        return missing, missing
    indexed = {record.id for record in judge.filter.index.records}
    rows = [row for row, record in enumerate(training.records) if record.id in indexed]
    rows = sorted(random.Random(0).sample(rows, min(images, len(rows))))
    if not rows:
        missing = Measured(None, "None of the training data that were named have an id that the index knows.")
        return missing, missing
    source = near_duplicates_of(training, rows, seeds)
    found: dict[int, list[bool]] = {}
    named = 0
    for one, decision in judge.decide(source, "near-duplicates"):
        row = rows[one.row // seeds]
        found.setdefault(row, []).append(not decision.accepted)
        nearest = decision.neighbours[0].id
        named += not decision.accepted and nearest == training.records[row].id
    flat = [rejected for each in found.values() for rejected in each]
    sensitivity = Measured(
        rate_of(sum(flat), len(flat)),
        f"{seeds} near-duplicates of each of {len(found)} training images, made by mild transformations of the "
        f"picture, not by a generator: {DESCRIPTION}.",
        {"that very training image named as the nearest": rate_of(named, len(flat))},
    )
    same = sum(len(set(each)) == 1 for each in found.values())
    consistency = Measured(
        rate_of(same, len(found)),
        f"Training images whose {seeds} near-duplicates, each made with another seed, all got the same decision.",
    )
    return sensitivity, consistency


def _specificity(judge: Judge, unseen: ImageSource | None) -> Measured:
    if unseen is None:
        return Measured(
            None,
            "To have it measured, give real images that neither the model nor the calibration saw (--unseen DATA).",
        )
    decisions = [decision for _, decision in judge.decide(unseen, "unseen images")]
    if not decisions:
        return Measured(None, f"None of the {len(unseen)} unseen images could be read.")
    known = judge.filter.calibration.scores
    again = sum(_stands_in(known, decision.score) for decision in decisions)
    if 2 * again > len(decisions):
        return Measured(
            None,
            f"{again} of the {len(decisions)} images given as unseen have the scores of the held-out images that set "
            "the threshold, so they say nothing about it. Give others.",
        )
    promised = judge.filter.calibration.false_rejection_rate
    return Measured(
        rate_of(sum(bool(decision.accepted) for decision in decisions), len(decisions)),
        f"Real images that neither the model nor the calibration saw; {100 * (1 - promised):.4g}% was promised.",
        p_values=tuple(decision.p_value for decision in decisions),
    )


def _stands_in(ascending: tuple[float, ...], score: float) -> bool:
    near = bisect_left(ascending, score)
    return any(abs(one - score) < SAME_SCORE for one in ascending[max(0, near - 1) : near + 1])
