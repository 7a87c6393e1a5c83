"""Larger latents for a trained head: a network learns to make of them the latents of the picture at half the size."""

from __future__ import annotations

import functools
import os
import sys
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from ..errors import ArtifactError, ConfigurationError
from ..head import LCMemHead
from ..latents import NORMALISED_STD, Encoder
from ..processes import make_accelerator
from .checkpoint import LATENTS
from .checks import Sources
from .config import TrainingConfig, check_fractions, check_numbers, check_positive, check_resolutions
from .data import LatentSet, digest_of
from .distil import apart
from .extend import given_to_extend, part_is_finished, plan_of_part, save_extended, train_part
from .prepare import prepare_data
from .views import generator_for
from .weights import extended

ONCE, TWICE = "once", "twice"
"""The two encodings of each picture, at the resolution and at twice that."""

AS_IT_LIES = 0.25
"""Weight of the latents' own difference, in variances, beside that of what the head makes of them."""


@dataclass(frozen=True, slots=True)
class AddHalvingConfig:
    """Recipe of a halving network.

    Attributes:
        steps: Optimiser steps.
        batch_images: Images of one step.
        learning_rate: Peak of a cosine decay.
        resolution: Side in pixels of pictures whose latents are about as fine as the head's grid; they are encoded at
            twice that side too.
        validation_fraction: Share of identities held out where no validation data is given.
        seed: Of everything that is drawn.

    Raises:
        ConfigurationError: a value that is out of range.
    """

    steps: int = 1500
    batch_images: int = 32
    learning_rate: float = 2e-3
    resolution: int = 128
    validation_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(self)
        check_positive(self, "steps", "batch_images", "learning_rate")
        check_resolutions(self, "resolution")
        check_fractions(self, "validation_fraction")


def add_halving(
    initial: LCMemHead,
    encoder: Encoder,
    sources: Sources,
    output: str | os.PathLike[str],
    config: AddHalvingConfig | None = None,
    *,
    validation: Sources = (),
    cache: str | os.PathLike[str] | None = None,
    terms: str = "",
    record: Mapping[str, Any] | None = None,
    leave_out: Collection[str] = (),
    progress: bool = True,
) -> LCMemHead:
    """Teach a head what larger latents of a space that it knows show, on unlabelled images.

    Without, they are averaged over areas, which makes neighbours of what was apart: cells of larger latents do not say
    what those of smaller ones do. Latents of four times the grid's side are halved twice, and so on. Everything else
    stays as it was to the last bit, and so does what the head makes of latents of less than twice the grid's side.
    Interrupted, the same call goes on where it was; finished, it returns what it trained.

    Args:
        initial: A trained head.
        encoder: Of a space that the head knows; which one is found out.
        sources: Images, better twice as large as ``config.resolution``; their identities are not used, but kept apart
            from those of ``validation``.
        output: Folder of the new head, with its card.
        validation: Images to measure on; a share of ``sources`` by default.
        cache: Folder of encoded latents, for use by other runs too; inside ``output`` by default.
        terms: Terms of the data, for the card.
        record: ``training.json`` of ``initial``, for the card.
        leave_out: Ids of validation images; see ``train_head``.
        progress: Show progress on stderr.

    Returns:
        The head, in float32, on the CPU.

    Raises:
        ArtifactError: the head halves latents of that space already, or ``output`` holds something else than the
            beginning of this.
        ConfigurationError: latents of ``config.resolution`` are not about as fine as the head's grid, or the encoder
            does not take such pictures, or the terms cannot be written.
        TrainingFailedError: the loss is no longer finite.
        LatentSpaceError: the head does not know the encoder's space.
        EmptyDataError: a source without readable images.
        DataError: no such image to leave out.
        TypeError: a head, an encoder or a source that is none.
    """
    config, output = config or AddHalvingConfig(), Path(output)
    sources, validation = given_to_extend(initial, sources, validation, encoder=encoder)
    space = initial.identify_space(encoder.vae).space
    if space in initial.halvings:
        raise ArtifactError(f"the head halves latents of {space!r} already; give one that does not")
    once, grid = encoder.side_at(config.resolution), initial.grid
    encoder.side_at(2 * config.resolution)  # told before anything is encoded
    if not grid <= once < 2 * grid:
        raise ConfigurationError(
            f"latents of {config.resolution} px are {once}x{once}, which is not about as fine as the head's grid, "
            f"{grid}x{grid}; give resolution {config.resolution * grid // once}"
        )
    accelerator = make_accelerator()
    plan = plan_of_part(
        initial, f"halving of {space}", {space: encoder}, sources, validation, asdict(config), leave_out
    )
    if part_is_finished(output, "halvings", space, plan, terms):
        return LCMemHead.from_pretrained(output)
    recipe = TrainingConfig(image_views=0, validation_fraction=config.validation_fraction, seed=config.seed)
    train, held = prepare_data(
        sources,
        validation,
        {ONCE: encoder, TWICE: encoder},
        recipe,
        Path(cache) if cache else output / LATENTS,
        accelerator,
        grids={ONCE: initial.grid, TWICE: 2 * initial.grid},
        resolutions={ONCE: config.resolution, TWICE: 2 * config.resolution},
        leave_out=leave_out,
        progress=progress,
    )
    head = extended(initial, config.seed, halved_spaces=[*initial.config.halved_spaces, space])
    head.halvings[space].requires_grad_(True)
    head.to(accelerator.device)
    standing = train_part(
        head.halvings[space],
        functools.partial(_loss, head, space, train, config),
        output,
        plan,
        digest_of(train, held),
        accelerator,
        weight_decay=0.01,
        progress=progress and accelerator.is_main_process,
    )
    head = head.eval()
    found = {
        "averaged": _alike(initial.to(accelerator.device), space, held),
        "halved": _alike(head, space, held),
    }
    if progress and accelerator.is_main_process:
        told = ", ".join(f"{how} {one['embeddings']:.3f}" for how, one in found.items())
        tqdm.write(f"{space}: cosine of embeddings at once and twice the size: {told}", file=sys.stderr)
    initial.cpu()
    head = head.cpu().requires_grad_(True)
    if accelerator.is_main_process:
        added = {
            "encoder": encoder.described(),
            "added_to": initial.fingerprint_of(space),
            "recipe": asdict(config),
            "data": train.counts(),
            "terms": terms,
            "seconds": standing.seconds,
            "history": standing.history,
            "validation": {"images": len(held), **found},
        }
        save_extended(head, output, "halvings", space, plan, added, record)
    return head


