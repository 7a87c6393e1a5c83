"""The values that rooms hand to each other."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

OnMemorized = Literal["flag", "reject", "resample"]
"""What a filtered pipeline does with a memorised sample."""

OnExhausted = Literal["blank", "raise", "drop"]
"""What a filtered pipeline does with a sample that is still rejected when every attempt is spent."""

AllowedIds = Sequence[str] | Sequence[Sequence[str]]
"""Ids of training images that samples may resemble: one sequence for all samples of a batch, or one for each."""

OWN_FOUND, OWN_FOUND_AT_LEAST = 0.9, 0.5
"""Shares of some training images, mirrored and shifted, that a threshold should find, and must."""
WHY_MISSED = "copies of training images may have set it, or the head cannot tell such pictures apart"


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A training image that a sample resembles.

    Attributes:
        id: The record's id in the index.
        score: The statistic that was calibrated (``verification.compare``); larger is more alike.
        embedding_similarity: Cosine of the two head embeddings, in [-1, 1], the better of the sample as it is
            and upside down.
        latent_similarity: How alike their parts are, in [-1, 1], the better of the same: by the head's descriptors
            under the best warp of the training image, else by its tokens, else the aligned correlation of the canonical
            latents; ``None`` where the index keeps no latents, or a head without tokens meets another latent space.
    """

    id: str
    score: float
    embedding_similarity: float
    latent_similarity: float | None = None


def rejectable(n: int, rate: float) -> int:
    """How many of ``n`` held-out scores may lie at or above a threshold that rejects at most ``rate``: the floor of
    rate (n + 1)."""
    return math.floor(rate * (n + 1) + 1e-9)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Scores of real images that the pipeline never saw, and the threshold that they set.

    Attributes:
        scores: Each held-out image's largest combined statistic over the index, ascending.
        false_rejection_rate: Share of images like these that may be rejected, in (0, 1).
        threshold: Samples are rejected where their score is larger.
        query_space: Latent space that the held-out images were encoded into.
        given: Held-out images that were given.
        dropped: How many of them were left out, for each reason.
        realised_rate: What the rate comes out at, over draws of the held-out images: its central 95 %.
        statistic: Which formula the scores come from (``verification.STATISTIC``).
        highest: Held-out images at and above the threshold, and below it as many as make 20, the highest first: id,
            nearest training image, score. One that shows the picture of that training image makes the threshold too
            high; see ``calibrate``.
        latent_size: (h, w) of the held-out images' latents.
        own_found: How many of some training images, mirrored and shifted as latents, lie above the threshold, and of
            how many; ``None`` where that was not tried.
    """

    scores: tuple[float, ...]
    false_rejection_rate: float
    threshold: float
    query_space: str
    given: int
    dropped: Mapping[str, int]
    realised_rate: tuple[float, float]
    statistic: str = ""
    highest: tuple[tuple[str, str, float], ...] = ()
    latent_size: tuple[int, int] | None = None
    own_found: tuple[int, int] | None = None

    @property
    def n(self) -> int:
        """Held-out images that the threshold rests on."""
        return len(self.scores)

    def doubt(self, share: float = OWN_FOUND) -> str:
        """Why the threshold may let copies through, in a sentence, where it finds less than that share of training
        images themselves (``own_found``); else empty."""
        if self.own_found is None or self.own_found[0] >= share * self.own_found[1]:
            return ""
        above, of = self.own_found
        return (
            f"Of {of} training images, mirrored and shifted a little, the threshold of {self.threshold:.3f} finds "
            f"{above}: {WHY_MISSED}."
        )

    def p_value(self, score: float) -> float:
        """Conformal p-value: (1 + held-out scores at least as large) / (n + 1), in [1 / (n + 1), 1]."""
        return (1 + self.n - bisect_left(self.scores, score)) / (self.n + 1)

    def threshold_at(self, rate: float) -> float:
        """The threshold that rejects at most ``rate`` of images exchangeable with those of ``scores``.

        Infinite where they are too few for that.
        """
        allowed = rejectable(self.n, rate)
        return self.scores[-allowed] if allowed else math.inf

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Calibration:
        """What ``to_dict`` gave, as it comes from JSON."""
        names = ("scores", "realised_rate", "latent_size", "own_found")
        pairs = {name: tuple(found[name]) for name in names if found.get(name)}
        return cls(**{**found, **pairs, "highest": tuple(tuple(one) for one in found.get("highest", ()))})


@dataclass(frozen=True, slots=True)
class Decision:
    """What the filter found about one sample.

    Attributes:
        accepted: ``True`` where the sample resembles no training image beyond the threshold, ``False`` where it
            does, ``None`` where the sample was not checked.
        score: The sample's largest combined statistic over the index; like ``p_value`` and ``threshold`` not a number
            where the sample was not checked.
        p_value: Conformal p-value of ``score`` among held-out real images, in [1 / (n + 1), 1].
        threshold: A sample is rejected where ``score > threshold``; lower for what was drawn in place of a rejected
            sample (``MemorizationFilter.decide_again``).
        neighbours: The nearest training images, most alike first.
        attempts: How often the sample was drawn, the first time included.
        seed: The seed of the last draw; ``None`` for the first, which used the caller's own generator, and where the
            pipeline takes none.
        reason: Why ``accepted`` is ``None``, or ``False`` although the score is not beyond the threshold; empty
            otherwise.
        rung: What the last draw did to get away from a training image, one of ``pipeline.rungs.RUNGS`` or a rung of
            the user's; ``None`` for the first draw.
        prompt: What the last draw was asked for, where ``rung`` put other words into the prompt; ``None`` where that is
            the caller's.
        matched_before: The training image that each earlier draw was nearest to, in their order.
        allowed_ids: Training images that the sample was allowed to resemble: it was judged as if the index lacked
            them.
        flagged_at: Share of the denoising steps after which early stop first took the last draw for a copy; ``None``
            where it did not, or is not in use.
        stopped: Whether the last draw was stopped there and counts as rejected: then ``score``, ``p_value``,
            ``threshold`` and ``neighbours`` are those of the clean latent that was predicted.
        steps_run: Denoising steps that were run for the sample, in all attempts; ``None`` where early stop is not in
            use.
        steps_saved: Denoising steps that early stop left out, in all attempts; ``None`` where it is not in use.
    """

    accepted: bool | None
    score: float
    p_value: float
    threshold: float
    neighbours: tuple[Neighbour, ...] = ()
    attempts: int = 1
    seed: int | None = None
    reason: str = ""
    rung: str | None = None
    allowed_ids: tuple[str, ...] = ()
    flagged_at: float | None = None
    stopped: bool = False
    steps_run: int | None = None
    steps_saved: int | None = None
    prompt: str | None = None
    matched_before: tuple[str, ...] = ()

    @property
    def matched_ids(self) -> tuple[str, ...]:
        """Training images that the sample is too much like: those beyond the threshold, or else the nearest."""
        beyond = tuple(near.id for near in self.neighbours if near.score > self.threshold)
        return beyond or tuple(near.id for near in self.neighbours[:1])

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return asdict(self)
