"""Mean squared error of pixels."""

from __future__ import annotations

import torch

from .common import Euclidean, small
from .registry import Sees


class MeanSquaredError(Euclidean):
    """Negative mean squared error of pictures shrunk to ``side`` px, pixels in [0, 1].

    The nearest neighbour in pixel space is how copies of training images were first counted in diffusion models
    (Carlini et al., "Extracting Training Data from Diffusion Models", 2023).
    """

    sees: Sees = "pixel"

    def __init__(self, side: int = 64) -> None:
        self.side = side

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return small(images, self.side).flatten(1)
