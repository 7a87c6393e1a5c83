"""Predicted clean latents while a pipeline denoises: judged early, so that a batch of copies is not finished."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from ..errors import FilterFailedError
from ..exemption import Exemptions
from ..filter import MemorizationFilter
from ..types import Calibration, Decision
from ..verification import Scored
from .clean import TAPPABLE, can_be_tapped, predict_clean
from .gate import Judge
from .spaces import Size, decoder_space, drawn_size
from .taps import tapped_step

Score = Callable[[torch.Tensor], Sequence[Scored]]
"""Latents (B, C, H, W) of all rows to what the index says of each."""

STOPPED_EARLY = object()
"""What early stop sets ``pipe._interrupt`` to: it is true, and no caller's ``True``."""

NOT_EARLY = "do without early stop"
"""What to do where latents cannot be judged before they are decoded."""

NOISE_TOLERANCE = 0.1
"""How far a fraction's share of noise may be from the one that its threshold was calibrated at."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A share of the denoising steps after which predicted clean latents are judged.

    Attributes:
        fraction: Of the steps of a call, in (0, 1).
        noise: Share of the noise in the sample's amplitude then, in [0, 1].
        calibration: Scores there of samples that were accepted in the end, and the threshold that they set.
    """

    fraction: float
    noise: float
    calibration: Calibration


def why_not_early(pipe: Any) -> str:
    """Why ``pipe`` cannot be stopped early; empty where it can."""
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is None or not can_be_tapped(scheduler):
        return (
            f"the clean latent cannot be read off {type(scheduler).__name__}; it can be off "
            f"{', '.join(sorted(TAPPABLE))}"
        )
    if not hasattr(type(pipe), "interrupt"):
        return f"{type(pipe).__name__} cannot be interrupted"
    return ""


