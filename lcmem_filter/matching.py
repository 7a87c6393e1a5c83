"""Two pictures laid over each other: of all warps of one, which makes it most like the other, and how like."""

from __future__ import annotations

import functools
import itertools
import math

import torch
import torch.nn.functional as F

CROPS = ((1.0, (0.0,)), (0.85, (-0.15, 0.0, 0.15)), (0.7, (-0.3, 0.0, 0.3)))
"""Extents of a crop along an axis, and where its middle may lie: the picture is 2 wide. Both axes' are combined."""

TURNS = (-18.0, -9.0, 0.0, 9.0, 18.0)
"""Degrees."""

COARSE = 8
"""Cells a side in which warps are voted for."""

LEAST_INSIDE = 0.5
"""Share of a sample that must lie inside a candidate for a warp to count."""

CLOSER = 8
"""Candidates, the most alike, whose warp is moved by ``SHIFTS`` for a better fit."""

SHIFTS = (-0.06, 0.0, 0.06)
"""Half a cell of a grid of 16, along both axes."""


REACH = 5
"""Places along an axis, half a cell apart, where what lies in a cell may lie in a candidate that is deformed."""

STIFFNESS = 5
"""Cells a side over which a deformation is the same, nearly."""


def alike_under_warps(sample: torch.Tensor, candidates: torch.Tensor, deformed: bool = False) -> torch.Tensor:
    """How alike each sample and candidate are where the candidate is cropped, stretched, turned and mirrored at best.

    Descriptors of few cells vote for one of 490 warps, as matches of local features do in a generalised Hough
    transform (Ballard, 1981; Lowe, 2004, section 7.3); under it all cells are compared.

    Args:
        sample: (B, E, g, g) descriptors, each cell's norm its weight.
        candidates: (B, K, E, g, g) of each sample.
        deformed: The most alike are deformed too (``alike_deformed``).

    Returns:
        (B, K), in [-1, 1]: mean cosine of descriptors under the best warp; 1 for the same picture.
    """
    b, k = candidates.shape[:2]
    samples = sample[:, None].expand_as(candidates).flatten(0, 1)
    flat = candidates.flatten(0, 1)
    warps = all_warps(sample.device)[vote(sample, candidates)[1].flatten()]
    alike = alike_under(samples, flat, warps[:, None])[:, 0].unflatten(0, (b, k))
    closer = alike.topk(min(CLOSER, k), 1).indices
    rows = (torch.arange(b, device=closer.device)[:, None] * k + closer).flatten()
    shifted = _moved(warps[rows])
    moved = alike_under(samples[rows], flat[rows], shifted)
    if deformed:
        best = shifted[torch.arange(len(rows), device=rows.device), moved.argmax(1)]
        moved = alike_deformed(samples[rows], flat[rows], best)[:, None]
    moved = moved.amax(1)
    return alike.scatter_reduce(1, closer, moved.view_as(closer), "amax").clamp(-1, 1)


