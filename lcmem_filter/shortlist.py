"""Which training images a sample is compared with: the nearest to it as it is, upside down, by its middle, and by its
outlines."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .index import MemorizationIndex
from .latents import outlines
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
"""Neighbours that are looked at where repetitions crowd the nearest. FAISS finds 2,048 on a GPU."""

DISTINCT = 0.8
"""Share of different pictures among the candidates of a way, at least: where repetitions of a few take up nearly all
places, further neighbours do."""


@dataclass(frozen=True, slots=True)
class InPlace:
    """Samples that ask by what lies where, too: a washed-out copy's embedding is far from its picture's, but its
    outlines are near.

    Attributes:
        outlines: (2, B, D) of the samples as they are and mirrored.
        nearest: Outlines (N, D) and a number k to the rows (N, k) nearest to each, or all where there are fewer.
        stored: Rows (M,), on the CPU, to their outlines (M, D).
    """

    outlines: torch.Tensor
    nearest: Callable[[torch.Tensor, int], torch.Tensor]
    stored: Callable[[torch.Tensor], torch.Tensor]

    @classmethod
    def of(
        cls,
        latents: torch.Tensor,
        nearest: Callable[[torch.Tensor, int], torch.Tensor],
        stored: Callable[[torch.Tensor], torch.Tensor],
    ) -> InPlace:
        """Of samples' canonical latents (B, C, g, g)."""
        return cls(torch.stack([outlines(latents), outlines(latents.flip(-1))]), nearest, stored)

    def propose(self, k: int) -> torch.Tensor:
        """Rows (B, k) whose outlines are most alike each sample's, as it is or mirrored; all where there are fewer."""
        near = self.nearest(self.outlines.flatten(0, 1), k)
        rows = torch.cat(near.split(self.outlines.shape[1]), 1).sort(1).values
        poses = self.outlines.transpose(0, 1)
        own = rows.cpu()  # at once: each sample's would take a GPU a wait
        alike = torch.stack([self._alike(*one) for one in zip(poses, own, strict=True)]).to(rows.device)
        alike[:, 1:].masked_fill_(rows[:, 1:] == rows[:, :-1], -torch.inf)  # found both ways
        order = alike.argsort(dim=1, descending=True, stable=True)
        return rows.gather(1, order[:, : near.shape[1]])

    def _alike(self, poses: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """(M,) of one sample (2, D) and rows (M,)."""
        return (poses @ self.stored(rows).to(poses.device).T).amax(0)


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
        in_place: By which samples ask once more.
        count: So many of each way; ``candidates_of_each`` by default.
        first: Rows (N, M), the best first, and a number k to those (N, k) that count; the first by default.
    """
    count = count or candidates_of_each(len(asking) + (in_place is not None))
    deep = max(count, DEEPEST) if first else count
    near = nearest(asking.flatten(0, 1), deep)  # all ways in one pass over the index
    if in_place:
        near = torch.cat([near, in_place.propose(deep)])
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
    in_place = None
    if latents is not None:
        in_place = InPlace.of(latents, functools.partial(index.propose, by="outlines"), index.outlines)
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
