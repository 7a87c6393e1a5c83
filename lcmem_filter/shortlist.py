"""Which training images a sample is compared with: the nearest to it as it is, upside down, by its middle, and by what
lies where."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .alignment import as_they_lie
from .index import MemorizationIndex
from .standing import SAME_IMAGE, repeats

SHORTLIST = 25
"""Candidates of each way of asking, at most."""

ALTOGETHER = 60
"""Candidates of all ways together, at most."""

MARGINS = (1 / 16, 1 / 8)
"""Shares of the side that are cut off all around: with some heads, what lies within asks too. A border, a frame or a
collimator's shadow changes a picture's embedding, so that what it was copied from is not found; once found, it is
recognised."""

DEEPEST = 1024
"""Neighbours that are looked at; of them the nearest are candidates, and those whose latents are most alike as they
lie: a washed-out copy's embedding is not near to that of its picture, but mostly among so many. FAISS finds 2,048 on a
GPU."""

READ_AT_ONCE = 8
"""Samples whose neighbours' latents are read together."""

DISTINCT = 0.8
"""Share of different pictures among the candidates of a way, at least: where repetitions of a few take up nearly all
places, further neighbours do."""


@dataclass(frozen=True, slots=True)
class InPlace:
    """Samples and an index whose latents can be compared as they lie.

    Attributes:
        latents: (B, C, g, g) of the samples, canonical.
        stored: Rows (M,) of the index to their latents (M, C, g, g), canonical, float32.
    """

    latents: torch.Tensor
    stored: Callable[[torch.Tensor], torch.Tensor]

    def alike(self, rows: torch.Tensor) -> torch.Tensor:
        """``as_they_lie`` of each sample and of its ``rows`` (B, M), (B, M)."""
        found = []
        for some, near in zip(self.latents.split(READ_AT_ONCE), rows.split(READ_AT_ONCE), strict=True):
            # samples of one prompt have most of them in common
            once, where = near.unique(return_inverse=True)
            stored = self.stored(once).to(some.device)
            where = where.to(some.device)
            found += [as_they_lie(one[None], stored[own][None]) for one, own in zip(some, where, strict=True)]
        return torch.cat(found)


def middles(canonical: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, g, g) without each of ``MARGINS``, resized to what they were: (len(MARGINS), B, C, g, g)."""
    side = canonical.shape[-1]
    cut = [round(side * margin) for margin in MARGINS]
    within = [canonical[..., cells : side - cells, cells : side - cells] for cells in cut]
    return torch.stack([F.interpolate(one, (side, side), mode="bilinear") for one in within])


def candidates_of_each(ways: int) -> int:
    """Candidates of each of so many ways of asking."""
    return min(SHORTLIST, ALTOGETHER // ways)


def propose(
    asking: torch.Tensor,
    nearest: Callable[[torch.Tensor, int], torch.Tensor],
    in_place: InPlace | None = None,
    *,
    count: int | None = None,
    first: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Rows (B, K) that samples are compared with, so many of each way of asking.

    Args:
        asking: (W, B, D) as of ``Query.asking``.
        nearest: Embeddings (N, D) and a number k to the rows (N, k) nearest to each, or all where there are fewer.
        in_place: By which those nearest to the samples as they are are asked once more, by their latents.
        count: So many of each way; ``candidates_of_each`` by default.
        first: Rows (N, M), the best first, and a number k to those (N, k) that count; the first by default.
    """
    count = count or candidates_of_each(len(asking) + (in_place is not None))
    near = nearest(asking.flatten(0, 1), max(count, DEEPEST))  # all ways in one pass over the index
    if in_place:
        as_they_are = near[: asking.shape[1]]
        order = in_place.alike(as_they_are).argsort(dim=1, descending=True).to(near.device)
        near = torch.cat([near, as_they_are.gather(1, order)])
    chosen = first(near, count) if first else near[:, :count]
    return torch.cat(chosen.split(asking.shape[1]), 1)


def shortlisted(
    index: MemorizationIndex, asking: torch.Tensor, latents: torch.Tensor | None = None
) -> torch.Tensor:
    """Rows (B, K) of the index that samples are compared with: the nearest, or, where repetitions of a few pictures
    crowd the others out, the nearest of each of so many pictures.

    What a training set holds many times over is what models memorise. Without other pictures beside it nothing would be
    known of what a stranger's score is there, and the threshold would rise for all.

    Args:
        asking: (W, B, D).
        latents: (B, C, g, g), canonical, where they can be compared with those of the index.
    """
    in_place = None if latents is None else InPlace(latents, index.latents)
    first = functools.partial(_of_enough_pictures, index)
    return propose(asking, index.propose, in_place, first=first)


def _of_enough_pictures(index: MemorizationIndex, near: torch.Tensor, k: int) -> torch.Tensor:
    """The first k of rows (N, M), or the first of each of so many pictures where they show too few."""
    rows = near[:, :k].clone()
    if near.shape[1] <= k:
        return rows
    crowded = (~repeats(index.embeddings(rows))).sum(1) < DISTINCT * k
    if crowded.any():
        rows[crowded] = _one_of_each_picture(index, near[crowded], k)
    return rows


def _one_of_each_picture(index: MemorizationIndex, rows: torch.Tensor, k: int) -> torch.Tensor:
    """The first of rows (N, M) of each of their ``k`` first pictures, (N, k); further ones where they show fewer."""
    stored = index.embeddings(rows)
    each = torch.arange(len(rows), device=stored.device)
    left = torch.ones(rows.shape, dtype=torch.bool, device=stored.device)
    chosen = torch.zeros_like(left)
    for _ in range(k):
        nearest = left.byte().argmax(1)  # the first again where none is left
        chosen[each, nearest] = True
        left &= torch.einsum("bkd,bd->bk", stored, stored[each, nearest]) < SAME_IMAGE
    found = (~chosen).byte().argsort(dim=1, stable=True)[:, :k]
    return rows.gather(1, found.to(rows.device))
