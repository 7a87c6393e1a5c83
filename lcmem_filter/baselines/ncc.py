"""Normalised cross-correlation of pixels."""

from __future__ import annotations

import torch

from .common import Cosine, small, unit
from .registry import Sees


class CrossCorrelation(Cosine):
    """Pearson correlation, in [-1, 1], of pictures shrunk to ``side`` px, each channel less its own mean."""

    sees: Sees = "pixel"

    def __init__(self, side: int = 64) -> None:
        self.side = side

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        pixels = small(images, self.side)
        return unit(pixels - pixels.mean((2, 3), keepdim=True))
