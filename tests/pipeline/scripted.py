"""A filter whose verdicts the test decides, so that the gate is tested apart from head and index."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import replace

import torch

from lcmem_filter.index import MemorizationIndex
from lcmem_filter.types import Decision, Neighbour

Verdict = Callable[[torch.Tensor, int], bool]


def decision(accepted: bool) -> Decision:
    return Decision(accepted, 0.0 if accepted else 1.0, 1.0 if accepted else 0.01, 0.5)


class ScriptedFilter:
    """Accepts row ``r`` of the ``n``-th judged batch where ``accept(latents[r], r, n)`` says so."""

    def __init__(self, accept: Callable[[torch.Tensor, int, int], bool]) -> None:
        self.accept = accept
        self.seen: list[torch.Tensor] = []
        self._last = threading.local()

    def judge(self, latents: torch.Tensor) -> list[Decision]:
        self.seen.append(latents.clone())
        return [decision(self.accept(row, r, len(self.seen) - 1)) for r, row in enumerate(latents)]

    def decide_again(
        self, decision: Decision, latent: torch.Tensor, rejected_for: Collection[str]
    ) -> Decision:
        return decision

    def __deepcopy__(self, memo: dict[int, object]) -> ScriptedFilter:
        return self  # as MemorizationFilter does

    @property
    def last_decisions(self) -> tuple[Decision, ...]:
        return getattr(self._last, "decisions", ())

    @last_decisions.setter
    def last_decisions(self, decisions: tuple[Decision, ...]) -> None:
        self._last.decisions = decisions


class ScriptedMatches(ScriptedFilter):
    """Finds row ``r`` of what it rejects to be a copy of image ``r`` of ``index``."""

    space = "sd"

    def __init__(self, accept: Callable[[torch.Tensor, int, int], bool], index: MemorizationIndex) -> None:
        super().__init__(accept)
        self.index = index

    def judge(self, latents: torch.Tensor) -> list[Decision]:
        def matched(row: int) -> tuple[Neighbour, ...]:
            return (Neighbour(self.index.records[row].id, 1.0, 1.0),)

        return [
            one if one.accepted else replace(one, neighbours=matched(row))
            for row, one in enumerate(super().judge(latents))
        ]


def wear(pipe, accept, on_memorized="resample", max_resamples=4, on_exhausted="blank", index=None, **options):
    """Attach a scripted filter to ``pipe``, one that matches images of ``index`` where that is given."""
    from lcmem_filter.pipeline.attachment import _wear
    from lcmem_filter.pipeline.policy import Policy
    from lcmem_filter.pipeline.spaces import KnownDecoders

    class AnyDecoder(KnownDecoders):
        """The verdicts depend on no latent space."""

        def check(self, pipe, vae, judge):
            pass

    scripted = ScriptedFilter(accept) if index is None else ScriptedMatches(accept, index)
    policy = Policy(scripted, on_memorized, max_resamples, on_exhausted, decoders=AnyDecoder(), **options)  # type: ignore[arg-type]
    _wear(pipe, policy)
    return scripted


def always(*_: object) -> bool:
    return True


def reject_first_pass(*rows: int):
    """Rejects ``rows`` of the first judged batch and nothing after."""
    return lambda latent, row, batch: batch > 0 or row not in rows
