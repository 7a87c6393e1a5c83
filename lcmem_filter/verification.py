"""Second opinion on the head's shortlist: candidates are compared as they lie, cropped, turned and upside down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .alignment import aligned_similarity, crops
from .errors import FilterFailedError
from .head import LCMemHead
from .index import MemorizationIndex
from .latents import normalise
from .standing import background_of, beyond, likeness, local_similarity, repeats, stand_out
from .types import Neighbour

SHORTLIST = 25
"""Candidates that the head proposes, for a sample as it is and again for it upside down."""

CROPPED = 8
"""The best of them, among which the right image of a heavily transformed copy mostly is, are compared as a few crops;
the best of those then under every crop and turn."""

CROPPED_BACKGROUND = slice(2, CROPPED)
"""Ranks whose mean likeness is the background among the candidates that were cropped, which makes all more alike."""

UNDUE = 0.5
"""How much is taken off where a sample upside down is more like a candidate than the candidate upside down is like the
sample. Heads know few pictures upside down, and to them all such look alike."""

AT_ONCE = 8
"""Samples that are compared at once: more would not fit a processor's cache."""

STATISTIC = "likeness under crops, turns and upside down, beyond background and runner-up"
"""Names the formula of ``compare``; change it with the formula, and thresholds set by the old one are refused."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A sample's largest statistic over the index, and the training images that are most alike."""

    score: float
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True, slots=True)
class Query:
    """Samples as they are and upside down, described by a head.

    Attributes:
        canonical: (B, C, g, g).
        embedding: (2, B, D), unit norm.
        tokens: (2, B, T, E), or ``None`` from a head without.
    """

    canonical: torch.Tensor
    embedding: torch.Tensor
    tokens: torch.Tensor | None

    @classmethod
    def of(cls, head: LCMemHead, canonical: torch.Tensor, space: str) -> Query:
        """Describe canonical latents (B, C, g, g) of ``space``."""
        described = head.describe(torch.cat([canonical, canonical.flip(-2)]), space)
        poses = (2, len(canonical))
        tokens = described.tokens
        return cls(
            canonical,
            described.embedding.unflatten(0, poses),
            None if tokens is None else tokens.unflatten(0, poses),
        )

    def of_rows(self, rows: slice) -> Query:
        """Some of the samples."""
        tokens = None if self.tokens is None else self.tokens[:, rows]
        return Query(self.canonical[rows], self.embedding[:, rows], tokens)


@dataclass(frozen=True, slots=True)
class Candidates:
    """What each of B samples is compared with.

    Attributes:
        embedding: (B, K, D), unit norm.
        latents: (B, K, C, g, g), canonical; ``None`` where there are none to compare, then embeddings alone decide.
        tokens: (B, K, T, E) of the same; ``None`` from a head without.
        space: Latent space of ``latents``.
    """

    embedding: torch.Tensor
    latents: torch.Tensor | None
    tokens: torch.Tensor | None
    space: str

    @classmethod
    def of(cls, head: LCMemHead, embedding: torch.Tensor, latents: torch.Tensor, space: str) -> Candidates:
        """Describe canonical ``latents`` (B, K, C, g, g) of ``space``, whose embeddings are known."""
        parts = [head.describe(some, space).tokens for some in latents]
        tokens = [part for part in parts if part is not None]
        return cls(embedding, latents, torch.stack(tokens) if tokens else None, space)

    def of_rows(self, rows: slice) -> Candidates:
        """Those of some of the samples."""
        latents = None if self.latents is None else self.latents[rows]
        tokens = None if self.tokens is None else self.tokens[rows]
        return Candidates(self.embedding[rows], latents, tokens, self.space)


@dataclass(frozen=True, slots=True)
class Compared:
    """What ``compare`` finds of each candidate, (B, K).

    Attributes:
        score: The statistic that is calibrated; at most 1, which an exact copy has.
        cosine: Of the embeddings, in [-1, 1], at its best over crops, turns and upside down.
        parts: How alike their parts are, in [-1, 1], at its best; ``None`` where only embeddings were compared.
    """

    score: torch.Tensor
    cosine: torch.Tensor
    parts: torch.Tensor | None

    @classmethod
    def of(cls, compared: Sequence[Compared]) -> Compared:
        """Of further samples each, together."""
        parts = [one.parts for one in compared if one.parts is not None]
        return cls(
            torch.cat([one.score for one in compared]),
            torch.cat([one.cosine for one in compared]),
            torch.cat(parts) if parts else None,
        )


