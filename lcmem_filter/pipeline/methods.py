"""The two methods that every ``DiffusionPipeline`` gets; imports nothing heavy until one is called, so the
signature of ``attach`` stands here once more."""

from __future__ import annotations

import functools
from typing import Any


def install(pipeline_class: Any) -> None:
    """Give ``DiffusionPipeline`` its two methods, and let its ``from_pipe`` carry a filter over."""

    def with_memorization_filter(
        self: Any,
        index: Any,
        *,
        on_memorized: Any = "resample",
        max_resamples: int = 4,
        max_seconds: float | None = None,
        rungs: Any = ("new_seed", "prompt_perturbation"),
        on_exhausted: Any = "blank",
        allow_unindexed: bool = False,
        allow_partial_latents: bool = False,
        early_stop: Any = None,
    ) -> Any:
        from .attachment import attach

        return attach(
            self,
            index,
            on_memorized=on_memorized,
            max_resamples=max_resamples,
            max_seconds=max_seconds,
            rungs=rungs,
            on_exhausted=on_exhausted,
            allow_unindexed=allow_unindexed,
            allow_partial_latents=allow_partial_latents,
            early_stop=early_stop,
        )

    def without_memorization_filter(self: Any) -> Any:
        from .attachment import detach

        return detach(self)

    with_memorization_filter.__doc__ = (
        "Attach a memorization filter; arguments as of ``lcmem_filter.attach``."
    )
    without_memorization_filter.__doc__ = "Take the memorization filter off; see ``lcmem_filter.detach``."
    pipeline_class.with_memorization_filter = with_memorization_filter
    pipeline_class.without_memorization_filter = without_memorization_filter
    carry_through_from_pipe(pipeline_class)


def carry_through_from_pipe(pipeline_class: Any) -> None:
    """Let ``from_pipe`` of ``pipeline_class`` attach to the new pipeline what the old one had attached."""
    plain_from_pipe = pipeline_class.from_pipe.__func__

    @functools.wraps(plain_from_pipe)
    def from_pipe(cls: Any, pipeline: Any, **kwargs: Any) -> Any:
        from .attachment import carry_over

        return carry_over(pipeline, plain_from_pipe(cls, pipeline, **kwargs))

    pipeline_class.from_pipe = classmethod(from_pipe)  # type: ignore[arg-type]
