"""Which rungs drew the rejected images of a batch again, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..pipeline.rows import BoundCall
from ..pipeline.rungs import Redraw, Rung, make_rungs


class History:
    """The ladder of a job, each of whose rungs writes down when it draws.

    Args:
        rungs: Names, as for ``attach``.
    """

    def __init__(self, rungs: Sequence[str]) -> None:
        self.names: list[str] = []
        self.rungs = [_Recorded(rung, self.names) for rung in make_rungs(rungs)]

    def forget(self) -> None:
        """Before the next batch."""
        self.names.clear()

    def of(self, attempts: int) -> tuple[str, ...]:
        """The rungs behind an image that was drawn ``attempts`` times: it was in every redraw until accepted."""
        return tuple(self.names[: attempts - 1])


class _Recorded:
    def __init__(self, rung: Rung, names: list[str]) -> None:
        self.name, self._rung, self._names = rung.name, rung, names
        self.steers = getattr(rung, "steers", False)

    @contextmanager
    def attempt(self, redraw: Redraw) -> Iterator[BoundCall | None]:
        with self._rung.attempt(redraw) as call:
            if call is not None:
                self._names.append(self.name)
            yield call
