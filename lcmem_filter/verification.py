"""Second opinion on the head's shortlist: as a whole and part by part, under every crop and turn; one score."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .alignment import aligned_similarity, crops
from .errors import FilterFailedError
from .head import LCMemHead
from .index import MemorizationIndex
from .latents import normalise
from .types import Neighbour

SHORTLIST = 25
"""Candidates that the head proposes, for a sample as it is and again for it upside down."""

CROPPED = 8
"""The best of them, among which the right image of a heavily transformed copy mostly is, are compared as a few crops;
the best of those then under every crop and turn."""

EMBEDDING_WEIGHT = 0.4
"""Of the embeddings' cosine in the likeness of two pictures; their parts have the rest."""

BACKGROUND = slice(2, 10)
"""Ranks whose mean likeness is a sample's background: beyond further images of the identity, near enough to be like
it."""

CROPPED_BACKGROUND = slice(2, CROPPED)
"""The same among the candidates that were cropped and turned, which makes all of them more alike."""

MOST_BACKGROUND = 0.85
"""Cap of the background, for repetitions that are not recognised as such."""

RUNNER_UP_WEIGHT = 0.3
"""Of how far a candidate stands out from the next best one; how far from the background has the rest."""

UNDUE = 0.5
"""How much is taken off where a sample upside down is more like a candidate than the candidate upside down is like the
sample. Heads know few pictures upside down, and to them all such look alike."""

SAME_IMAGE = 0.97
"""Cosine of stored embeddings from which one image is a repetition of the other."""

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

    def row(self, row: int) -> Query:
        """One sample alone."""
        which = slice(row, row + 1)
        tokens = None if self.tokens is None else self.tokens[:, which]
        return Query(self.canonical[which], self.embedding[:, which], tokens)


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
    found = _Found.of(query, candidates)
    repeated = repeats(candidates.embedding).to(found.alike.device)
    plain = torch.stack([background_of(pose, repeated) for pose in found.alike])
    promise = _beyond(found.alike, plain).amax(0).masked_fill(repeated, -torch.inf)
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


def likeness(cosine: torch.Tensor, parts: torch.Tensor | None) -> torch.Tensor:
    """The mean, weighted by ``EMBEDDING_WEIGHT``, of the embeddings' cosine and of how alike the parts are."""
    alike = cosine if parts is None else EMBEDDING_WEIGHT * cosine + (1 - EMBEDDING_WEIGHT) * parts
    return alike.clamp_max(1)


def background_of(
    alike: torch.Tensor, repeated: torch.Tensor | None = None, ranks: slice = BACKGROUND
) -> torch.Tensor:
    """How alike a sample's further neighbours are in the mean, so that one threshold fits both domains whose images
    resemble each other and domains whose images do not (after the score normalisation of SSCD, Pizzi et al., arXiv
    2202.10261, and the ratio of distances of Carlini et al., arXiv 2301.13188).

    Args:
        alike: (B, K), at most 1.
        repeated: (B, K) booleans: what is no background since it repeats another candidate.
        ranks: Which neighbours count, the most alike being 0.

    Returns:
        (B, 1); 0 where nothing is left for a background, in an index of a few images.
    """
    different = alike if repeated is None else alike.masked_fill(repeated, -torch.inf)
    ordered = different.sort(dim=1, descending=True)[0][:, ranks]
    counted = ordered.isfinite()
    return ordered.where(counted, 0).sum(1, keepdim=True) / counted.sum(1, keepdim=True).clamp_min(1)


def stand_out(
    alike: torch.Tensor, background: torch.Tensor, repeated: torch.Tensor | None = None
) -> torch.Tensor:
    """How far candidates stand out from the background and from the next best one, (B, K); 1 for an exact copy.

    Both are (s - b) / (1 - b), the distance covered from b to 1; their mean is weighted by ``RUNNER_UP_WEIGHT``. What
    repeats a candidate is not its runner-up.

    Args:
        alike: (B, K), at most 1.
        background: (B, 1).
        repeated: (B, K) booleans, as of ``background_of``.
    """
    different = alike if repeated is None else alike.masked_fill(repeated, -torch.inf)
    first, second = (F.pad(different, (0, 1), value=0.0).topk(2, 1).values.clamp_min(0)).split(1, 1)
    at_the_top = alike >= first if repeated is None else (alike >= first) | repeated
    runner_up = torch.where(at_the_top, second, first)
    return (1 - RUNNER_UP_WEIGHT) * _beyond(alike, background) + RUNNER_UP_WEIGHT * _beyond(alike, runner_up)


