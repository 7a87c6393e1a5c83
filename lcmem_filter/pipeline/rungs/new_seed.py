"""Draw again from another seed, all else as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..rows import BoundCall
from . import Redraw


class NewSeed:
    """Enough where only some seeds give the training image; costs nothing more."""

    name = "new_seed"

    @contextmanager
    def attempt(self, redraw: Redraw) -> Iterator[BoundCall]:
        yield redraw.call
