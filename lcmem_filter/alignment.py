"""How alike latents are: as they lie, or moved a little, as a model moves what it remembers: mirrored, zoomed into,
turned, shifted."""

from __future__ import annotations

import functools
import itertools
import math

import torch
import torch.nn.functional as F

from .latents import NORMALISED_STD, normalise

ZOOMS = (1.0, 0.97, 0.94)
TURNS = (-4.0, -2.0, 0.0, 2.0, 4.0)
SHIFTS = (-0.06, 0.0, 0.06)
"""Small moves: 2 flips x 3 zooms x 5 turns (degrees) x 3 x 3 shifts."""


def alignments(latent: torch.Tensor) -> torch.Tensor:
    """A latent (C, g, g) flipped, zoomed, turned and shifted a little in every combination: (270, C, g, g)."""
    where = _grids(latent.shape[-1]).to(latent.device)
    spread = latent.expand(len(where), *latent.shape)
    return F.grid_sample(spread, where, mode="bilinear", padding_mode="reflection", align_corners=False)


def aligned_similarity(query: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """The best correlation of a query with each candidate over small alignments of the query.

    Args:
        query: (C, g, g), canonical.
        candidates: (K, C, g, g), canonical.

    Returns:
        (K,): Pearson correlation per channel, averaged, at the best alignment; in [-1, 1].
    """
    moved = normalise(alignments(query)).flatten(1)
    return (moved @ candidates.flatten(1).T).amax(0).div(_full(query)).clamp(-1, 1)


def as_they_lie(queries: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """How alike latents are where they lie, or mirrored: what a model returns of a picture that it only half remembers
    is washed out, but in its place.

    Args:
        queries: (B, C, g, g), canonical.
        candidates: (B, K, C, g, g) of each, canonical.

    Returns:
        (B, K): Pearson correlation per channel, averaged, of the query as it is or mirrored, the larger; in [-1, 1].
    """
    poses = torch.stack([queries, queries.flip(-1)], 1).flatten(2)
    alike = torch.einsum("bpd,bkd->bpk", poses, candidates.flatten(2)).amax(1)
    return alike.div(_full(queries[0])).clamp(-1, 1)


def _full(latent: torch.Tensor) -> float:
    """The inner product of a canonical latent (C, g, g) with itself: normalised channels have sums of squares
    (elements - 1) * NORMALISED_STD ** 2."""
    return len(latent) * (latent[0].numel() - 1) * NORMALISED_STD**2


@functools.cache
def _grids(side: int) -> torch.Tensor:
    """Where to sample for each alignment: (270, side, side, 2)."""
    theta = []
    for flip, zoom, turn, x, y in itertools.product((1.0, -1.0), ZOOMS, TURNS, SHIFTS, SHIFTS):
        cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        theta.append([[cos * zoom * flip, -sin * zoom, x], [sin * zoom * flip, cos * zoom, y]])
    moves = torch.tensor(theta, dtype=torch.float32, device="cpu")
    return F.affine_grid(moves, [len(theta), 1, side, side], align_corners=False)
