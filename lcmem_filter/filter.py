"""Latents in, decisions out: the diagram of the package, in code."""

from __future__ import annotations

import math
import os
import threading
import warnings
import weakref
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .errors import CalibrationError, FilterFailedError, LatentSpaceError, LcmemFilterError
from .exemption import Exemptions, IndexWithout
from .index import MemorizationIndex
from .types import OWN_FOUND_AT_LEAST, AllowedIds, Calibration, Decision, Neighbour
from .verification import STATISTIC, Scored, prepare, score_latents

if TYPE_CHECKING:
    import torch

_TURNS: weakref.WeakKeyDictionary[MemorizationIndex, threading.Lock] = weakref.WeakKeyDictionary()
"""Of each index: filters share it, and bring it to the device of what they judge."""

REDRAW_RATE = 0.1
"""Share of unseen real images that the threshold for further draws rejects, where the index's own is not stricter."""


class MemorizationFilter:
    """Judges latents of one latent space against one calibrated index.

    Args:
        index: A calibrated index, or the folder of one.
        space: The latent space that the latents come from; the index's own by default.
        allow_unindexed: Accept an index that lacks training images which could not be read; one that was loaded so is
            accepted as it is.

    Raises:
        CalibrationError: the index was not calibrated for latents of ``space``.
        CorruptArtifactError: latents of the index are not finite, or have changed since it was loaded.
        IncompleteIndexError: training images are missing in the index.
        LatentSpaceError: the head has no stem for ``space``.

    Attributes:
        calibration: The threshold that the filter judges by, whatever the index is given later.
        fingerprint: The index's, with that calibration.
    """

    def __init__(
        self,
        index: MemorizationIndex | str | os.PathLike[str],
        *,
        space: str | None = None,
        allow_unindexed: bool = False,
    ) -> None:
        if not isinstance(index, MemorizationIndex):
            index = MemorizationIndex.load(index, allow_unindexed=allow_unindexed)
        index.check_complete(allow_unindexed=allow_unindexed)
        self.index = index
        self.space = space or self.index.space
        self.calibration = _calibration_for(self.index, self.space)
        self.fingerprint = self.index.fingerprint
        prepare(self.index, self.space)
        if doubt := self.calibration.doubt(OWN_FOUND_AT_LEAST):
            warnings.warn(f"index {self.index.path}: {doubt} Calibrate it again.", stacklevel=2)
        self._turn = _TURNS.setdefault(index, threading.Lock())
        self._last = threading.local()
        self._warned_sizes: set[tuple[int, ...]] = set()

    def judge(self, latents: torch.Tensor, *, allowed_ids: AllowedIds | None = None) -> list[Decision]:
        """One decision for each row of ``latents`` (B, C, H, W), of any positive per-channel scale and any shift.

        Args:
            allowed_ids: Training images that every row, or each of them, may resemble. They alone are exempt: a row is
                judged as if the index lacked them, so another image that is like them still rejects it.

        Raises:
            AllowedIdsError: the index does not hold them, or they are given for another number of rows.
            FilterFailedError: the latents could not be judged; nothing may be returned to the user then.
        """
        with _closed(latents):
            scored = self.score(latents, allowed_ids=allowed_ids)
            allowed = Exemptions.of(allowed_ids, self.index).of_rows(len(scored))
            decisions = [
                replace(self.decide(sample), allowed_ids=ids)
                for sample, ids in zip(scored, allowed, strict=True)
            ]
        self._warn_of_another_size(latents)
        return decisions

    def score(self, latents: torch.Tensor, *, allowed_ids: AllowedIds | None = None) -> list[Scored]:
        """What each row of ``latents`` is most like, before any threshold; arguments and errors as of ``judge``."""
        with _closed(latents):
            rows = latents.shape[0]
            scored = self._score(latents, Exemptions.of(allowed_ids, self.index).of_rows(rows))
            if len(scored) != rows:
                raise FilterFailedError(
                    f"the filter made {len(scored)} decisions for {rows} latents; no image is returned"
                )
        return scored

    @property
    def last_decisions(self) -> tuple[Decision, ...]:
        """Decisions of the last filtered pipeline call in this thread, one for each sample of that call."""
        return getattr(self._last, "decisions", ())

    @last_decisions.setter
    def last_decisions(self, decisions: tuple[Decision, ...]) -> None:
        self._last.decisions = decisions

    def decide(self, sample: Scored) -> Decision:
        """The decision about a sample that was scored against this filter's index."""
        if math.isnan(sample.score):
            raise FilterFailedError("a sample's score is not a number; no image is returned")
        return Decision(
            accepted=sample.score <= self.calibration.threshold,
            score=sample.score,
            p_value=self.calibration.p_value(sample.score),
            threshold=self.calibration.threshold,
            neighbours=sample.neighbours[:5],
        )

    def decide_again(
        self, decision: Decision, latent: torch.Tensor, rejected_for: Collection[str]
    ) -> Decision:
        """The decision about a sample, ``latent`` (1, C, H, W), that was drawn in place of one that resembled
        ``rejected_for``.

        A prompt whose image is memorised mostly leads to that image again, sometimes half-formed, so less is asked for
        to reject what it gives: it is compared with those training images whatever its embedding, which may have been
        led away from theirs; the threshold is that of ``REDRAW_RATE``, and the nearest training image, by score or by
        parts, must be another. An innocent sample that is rejected so costs one more draw.

        Raises:
            FilterFailedError: it could not be judged.
        """
        if decision.accepted is not True:
            return decision
        with _closed(latent):
            (sample,) = self._score(latent, [decision.allowed_ids], sorted(rejected_for))
        threshold = min(self.calibration.threshold, self.calibration.threshold_at(REDRAW_RATE))
        score = max(decision.score, sample.score)
        again = replace(
            decision,
            score=score,
            p_value=self.calibration.p_value(score),
            threshold=threshold,
            neighbours=sample.neighbours[:5],
        )
        if score > threshold:
            return replace(again, accepted=False)
        nearest = {sample.neighbours[0].id, max(sample.neighbours, key=_by_parts).id}
        if found := sorted(nearest & set(rejected_for)):
            reason = f"the nearest training image is {found[0]} again, which an earlier draw was rejected for"
            return replace(again, accepted=False, reason=reason)
        return again

    def _score(
        self, latents: torch.Tensor, allowed: Sequence[tuple[str, ...]], beside: Sequence[str] = ()
    ) -> list[Scored]:
        """Embed, search, verify; rows with the same exemptions together, all compared with ``beside`` too."""
        found: dict[int, Scored] = {}
        with self._turn:
            self.index.to(latents.device)
            if not any(allowed):
                return score_latents(self.index, latents, self.space, beside)
            for ids in dict.fromkeys(allowed):
                rows = [row for row, own in enumerate(allowed) if own == ids]
                index = IndexWithout(self.index, ids) if ids else self.index
                found.update(zip(rows, score_latents(index, latents[rows], self.space, beside), strict=True))
        return [found[row] for row in range(latents.shape[0])]

    def _warn_of_another_size(self, latents: torch.Tensor) -> None:
        size, expected = tuple(latents.shape[-2:]), self.calibration.latent_size
        if expected is None and self.space == self.index.space:
            expected = self.index.latent_size
        if expected is not None and latents.ndim == 4 and size != expected and size not in self._warned_sizes:
            self._warned_sizes.add(size)
            do = (
                "build the index at the size that the pipeline generates"
                if size[0] == size[1]
                else "an index squashes pictures to squares, so check finished images too (lcmem-filter check)"
            )
            warnings.warn(
                f"index {self.index.path} was built and calibrated at {self.index.resolution} px (latents "
                f"{_times(expected)}), these latents are {_times(size)}: encodings of another resolution "
                f"differ, so copies may be missed and the false-rejection rate does not hold; {do}",
                stacklevel=2,
            )

    def __deepcopy__(self, memo: dict[int, object]) -> MemorizationFilter:
        return self  # copies of a pipeline share one index

    def __getstate__(self) -> dict[str, object]:
        index = self.index
        options = {"allow_unindexed": bool(index.unreadable), "backend": index.backend}
        return {
            "index": index.path.resolve(),
            "options": options,
            "space": self.space,
            "fingerprint": self.fingerprint,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        index = MemorizationIndex.load(state["index"], **state["options"])
        self.__init__(index, space=state["space"])  # type: ignore[misc]
        if self.fingerprint != state["fingerprint"]:
            raise CalibrationError(
                f"index {index.path} was changed or calibrated again since this filter judged by it; attach it again"
            )


def _by_parts(near: Neighbour) -> float:
    return near.score if near.latent_similarity is None else near.latent_similarity


def _times(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))


@contextmanager
def _closed(latents: torch.Tensor) -> Iterator[None]:
    """Whatever goes wrong while ``latents`` are judged is a ``FilterFailedError``."""
    try:
        yield
    except LcmemFilterError:
        raise
    except Exception as error:
        raise FilterFailedError(
            f"the filter could not judge latents of shape {tuple(latents.shape)}: {type(error).__name__}: {error}; "
            "no image is returned"
        ) from error


def _calibration_for(index: MemorizationIndex, space: str) -> Calibration:
    if space not in index.head.spaces:
        raise LatentSpaceError(
            f"the head of index {index.path} has no stem for latent space {space!r}; "
            f"it has {', '.join(index.head.spaces)}"
        )
    calibration = index.calibration_for(space)
    if calibration is None or calibration.statistic != STATISTIC:
        vae = "" if space == index.space else f" --vae VAE_OF_{space.upper()}"
        lacks = "no threshold" if calibration is None else "only another version's threshold"
        raise CalibrationError(
            f"index {index.path} has {lacks} for latents of {space!r} yet; run: "
            f"lcmem-filter calibrate {index.path} HELD_OUT_IMAGES{vae}"
        )
    return calibration
