"""What samples and training images are compared by: embeddings, parts, and latents as they lie."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch

from .head import LCMemHead
from .latents import check_latents
from .shortlist import middles

DESCRIBED_AT_ONCE = 16
"""Training images that are described at once, always so many: what rounding makes of one then depends on no others."""

Parts: TypeAlias = Literal["descriptors", "deformed descriptors", "tokens", "latents"]
"""What pictures are compared by, beside their embeddings: descriptors of every cell under warps, deformed too with some
heads, tokens wherever they lie, or, with a head that has neither, aligned latents."""

LAID_OVER = ("descriptors", "deformed descriptors")
"""The kinds of parts that are laid over each other."""


@dataclass(frozen=True, slots=True)
class Query:
    """Samples as they are and upside down, described by a head.

    Attributes:
        embedding: (2, B, D), unit norm.
        parts: (2, B, ...) as of ``describe_parts``; ``None`` where embeddings alone decide.
        kind: What ``parts`` are.
        same_identity, embedding_weight: As of ``LCMemHead``.
        middles: (M, B, D): embeddings of the samples' ``middles``, which propose candidates and are not compared; none
            with heads that do not ask by them (``LCMemHead``), and where embeddings alone decide.
        latents: (B, C, g, g), canonical, where ``kind`` is ``LAID_OVER``.
    """

    embedding: torch.Tensor
    parts: torch.Tensor | None
    kind: Parts | None
    same_identity: float = 0.0
    embedding_weight: float = 0.0
    middles: torch.Tensor | None = None
    latents: torch.Tensor | None = None

    @property
    def asking(self) -> torch.Tensor:
        """All embeddings that propose candidates, (W, B, D)."""
        return self.embedding if self.middles is None else torch.cat([self.embedding, self.middles])

    @classmethod
    def of(cls, head: LCMemHead, canonical: torch.Tensor, space: str, kind: Parts | None) -> Query:
        """Describe canonical latents (B, C, g, g) of ``space``."""
        if space in head.spaces:
            check_latents(canonical, int(head.config.spaces[space]), space)
        poses = torch.stack([canonical, canonical.flip(-2)])
        asking = poses
        if kind and head.config.middles:
            asking = torch.cat([poses, middles(canonical)])
        described = head.describe(asking.flatten(0, 1), space)
        embedding, of_middles = described.embedding.unflatten(0, asking.shape[:2]).tensor_split([2])
        if kind == "tokens" and described.tokens is not None:
            tokens = described.tokens.unflatten(0, asking.shape[:2])[:2]
            return cls(embedding, tokens, kind, middles=of_middles)
        parts = describe_parts(head, poses, space, kind) if kind else None
        told = float(head.config.same_identity), float(head.config.embedding_weight)
        return cls(embedding, parts, kind, *told, of_middles, canonical if kind in LAID_OVER else None)

    def of_rows(self, rows: slice | torch.Tensor) -> Query:
        """Some of the samples."""
        parts, of_middles = (None if one is None else one[:, rows] for one in (self.parts, self.middles))
        latents = None if self.latents is None else self.latents[rows]
        return replace(
            self, embedding=self.embedding[:, rows], parts=parts, middles=of_middles, latents=latents
        )


@dataclass(frozen=True, slots=True)
class Candidates:
    """What each of B samples is compared with.

    Attributes:
        embedding: (B, K, D), unit norm.
        parts: (B, K, ...) as of ``describe_parts``; ``None`` where embeddings alone decide.
        identities: (B, K) integers, equal for images of one identity; negative where it is not known, which may be
            concluded then (``Query.same_identity``), and ``None`` where none is known.
        latents: (B, K, C, g, g), canonical, in the samples' latent space; ``None`` where they are in another one, or
            not kept.
    """

    embedding: torch.Tensor
    parts: torch.Tensor | None
    identities: torch.Tensor | None = None
    latents: torch.Tensor | None = None

    def of_rows(self, rows: slice) -> Candidates:
        """Those of some of the samples."""
        optional = (self.parts, self.identities, self.latents)
        return Candidates(self.embedding[rows], *(None if one is None else one[rows] for one in optional))


def parts_between(head: LCMemHead, space: str, index_space: str, *, laid_over: bool = True) -> Parts | None:
    """What samples of ``space`` are compared with training images of ``index_space`` by; ``None``: embeddings alone.

    Args:
        laid_over: Whether they are laid over each other where the head has descriptors of both; if not, they are
            compared by its tokens, or else by embeddings alone.
    """
    described = head.has_descriptors(space) and head.has_descriptors(index_space)
    if laid_over and described:
        return "deformed descriptors" if head.config.match_deformed else "descriptors"
    if head.has_tokens:
        return "tokens"
    return "latents" if space == index_space and not described else None


def describe_parts(head: LCMemHead, canonical: torch.Tensor, space: str, kind: Parts) -> torch.Tensor:
    """Canonical latents (..., C, g, g) to descriptors (..., E, g, g), tokens (..., T, E), or latents as they are."""
    if kind == "latents":
        return canonical
    flat = canonical.flatten(0, -4)
    parts = head.descriptors(flat, space) if kind in LAID_OVER else head.describe(flat, space).tokens
    assert parts is not None
    return parts.unflatten(0, canonical.shape[:-3])


def describe_each(head: LCMemHead, canonical: torch.Tensor, space: str, kind: Parts) -> torch.Tensor:
    """As ``describe_parts`` of (n, C, g, g), each picture's to the last bit whichever others it is described with."""
    missing = -len(canonical) % DESCRIBED_AT_ONCE
    filled = torch.cat([canonical, canonical[-1:].expand(missing, -1, -1, -1)])
    parts = [describe_parts(head, one, space, kind) for one in filled.split(DESCRIBED_AT_ONCE)]
    return torch.cat(parts)[: len(canonical)]