def vote(sample: torch.Tensor, candidates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How alike few cells of samples and candidates are under the warp that they agree on, and which of ``all_warps``
    that is, both (B, K); arguments as of ``alike_under_warps``."""
    ours, weights = _coarse(sample)
    theirs, _ = _coarse(candidates.flatten(0, 1))
    theirs = theirs.unflatten(0, candidates.shape[:2])
    volume = (ours * weights[:, None]).transpose(1, 2)[:, None] @ theirs
    where, inside = _votes(sample.device)
    votes = volume.flatten(2) @ where
    covered = (weights @ inside)[:, None]
    enough = covered >= LEAST_INSIDE * weights.sum(1)[:, None, None]
    best = (votes / covered.clamp_min(1e-6)).where(enough, -torch.inf).max(2)
    return best.values, best.indices


def alike_under(sample: torch.Tensor, candidate: torch.Tensor, warps: torch.Tensor) -> torch.Tensor:
    """Mean cosine of descriptors of N pairs (N, E, g, g), cell by cell, under W warps of each candidate: (N, W).

    Args:
        warps: (N, W, 2, 3), from places in the sample to places in the candidate, as of ``affine_grid``.
    """
    (n, w), (e, side) = warps.shape[:2], sample.shape[1:3]
    ours, our_weights = _unit(sample)
    given = torch.cat([candidate, _norms(candidate)], 1)
    where = F.affine_grid(warps.flatten(0, 1), [n * w, 1, side, side], align_corners=False)
    seen = F.grid_sample(given, where.view(n, w * side, side, 2), mode="bilinear", align_corners=False)
    seen = seen.view(n, e + 1, w, side, side)
    theirs, _ = _unit(seen[:, :e])
    weights = our_weights[:, None] * seen[:, e]
    cosines = (ours[:, :, None] * theirs).sum(1)
    return (cosines * weights).sum((2, 3)) / weights.sum((2, 3)).clamp_min(1e-6)


def alike_deformed(sample: torch.Tensor, candidate: torch.Tensor, warps: torch.Tensor) -> torch.Tensor:
    """Mean cosine of descriptors of N pairs (N, E, g, g), cell by cell, where the candidate, warped, is deformed too.

    Each part of the sample may lie up to a cell from where the warp puts it, where that makes ``STIFFNESS`` by as many
    cells around it most alike: soft tissue between two visits, a face that turns. Gradients flow through the
    descriptors, not through where they lie.

    Args:
        warps: (N, 2, 3), from places in the sample to places in the candidate, as of ``affine_grid``.

    Returns:
        (N,), in [-1, 1].
    """
    n, e, side, _ = sample.shape
    ours, our_weights = _unit(sample)
    margin = REACH // 2
    # in half cells, from the middle of the first
    step = torch.arange(2 * side + REACH - 2, dtype=torch.float32, device=sample.device) - margin
    place = (step + 1) / side - 1
    y, x = torch.meshgrid(place, place, indexing="ij")
    where = torch.stack([x, y, torch.ones_like(x)], -1) @ warps.transpose(1, 2)[:, None]
    given = torch.cat([candidate, _norms(candidate)], 1)
    fine = F.grid_sample(given, where, mode="bilinear", align_corners=False)
    with torch.no_grad():
        directions, _ = _unit(fine[:, :e])
        cosines = [
            (ours * directions[:, :, i : i + 2 * side - 1 : 2, j : j + 2 * side - 1 : 2]).sum(1)
            for i, j in itertools.product(range(REACH), repeat=2)
        ]
        around = F.avg_pool2d(
            torch.stack(cosines, 1), STIFFNESS, 1, STIFFNESS // 2, count_include_pad=False
        ).argmax(1)
        cell = 2 * torch.arange(side, device=sample.device)
        at = (cell[:, None] + around // REACH) * len(step) + cell + around % REACH
    seen = fine.flatten(2).gather(2, at.flatten(1)[:, None].expand(-1, e + 1, -1)).view(n, e + 1, side, side)
    still = slice(margin, margin + 2 * side - 1, 2)
    weights = our_weights * fine[:, e, still, still]
    alike = (ours * _unit(seen[:, :e])[0]).sum(1)
    return (alike * weights).sum((1, 2)) / weights.sum((1, 2)).clamp_min(1e-6)


@functools.cache
@torch.inference_mode(False)  # kept, and used where gradients are taken too
def all_warps(device: torch.device) -> torch.Tensor:
    """The warps that are voted on, (490, 2, 3) as of ``affine_grid``: from places in a sample to the candidate's."""
    spans = [(extent, middle) for extent, middles in CROPS for middle in middles]
    warps = []
    for (width, x), (height, y), turn, mirror in itertools.product(spans, spans, TURNS, (1.0, -1.0)):
        cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        warps.append([[cos * width * mirror, -sin * height, x], [sin * width * mirror, cos * height, y]])
    return torch.tensor(warps, dtype=torch.float32, device=device)


def _unit(descriptors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions (N, E, g, g) and weights (N, g, g)."""
    norms = _norms(descriptors)
    return descriptors / norms, norms[:, 0]


def _norms(descriptors: torch.Tensor) -> torch.Tensor:
    """(N, 1, ...); from sums of squares, since PyTorch's norm along this axis is slow on a CPU. Not quite 0 where
    nothing is, so that gradients are numbers there."""
    return (descriptors.float().square().sum(1, keepdim=True) + 1e-24).sqrt()


def _coarse(descriptors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions (N, E, cells) and weights (N, cells) of fewer cells."""
    directions, _ = _unit(F.adaptive_avg_pool2d(descriptors, COARSE))
    weights = F.adaptive_avg_pool2d(_norms(descriptors), COARSE)
    return directions.flatten(2), weights.flatten(1)


def _moved(warps: torch.Tensor) -> torch.Tensor:
    """Each of (N, 2, 3) shifted a little every way: (N, 9, 2, 3)."""
    shifts = torch.tensor(list(itertools.product(SHIFTS, SHIFTS)), dtype=torch.float32, device=warps.device)
    moved = warps[:, None].repeat(1, len(shifts), 1, 1)
    moved[..., 2] += shifts
    return moved


@functools.cache
@torch.inference_mode(False)
def _votes(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """What a pair of cells counts for each warp (cells * cells, W), and how much of a sample's cell lies inside the
    candidate (cells, W): bilinear weights, 0 outside."""
    warps, cells = all_warps(device), COARSE * COARSE
    where = F.affine_grid(warps, [len(warps), 1, COARSE, COARSE], align_corners=False)
    each = torch.eye(cells, dtype=torch.float32, device=device).view(1, cells, COARSE, COARSE)
    each = each.expand(len(warps), -1, -1, -1)
    weights = F.grid_sample(each, where, mode="bilinear", align_corners=False)  # (W, theirs, ours)
    weights = weights.flatten(2).permute(2, 1, 0)
    return weights.flatten(0, 1).contiguous(), weights.sum(1)
