"""Second opinion on the head's shortlist: candidates are laid over the sample, and the one that stands out decides."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .alignment import aligned_similarity, as_they_lie
from .described import LAID_OVER, Candidates, Parts, Query, describe_each, parts_between
from .errors import CorruptArtifactError, FilterFailedError
from .index import MemorizationIndex
from .matching import alike_under_warps
from .shortlist import shortlisted
from .standing import (
    BACKGROUND,
    RUNNER_UP_WEIGHT,
    background_of,
    likeness,
    local_similarity,
    repeats,
    stand_out,
    taken_together,
    told_apart,
)
from .types import Neighbour

BACKGROUND_UNDER_WARPS = slice(2, 6)
"""Ranks whose mean likeness is a sample's background where candidates are laid over it: the best warp makes strangers
alike too, the nearest ones most."""

RUNNER_UP_UNDER_WARPS = 0.5
"""Weight, there, of how far a candidate stands out from the next best one."""

TAKEN_TOGETHER = 10
"""Candidates, the most alike, that are laid over the first of them, to see whether they show its identity."""

AT_ONCE = {"cpu": 1}
"""Samples that are compared at once, elsewhere ``AT_ONCE_ELSEWHERE``: more would not fit a processor's cache."""

AT_ONCE_ELSEWHERE = 32

OUTLYING = 30
"""A cell that lies so many times further from its channel's median than ``MOST`` cells do is left out, in a second look
at the sample: it is all that is left of a latent once that is normalised, while the picture that is decoded stays what
it was. Of real pictures the furthest lay 12 to 23 times as far out, by the data set, at 128 and 256 px."""

MOST = 0.9
"""Share of a channel's cells, those nearest to its median."""

STATISTIC = (
    "likeness under the best warp, beyond background and runner-up of other identities, known or concluded, in equal "
    "parts, of twenty different pictures and more, identities concluded too where few are known; or that of latents as "
    "they lie, where it is more; candidates by embeddings and by outlines"
)
"""Names the formula of ``compare``; change it with the formula, and thresholds set by the old one are refused."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A sample's largest statistic over the index, and the training images that are most alike."""

    score: float
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """What ``compare`` finds of each candidate, (B, K).

    Attributes:
        score: The statistic that is calibrated; at most 1, which an exact copy has.
        cosine: Of the embeddings, in [-1, 1], the better of the sample as it is and upside down.
        parts: How alike their parts are, in [-1, 1], likewise; ``None`` where only embeddings were compared.
    """

    score: torch.Tensor
    cosine: torch.Tensor
    parts: torch.Tensor | None

    def cpu(self) -> Compared:
        """The same on the CPU."""
        return Compared(self.score.cpu(), self.cosine.cpu(), None if self.parts is None else self.parts.cpu())

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
def score_latents(
    index: MemorizationIndex, latents: torch.Tensor, space: str, beside: Sequence[str] = ()
) -> list[Scored]:
    """Embed, search, verify; latents with outlying cells both as they are and without these, whichever is more alike.

    Args:
        latents: (B, C, h, w) of latent space ``space``, of any positive per-channel scale and any shift.
        beside: Ids of training images that all are compared with, besides those that are proposed.

    Returns:
        One for each row; neighbours are sorted by the statistic, most alike first.

    Raises:
        FilterFailedError: latents are not finite, or have no contrast that could be compared.
        LatentSpaceError: the head has no stem for ``space``, or latents of another shape.
    """
    _check(latents)
    if not len(latents):
        return []
    with torch.autocast(latents.device.type, enabled=False):  # another precision is another threshold
        scored = _score(index, latents, space, beside)
        calm, rows = without_outliers(latents)
        again = _score(index, calm[rows], space, beside) if rows else []
    for row, other in zip(rows, again, strict=True):
        scored[row] = max(scored[row], other, key=lambda one: one.score)
    return scored


