"""What asking the index by a sample's middle adds: LCMem without it."""

from __future__ import annotations

from typing import Any

from .lcmem import LCMem


class LCMemWithoutMiddles(LCMem):
    """The filter's statistic where a sample does not ask by its middles, as with heads that do not; arguments as of
    ``LCMem``."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.by_middles = False
