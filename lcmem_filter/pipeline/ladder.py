"""Which rung draws next, and for how long."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from .rows import BoundCall
from .rungs import Redraw, Rung


@dataclass(frozen=True)
class Attempt:
    """One draw of rejected rows: which rung draws them, with which call, and whether it steers them at every step."""

    rung: str
    call: BoundCall
    steers: bool = False


class Ladder:
    """The rungs of one pipeline call: each draws once, in their order, the last one until the budget is spent.

    Args:
        rungs: At least one.
        max_attempts: How often rejected rows may be drawn again.
        max_seconds: No further attempt begins once so many have passed; ``None`` for no limit.
    """

    def __init__(self, rungs: Sequence[Rung], max_attempts: int, max_seconds: float | None) -> None:
        self._left = list(rungs)
        self._current: Rung | None = None
        self._repeats = -1
        self._attempts_left = max_attempts
        self._until = None if max_seconds is None else time.monotonic() + max_seconds

    def may_go_on(self) -> bool:
        """Whether there is budget for another attempt."""
        return self._attempts_left > 0 and (self._until is None or time.monotonic() < self._until)

    @contextmanager
    def attempt(self, redraw: Redraw) -> Iterator[Attempt | None]:
        """The next rung that applies to ``redraw``, at work until the context ends; ``None`` where none does."""
        self._attempts_left -= 1
        while self._left:
            rung = self._left.pop(0)
            with rung.attempt(redraw) as call:
                if call is not None:
                    self._current, self._repeats = rung, 0
                    yield _attempt(rung, call)
                    return
        if self._current is None:
            yield None
            return
        self._repeats += 1
        with self._current.attempt(replace(redraw, repeats=self._repeats)) as call:
            yield None if call is None else _attempt(self._current, call)


def _attempt(rung: Rung, call: BoundCall) -> Attempt:
    return Attempt(rung.name, call, getattr(rung, "steers", False))
