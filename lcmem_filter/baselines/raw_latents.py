"""Normalised latents as they are."""

from __future__ import annotations

import torch

from .common import Cosine, unit
from .registry import Sees


class RawLatents(Cosine):
    """Correlation, in [-1, 1], of canonical latents, per channel and averaged. No training, no parameters."""

    sees: Sees = "normalised_latents"

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return unit(images)
