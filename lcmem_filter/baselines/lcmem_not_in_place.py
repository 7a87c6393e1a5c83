"""What comparing latents as they lie adds: LCMem without it."""

from __future__ import annotations

from typing import Any

from .lcmem import LCMem


class LCMemNotInPlace(LCMem):
    """The filter's statistic by embeddings and descriptors alone, as between two latent spaces; arguments as of
    ``LCMem``."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.by_place = False
