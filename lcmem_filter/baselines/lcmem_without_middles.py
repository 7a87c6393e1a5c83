"""What asking by a sample's middle adds: LCMem without it."""

from __future__ import annotations

from typing import Any

import torch

from ..shortlist import SHORTLIST
from .lcmem import LCMem


class LCMemWithoutMiddles(LCMem):
    """The filter's statistic where a sample asks as it is and upside down alone, as with heads that do not ask by
    middles; arguments as of ``LCMem``."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.shortlist = SHORTLIST

    def query(self, kept: torch.Tensor) -> torch.Tensor:
        return self.asked(kept).embedding.cpu()
