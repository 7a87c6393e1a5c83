"""Thresholds for predicted clean latents, calibrated for one index and one scheduler."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import ArtifactNotFoundError, CalibrationError, CorruptArtifactError
from ..exemption import Exemptions
from ..filter import MemorizationFilter
from ..index.folder import write_json
from ..types import Calibration
from .early_fit import check_fractions, fit_stages
from .policy import attached_policy
from .watch import Stage, Stopper, why_not_early

FORMAT = 2
"""In 1 the shares of noise in flow matching were others."""

FRACTIONS = (0.3, 0.5)
"""After which shares of the steps predicted clean latents are judged, unless told otherwise."""


@dataclass(frozen=True)
class EarlyStop:
    """When a pipeline may stop denoising samples that are certainly copies; made by ``fit`` or ``load``.

    Attributes:
        stages: After which shares of the steps predicted clean latents are judged, with the threshold of each.
        bound: Of samples that the filter accepts in the end, at most this share is stopped, over all stages and over
            draws of the samples that the thresholds were fitted on; it holds for prompts and settings like theirs.
        index: Fingerprint of the index, its own calibration included.
        space: Latent space of the pipeline.
        scheduler: Class of the pipeline's scheduler.
        steps: Denoising steps of the samples that the thresholds were fitted on.
    """

    stages: tuple[Stage, ...]
    bound: float
    index: str
    space: str
    scheduler: str
    steps: int

    @classmethod
    def fit(
        cls,
        pipe: Any,
        prompts: Sequence[str],
        *,
        bound: float = 0.01,
        fractions: Sequence[float] = FRACTIONS,
        samples: int | None = None,
        batch_size: int = 4,
        seed: int = 0,
        progress: bool = True,
        **call: Any,
    ) -> EarlyStop:
        """Draw samples, and set each stage's threshold by those that the filter accepts in the end.

        Each stage may stop ``bound / len(fractions)`` of them (split conformal prediction; the bounds of the stages
        add up), so at least ``len(fractions) / bound - 1`` accepted samples are needed, and twice as many by default:
        399 for the default bound and fractions.
        A threshold is never below the index's own: half-formed predictions are blurred and score lower, and a score
        that would be accepted at the end is no reason to stop.

        Args:
            pipe: A pipeline with a filter attached.
            prompts: Prompts like those that it will be called with, most of them not memorised; drawn in turn.
            bound: Share of accepted samples that may be stopped, in (0, 1).
            fractions: Of the denoising steps, ascending, in (0, 1).
            samples: How many accepted samples the thresholds are to rest on.
            batch_size: Samples in one call.
            seed: Of the first sample; the others follow.
            progress: Show progress on stderr.
            call: Further arguments of the pipeline's call: the settings that it will be called with. A text is that of
                every sample, and images are drawn one for a prompt, by generators of their own.

        Raises:
            DataError: ``prompts`` are one text, or none; or ``call`` has what is decided here.
            CalibrationError: no filter is attached, or its index was calibrated again since; ``samples`` are too few,
                or too few were accepted.
            UnsupportedPipelineError: the pipeline cannot be stopped early; says why.
            ValueError: ``bound`` or ``fractions`` are out of range.
        """
        stages, steps = fit_stages(pipe, prompts, bound, fractions, samples, batch_size, seed, progress, call)
        judge, scheduler = attached_policy(pipe).filter, type(pipe.scheduler).__name__
        return cls(stages, bound, judge.fingerprint, judge.space, scheduler, steps)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> EarlyStop:
        """What ``save`` wrote.

        Raises:
            ArtifactNotFoundError: no such file.
            CorruptArtifactError: it holds something else.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            if found.pop("format") != FORMAT:
                raise ValueError("another format")
            stages = tuple(_stage(stage) for stage in found.pop("stages"))
            made = cls(stages, **found)
            check_fractions([stage.fraction for stage in stages], made.bound)
        except FileNotFoundError:
            raise ArtifactNotFoundError(f"{path}: no such file; make it by EarlyStop.fit(...).save") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptArtifactError(
                f"{path} holds no thresholds for early stop ({type(error).__name__}: {error}); "
                "make it anew by EarlyStop.fit(...).save"
            ) from error
        return made

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON."""
        write_json(Path(path), {"format": FORMAT, **asdict(self)})

    def described(self) -> dict[str, Any]:
        """What decides, ready for JSON: everything but the scores that the thresholds rest on."""
        stages = [
            {"fraction": stage.fraction, "noise": stage.noise, "threshold": stage.calibration.threshold}
            for stage in self.stages
        ]
        return {**asdict(self), "stages": stages}

    def check(self, pipe: Any, judge: MemorizationFilter) -> None:
        """
        Raises:
            CalibrationError: it was calibrated for another index, latent space or scheduler.
        """
        again = "calibrate early stop anew with EarlyStop.fit"
        if self.index != judge.fingerprint:
            raise CalibrationError(
                f"early stop was calibrated for another index than {judge.index.path}, or before that was calibrated "
                f"itself (fingerprint {self.index[:12]}, not {judge.fingerprint[:12]}); {again}"
            )
        if self.space != judge.space:
            raise CalibrationError(
                f"early stop was calibrated for latents of {self.space!r}, not {judge.space!r}; {again}"
            )
        if self.scheduler != type(pipe.scheduler).__name__:
            raise CalibrationError(
                f"early stop was calibrated for {self.scheduler}, not {type(pipe.scheduler).__name__}; {again}"
            )

    def watch(
        self,
        pipe: Any,
        vae: Any,
        judge: MemorizationFilter,
        exempt: Exemptions,
        wanted: Sequence[int] | None,
        steered: bool,
    ) -> Stopper | None:
        """What stops the next call of ``pipe``; ``None``, with a warning, where it got a scheduler that cannot."""
        name = type(getattr(pipe, "scheduler", None)).__name__
        against = why_not_early(pipe)
        if not against and name != self.scheduler:
            against = f"it was calibrated for {self.scheduler}, not for {name}"
        if against:
            warnings.warn(f"this call is not stopped early: {against}", stacklevel=6)
            return None
        allowed = exempt.allowed_ids
        return Stopper(
            pipe,
            vae,
            () if steered else self.stages,
            score=lambda latents: judge.score(latents, allowed_ids=allowed),
            judge=lambda latents: judge.judge(latents, allowed_ids=allowed),
            allowed=exempt.of_rows,
            wanted=wanted,
        )


def _stage(found: dict[str, Any]) -> Stage:
    return Stage(found["fraction"], found["noise"], Calibration.from_dict(found["calibration"]))
