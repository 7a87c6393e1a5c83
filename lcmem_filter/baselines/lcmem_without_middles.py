"""What asking by a sample's middle adds: LCMem without it."""

from __future__ import annotations

import torch

from .common import SHORTLIST
from .lcmem import LCMem


class LCMemWithoutMiddles(LCMem):
    """The filter's statistic of what the head proposes for samples as they are and upside down, and more of each;
    arguments as of ``LCMem``."""

    shortlist = SHORTLIST

    def query(self, kept: torch.Tensor) -> torch.Tensor:
        return self.asked(kept).embedding.cpu()
