"""How far the check itself can be trusted: sensitivity, specificity, consistency (Koeken et al., arXiv 2510.01793)."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..calibration import Judged, judge_images
from ..filter import MemorizationFilter
from ..images import ImageSource
from ..index import MemorizationIndex
from ..latents import Encoder
from ..report import Certificate, Measured, rate_of
from ..types import Decision
from .near_duplicates import DESCRIPTION, GENERATED, generated_near_duplicates_of, near_duplicates_of

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

    def decide(
        self, source: ImageSource, description: str, problems: list[str] | None = None
    ) -> Iterator[tuple[Judged, Decision]]:
        """A decision for each image of ``source`` that can be read and judged; what was wrong with the others is added
        to ``problems``."""
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
            elif problems is not None:
                problems.append(one.problem)


def certify(
    judge: Judge,
    training: ImageSource | None,
    unseen: ImageSource | None,
    images: int,
    seeds: int,
    image_to_image: Any = None,
) -> Certificate:
    """Measure what can be measured with the data that are given.

    Args:
        training: The indexed images; without them neither sensitivity nor consistency can be measured.
        unseen: Real images that neither the pipeline nor the calibration saw, for specificity.
        images: Training images that near-duplicates are made of, drawn at random, always the same.
        seeds: Near-duplicates of each.
        image_to_image: The pipeline, unfiltered, to draw near-duplicates from the pictures; without it they are made
            by transformations in pixels.
    """
    sensitivity, consistency = _near_duplicates(judge, training, images, seeds, image_to_image)
    return Certificate(sensitivity, _specificity(judge, unseen), consistency)


def _near_duplicates(
    judge: Judge, training: ImageSource | None, images: int, seeds: int, image_to_image: Any
) -> tuple[Measured, Measured]:
    if training is None:
        return _neither("To have it measured, name the training data (--training DATA).")
    index = judge.filter.index
    rows = [row for row, record in enumerate(training.records) if record.id in index._row_of]
    rows = sorted(random.Random(0).sample(rows, min(images, len(rows))))
    others = [row for row in rows if _is_another(index, training, row)]
    if 2 * len(others) >= len(rows):
        return _neither(
            f"{len(others)} of {len(rows)} training images that were drawn are other pictures than those that the "
            "index has by their ids. Name the data that it was built from."
        )
    rows = [row for row in rows if row not in others]
    if image_to_image is None:
        how = f"made by mild transformations of the picture, not by a generator: {DESCRIPTION}"
        source = near_duplicates_of(training, rows, seeds)
    else:
        how = GENERATED
        source = generated_near_duplicates_of(training, rows, seeds, image_to_image, index.resolution)
    found: dict[int, list[bool]] = {}
    named, problems = 0, list[str]()
    for one, decision in judge.decide(source, "near-duplicates", problems):
        row = rows[one.row // seeds]
        found.setdefault(row, []).append(not decision.accepted)
        nearest = decision.neighbours[0].id
        named += not decision.accepted and nearest == training.records[row].id
    whole = [each for each in found.values() if len(each) == seeds]
    if not whole:
        return _neither(
            f"No near-duplicates of the {len(rows)} training images that were drawn could be made and judged.",
            problems[0],
        )
    flat = [rejected for each in found.values() for rejected in each]
    sensitivity = Measured(
        rate_of(sum(flat), len(flat), independent=len(found)),
        f"{seeds} near-duplicates of each of {len(found)} training images, {how}. Those of one image resemble each "
        "other: the interval is that of as many independent samples as there are images."
        + _left_out(len(source) - len(flat))
        + (
            f" {len(others)} training images are other pictures than the index has by their ids."
            if others
            else ""
        ),
        {"that very training image named as the nearest": rate_of(named, len(flat), independent=len(found))},
        problem=problems[0] if problems else "",
    )
    consistency = Measured(
        rate_of(sum(len(set(each)) == 1 for each in whole), len(whole)),
        f"Training images whose {seeds} near-duplicates, each made with another seed, all got the same decision.",
    )
    return sensitivity, consistency


def _is_another(index: MemorizationIndex, training: ImageSource, row: int) -> bool:
    """Whether an image is another one than the index holds by its id; of one that cannot be read nobody knows."""
    digest = training.digest(row)
    return digest is not None and digest != index.sha256_of(training.records[row].id)


def _neither(why: str, problem: str = "") -> tuple[Measured, Measured]:
    return Measured(None, why, problem=problem), Measured(None, why, problem=problem)


def _left_out(count: int) -> str:
    return f" Left out: {count:,} that could not be read or judged." if count else ""


def _specificity(judge: Judge, unseen: ImageSource | None) -> Measured:
    if unseen is None:
        return Measured(
            None,
            "To have it measured, give real images that neither the model nor the calibration saw (--unseen DATA).",
        )
    problems: list[str] = []
    judged = list(judge.decide(unseen, "unseen images", problems))
    each = {one.sha256: decision for one, decision in judged}
    if not each:
        why = f"None of the {len(unseen)} unseen images could be read and judged."
        return Measured(None, why, problem=problems[0])
    every = [decision for digest, decision in each.items() if digest not in judge.filter.index.sha256_set]
    indexed = len(each) - len(every)
    if 2 * indexed > len(each):
        return Measured(
            None, f"{indexed} of the {len(each)} images given as unseen are training images. Give others."
        )
    known = judge.filter.calibration.scores
    decisions = [decision for decision in every if not _stands_in(known, decision.score)]
    again = len(every) - len(decisions)
    if 2 * again > len(every):
        return Measured(
            None,
            f"{again} of the {len(every)} images given as unseen have the scores of the held-out images that set "
            "the threshold, so they say nothing about it. Give others.",
        )
    promised = judge.filter.calibration.false_rejection_rate
    repeated = len(judged) - len(each)
    return Measured(
        rate_of(sum(bool(decision.accepted) for decision in decisions), len(decisions)),
        f"Real images that neither the model nor the calibration saw; {100 * (1 - promised):.4g}% was promised."
        + _left_out(len(unseen) - len(judged))
        + (f" Files given several times count once: {repeated:,}." if repeated else "")
        + (f" Left out, since they are training images: {indexed:,}." if indexed else "")
        + (f" Left out, since they have scores of held-out images: {again:,}." if again else ""),
        p_values=tuple(decision.p_value for decision in decisions),
        problem=problems[0] if problems else "",
    )


def _stands_in(ascending: tuple[float, ...], score: float) -> bool:
    near = bisect_left(ascending, score)
    return any(abs(one - score) < SAME_SCORE for one in ascending[max(0, near - 1) : near + 1])
