"""The rows of a batch that a process sees: drawn pairs as latents, augmented."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from ..latents import canonical
from .config import MATCHED_AMONG, TrainingConfig
from .data import LatentSet, Pairs
from .fresh import DeviceViews, FreshViews
from .views import augment_latents, generator_for, half_formed, mirror_some, turn_groups, warp_elastically

CLEAN_A, CLEAN_B = 0.5, 0.1
"""Shares of either side whose latents are not augmented."""


def batch_of(
    pairs: Pairs,
    part: slice,
    train: LatentSet,
    config: TrainingConfig,
    accelerator: Accelerator,
    step: int,
    accumulated: int,
    drawn: FreshViews | DeviceViews | None = None,
) -> tuple[Any, ...]:
    """This process's share of ``part`` of ``pairs``; what is drawn depends on seed, step, part and process alone.

    Args:
        accumulated: Which of the parts of the step it is.
        drawn: Where views lie, or are drawn, on the device; ``train`` has them by default.

    Returns:
        What ``Objective`` takes: latents of both sides, their spaces, identities, offsets, copies.
    """
    rank, processes = accelerator.process_index, accelerator.num_processes
    size = (part.stop - part.start) // processes
    rows = slice(part.start + rank * size, part.start + (rank + 1) * size)
    shared = generator_for(config.seed, "batch", step, accumulated)
    spaces = tuple(_space(train.spaces, config.first_space, shared) for _ in range(2))
    offsets = shared.random(part.stop - part.start)[rank * size : (rank + 1) * size]
    own = generator_for(config.seed, "augment", step, accumulated, rank)
    turns = (config.seed, "turn", step, accumulated, rank)

    def side(space: str, images: Any, views: Any, clean: float, changed: bool) -> torch.Tensor:
        if drawn is None:
            latents = train.latents[space][images[rows], views[rows]].float().to(accelerator.device)
        else:
            latents = drawn.latents(space, images[rows], views[rows], own)
        if changed and config.stage > 1 and config.half_formed:
            latents = half_formed(latents, own, share=config.half_formed)
        if changed and config.stage < 3 and config.elastic:
            latents = warp_elastically(latents, own, share=config.elastic)
        if (
            config.stage == 3
        ):  # both sides of a group the same way up, as the filter asks: upright, then turned
            latents = turn_groups(mirror_some(latents, own), MATCHED_AMONG, generator_for(*turns))
        elif config.augment:
            latents = augment_latents(latents, own, clean=clean)
        return canonical(latents, latents.shape[-1])

    a = side(spaces[0], pairs.a, pairs.view_a, CLEAN_A, False)
    b = side(spaces[1], pairs.b, pairs.view_b, CLEAN_B, True)
    identities = torch.from_numpy(pairs.identities[rows]).to(accelerator.device)
    copies = torch.from_numpy(pairs.a[rows] == pairs.b[rows]).to(accelerator.device)
    return a, b, spaces, identities, torch.from_numpy(offsets).float().to(accelerator.device), copies


def _space(spaces: tuple[str, ...], first: float, draw: np.random.Generator) -> str:
    return spaces[0] if first and draw.random() < first else str(draw.choice(spaces))


def moved_against(objective: nn.Module, batch: tuple[Any, ...], most: float) -> tuple[Any, ...]:
    """``batch`` with side b moved to where the loss is larger, by one step of the fast gradient method.

    Args:
        most: Of the step's size, root mean square; a row's share of it is that which its offset is of 1.
    """
    a, b, spaces, identities, offsets, copies = batch
    moved = b.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(objective(a, moved, spaces, identities, offsets, copies), moved)
    size = gradient.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
    step = most * offsets[:, None, None, None] * gradient / size
    return a, canonical(b + step, b.shape[-1]), spaces, identities, offsets, copies