def relative_similarity(similarity: torch.Tensor, repeated: torch.Tensor | None = None) -> torch.Tensor:
    """How far each candidate stands out from the sample's background alone: (s - b) / (1 - b), 1 for an exact copy.

    Args:
        similarity: (B, K), at most 1.
        repeated: (B, K) booleans, as of ``background_of``.
    """
    return _beyond(similarity, background_of(similarity, repeated))


def combine(
    cosine: torch.Tensor, parts: torch.Tensor | None, repeated: torch.Tensor | None = None
) -> torch.Tensor:
    """The statistic of ``compare`` without crops, turns and poses, for what has to be fast: (B, K), at most 1.

    Args:
        cosine: Of each sample's shortlist, (B, K).
        parts: How alike their parts are, (B, K), or ``None``.
        repeated: (B, K) booleans, as of ``background_of``.
    """
    alike = likeness(cosine, parts)
    return stand_out(alike, background_of(alike, repeated), repeated)


def compares_latents(index: MemorizationIndex, space: str) -> bool:
    """Whether samples of ``space`` get a second opinion, beside their embeddings."""
    return index.has_latents and (index.head.has_tokens or space == index.space)


def local_similarity(query: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """How well the parts of two pictures find each other: mean cosine of each token's best match, both ways.

    The late interaction of ColBERT (Khattab & Zaharia, arXiv 2004.12832) and the Chamfer similarity of ViSiL
    (Kordopatis-Zilos et al., arXiv 1908.07410), weighted by the tokens' norms. A part may lie anywhere in the other
    picture, so what was shifted, cropped or mirrored still matches.

    Args:
        query: (B, T, D) tokens.
        candidates: (B, K, T, D) of each query, or (1, K, T, D) that all queries are compared with.

    Returns:
        (B, K), in [-1, 1].
    """
    (b, t, d), k = query.shape, candidates.shape[1]
    our_weights, their_weights = query.square().sum(-1).sqrt(), candidates.square().sum(-1).sqrt()
    ours = query / our_weights.clamp_min(1e-12)[..., None]
    theirs = candidates / their_weights.clamp_min(1e-12)[..., None]
    if len(candidates) == 1:
        cosines = ours.reshape(b * t, d) @ theirs.reshape(k * t, d).T
    else:
        cosines = ours @ theirs.reshape(b, k * t, d).transpose(1, 2)
    cosines = cosines.reshape(b, t, k, t)
    ours_found = (cosines.amax(3) * our_weights[:, :, None]).sum(1) / our_weights.sum(1)[:, None]
    theirs_found = (cosines.amax(1) * their_weights).sum(2) / their_weights.sum(2)
    return (ours_found + theirs_found) / 2


def repeats(embeddings: torch.Tensor) -> torch.Tensor:
    """Which of each shortlist's unit-norm embeddings (B, K, D) repeat an earlier one; booleans (B, K).

    Images that stand in a training set many times over are those that models memorise. Their repetitions must not
    pass for a background that a copy fails to stand out from.
    """
    alike = torch.einsum("bkd,bjd->bkj", embeddings, embeddings) >= SAME_IMAGE
    return alike.tril(-1).any(2)


def _beyond(alike: torch.Tensor, background: torch.Tensor) -> torch.Tensor:
    background = background.clamp_max(MOST_BACKGROUND)
    return (alike - background) / (1 - background)


def _stored(index: MemorizationIndex, rows: torch.Tensor, space: str) -> Candidates:
    """What the index holds of ``rows`` (B, K)."""
    device = index.head.device
    embedding = index.embeddings(rows).to(device)
    if not compares_latents(index, space):
        return Candidates(embedding, None, None, index.space)
    latents = index.latents(rows).to(device)
    tokens = index.head.describe(latents.flatten(0, 1), index.space).tokens
    return Candidates(
        embedding, latents, None if tokens is None else tokens.unflatten(0, rows.shape), index.space
    )


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
