"""LCMem itself behind the baselines' protocol, whole and without its verifier."""

from __future__ import annotations

import math
import os

import torch

from ..described import LAID_OVER, Candidates, Parts, Query, describe_parts, parts_between
from ..head import LCMemHead
from ..shortlist import MARGINS, candidates_of_each
from ..verification import compare
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

    Of each image are kept its embedding, its latents, and every kind of parts that the head has for them.

    Attributes:
        by_place: Whether samples ask by their outlines, and latents are compared as they lie, too.
        by_middles: Whether samples ask by their middles, too.

    Args:
        head: As of ``OfHead``.
        space: Latent space of what asks, and of what ``embed`` is given.
        index_space: Of what is asked, which the same baseline of that ``space`` kept; ``space`` by default.
    """

    def __init__(
        self,
        head: LCMemHead | str | os.PathLike[str] = "lcmem-small",
        space: str = "sd",
        index_space: str | None = None,
    ) -> None:
        super().__init__(head, space)
        self.index_space = index_space or space
        self.kind: Parts = parts_between(self.head, space, self.index_space) or "latents"
        self.by_place = self.index_space == space and self.kind in LAID_OVER
        self.by_middles = bool(self.head.config.middles)
        self._last: tuple[torch.Tensor, Query] | None = None

    @property
    def shortlist(self) -> int:
        """Candidates of each way of asking."""
        return candidates_of_each(2 + len(MARGINS) * self.by_middles + self.by_place)

    @torch.inference_mode()
    def embed(self, images: torch.Tensor) -> torch.Tensor:
        canonical = self.head.canonical(images.to(self.head.device), self.space)
        kept = [self.head.embed(canonical, self.space)]
        for kind in self._shapes(self.space):
            kept.append(describe_parts(self.head, canonical, self.space, kind).flatten(1))
        return torch.cat(kept, 1).cpu()

    def key(self, kept: torch.Tensor) -> torch.Tensor:
        return kept[:, : self.head.embedding_dim]

    def query(self, kept: torch.Tensor) -> torch.Tensor:
        """As they are, upside down, and with some heads their middles: (W, B, E)."""
        asked = self.asked(kept)
        return (asked.asking if self.by_middles else asked.embedding).cpu()

    def latents(self, kept: torch.Tensor) -> torch.Tensor:
        """Those (B, C, g, g) of what was kept (B, D) of images of ``space``, on the CPU."""
        return self.parts(kept, self.space, "latents").cpu()

    def similarity(self, queries: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
        return compare(self.asked(queries), self.candidates(stored)).score.cpu()

    def asked(self, kept: torch.Tensor) -> Query:
        """What was kept (B, D) of samples, ready to be compared; that of the same tensor is not described twice."""
        if self._last is None or self._last[0] is not kept:
            latents = self.parts(kept, self.space, "latents")
            self._last = kept, Query.of(self.head, latents, self.space, self.kind)
        return self._last[1]

    def told(self, kept: torch.Tensor, identities: torch.Tensor) -> torch.Tensor:
        """What was kept (N, D) of training images, with the identity of each (N,), a number between -2^24 and 2^24, as
        an index has it."""
        return torch.cat([kept, identities[:, None].to(kept)], 1)

    def candidates(self, kept: torch.Tensor) -> Candidates:
        """What was kept (B, K, D) of training images, ready to be compared."""
        embedding = kept[..., : self.head.embedding_dim].to(self.head.device)
        told = kept.shape[-1] > self._size(self.index_space)
        identities = kept[..., -1].long().to(embedding.device) if told else None
        latents = self.parts(kept, self.index_space, "latents") if self.by_place else None
        return Candidates(embedding, self.parts(kept, self.index_space, self.kind), identities, latents)

    def parts(self, kept: torch.Tensor, space: str, kind: Parts) -> torch.Tensor:
        """Latents, tokens or descriptors of what was kept (..., D) of images of ``space``."""
        first = self.head.embedding_dim
        for name, shape in self._shapes(space).items():
            size = math.prod(shape)
            if name == kind:
                return kept[..., first : first + size].unflatten(-1, shape).to(self.head.device)
            first += size
        raise ValueError(f"no {kind} were kept of latent space {space!r}")

    def _size(self, space: str) -> int:
        """Numbers that are kept of an image."""
        return self.head.embedding_dim + sum(math.prod(shape) for shape in self._shapes(space).values())

    def _shapes(self, space: str) -> dict[Parts, tuple[int, ...]]:
        """Of latents and the parts that the head describes, in the order in which they are kept."""
        head = self.head
        shapes: dict[Parts, tuple[int, ...]] = {
            "latents": (int(head.config.spaces[space]), head.grid, head.grid)
        }
        if head.has_tokens:
            shapes["tokens"] = (head.token_side**2, int(head.config.token_dim))
        if head.has_descriptors(space):
            kind = parts_between(head, space, space)
            assert kind is not None
            shapes[kind] = (int(head.config.match_dim), head.grid, head.grid)
        return shapes