class Watch:
    """Stands around ``scheduler.step`` for one call of a pipeline and looks at some of its predicted clean latents.

    Args:
        pipe: The pipeline; its scheduler can be tapped.
        vae: Its decoder.
        fractions: After which shares of the steps to look.
        score: Judges what is seen.

    Attributes:
        run: Denoising steps so far; a pipeline that takes several at one timestep, one for each part of a picture, has
            taken one.
        total: Denoising steps of the whole call; 0 before the first.
    """

    def __init__(self, pipe: Any, vae: Any, fractions: Sequence[float], score: Score) -> None:
        self.pipe, self.vae, self.fractions, self.score = pipe, vae, fractions, score
        self.run = self.total = 0
        self._last: float | None = None
        self._sizes: list[Size] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the call that is made in this context."""
        with drawn_size(self.pipe) as self._sizes, tapped_step(self.pipe.scheduler, self._around):
            yield

    def look(self, place: int, noise: float, scored: Sequence[Scored]) -> None:
        """Called after the share ``fractions[place]`` of the steps; ``scored`` has one entry a row."""
        raise NotImplementedError

    def judge(self, latents: torch.Tensor) -> list[Decision]:
        """Decisions about the latents (B, C, H, W) that the call ended with."""
        raise NotImplementedError

    def _around(
        self,
        step: Callable[..., Any],
        output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        *rest: Any,
        **options: Any,
    ) -> Any:
        if not self.run:
            self.total = _steps_ahead(self.pipe.scheduler, timestep)
        if float(timestep) == self._last:
            return step(output, timestep, sample, *rest, **options)
        self._last = float(timestep)
        self.run += 1
        for place, fraction in enumerate(self.fractions):
            if self.run == math.ceil(fraction * self.total - 1e-9) < self.total:
                predicted = predict_clean(self.pipe.scheduler, output, timestep, sample)
                size = self._sizes[-1] if self._sizes else None
                latents = decoder_space(self.pipe, self.vae, predicted.clean, size, instead=NOT_EARLY)
                self.look(place, predicted.noise, self.score(latents))
        return step(output, timestep, sample, *rest, **options)


class Watcher(Protocol):
    """What watches the calls of a pipeline: ``EarlyStop``, or what calibrates it."""

    def watch(
        self,
        pipe: Any,
        vae: Any,
        judge: MemorizationFilter,
        exempt: Exemptions,
        wanted: Sequence[int] | None,
        steered: bool,
    ) -> Watch | None:
        """The watch of the next call; ``None`` where it cannot be watched.

        Args:
            pipe: The pipeline.
            vae: Its decoder.
            judge: The filter.
            exempt: The training images that the rows may resemble.
            wanted: The rows that matter; ``None`` for all.
            steered: Whether samples are corrected after the predictions that could be seen.
        """


class Stopper(Watch):
    """Interrupts the call once every row that is wanted was above the threshold of a stage.

    Rows that are flagged beside others that are not are finished with them, and then judged as always.

    Args:
        stages: When to look, and from which score on a row is flagged.
        judge: Judges the latents of a call that was not interrupted.
        allowed: For each of so many rows, the training images that it may resemble.
        wanted: The rows that matter; ``None`` for all.
    """

    def __init__(
        self,
        pipe: Any,
        vae: Any,
        stages: Sequence[Stage],
        score: Score,
        judge: Judge,
        allowed: Callable[[int], Sequence[tuple[str, ...]]],
        wanted: Sequence[int] | None = None,
    ) -> None:
        super().__init__(pipe, vae, [stage.fraction for stage in stages], score)
        self.stages, self.wanted = stages, wanted
        self._judge, self._allowed = judge, allowed
        self._flagged: dict[int, Decision] = {}
        self._stopped_after: int | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the call that is made in this context."""
        try:
            with super().watching():
                yield
        finally:
            if getattr(self.pipe, "_interrupt", False) is STOPPED_EARLY:
                self.pipe._interrupt = False

    @property
    def stopped(self) -> bool:
        """Whether the pipeline was interrupted, and did stop."""
        return self._stopped_after is not None and self._stopped_after == self.run

    def look(self, place: int, noise: float, scored: Sequence[Scored]) -> None:
        stage = self.stages[place]
        if abs(noise - stage.noise) > NOISE_TOLERANCE:
            return  # its threshold says nothing of predictions that are so much more or less blurred
        allowed = self._allowed(len(scored))
        for row, sample in enumerate(scored):
            if row not in self._flagged and sample.score > stage.calibration.threshold:
                self._flagged[row] = _early_decision(sample, stage, allowed[row])
        wanted = range(len(scored)) if self.wanted is None else self.wanted
        if all(row in self._flagged for row in wanted):
            self.pipe._interrupt = STOPPED_EARLY
            self._stopped_after = self.run

    def judge(self, latents: torch.Tensor) -> list[Decision]:
        rows = range(latents.shape[0])
        saved = self.total - self.run if self.stopped else 0
        if self.stopped:
            decisions = [self._flagged.get(row, _UNFINISHED) for row in rows]
        else:
            decisions = list(self._judge(latents))
            if len(decisions) != len(rows):
                raise FilterFailedError(f"{len(decisions)} decisions for {len(rows)} latents")
            flagged = {row: decision.flagged_at for row, decision in self._flagged.items()}
            decisions = [replace(decisions[row], flagged_at=flagged.get(row)) for row in rows]
        return [replace(decision, steps_run=self.run, steps_saved=saved) for decision in decisions]


_UNFINISHED = Decision(
    None, math.nan, math.nan, math.nan, reason="the denoising was stopped for the rows that were wanted"
)


def _early_decision(sample: Scored, stage: Stage, allowed_ids: tuple[str, ...]) -> Decision:
    return Decision(
        accepted=False,
        score=sample.score,
        p_value=stage.calibration.p_value(sample.score),
        threshold=stage.calibration.threshold,
        neighbours=sample.neighbours[:5],
        allowed_ids=allowed_ids,
        flagged_at=stage.fraction,
        stopped=True,
    )


def _steps_ahead(scheduler: Any, timestep: Any) -> int:
    """How many of the scheduler's timesteps are left from ``timestep`` on, this one included."""
    if getattr(scheduler, "begin_index", None) is not None:
        first = int(scheduler.begin_index)
    else:
        places = (scheduler.timesteps == timestep).nonzero()
        first = int(places[0]) if len(places) else 0
    return len(torch.unique_consecutive(scheduler.timesteps[first:]))
