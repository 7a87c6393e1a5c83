"""LCMem itself behind the baselines' protocol, whole and without its verifier."""

from __future__ import annotations

import os

import torch

from ..head import LCMemHead
from ..verification import SAME_IMAGE, SHORTLIST, combine
from .aligned_latents import aligned
from .common import Cosine
from .registry import Sees


class LCMemEmbedding(Cosine):
    """Cosine of the head's embeddings, in [-1, 1].

    Args:
        head: A head, its folder, or the name of one that ships.
        space: Latent space of the latents, as the head calls it.
    """

    sees: Sees = "normalised_latents"

    def __init__(self, head: LCMemHead | str | os.PathLike[str] = "lcmem-small", space: str = "sd") -> None:
        self.head = head if isinstance(head, LCMemHead) else LCMemHead.from_pretrained(head)
        self.space = space

    @torch.inference_mode()
    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return self.head.embed(images.to(self.head.device), self.space).cpu()


class LCMem:
    """The filter's whole statistic: the head proposes, cosine and aligned correlation of latents decide together.

    Args:
        head: As for ``LCMemEmbedding``.
        space: As for ``LCMemEmbedding``.
    """

    sees: Sees = "normalised_latents"
    shortlist = SHORTLIST

    def __init__(self, head: LCMemHead | str | os.PathLike[str] = "lcmem-small", space: str = "sd") -> None:
        self._embedding = LCMemEmbedding(head, space)
        self._size = self._embedding.head.embedding_dim
        self._channels = int(self._embedding.head.config.spaces[space])

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        canonical = self._embedding.head.canonical(images)
        return torch.cat([self._embedding.embed(images), canonical.flatten(1).cpu()], 1)

    def key(self, kept: torch.Tensor) -> torch.Tensor:
        return kept[:, : self._size]

    def query(self, kept: torch.Tensor) -> torch.Tensor:
        return kept[:, : self._size]

    def similarity(self, queries: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
        size = self._size
        embeddings = stored[..., :size]
        cosine = torch.einsum("bd,bkd->bk", queries[:, :size], embeddings)
        alike = torch.einsum("bkd,bjd->bkj", embeddings, embeddings) >= SAME_IMAGE
        repeated = alike.tril(-1).any(2)  # as verification.repeated finds it in an index
        return combine(cosine, aligned(queries[:, size:], stored[..., size:], self._channels), repeated)
