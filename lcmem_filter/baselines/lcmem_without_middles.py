"""What asking by a sample's middle adds: LCMem without it."""

from __future__ import annotations

import os

import torch

from ..head import LCMemHead
from ..shortlist import SHORTLIST
from .lcmem import LCMem


class LCMemWithoutMiddles(LCMem):
    """The filter's statistic where a sample asks as it is and upside down alone, as with heads that do not ask by
    middles; arguments as of ``LCMem``."""

    def __init__(
        self,
        head: LCMemHead | str | os.PathLike[str] = "lcmem-small",
        space: str = "sd",
        index_space: str | None = None,
    ) -> None:
        super().__init__(head, space, index_space)
        self.shortlist = SHORTLIST

    def query(self, kept: torch.Tensor) -> torch.Tensor:
        return self.asked(kept).embedding.cpu()