def without_outliers(latents: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """Latents (B, C, h, w), finite, with the median of their channel in place of cells that are ``OUTLYING``, float32;
    and the rows that have such."""
    cells = latents.float().flatten(2)
    median = cells.sort(-1).values[..., cells.shape[-1] // 2, None]
    away = (cells - median).abs()
    nearest = away.sort(-1).values[..., : math.ceil(MOST * cells.shape[-1])]
    usual = nearest.square().mean(-1, keepdim=True).sqrt()
    outlying = (away > OUTLYING * usual) & (usual > 0)
    calm = torch.where(outlying, median, cells).view(latents.shape)
    return calm, outlying.flatten(1).any(1).nonzero()[:, 0].tolist()


def _score(
    index: MemorizationIndex, latents: torch.Tensor, space: str, beside: Sequence[str]
) -> list[Scored]:
    """As ``score_latents``, as they are."""
    kind = compared_by(index, space)
    query = Query.of(index.head, index.head.canonical(latents, space), space, kind)
    in_place = query.latents if space == index.space else None
    rows = shortlisted(index, query.asking, in_place)
    if beside:
        further = torch.tensor([index._row_of[id_] for id_ in beside], device=rows.device)
        rows = torch.cat([rows, further.expand(len(rows), -1)], 1)
    compared = compare(query, _stored(index, rows, kind, in_place is not None))
    if not torch.isfinite(compared.score).all():
        raise FilterFailedError("a sample's score is not finite; no image is returned")
    rows, compared = rows.cpu(), compared.cpu()  # at once: each number that a GPU is asked for takes a wait
    return [_scored(index, row, rows, compared) for row in range(len(latents))]


@torch.inference_mode()
def compare(query: Query, candidates: Candidates) -> Compared:
    """How far each candidate stands out, for samples that may be upside down.

    Args:
        query: B samples.
        candidates: K of each, described by the same kind of parts.
    """
    count = query.embedding.shape[1]
    portion = AT_ONCE.get(query.embedding.device.type, AT_ONCE_ELSEWHERE)
    if count > portion:
        some = [slice(first, first + portion) for first in range(0, count, portion)]
        return Compared.of([compare(query.of_rows(rows), candidates.of_rows(rows)) for rows in some])
    repeated = repeats(candidates.embedding)
    cosine = torch.einsum("pbd,bkd->pbk", query.embedding, candidates.embedding).clamp(-1, 1)
    parts, ranks, runner_up = None, BACKGROUND, RUNNER_UP_WEIGHT
    if query.parts is not None and query.kind is not None and candidates.parts is not None:
        parts = torch.stack([_parts_alike(query.kind, pose, candidates.parts) for pose in query.parts])
    identities = candidates.identities
    if parts is not None and query.kind in LAID_OVER:
        alike = likeness(cosine, parts, query.embedding_weight).amax(0)
        ranks, runner_up = BACKGROUND_UNDER_WARPS, RUNNER_UP_UNDER_WARPS
        if query.same_identity:
            identities = _taken_together(query, candidates, alike, repeated, ranks.stop)
    else:
        alike = likeness(cosine, parts).amax(0)
    if identities is not None:
        identities = told_apart(identities, ranks.stop)

    def far_out(alike: torch.Tensor) -> torch.Tensor:
        background = background_of(alike, repeated, ranks, identities)
        return stand_out(alike, background, repeated, runner_up, identities)

    score = far_out(alike)
    if query.latents is not None and candidates.latents is not None:
        in_place = far_out(as_they_lie(query.latents, candidates.latents))
        # among fewer pictures there is nothing that it could stand out from
        enough = (~repeated).sum(1, keepdim=True) >= ranks.stop
        score = torch.where(enough, torch.maximum(score, in_place), score)
    return Compared(score, cosine.amax(0), None if parts is None else parts.amax(0))


def _taken_together(
    query: Query, candidates: Candidates, alike: torch.Tensor, repeated: torch.Tensor, least: int
) -> torch.Tensor:
    """``Candidates.identities``, with the most alike candidates that look like images of the first one's identity
    ``taken_together``. Where there are fewer identities than ``least``, so that they will not be ``told_apart``, it is
    as if none were known.

    Args:
        alike: (B, K).
        repeated: (B, K), as of ``repeats``.
    """
    assert query.kind is not None and candidates.parts is not None
    unknown = -1 - torch.arange(alike.shape[1], device=alike.device).expand_as(alike)
    numbers = candidates.identities
    if numbers is None:
        numbers = unknown
    else:
        few = (told_apart(numbers, least) != numbers).any(1, keepdim=True)
        numbers = torch.where(few, unknown, numbers)
    if (numbers >= 0).all():
        return numbers
    most, places = alike.masked_fill(repeated, -torch.inf).topk(min(TAKEN_TOGETHER, alike.shape[1]), 1)
    among = candidates.parts[torch.arange(len(places), device=places.device)[:, None], places]
    found = _parts_alike(query.kind, among[:, 0], among) >= query.same_identity
    return taken_together(numbers, places, found & most.isfinite())


def prepare(index: MemorizationIndex, space: str) -> None:
    """Make now what the first sample of ``space`` would wait for; raises as ``MemorizationIndex.prepare``."""
    if space == index.space and compared_by(index, space) in LAID_OVER:
        index.prepare("outlines")


def compared_by(index: MemorizationIndex, space: str) -> Parts | None:
    """``parts_between`` for samples of ``space`` and an index; ``None`` too where it keeps no latents."""
    return parts_between(index.head, space, index.space) if index.has_latents else None


def _stored(
    index: MemorizationIndex, rows: torch.Tensor, kind: Parts | None, in_place: bool = False
) -> Candidates:
    """What the index holds of ``rows`` (B, K); latents too where they are compared ``in_place``."""
    embedding = index.embeddings(rows)
    if not torch.isfinite(embedding).all():  # on the CPU: a GPU that is asked takes a wait
        raise CorruptArtifactError(
            f"index {index.path} holds an embedding that is not finite; build it again"
        )
    embedding = embedding.to(index.head.device)
    identities = index.identities[rows.cpu()].to(embedding.device)
    if kind is None:
        return Candidates(embedding, None, identities)
    once, where = rows.unique(return_inverse=True)  # samples of one prompt have most candidates in common
    what = (index.head, index.head.device, kind)
    parts = index.recent.get(once.tolist(), what, functools.partial(_described, index, kind))
    latents = index.latents(rows).to(embedding.device) if in_place else None
    return Candidates(embedding, parts[where.to(parts.device)], identities, latents)


def _described(index: MemorizationIndex, kind: Parts, rows: list[int]) -> torch.Tensor:
    """Parts of ``rows``, (n, ...)."""
    latents = index.latents(torch.tensor(rows)).to(index.head.device)
    return describe_each(index.head, latents, index.space, kind)


def _parts_alike(kind: Parts, samples: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """How alike the parts of samples (B, ...) and of candidates (B, K, ...) of each are, (B, K)."""
    if kind in LAID_OVER:
        return alike_under_warps(samples, candidates, deformed=kind == "deformed descriptors")
    if kind == "tokens":
        return local_similarity(samples, candidates)
    return torch.stack([aligned_similarity(one, some) for one, some in zip(samples, candidates, strict=True)])


def _check(latents: torch.Tensor) -> None:
    if not torch.isfinite(latents).all():
        raise FilterFailedError(
            "the latents hold NaN or infinity, so they cannot be judged and no image is returned; "
            "look for an overflow in half precision, or a scheduler setting"
        )
    if latents.numel() and (latents.float().flatten(1).std(1) == 0).any():
        raise FilterFailedError("a latent is constant, so it cannot be judged; no image is returned")


def _scored(index: MemorizationIndex, row: int, rows: torch.Tensor, compared: Compared) -> Scored:
    """Sample ``row``; a training image that was proposed twice counts once."""
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
