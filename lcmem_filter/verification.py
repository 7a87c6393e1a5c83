"""Second opinion on the head's shortlist: latents part by part; both statistics make one score."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .errors import FilterFailedError
from .index import MemorizationIndex
from .latents import NORMALISED_STD, normalise
from .types import Neighbour

SHORTLIST = 50
"""Candidates that the head proposes; the right image of a copy is almost always among the first ten."""

BACKGROUND = slice(2, 10)
"""Ranks whose mean similarity is a sample's background: beyond further images of the identity, near enough to be like
it."""

MOST_BACKGROUND = 0.85
"""Cap of the background, for repetitions that are not recognised as such."""

SAME_IMAGE = 0.97
"""Cosine of stored embeddings from which one image is a repetition of the other."""

STATISTIC = "mean of cosine and parts, each relative to ranks 3 to 10"
"""Names the formula of ``combine``; change it with the formula, and thresholds set by the old one are refused."""

ZOOMS = (1.0, 0.97, 0.94)
TURNS = (-4.0, -2.0, 0.0, 2.0, 4.0)
SHIFTS = (-0.06, 0.0, 0.06)
"""Alignments that are tried: 2 flips x 3 zooms x 5 turns (degrees) x 3 x 3 shifts (the picture is 2 wide)."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A sample's largest statistic over the index, and the training images that are most alike."""

    score: float
    neighbours: tuple[Neighbour, ...]


@torch.inference_mode()
def score_latents(index: MemorizationIndex, latents: torch.Tensor, space: str) -> list[Scored]:
    """Embed, search, verify.

    Args:
        latents: (B, C, h, w) of latent space ``space``, of any positive per-channel scale and any shift.

    Returns:
        One for each row; neighbours are sorted by the combined statistic, most alike first.

    Raises:
        FilterFailedError: latents are not finite, or have no contrast that could be compared.
        LatentSpaceError: the head has no stem for ``space``, or latents of another shape.
    """
    _check(latents)
    with torch.autocast(latents.device.type, enabled=False):  # another precision is another threshold
        canonical = index.head.canonical(latents)
        described = index.head.describe(canonical, space)
        hits = index.search(described.embedding, SHORTLIST)
        verified = verify(index, canonical, described.tokens, hits.rows, space)
        combined = combine(hits.similarity, verified, repeated(index, hits.rows))
    if not torch.isfinite(combined).all():
        raise FilterFailedError("a sample's score is not finite; no image is returned")
    return [
        _scored(index, row, hits.rows, combined, hits.similarity, verified) for row in range(len(latents))
    ]


@torch.inference_mode()
def verify(
    index: MemorizationIndex,
    canonical: torch.Tensor,
    tokens: torch.Tensor | None,
    rows: torch.Tensor,
    space: str,
) -> torch.Tensor | None:
    """The second statistic: samples compared part by part with the stored latents of ``rows``.

    A head with tokens compares those, in whatever latent space either was encoded; another compares the latents
    themselves, aligned, where both are of one space.

    Args:
        canonical: (B, C, g, g) of ``space``.
        tokens: (B, T, D) of the same, or ``None``; see ``head.Description``.
        rows: (B, K) of the index.

    Returns:
        (B, K), at most 1; ``None`` where nothing can be compared.
    """
    if not compares_latents(index, space):
        return None
    stored = index.latents(rows).to(canonical.device)
    if tokens is None:
        return torch.stack([aligned_similarity(c, s) for c, s in zip(canonical, stored, strict=True)])
    theirs = index.head.describe(stored.flatten(0, 1), index.space).tokens
    assert theirs is not None
    return local_similarity(tokens, theirs.unflatten(0, stored.shape[:2]))


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
    ours, theirs = F.normalize(query, dim=-1), F.normalize(candidates, dim=-1)
    if len(candidates) == 1:
        cosines = ours.reshape(b * t, d) @ theirs.reshape(k * t, d).T
    else:
        cosines = ours @ theirs.reshape(b, k * t, d).transpose(1, 2)
    cosines = cosines.reshape(b, t, k, t)
    found = [  # max, not amax: its gradient goes to one match, and costs a third
        (cosines.max(3).values, query.norm(dim=-1)[:, :, None], 1),
        (cosines.max(1).values, candidates.norm(dim=-1), 2),
    ]
    means = [(best * weight).sum(over) / weight.sum(over) for best, weight, over in found]
    return (means[0] + means[1]) / 2


def repeated(index: MemorizationIndex, rows: torch.Tensor) -> torch.Tensor:
    """Which of ``rows`` (B, K) hold an image that an earlier one of their sample holds too; booleans (B, K).

    Images that stand in a training set many times over are those that models memorise. Their repetitions must not
    pass for a background that a copy fails to stand out from.
    """
    return repeats(index.embeddings(rows)).to(rows.device)


