"""The ladder of ways to draw a memorised sample again.

To add a rung: a module here with a class as ``Rung`` below, its name in ``RUNGS``, and a test of what it is for in
``tests/pipeline/test_rungs.py``, whose other tests run over every name. Users hand their own to ``attach(rungs=...)``.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from ...types import Decision
from ..rows import BoundCall

if TYPE_CHECKING:
    from ...filter import MemorizationFilter

RUNGS = {
    "new_seed": "new_seed:NewSeed",
    "delayed_guidance": "delayed_guidance:DelayedGuidance",
    "prompt_perturbation": "prompt_perturbation:PromptPerturbation",
    "prompt_embedding": "prompt_embedding:PromptEmbedding",
    "repulsion": "repulsion:Repulsion",
}
"""Module and class of each rung, cheapest first; imported when it is first asked for."""

DEFAULT_LADDER = ("new_seed", "prompt_perturbation")
"""A new seed first, which leaves the prompt as it is, for samples that were rejected by chance. Then other words, ever
more of them: by ``benchmarks/ladder`` they free nearly every memorised prompt, and mostly draw what was asked for.
Optimised embeddings free as many and often show something else; delayed guidance frees none there; some of what
repulsion draws is still a copy, which the filter that guided it no longer sees."""


@dataclass(frozen=True)
class Redraw:
    """Rows that are to be drawn again, as a rung is given them.

    Attributes:
        pipe: The pipeline; it has drawn these rows before, in this call.
        call: Draws them from new seeds. It may draw other rows of the user's call beside them, where its arguments
            could not be taken apart; these are thrown away.
        wanted: The rows of ``call`` that were rejected.
        decisions: What was found about each row of ``call`` in its last draw.
        seeds: The new seed of each row of ``call``.
        filter: What judges them.
        repeats: How often this rung has drawn them already.
    """

    pipe: Any
    call: BoundCall
    wanted: Sequence[int]
    decisions: Sequence[Decision]
    seeds: Sequence[int]
    filter: MemorizationFilter
    repeats: int = 0


class Rung(Protocol):
    """One way of drawing rejected rows again. ``name`` is recorded in their decisions.

    A rung with a true attribute ``steers`` corrects samples at every step, so what is predicted before the correction
    is no reason to stop them early.
    """

    name: str

    def attempt(self, redraw: Redraw) -> AbstractContextManager[BoundCall | None]:
        """The call to run, or ``None`` where this rung can do nothing for such a call.

        It may differ from ``redraw.call`` in its arguments, not in its rows. Denoiser and scheduler may be tapped until
        the context ends, which puts everything back. All that is random comes from ``redraw.seeds``.
        """


def make_rungs(rungs: Sequence[str | Rung]) -> tuple[Rung, ...]:
    """Rungs by their names, others as they are.

    Raises:
        ValueError: no rung is given, or none of such a name.
    """
    if isinstance(rungs, str) or not rungs:
        raise ValueError(
            f"rungs must be a sequence of names ({', '.join(RUNGS)}) or Rung objects, got {rungs!r}"
        )
    return tuple(_named(rung) if isinstance(rung, str) else rung for rung in rungs)


def _named(name: str) -> Rung:
    if name not in RUNGS:
        raise ValueError(f"no rung {name!r}; there are {', '.join(RUNGS)}")
    module, class_name = RUNGS[name].split(":")
    return cast(Rung, getattr(importlib.import_module(f".{module}", __package__), class_name)())
