"""Any baseline with its similarities normalised by the query's background."""

from __future__ import annotations

import torch

from ..shortlist import SHORTLIST
from ..standing import relative_similarity
from .registry import Baseline


class Relative:
    """Another baseline's similarities, each relative to its query's background (``standing.relative_similarity``).

    What normalisation by background neighbours adds to a baseline, and the fair rival of LCMem, which has it too.

    Args:
        baseline: One whose similarities are at most 1.
    """

    def __init__(self, baseline: Baseline) -> None:
        self.baseline = baseline
        self.sees = baseline.sees
        self.shortlist = max(baseline.shortlist, SHORTLIST)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return self.baseline.embed(images)

    def key(self, kept: torch.Tensor) -> torch.Tensor:
        return self.baseline.key(kept)

    def query(self, kept: torch.Tensor) -> torch.Tensor:
        return self.baseline.query(kept)

    def similarity(self, queries: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
        return relative_similarity(self.baseline.similarity(queries, stored))