def _loss(head: LCMemHead, space: str, train: LatentSet, config: AddHalvingConfig, step: int) -> torch.Tensor:
    """Same picture, same latents, embedding, tokens and descriptors, at either size."""
    draw = generator_for(config.seed, "halving", step)
    rows = torch.from_numpy(draw.choice(len(train), min(config.batch_images, len(train)), replace=False))
    mirrored = torch.from_numpy(draw.random(len(rows)) < 0.5)[:, None, None, None]
    large, wanted = (
        torch.where(mirrored, one.flip(-1), one).to(head.device)
        for one in (train.latents[kind][rows, 0].float() for kind in (TWICE, ONCE))
    )
    given = head.canonical(large, space)
    loss, _, _ = apart(head, given, space, wanted, space)
    return loss + AS_IT_LIES * F.mse_loss(given, wanted) / NORMALISED_STD**2


@torch.no_grad()
def _alike(head: LCMemHead, space: str, held: LatentSet) -> dict[str, float]:
    """Of held-out images, how alike the head finds one at once and at twice the size."""
    cosines: defaultdict[str, list[np.ndarray]] = defaultdict(list)
    for rows in torch.arange(len(held)).split(64):
        large, small = (held.latents[kind][rows, 0].float().to(head.device) for kind in (TWICE, ONCE))
        given = head.canonical(large, space)
        pairs = {
            "embeddings": (head.embed(given, space), head.embed(small, space)),
            "latents": (given, small),
        }
        if head.has_descriptors(space):
            pairs["descriptors"] = (head.descriptors(given, space), head.descriptors(small, space))
        for name, (a, b) in pairs.items():
            cosine = F.cosine_similarity(a, b, dim=1).reshape(len(a), -1).mean(1)
            cosines[name].append(cosine.cpu().numpy())
    return {name: float(np.concatenate(values).mean()) for name, values in cosines.items()}
