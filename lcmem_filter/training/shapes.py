"""Whether a head to go on from is of the shape, and of the spaces, that a recipe asks for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..configuration import LATER
from ..errors import ArtifactError, ConfigurationError, LatentSpaceError
from ..head import SIZES, LCMemHead
from ..latents import Encoder
from .config import SIZE, TrainingConfig

OF_SPACES = ("grid", "patch_size", "stem_channels")
"""Of a head's configuration, what decides on the shapes of the weights that each space has to itself, beside the width
of the trunk's first stage."""

OF_THE_TRUNK = ("trunk_type", "hidden_sizes", "depths", "embedding_dim", "token_dim")
"""What decides on the shapes of the others."""

TRAINED_FOR = {
    "nt-xent": {"score": "cosine", "activation": "none"},
    "verification": {"score": "verification", "activation": "sigmoid"},
}
"""What each loss makes of a head."""


def check_initial(
    initial: LCMemHead, config: TrainingConfig, encoders: Mapping[str, Encoder], *, trunk: bool
) -> None:
    """Whether a recipe can go on from ``initial``.

    Args:
        trunk: Whether it is trained, and not the descriptors alone.

    Raises:
        ArtifactError: it was made otherwise.
        ConfigurationError: of pictures so large ``initial`` makes something else.
        LatentSpaceError: what it calls so is another latent space than the encoder's.
    """
    for space, encoder in encoders.items():
        if space not in initial.spaces or not initial.probes[space].any():
            continue
        found = initial.identify_space(encoder.vae).space
        if found != space:
            raise LatentSpaceError(
                f"the encoder given for latent space {space!r} encodes into another one that the head to go on from "
                f"knows, {found!r}; name that (--space)"
            )
    check_sizes(initial, encoders, dict.fromkeys(encoders, (config.resolution, *config.further_resolutions)))
    if initial.config.pooling != config.pooling:
        raise ArtifactError(
            f"the head to go on from has pooling {initial.config.pooling!r}, not {config.pooling!r}; give its pooling"
        )
    if not trunk:
        return
    if config.keep_spaces:
        check_stems(initial, config.size)
    else:
        check_shape(initial, config.size, encoders)
    if initial.config.score != TRAINED_FOR[config.loss]["score"]:
        raise ArtifactError(
            f"the head to go on from was trained for {initial.config.score}, which loss {config.loss!r} is not "
            "for; give the loss that it was trained by"
        )


def check_shape(initial: LCMemHead, size: str | None, spaces: Collection[str]) -> None:
    """Whether a head of a named size, or of the usual one, and of ``spaces`` can go on from ``initial``.

    Raises:
        ArtifactError: ``initial`` is of another size, or knows none of the spaces.
    """
    size = size or SIZE
    if different := _differing(initial, size, (*OF_SPACES, *OF_THE_TRUNK)):
        raise ArtifactError(
            f"the head to go on from has another shape than one of size {size!r} ({different}); give its size"
        )
    if not set(spaces) & set(initial.spaces):
        raise ArtifactError(
            f"the head to go on from has no stem for {', '.join(spaces)}; it has {', '.join(initial.spaces)}"
        )


def check_stems(initial: LCMemHead, size: str | None) -> None:
    """Whether a trunk of a named size, or that of ``initial`` itself, can stand on the stems of ``initial``.

    Raises:
        ArtifactError: it cannot.
    """
    if size is None:
        return
    theirs, ours = initial.config.hidden_sizes[0], SIZES[size]["hidden_sizes"][0]
    width = "" if theirs == ours else f"stems {theirs} wide, not {ours}"
    if different := "; ".join(filter(None, (_differing(initial, size, OF_SPACES), width))):
        raise ArtifactError(
            f"a trunk of size {size!r} does not go with the stems of the head to go on from ({different}); give "
            "another size, or leave keep_spaces out"
        )


def other_trunk(initial: LCMemHead, size: str | None) -> bool:
    """Whether the trunk of ``initial`` is of another shape than that of a head of a size, if one is named."""
    return size is not None and bool(_differing(initial, size, OF_THE_TRUNK))


def size_of(initial: LCMemHead) -> str | None:
    """The named size that a head is of, if it is of one."""
    return next((size for size in SIZES if not _differing(initial, size, (*OF_SPACES, *OF_THE_TRUNK))), None)


def _differing(initial: LCMemHead, size: str, names: Sequence[str]) -> str:
    """What of a configuration is otherwise than that of a named size; tokens may be missing."""
    theirs = {name: _plain(initial.config[name]) for name in names}
    ours = {name: _plain(shape_of(size)[name]) for name in names}
    return "; ".join(
        f"{name} {theirs[name]}, not {ours[name]}"
        for name in names
        if ours[name] != theirs[name] and (name != "token_dim" or theirs[name])
    )


def shape_of(size: str) -> dict[str, Any]:
    """The whole shape of a named size."""
    return {"trunk_type": LATER["trunk_type"], **SIZES[size]}


def check_sizes(
    initial: LCMemHead, encoders: Mapping[str, Encoder], sides: Mapping[str, Collection[int]]
) -> None:
    """Whether no space's latents are so large that the filter would halve them: what is trained on is averaged.

    Args:
        sides: In pixels, that pictures of each space are encoded at.

    Raises:
        ConfigurationError: some are.
    """
    for space, encoder in encoders.items():
        for side in sides[space] if space in initial.halvings else ():
            if encoder.side_at(side) >= 2 * initial.grid:
                raise ConfigurationError(
                    f"the head halves latents of {space!r} of {2 * initial.grid}x{2 * initial.grid} and more, and at "
                    f"{side} px they are so large: give a smaller resolution, it knows larger pictures already"
                )


def check_fineness(encoder: Encoder, resolution: int, grid: int) -> None:
    """Whether latents of pictures of so many pixels a side are not far coarser than a head's grid.

    Raises:
        ConfigurationError: they are less than half as fine, or there are none.
    """
    side = encoder.side_at(resolution)
    if 2 * side < grid:
        raise ConfigurationError(
            f"latents of {resolution} px are {side}x{side}, which is far coarser than the head's grid, {grid}x{grid}; "
            f"give resolution {resolution * grid // side}"
        )


def check_known(initial: LCMemHead, spaces: Collection[str]) -> None:
    """Whether ``initial`` has a stem for every one of ``spaces``.

    Raises:
        ArtifactError: it lacks one.
    """
    if unknown := [space for space in spaces if space not in initial.spaces]:
        raise ArtifactError(
            f"the head to go on from has no stem for latent space {unknown[0]!r}; it has {', '.join(initial.spaces)}"
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