@torch.inference_mode()
def score_latents(index: MemorizationIndex, latents: torch.Tensor, space: str) -> list[Scored]:
    """Embed, search, verify.

    Args:
        latents: (B, C, h, w) of latent space ``space``, of any positive per-channel scale and any shift.

    Returns:
        One for each row; neighbours are sorted by the statistic, most alike first.

    Raises:
        FilterFailedError: latents are not finite, or have no contrast that could be compared.
        LatentSpaceError: the head has no stem for ``space``, or latents of another shape.
    """
    _check(latents)
    with torch.autocast(latents.device.type, enabled=False):  # another precision is another threshold
        query = Query.of(index.head, index.head.canonical(latents), space)
        rows = torch.cat([index.search(pose, SHORTLIST).rows for pose in query.embedding], 1)
        compared = compare(index.head, query, _stored(index, rows, space))
    if not torch.isfinite(compared.score).all():
        raise FilterFailedError("a sample's score is not finite; no image is returned")
    return [_scored(index, row, rows, compared) for row in range(len(latents))]


@torch.inference_mode()
def compare(head: LCMemHead, query: Query, candidates: Candidates) -> Compared:
    """How far each candidate stands out, for samples that may be crops of it, turned, or upside down.

    A sample and a candidate are as alike as they are at best: over poses of the sample, for the ``CROPPED`` most
    promising candidates also over a few crops of the candidate, for the first of them over all ``alignment.crops``.

    Args:
        query: B samples.
        candidates: K of each.
    """
    count = query.canonical.shape[0]
    if count > AT_ONCE:
        some = [slice(first, first + AT_ONCE) for first in range(0, count, AT_ONCE)]
        return Compared.of([compare(head, query.of_rows(rows), candidates.of_rows(rows)) for rows in some])
    found = _Found.of(query, candidates)
    repeated = repeats(candidates.embedding).to(found.alike.device)
    plain = torch.stack([background_of(pose, repeated) for pose in found.alike])
    promise = beyond(found.alike, plain).amax(0).masked_fill(repeated, -torch.inf)
    best = promise.topk(min(CROPPED, promise.shape[1]), 1).indices
    if candidates.latents is not None:
        found.look_upside_down(head, best)
        found.look_closer(head, best, few=True)
    alike = found.alike.amax(0)
    cropped = background_of(alike.gather(1, best), repeated.gather(1, best), CROPPED_BACKGROUND)
    if candidates.latents is not None:
        first = alike.gather(1, best).argmax(1, keepdim=True)
        found.look_closer(head, best.gather(1, first))
    score = stand_out(found.alike.amax(0), (plain.amax(0) + cropped) / 2, repeated)
    return Compared(score, found.cosine.amax(0), None if found.parts is None else found.parts.amax(0))


def compares_latents(index: MemorizationIndex, space: str) -> bool:
    """Whether samples of ``space`` get a second opinion, beside their embeddings."""
    return index.has_latents and (index.head.has_tokens or space == index.space)


def _stored(index: MemorizationIndex, rows: torch.Tensor, space: str) -> Candidates:
    """What the index holds of ``rows`` (B, K)."""
    device = index.head.device
    embedding = index.embeddings(rows).to(device)
    if not compares_latents(index, space):
        return Candidates(embedding, None, None, index.space)
    latents = index.latents(rows).to(device)
    return Candidates.of(index.head, embedding, latents, index.space)


