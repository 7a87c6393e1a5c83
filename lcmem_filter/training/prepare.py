"""From images to what training sees: latents of identities to train on and of others to validate on."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from tqdm.auto import tqdm

from ..errors import ConfigurationError, DataError, UnreadableImageError, first_of
from ..head import SIZES
from ..images import ImageSource
from ..latents import Encoder
from .cache import CachePlan, encode_plans
from .config import SIZE, TrainingConfig
from .data import LatentSet, load_latents
from .names import check_names, identities_of, names_of_images, told_of_classes
from .split import (
    check_held_out,
    count_to_hold_out,
    each_picture_once,
    grouped_by_pictures,
    some_identities,
    split_by_identity,
    without_identities,
    without_images,
)


def prepare_data(
    sources: Sequence[ImageSource],
    validation: Sequence[ImageSource],
    encoders: Mapping[str, Encoder],
    config: TrainingConfig,
    cache: Path,
    accelerator: Accelerator,
    *,
    grid: int | None = None,
    grids: Mapping[str, int] | None = None,
    resolutions: Mapping[str, int] | None = None,
    leave_out: Collection[str] = (),
    progress: bool = True,
) -> tuple[LatentSet, LatentSet]:
    """Encode what is missing, each process its share, then read everything.

    Args:
        grid: Side of the canonical latents; that of the recipe's size by default.
        grids: The same of some spaces, where it is another.
        resolutions: Side in pixels that some spaces' images are squashed to, in place of the recipe's.
        leave_out: Images that are not validated on, by ``names_of_images``.

    Returns:
        Images to train on, and images to validate on that share no identity with them: those of ``validation``,
            or a share of ``sources`` where that is empty. From stage 2 on mild and then strong views come last. Of
            images whose views are drawn anew, clean latents alone are read. A picture that is stored several times is
            in them once. The latter's ``unreadable`` are all that there are.

    Raises:
        EmptyDataError: a source without readable images.
        DataError: too few identities, two sets of one name, or no such image to leave out.
        ConfigurationError: no set is large enough for a further resolution.
    """
    check_names(sources)
    check_names(validation)
    if not validation:  # told before anything is encoded
        count_to_hold_out(len(set(identities_of(sources))), config.validation_fraction)
    else:
        out = {*identities_of(sources, beside=validation)}
        given = identities_of(validation, "validation ", sources)
        named = zip(names_of_images(validation), given, strict=True)
        check_held_out([one for name, one in named if name not in leave_out and one not in out])
    if unknown := set(leave_out) - set(names_of_images(validation or sources)):
        raise DataError(
            f"no validation image {min(unknown)!r} to leave out ({len(unknown)} such); give ids, or SET/ID where "
            "there are several sets"
        )
    for line in told_of_classes([*sources, *validation]) if progress else ():
        tqdm.write(line, file=sys.stderr)
    grid = grid or int(SIZES[config.size or SIZE]["grid"])
    kinds, large = config.kinds_of_views(), sets_at_further_sides(sources, config)
    for side, of in large.items() if progress else ():
        tqdm.write(f"encoded at {side} px too: {', '.join(of)}", file=sys.stderr)

    def plans(
        images: Sequence[ImageSource], kinds: Sequence[str], further: Sequence[int] = ()
    ) -> dict[str, list[list[CachePlan]]]:
        def of(source: ImageSource, space: str, encoder: Encoder) -> list[CachePlan]:
            usual = (resolutions or {}).get(space, config.resolution)

            def view(number: int, kind: str, resolution: int = usual) -> CachePlan:
                side = (grids or {}).get(space, grid)
                return CachePlan(cache, source, encoder, resolution, side, number, kind=kind)

            sides = [side if source.name in large[side] else usual for side in further]
            numbered = [view(kinds[: i + 1].count(kind), kind) for i, kind in enumerate(kinds)]
            return [view(0, "light"), *(view(0, "light", side) for side in sides), *numbered]

        return {space: [of(one, space, encoder) for one in images] for space, encoder in encoders.items()}

    asked = [kind for kind in ("mild", "strong") if kind in kinds]  # of what is validated on
    cached = kinds if not config.views_on_device else () if validation else asked
    train = plans(sources, cached, config.further_resolutions)
    held = plans(validation, asked)
    every = [plan for part in (train, held) for images in part.values() for views in images for plan in views]
    for encoder in encoders.values():
        encoder.vae.to(accelerator.device)
    encode_plans(
        every, rank=accelerator.process_index, processes=accelerator.num_processes, progress=progress
    )
    accelerator.wait_for_everyone()
    data = load_latents(train, beside=validation)
    unreadable, count = dict(data.unreadable), len(data)
    whole, data = data, each_picture_once(data)
    told = [(count - len(data), "images repeat another picture")]
    if not validation:
        data, held_out = split_by_identity(
            data, config.validation_fraction, config.seed, grouped_by_pictures(whole)
        )
    else:
        latents = load_latents(held, "validation ", sources)
        unreadable |= {f"validation {name}": why for name, why in latents.unreadable.items()}
        others = without_identities(latents, set(whole.identities))
        once = each_picture_once(others, data)
        groups = grouped_by_pictures(whole, latents)
        trained = {groups[name] for name in set(whole.identities)}
        held_out = without_identities(once, [name for name, group in groups.items() if group in trained])
        told += [
            (len(latents) - len(others), "validation images are of identities that are trained on"),
            (
                len(others) - len(once),
                "validation images repeat a picture that is trained on, or another",
            ),
            (
                len(once) - len(held_out),
                "validation images are of identities that share another picture with one that is trained on",
            ),
        ]
    if unreadable:
        names, why = first_of(list(unreadable)), next(iter(unreadable.values()))
        told += [(len(unreadable), f"images cannot be read: {names} ({why})")]
    for number, what in told:
        if progress and number:
            tqdm.write(f"left out: {number} {what}", file=sys.stderr)
    held_out = replace(held_out, unreadable=unreadable)
    held_out = without_images(held_out, leave_out)
    if config.views_on_device:
        clean = {space: latents[:, :1] for space, latents in data.latents.items()}
        data = replace(data, latents=clean, views=("clean", *kinds))
    if config.identity_share < 1:
        data = some_identities(data, config.identity_share, config.seed)
    check_held_out(list(held_out.identities))
    return data, held_out


def sets_at_further_sides(sources: Sequence[ImageSource], config: TrainingConfig) -> dict[int, list[str]]:
    """Names of the sets that are encoded at each further resolution too.

    Raises:
        ConfigurationError: none is large enough for one of them.
    """
    if not config.further_resolutions:
        return {}
    shorter = {source.name: _shorter_side(source) for source in sources}
    found = {
        side: [name for name, own in shorter.items() if own >= side] for side in config.further_resolutions
    }
    if small := [side for side, names in found.items() if not names]:
        raise ConfigurationError(
            f"no set's first image is {small[0]} px large, the largest {max(shorter.values())} px: give smaller "
            "further_resolutions, or leave them out"
        )
    return found


def _shorter_side(source: ImageSource) -> int:
    """Of the source's first image that can be read, in pixels."""
    for row in range(len(source)):
        try:
            return min(source.image(row).size)
        except UnreadableImageError:
            continue
    return 0
