"""LCMem itself behind the baselines' protocol, whole and without its verifier."""

from __future__ import annotations

import os

import torch

from ..head import LCMemHead
from ..verification import SHORTLIST, Candidates, Parts, Query, compare, describe_parts, parts_between
from .common import Cosine
from .registry import Sees


class OfHead:
    """What a head says of latents.

    Args:
        head: A head, its folder, or the name of one that ships.
        space: Latent space of the latents, as the head calls it.
    """

    sees: Sees = "normalised_latents"

    def __init__(self, head: LCMemHead | str | os.PathLike[str] = "lcmem-small", space: str = "sd") -> None:
        self.head = head if isinstance(head, LCMemHead) else LCMemHead.from_pretrained(head)
        self.space = space


class LCMemEmbedding(OfHead, Cosine):
    """Cosine of the head's embeddings, in [-1, 1]; arguments as of ``OfHead``."""

    @torch.inference_mode()
    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return self.head.embed(images.to(self.head.device), self.space).cpu()


class LCMem(OfHead):
    """The filter's whole statistic: the head proposes, then what it proposed is laid over the sample.

    Arguments as of ``OfHead``.
    """

    shortlist = SHORTLIST

    @torch.inference_mode()
    def embed(self, images: torch.Tensor) -> torch.Tensor:
        canonical = self.head.canonical(images.to(self.head.device))
        embedding = self.head.embed(canonical, self.space)
        return torch.cat([embedding, canonical.flatten(1)], 1).cpu()

    def key(self, kept: torch.Tensor) -> torch.Tensor:
        return kept[:, : self.head.embedding_dim]

    def query(self, kept: torch.Tensor) -> torch.Tensor:
        """Upright and upside down: (2, B, E)."""
        return self._asked(kept).embedding.cpu()

    def similarity(self, queries: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
        embedding = stored[..., : self.head.embedding_dim].to(self.head.device)
        parts = describe_parts(self.head, self._latents(stored), self.space, self._kind)
        return compare(self._asked(queries), Candidates(embedding, parts)).score.cpu()

    @property
    def _kind(self) -> Parts:
        return parts_between(self.head, self.space, self.space) or "latents"

    def _asked(self, kept: torch.Tensor) -> Query:
        return Query.of(self.head, self._latents(kept), self.space, self._kind)

    def _latents(self, kept: torch.Tensor) -> torch.Tensor:
        side = self.head.grid
        return kept[..., self.head.embedding_dim :].unflatten(-1, (-1, side, side)).to(self.head.device)