def repeats(embeddings: torch.Tensor) -> torch.Tensor:
    """Which of each shortlist's unit-norm embeddings (B, K, D) repeat an earlier one; booleans (B, K)."""
    alike = torch.einsum("bkd,bjd->bkj", embeddings, embeddings) >= SAME_IMAGE
    return alike.tril(-1).any(2)


def combine(
    embedding_similarity: torch.Tensor,
    latent_similarity: torch.Tensor | None,
    repeated: torch.Tensor | None = None,
) -> torch.Tensor:
    """The one statistic that is calibrated: how far each candidate stands out, by both similarities; at most 1.

    Args:
        embedding_similarity: Cosines of each sample's shortlist, (B, K).
        latent_similarity: What ``verify`` says of the same, (B, K), or ``None``.
        repeated: Which of them repeat another, (B, K); see ``repeated``.

    Returns:
        (B, K): the mean of both ``relative_similarity``, or that of the cosines alone.
    """
    by_embedding = relative_similarity(embedding_similarity, repeated)
    if latent_similarity is None:
        return by_embedding
    return (by_embedding + relative_similarity(latent_similarity, repeated)) / 2


def relative_similarity(similarity: torch.Tensor, repeated: torch.Tensor | None = None) -> torch.Tensor:
    """How far each candidate stands out from the sample's background: (s - b) / (1 - b), 1 for an exact copy.

    The background b is the mean similarity of the sample's further neighbours, so one threshold fits both domains
    whose images resemble each other and domains whose images do not (after the score normalisation of SSCD, Pizzi et
    al., arXiv 2202.10261, and the ratio of distances of Carlini et al., arXiv 2301.13188). Where nothing is left for a
    background, in an index of a few images, it is 0.

    Args:
        similarity: (B, K), at most 1.
        repeated: (B, K) booleans: what is no background since it repeats another candidate.
    """
    different = similarity if repeated is None else similarity.masked_fill(repeated, -torch.inf)
    ordered = different.sort(dim=1, descending=True)[0][:, BACKGROUND]
    counted = ordered.isfinite()
    background = ordered.where(counted, 0).sum(1, keepdim=True) / counted.sum(1, keepdim=True).clamp_min(1)
    background = background.clamp_max(MOST_BACKGROUND)
    return (similarity - background) / (1 - background)


def aligned_similarity(query: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """The best correlation of a query with each candidate over small alignments of the query.

    Args:
        query: (C, g, g), canonical.
        candidates: (K, C, g, g), canonical.

    Returns:
        (K,): Pearson correlation per channel, averaged, at the best alignment; in [-1, 1].
    """
    moved = normalise(alignments(query)).flatten(1)
    elements = query[0].numel()
    # normalised channels have sums of squares (elements - 1) * NORMALISED_STD ** 2
    full = len(query) * (elements - 1) * NORMALISED_STD**2
    return (moved @ candidates.flatten(1).T).amax(0).div(full).clamp(-1, 1)


def alignments(latent: torch.Tensor) -> torch.Tensor:
    """A latent (C, g, g) flipped, zoomed, turned and shifted a little in every combination: (270, C, g, g)."""
    where = _grids(latent.shape[-1]).to(latent.device)
    spread = latent.expand(len(where), *latent.shape)
    return F.grid_sample(spread, where, mode="bilinear", padding_mode="reflection", align_corners=False)


@functools.cache
def _grids(side: int) -> torch.Tensor:
    theta = [
        [[cos * flip, -sin, x], [sin * flip, cos, y]]
        for flip in (1.0, -1.0)
        for zoom in ZOOMS
        for turn in TURNS
        for cos, sin in [(math.cos(math.radians(turn)) * zoom, math.sin(math.radians(turn)) * zoom)]
        for x in SHIFTS
        for y in SHIFTS
    ]
    return F.affine_grid(torch.tensor(theta), [len(theta), 1, side, side], align_corners=False)


def _check(latents: torch.Tensor) -> None:
    if not torch.isfinite(latents).all():
        raise FilterFailedError(
            "the latents hold NaN or infinity, so they cannot be judged and no image is returned; "
            "look for an overflow in half precision, or a scheduler setting"
        )
    if latents.numel() and (latents.float().flatten(1).std(1) == 0).any():
        raise FilterFailedError("a latent is constant, so it cannot be judged; no image is returned")


def _scored(
    index: MemorizationIndex,
    row: int,
    rows: torch.Tensor,
    combined: torch.Tensor,
    embedding_similarity: torch.Tensor,
    latent_similarity: torch.Tensor | None,
) -> Scored:
    order = combined[row].argsort(descending=True, stable=True).tolist()
    neighbours = tuple(
        Neighbour(
            index.records[int(rows[row, i])].id,
            float(combined[row, i]),
            float(embedding_similarity[row, i]),
            None if latent_similarity is None else float(latent_similarity[row, i]),
        )
        for i in order
    )
    return Scored(neighbours[0].score, neighbours)
