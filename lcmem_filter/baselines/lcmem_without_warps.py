"""What laying pictures over each other adds: LCMem without it."""

from __future__ import annotations

import torch

from ..shortlist import SHORTLIST
from ..standing import combine, local_similarity, repeats
from .aligned_latents import aligned
from .lcmem import OfHead


class LCMemWithoutWarps(OfHead):
    """The head proposes, pictures as a whole and part by part decide together, as they lie.

    Tokens are kept in place of latents, so that samples of one latent space find those of another. Arguments as of
    ``OfHead``.
    """

    shortlist = SHORTLIST

    @torch.inference_mode()
    def embed(self, images: torch.Tensor) -> torch.Tensor:
        images = images.to(self.head.device)
        described = self.head.describe(images, self.space)
        parts = self.head.canonical(images, self.space) if described.tokens is None else described.tokens
        return torch.cat([described.embedding.cpu(), parts.flatten(1).cpu()], 1)

    def key(self, kept: torch.Tensor) -> torch.Tensor:
        return kept[:, : self.head.embedding_dim]

    def query(self, kept: torch.Tensor) -> torch.Tensor:
        return self.key(kept)

    def similarity(self, queries: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
        size = self.head.embedding_dim
        embeddings = stored[..., :size]
        cosine = torch.einsum("bd,bkd->bk", queries[:, :size], embeddings)
        return combine(cosine, self._parts(queries[:, size:], stored[..., size:]), repeats(embeddings))

    def _parts(self, queries: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
        if not self.head.has_tokens:
            return aligned(queries, stored, int(self.head.config.spaces[self.space]))
        shape = (-1, int(self.head.config.token_dim))
        return local_similarity(queries.unflatten(-1, shape), stored.unflatten(-1, shape))
