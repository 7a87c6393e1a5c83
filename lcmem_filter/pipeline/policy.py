"""What a pipeline does with memorised samples, and where a filtered one carries it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import CalibrationError
from ..filter import MemorizationFilter
from ..types import OnExhausted, OnMemorized
from .rungs import DEFAULT_LADDER, Rung, make_rungs
from .spaces import KnownDecoders
from .watch import Watcher

POLICY = "_memorization_policy"
"""Attribute of a filtered pipeline: its policy."""
PLAIN = "_plain_pipeline_class"
"""Attribute of a filtered pipeline's class: the class that it has without a filter."""


@dataclass(frozen=True)
class Policy:
    """What a pipeline does with memorised samples; see ``attach``.

    Attributes:
        decoders: Those whose latents the filter judges.
    """

    filter: MemorizationFilter
    on_memorized: OnMemorized
    max_resamples: int
    on_exhausted: OnExhausted
    rungs: tuple[Rung, ...] = field(default_factory=lambda: make_rungs(DEFAULT_LADDER))
    max_seconds: float | None = None
    allow_partial_latents: bool = False
    early_stop: Watcher | None = None
    decoders: KnownDecoders = field(default_factory=KnownDecoders)

    def __deepcopy__(self, memo: dict[int, object]) -> Policy:
        return self


def attached_policy(pipe: Any) -> Policy:
    """What ``attach`` gave ``pipe``.

    Raises:
        CalibrationError: no filter is attached.
    """
    policy: Policy | None = pipe.__dict__.get(POLICY)
    if policy is None:
        raise CalibrationError(
            f"this {type(pipe).__name__} has no filter; call with_memorization_filter(index) on it first"
        )
    return policy


def plain_class(pipe: Any) -> Any:
    """The class that ``pipe`` has without a filter."""
    return getattr(type(pipe), PLAIN, None) or type(pipe)
