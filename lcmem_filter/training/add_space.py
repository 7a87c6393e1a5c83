"""Another latent space for a trained head: a stem is trained against the frozen trunk, on unlabelled images."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..branches import check_space_name
from ..errors import ArtifactError, LatentSpaceError
from ..head import LCMemHead
from ..latents import Encoder, canonical
from ..processes import make_accelerator
from ..space_match import SpaceMatch
from .checkpoint import LATENTS
from .checks import Sources
from .config import TrainingConfig, check_fractions, check_numbers, check_positive, check_resolutions
from .data import LatentSet, digest_of
from .distil import apart
from .extend import given_to_extend, part_is_finished, plan_of_part, save_extended, train_part
from .losses import nt_xent
from .prepare import prepare_data
from .shapes import check_fineness, check_sizes
from .validation import MOST_QUERIES, Validator
from .views import augment_latents, generator_for
from .weights import extended


@dataclass(frozen=True, slots=True)
class AddSpaceConfig:
    """Recipe of a stem.

    Attributes:
        steps: Optimiser steps.
        batch_images: Images of one step.
        learning_rate: Peak of a cosine decay.
        resolution: Side in pixels that images are squashed to before they are encoded. An encoder that shrinks pictures
            more than the reference does needs a larger one, so that its latents are as fine.
        reference_resolution: The same for the reference; by default the same side.
        temperature: Of NT-Xent between the two spaces.
        validation_fraction: Share of identities held out where no validation data is given.
        seed: Of everything that is drawn.

    Raises:
        ConfigurationError: a value that is out of range.
    """

    steps: int = 1500
    batch_images: int = 128
    learning_rate: float = 2e-3
    resolution: int = 128
    reference_resolution: int | None = None
    temperature: float = 0.07
    validation_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(self)
        check_positive(self, "steps", "batch_images", "learning_rate", "temperature")
        check_resolutions(self, "resolution")
        if self.reference_resolution is not None:
            check_resolutions(self, "reference_resolution")
        check_fractions(self, "validation_fraction")


def add_space(
    initial: LCMemHead,
    space: str,
    encoder: Encoder,
    reference: Encoder,
    sources: Sources,
    output: str | os.PathLike[str],
    config: AddSpaceConfig | None = None,
    *,
    validation: Sources = (),
    cache: str | os.PathLike[str] | None = None,
    terms: str = "",
    record: Mapping[str, Any] | None = None,
    leave_out: Collection[str] = (),
    progress: bool = True,
) -> LCMemHead:
    """Teach a head a latent space so that an image lands where it does through a space that the head knows.

    Everything but the new stem stays as it was to the last bit, so indexes of the other spaces keep their meaning, and
    an index in one space answers for pipelines of another. Interrupted, the same call goes on where it was; finished,
    it returns what it trained.

    Args:
        initial: A trained head.
        space: What the head will call the new space.
        encoder: Of the new space.
        reference: Of a space that the head knows; which one is found out.
        sources: Images; their identities are not used, but kept apart from those of ``validation``.
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
        ArtifactError: the head has a stem of that name already, or knows the space by another, or ``output`` holds
            something else than the beginning of this.
        ConfigurationError: a name that a latent space cannot have, pictures that an encoder does not take, or those of
            the reference so large that the filter would halve their latents.
        TrainingFailedError: the loss is no longer finite.
        LatentSpaceError: the head does not know the reference's space.
        EmptyDataError: a source without readable images.
        DataError: no such image to leave out.
        TypeError: a head, an encoder or a source that is none.
    """
    config, output = config or AddSpaceConfig(), Path(output)
    check_space_name(space)
    sources, validation = given_to_extend(initial, sources, validation, encoder=encoder, reference=reference)
    known = initial.identify_space(reference.vae).space
    if space in initial.spaces:
        raise ArtifactError(
            f"the head has a stem for {space!r} already; give the new space a name besides {', '.join(initial.spaces)}"
        )
    if (same := _known_as(initial, encoder)) is not None:
        raise ArtifactError(
            f"the head knows this VAE's space as {same.space!r} (agreement {same.agreement:.2f}); nothing to add"
        )
    check_fineness(encoder, config.resolution, initial.grid)  # told before anything is encoded
    check_fineness(reference, config.reference_resolution or config.resolution, initial.grid)
    check_sizes(initial, {known: reference}, {known: (config.reference_resolution or config.resolution,)})
    encoders = {known: reference, space: encoder}
    plan = plan_of_part(initial, f"stem of {space}", encoders, sources, validation, asdict(config), leave_out)
    accelerator = make_accelerator()
    if part_is_finished(output, "added_spaces", space, plan, terms):
        return LCMemHead.from_pretrained(output)
    recipe = replace(
        TrainingConfig(size="small", resolution=config.resolution, image_views=0, seed=config.seed),
        validation_fraction=config.validation_fraction,
    )
    train, held = prepare_data(
        sources,
        validation,
        encoders,
        recipe,
        Path(cache) if cache else output / LATENTS,
        accelerator,
        grid=initial.grid,
        resolutions={known: config.reference_resolution or config.resolution},
        leave_out=leave_out,
        progress=progress,
    )
    head = _with_stem(initial, space, known, train.latents[space].shape[2], config.seed)
    head.add_probes(space, encoder.vae)
    head.to(accelerator.device)
    standing = train_part(
        head.stems[space],
        functools.partial(_loss, head, space, known, train, config),
        output,
        plan,
        digest_of(train, held),
        accelerator,
        weight_decay=0.05,
        progress=progress and accelerator.is_main_process,
    )
    validator = Validator(
        train,
        held,
        false_rejection_rate=recipe.false_rejection_rate,
        seed=config.seed,
        most_queries=MOST_QUERIES if head.has_descriptors(space) else None,
    )
    between = {
        f"{query} in {index}": validator.measure_between(head, query, index, accelerator.device).to_dict()
        for query, index in ((known, known), (space, known), (known, space), (space, space))
    }
    if progress and accelerator.is_main_process:
        for pair, found in between.items():
            tqdm.write(f"{pair}: {_told(found)}", file=sys.stderr)
    head = head.cpu().eval().requires_grad_(True)
    if accelerator.is_main_process:
        added = {
            "encoder": encoder.described(),
            "reference": known,
            "recipe": asdict(config),
            "images": len(train),
            "data": train.counts(),
            "terms": terms,
            "seconds": standing.seconds,
            "history": standing.history,
            "validation": between,
        }
        save_extended(head, output, "added_spaces", space, plan, added, record)
    return head


def _known_as(initial: LCMemHead, encoder: Encoder) -> SpaceMatch | None:
    try:
        match = initial.identify_space(encoder.vae)
    except LatentSpaceError:
        return None
    return match if match.certain else None


def _told(found: Mapping[str, Any]) -> str:
    """Shares that are found, of mild copies and of other images of an identity."""
    named = (("mild copies", "mild_copies"), ("same identity", "same_identity"))
    shares = [(name, found[key]["overall"]) for name, key in named]
    return ", ".join(f"{name} {share:.1%}" for name, share in shares if share is not None)


def _with_stem(initial: LCMemHead, space: str, known: str, channels: int, seed: int) -> LCMemHead:
    """``initial`` with an untrained stem for ``space``, learned from ``known``; only that is trainable."""
    changes: dict[str, Any] = {"spaces": {**initial.config.spaces, space: channels}}
    if initial.has_descriptors(known):
        changes["match_spaces"] = [*initial.config.match_spaces, space]
    head = extended(initial, seed, **changes)
    head.stems[space].requires_grad_(True)
    return head


def _loss(
    head: LCMemHead, space: str, known: str, train: LatentSet, config: AddSpaceConfig, step: int
) -> torch.Tensor:
    """Same picture, same embedding, tokens and descriptors, whichever encoder it came through."""
    rows = generator_for(config.seed, "stem", step).choice(len(train), min(config.batch_images, len(train)))
    latents = [_moved(head, train, one, rows, config.seed, step) for one in (space, known)]
    loss, given, wanted = apart(head, latents[0], space, latents[1], known)
    same = torch.from_numpy(np.unique(rows, return_inverse=True)[1]).to(given.device)
    return loss + 0.1 * nt_xent(given, wanted, same, config.temperature)


def _moved(
    head: LCMemHead, train: LatentSet, space: str, rows: np.ndarray, seed: int, step: int
) -> torch.Tensor:
    """Latents of ``rows``, turned, zoomed and shifted alike in every space."""
    latents = train.latents[space][torch.from_numpy(rows), 0].float().to(head.device)
    moved = augment_latents(latents, generator_for(seed, "stem", "augment", step), clean=0.3)
    return canonical(moved, head.grid)