@dataclass(slots=True)
class _Found:
    """What is known so far of each pose and candidate, (2, B, K); ``undue`` is taken off what is found upside down."""

    query: Query
    candidates: Candidates
    cosine: torch.Tensor
    parts: torch.Tensor | None
    alike: torch.Tensor
    undue: torch.Tensor

    @classmethod
    def of(cls, query: Query, candidates: Candidates) -> _Found:
        cosine = torch.einsum("pbd,bkd->pbk", query.embedding, candidates.embedding).clamp(-1, 1)
        parts = _parts(query, candidates)
        alike = likeness(cosine, parts)
        return cls(query, candidates, cosine, parts, alike, torch.zeros_like(alike))

    def look_upside_down(self, head: LCMemHead, chosen: torch.Tensor) -> None:
        """Compare each sample with its candidates ``chosen`` (B, k) as they lie upside down; see ``UNDUE``."""
        lying = normalise(self._latents(chosen).flip(-2))
        alike = self._seen(head, chosen, lying[:, :, None])[2][0, ..., 0]
        undue = UNDUE * (self.alike[1].gather(1, chosen) - alike).clamp_min(0)
        self.undue[1].scatter_(1, chosen, undue)
        self.alike -= self.undue

    def look_closer(self, head: LCMemHead, chosen: torch.Tensor, few: bool = False) -> None:
        """Compare each sample with crops of its candidates ``chosen`` (B, k), and keep what is best."""
        latents = self._latents(chosen)
        views = crops(latents.flatten(0, 1), few).unflatten(0, latents.shape[:2])
        cosine, parts, alike = (seen.amax(3) for seen in self._seen(head, chosen, views))
        poses = chosen.expand(2, -1, -1)
        alike = alike - self.undue.gather(2, poses)
        self.alike.scatter_reduce_(2, poses, alike, "amax")
        self.cosine.scatter_reduce_(2, poses, cosine, "amax")
        if self.parts is not None:
            self.parts.scatter_reduce_(2, poses, parts, "amax")

    def _latents(self, chosen: torch.Tensor) -> torch.Tensor:
        assert self.candidates.latents is not None
        rows = torch.arange(len(chosen), device=chosen.device)[:, None]
        return self.candidates.latents[rows, chosen]

    def _seen(
        self, head: LCMemHead, chosen: torch.Tensor, views: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Cosine, parts and likeness of samples and ``views`` (B, k, V, C, g, g) of candidates, each (2, B, k, V)."""
        assert self.parts is not None
        shape = views.shape[:3]
        described = head.describe(views.flatten(0, 2), self.candidates.space)
        embedding = described.embedding.unflatten(0, (shape[0], -1))
        cosine = torch.einsum("pbd,bnd->pbn", self.query.embedding, embedding).clamp(-1, 1)
        cosine = cosine.unflatten(2, shape[1:])
        if self.query.tokens is None or described.tokens is None:
            parts = self.parts.gather(2, chosen.expand(2, -1, -1))[..., None].expand_as(cosine)
        else:
            tokens = described.tokens.unflatten(0, (shape[0], -1))
            poses = [local_similarity(pose, tokens) for pose in self.query.tokens]
            parts = torch.stack(poses).unflatten(2, shape[1:])
        return cosine, parts, likeness(cosine, parts)


def _parts(query: Query, candidates: Candidates) -> torch.Tensor | None:
    """How alike the parts of each pose and candidate are, (2, B, K); of a head without tokens, aligned latents."""
    if query.tokens is not None and candidates.tokens is not None:
        return torch.stack([local_similarity(pose, candidates.tokens) for pose in query.tokens])
    if candidates.latents is None:
        return None
    poses = (query.canonical, query.canonical.flip(-2))
    return torch.stack(
        [
            torch.stack([aligned_similarity(c, s) for c, s in zip(pose, candidates.latents, strict=True)])
            for pose in poses
        ]
    )


def _check(latents: torch.Tensor) -> None:
    if not torch.isfinite(latents).all():
        raise FilterFailedError(
            "the latents hold NaN or infinity, so they cannot be judged and no image is returned; "
            "look for an overflow in half precision, or a scheduler setting"
        )
    if latents.numel() and (latents.float().flatten(1).std(1) == 0).any():
        raise FilterFailedError("a latent is constant, so it cannot be judged; no image is returned")


def _scored(index: MemorizationIndex, row: int, rows: torch.Tensor, compared: Compared) -> Scored:
    """Sample ``row``; a training image that both poses proposed counts once."""
    order = compared.score[row].argsort(descending=True, stable=True).tolist()
    first = {int(rows[row, i]): i for i in reversed(order)}
    neighbours = tuple(
        Neighbour(
            index.records[int(rows[row, i])].id,
            float(compared.score[row, i]),
            float(compared.cosine[row, i]),
            None if compared.parts is None else float(compared.parts[row, i]),
        )
        for i in order
        if first[int(rows[row, i])] == i
    )
    return Scored(neighbours[0].score, neighbours)
