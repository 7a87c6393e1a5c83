"""Normalised latents with the package's verifier, but without a head."""

from __future__ import annotations

import torch

from ..alignment import aligned_similarity
from ..shortlist import SHORTLIST
from .common import unit
from .registry import Sees


class AlignedLatents:
    """Raw latents propose, their correlation over small alignments decides; in [-1, 1]. No training.

    What LCMem's head adds to the filter is what it adds to this.

    Args:
        channels: Of the latent space.
    """

    sees: Sees = "normalised_latents"
    shortlist = SHORTLIST

    def __init__(self, channels: int = 4) -> None:
        self.channels = channels

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).float().cpu()

    def key(self, kept: torch.Tensor) -> torch.Tensor:
        return unit(kept)

    def query(self, kept: torch.Tensor) -> torch.Tensor:
        return unit(kept)

    def similarity(self, queries: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
        return aligned(queries, stored, self.channels)


def aligned(queries: torch.Tensor, stored: torch.Tensor, channels: int) -> torch.Tensor:
    """``aligned_similarity`` (B, K) of flattened canonical latents (B, D) and (B, K, D)."""
    side = round((queries.shape[1] / channels) ** 0.5)
    shape = (channels, side, side)
    return torch.stack(
        [
            aligned_similarity(one.reshape(shape), candidates.reshape(-1, *shape))
            for one, candidates in zip(queries, stored, strict=True)
        ]
    )
