"""Which training images a sample is compared with: the nearest to it as it is, upside down, by its middle."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F

from .index import MemorizationIndex
from .standing import SAME_IMAGE, repeats

SHORTLIST = 25
"""Candidates that the head proposes, for a sample as it is and again for it upside down."""

MARGINS = (1 / 16, 1 / 8)
"""Shares of the side that are cut off all around: with some heads, what lies within asks too. A border, a frame or a
collimator's shadow changes a picture's embedding, so that what it was copied from is not found; once found, it is
recognised."""

SHORTLIST_WITH_MIDDLES = 15
"""Candidates of each way of asking there."""

DISTINCT = 0.8
"""Share of different pictures among them, at least: where repetitions of a few take up nearly all places, the search
goes on."""

DEEPEST = 1024
"""Neighbours that it then looks at, at most; FAISS finds 2,048 on a GPU."""


def middles(canonical: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, g, g) without each of ``MARGINS``, resized to what they were: (len(MARGINS), B, C, g, g)."""
    side = canonical.shape[-1]
    cut = [round(side * margin) for margin in MARGINS]
    within = [canonical[..., cells : side - cells, cells : side - cells] for cells in cut]
    return torch.stack([F.interpolate(one, (side, side), mode="bilinear") for one in within])


def propose(
    asking: torch.Tensor, nearest: Callable[[torch.Tensor, int], torch.Tensor], further: int = 0
) -> torch.Tensor:
    """Rows (B, K) that samples are compared with, so many of each way of asking.

    Args:
        asking: (W, B, D) as of ``Query.asking``.
        nearest: Embeddings (N, D) and a number k to the rows (N, k) nearest to each, or all where there are fewer.
        further: So many more of each way, where some will not count.
    """
    count = SHORTLIST if len(asking) == 2 else SHORTLIST_WITH_MIDDLES
    # all ways in one pass over the index
    found = nearest(asking.flatten(0, 1), count + further)
    return torch.cat(list(found.unflatten(0, asking.shape[:2])), 1)


def shortlisted(index: MemorizationIndex, asking: torch.Tensor) -> torch.Tensor:
    """Rows (B, K) of the index that samples, asking (W, B, D), are compared with: the nearest, or, where repetitions of
    a few pictures crowd the others out, the nearest of each of so many pictures.

    What a training set holds many times over is what models memorise. Without other pictures beside it nothing would be
    known of what a stranger's score is there, and the threshold would rise for all.
    """
    return propose(asking, functools.partial(_nearest, index))


def _nearest(index: MemorizationIndex, embeddings: torch.Tensor, k: int) -> torch.Tensor:
    """Rows (N, k) nearest to embeddings (N, D), of enough different pictures."""
    rows = index.search(embeddings, k).rows
    if rows.shape[1] < k:
        return rows
    crowded = (~repeats(index.embeddings(rows))).sum(1) < DISTINCT * k
    if crowded.any():
        rows[crowded] = _one_of_each_picture(index, embeddings[crowded.to(embeddings.device)], k)
    return rows


def _one_of_each_picture(index: MemorizationIndex, embeddings: torch.Tensor, k: int) -> torch.Tensor:
    """The nearest row of each of the ``k`` nearest pictures, (N, k); where the ``DEEPEST`` nearest rows show fewer,
    further ones of those."""
    rows = index.search(embeddings, min(DEEPEST, len(index))).rows
    stored = index.embeddings(rows)
    each = torch.arange(len(rows), device=stored.device)
    left = torch.ones(rows.shape, dtype=torch.bool, device=stored.device)
    chosen = torch.zeros_like(left)
    for _ in range(k):
        nearest = left.byte().argmax(1)  # the first again where none is left
        chosen[each, nearest] = True
        left &= torch.einsum("bkd,bd->bk", stored, stored[each, nearest]) < SAME_IMAGE
    first = (~chosen).byte().argsort(dim=1, stable=True)[:, :k]
    return rows.gather(1, first.to(rows.device))
