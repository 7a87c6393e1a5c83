"""Whether the denoising of a call ends before its latents are clean: such latents show too little to be judged."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import UnsupportedPipelineError
from ..types import Decision
from .taps import tapped_step

NOISE = 0.1
"""A sigma that is so much above that of a scheduler's usual end is not the end."""


class Ending:
    """Sees whether one draw of a pipeline ends early.

    Args:
        pipe: The pipeline.
        arguments: Of the call.

    Attributes:
        may_be_early: Whether ``denoising_end`` asks for it; not every pipeline listens, and it may cut no step.
    """

    def __init__(self, pipe: Any, arguments: Mapping[str, Any]) -> None:
        self._scheduler: Any = getattr(pipe, "scheduler", None)
        self._end = arguments.get("denoising_end")
        self.may_be_early = isinstance(self._end, float) and 0 < self._end < 1
        self._last: Any = None

    @contextmanager
    def seen(self) -> Iterator[None]:
        """Note the steps that are made, until the block ends."""
        if not self.may_be_early or not hasattr(self._scheduler, "step"):
            yield
            return

        def noted(step: Callable[..., Any], output: Any, timestep: Any, *rest: Any, **options: Any) -> Any:
            self._last = timestep
            return step(output, timestep, *rest, **options)

        with tapped_step(self._scheduler, noted):
            yield

    def why_early(self) -> str | None:
        """Why the draw, which is over, has ended early; ``None`` where it has not."""
        if self._last is not None and float(self._last) != float(self._scheduler.timesteps[-1]):
            return _cut_short(self._end)
        return ends_noisy(self._scheduler)


def refuse_early_end(
    original: Callable[..., Any], arguments: Mapping[str, Any], output_type: str | None, *, allowed: bool
) -> None:
    """Refuse before anything is drawn what a pipeline's ``__call__`` has an argument for.

    Raises:
        UnsupportedPipelineError: ``denoising_end`` ends the call early, and that is not ``allowed`` or images are asked
            for.
    """
    named = "denoising_end" in inspect.signature(original).parameters
    if named and Ending(None, arguments).may_be_early and not (allowed and output_type == "latent"):
        raise too_early(_cut_short(arguments["denoising_end"]), output_type)


def too_early(found: str, output_type: str | None) -> UnsupportedPipelineError:
    """The error for a call that ends early, for the reason ``found``."""
    if output_type != "latent":
        return UnsupportedPipelineError(
            f"{found}, and images of it show too little to be judged; ask for output_type='latent'"
        )
    return UnsupportedPipelineError(
        f"{found}, and its latents show too little to be judged; attach the filter with allow_partial_latents=True "
        "to get them unjudged, and filter the pipeline that finishes them too"
    )


def unjudged(found: str) -> Decision:
    """The decision about latents that end early, for the reason ``found``."""
    return Decision(None, math.nan, math.nan, math.nan, reason=f"{found}, so it was not judged")


def ends_noisy(scheduler: Any) -> str | None:
    """What tells that the steps that were set for ``scheduler`` leave more noise than it does by itself, as custom
    ``sigmas`` can; ``None`` where nothing does."""
    sigmas, steps = getattr(scheduler, "sigmas", None), getattr(scheduler, "num_inference_steps", None)
    if sigmas is None or not steps:
        return None
    end = _last(sigmas)
    if end <= NOISE:
        return None
    usual = _usual_end(scheduler, steps)
    if end <= usual + NOISE:
        return None
    return f"the denoising ends early (at sigma {end:.2f}, not {usual:.2f})"


def _usual_end(scheduler: Any, steps: int) -> float:
    """The last sigma where ``scheduler`` sets ``steps`` itself; 0 where it cannot without further arguments."""
    if getattr(scheduler.config, "invert_sigmas", False):
        return 1.0
    try:
        fresh = type(scheduler).from_config(scheduler.config)
        fresh.set_timesteps(steps)
        return _last(fresh.sigmas)
    except Exception:
        return 0.0


def _last(sigmas: Any) -> float:
    return float(torch.as_tensor(sigmas).flatten()[-1])


def _cut_short(end: object) -> str:
    return f"the denoising ends early (denoising_end={end})"
