"""Latents moved as a picture is moved before somebody shows it again: mirrored, zoomed into, turned, shifted."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F

from .latents import NORMALISED_STD, normalise

CROPS = ((1.0, (0.0,)), (0.85, (-0.15, 0.15)), (0.72, (-0.28, 0.0, 0.28)))
"""Side of a crop and where its middle may lie, in both directions (the picture is 2 wide); and the middle of each."""

CROP_TURNS = (-16.0, -8.0, 0.0, 8.0, 16.0)
"""Degrees."""

ZOOMS = (1.0, 0.97, 0.94)
TURNS = (-4.0, -2.0, 0.0, 2.0, 4.0)
SHIFTS = (-0.06, 0.0, 0.06)
"""Small moves: 2 flips x 3 zooms x 5 turns (degrees) x 3 x 3 shifts."""


def crops(latents: torch.Tensor, few: bool = False) -> torch.Tensor:
    """Crops and turns of each latent, as a picture of them would be encoded, nearly: stretched to the whole grid.

    Args:
        latents: (K, C, g, g), canonical.
        few: The larger crops alone, not turned.

    Returns:
        (K, 75, C, g, g), canonical, or (K, 6, C, g, g). What lies outside the picture is its reflection.
    """
    count, side = len(latents), latents.shape[-1]
    where = _crop_grids(side, few).to(latents.device)
    spread = latents[:, None].expand(count, len(where), *latents.shape[1:]).flatten(0, 1)
    moved = _sampled(spread, where.repeat(count, 1, 1, 1))
    return normalise(moved).unflatten(0, (count, len(where)))


def alignments(latent: torch.Tensor) -> torch.Tensor:
    """A latent (C, g, g) flipped, zoomed, turned and shifted a little in every combination: (270, C, g, g)."""
    where = _small_grids(latent.shape[-1]).to(latent.device)
    return _sampled(latent.expand(len(where), *latent.shape), where)


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


def _sampled(latents: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    return F.grid_sample(latents, where, mode="bilinear", padding_mode="reflection", align_corners=False)


@functools.cache
def _crop_grids(side: int, few: bool) -> torch.Tensor:
    return _grids(
        side,
        (
            (1.0, zoom, turn, x, y)
            for zoom, offsets in (CROPS[:2] if few else CROPS)
            for turn in ((0.0,) if few else CROP_TURNS)
            for x, y in dict.fromkeys([(0.0, 0.0), *((x, y) for x in offsets for y in offsets)])
        ),
    )


@functools.cache
def _small_grids(side: int) -> torch.Tensor:
    return _grids(
        side,
        (
            (flip, zoom, turn, x, y)
            for flip in (1.0, -1.0)
            for zoom in ZOOMS
            for turn in TURNS
            for x in SHIFTS
            for y in SHIFTS
        ),
    )


def _grids(side: int, moves: Iterable[tuple[float, float, float, float, float]]) -> torch.Tensor:
    """Where to sample for each (flip, zoom, turn in degrees, shift in x, in y): (N, side, side, 2)."""
    theta = []
    for flip, zoom, turn, x, y in moves:
        cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        theta.append([[cos * zoom * flip, -sin * zoom, x], [sin * zoom * flip, cos * zoom, y]])
    return F.affine_grid(torch.tensor(theta), [len(theta), 1, side, side], align_corners=False)
