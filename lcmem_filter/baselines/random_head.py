"""A head with random weights: what its architecture does before any training."""

from __future__ import annotations

import torch

from ..head import LCMemHead, Size
from .lcmem import LCMemEmbedding


class RandomHead(LCMemEmbedding):
    """Cosine of the embeddings of an untrained head, in [-1, 1].

    Args:
        seed: Of the weights.
        size: Of the head.
        channels: Of the latent space.
    """

    def __init__(self, seed: int = 0, size: Size = "small", channels: int = 4) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = LCMemHead.create(size, {"sd": channels})
        super().__init__(head)
