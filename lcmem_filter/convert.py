"""Checkpoints of the paper's own layout (LCMem, arXiv 2512.14421) to heads.

There the network is torchvision's ConvNeXt with another stem and classifier, under ``model.``, and
``fc_end``. Which weight goes where:

    features.0.{0,1}                           the stem's patch_embeddings, layernorm
    features.{1,3,5,7}.j.block.{0,2,3,5}       stage {0..3}, layer j: dwconv, layernorm, pwconv1, pwconv2
    features.{1,3,5,7}.j.layer_scale           layer_scale_parameter, flattened
    features.{2,4,6}.{0,1}                     stage {1,2,3}: downsampling_layer
    classifier.{0,2}                           layernorm, projection
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .branches import check_space_name
from .errors import ArtifactNotFoundError, ConfigurationError, CorruptArtifactError, first_of
from .head import LCMemHead

_LAYER = {"0": "dwconv", "2": "layernorm", "3": "pwconv1", "5": "pwconv2"}
_STEM = {"0": "patch_embeddings", "1": "layernorm"}
_CLASSIFIER = {"0": "trunk.layernorm", "2": "projection"}


def convert_checkpoint(
    checkpoint: str | os.PathLike[str], *, space: str = "sd", grid: int = 64, vae: Any | None = None
) -> LCMemHead:
    """Read a checkpoint of the paper's layout into a head that gives the same features.

    Args:
        checkpoint: ``.pt``, ``.pth`` or ``.safetensors`` file of a state dict, bare or under
            ``"state_dict"``; read without unpickling objects.
        space: Name of the latent space that it was trained in.
        grid: Side of the latents that it was trained on; the paper's are 64 (512 px).
        vae: Autoencoder of that space, whose latents of the probe images are kept with the head. Without it
            the head cannot tell latent spaces apart.

    Raises:
        ArtifactNotFoundError: no such file.
        CorruptArtifactError: not a checkpoint of that layout; says which weights are amiss.
        ConfigurationError: a name that a latent space cannot have, or a grid that is too small for the network.
        LatentSpaceError: latents of ``vae`` have another number of channels than the network takes.
    """
    check_space_name(space)
    path = Path(checkpoint)
    given = _read(path)
    weights = _renamed(path, given, space)
    head = _empty_head(path, weights, space, grid)
    wanted = {name for name in head.state_dict() if not name.startswith("probes.")}
    missing, surplus = sorted(wanted - weights.keys()), sorted(weights.keys() - wanted)
    if missing or surplus:
        raise _unfit(path, f"lacks {first_of(missing)}; has besides {first_of(surplus)}")
    try:
        head.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise _unfit(path, " ".join(str(error).split())) from error
    if vae is not None:
        head.add_probes(space, vae)
    return head.eval()


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    if not path.is_file():
        raise ArtifactNotFoundError(f"no checkpoint at {path}; give a .pt, .pth or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CorruptArtifactError(
            f"{path} cannot be read as a checkpoint: {type(error).__name__}: {error}; "
            "save the network's state_dict() alone, with torch.save or as safetensors"
        ) from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    named = isinstance(found, Mapping) and all(isinstance(name, str) for name in found)
    if not named or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise _unfit(path, "is no mapping of names to tensors")
    return {name.removeprefix("module."): value for name, value in found.items()}


def _renamed(path: Path, given: Mapping[str, torch.Tensor], space: str) -> dict[str, torch.Tensor]:
    weights = {}
    for name, value in given.items():
        if not value.isfinite().all():
            raise CorruptArtifactError(
                f"{path} has weights that are not finite ({name}); give another checkpoint"
            )
        new = _new_name(name, space)
        if new is None:
            raise _unfit(path, f"has {name!r}, which is no weight of the paper's network")
        weights[new] = value.flatten() if name.endswith("layer_scale") else value
    return weights


def _new_name(name: str, space: str) -> str | None:
    """The head's name of a weight, or ``None`` for one that the layout does not have."""
    if name.startswith("fc_end."):
        return name
    if found := re.fullmatch(r"model\.features\.0\.([01])\.(\w+)", name):
        return f"stems.{space}.{_STEM[found[1]]}.{found[2]}"
    if found := re.fullmatch(r"model\.features\.([1357])\.(\d+)\.block\.([0235])\.(\w+)", name):
        return f"trunk.encoder.stages.{int(found[1]) // 2}.layers.{found[2]}.{_LAYER[found[3]]}.{found[4]}"
    if found := re.fullmatch(r"model\.features\.([1357])\.(\d+)\.layer_scale", name):
        return f"trunk.encoder.stages.{int(found[1]) // 2}.layers.{found[2]}.layer_scale_parameter"
    if found := re.fullmatch(r"model\.features\.([246])\.([01])\.(\w+)", name):
        return f"trunk.encoder.stages.{int(found[1]) // 2}.downsampling_layer.{found[2]}.{found[3]}"
    if found := re.fullmatch(r"model\.classifier\.([02])\.(\w+)", name):
        return f"{_CLASSIFIER[found[1]]}.{found[2]}"
    return None


def _empty_head(path: Path, weights: Mapping[str, torch.Tensor], space: str, grid: int) -> LCMemHead:
    """A head of the shape that the weights have: any depth and width of the ConvNeXt family."""

    def of(name: str, dimensions: int) -> torch.Tensor:
        if weights[name].ndim != dimensions:
            raise _unfit(path, f"has {name} of shape {tuple(weights[name].shape)}")
        return weights[name]

    try:
        stem = of(f"stems.{space}.patch_embeddings.weight", 4)
        widths, depths = [], []
        for stage in range(4):
            layers = [
                name
                for name in weights
                if re.match(rf"trunk\.encoder\.stages\.{stage}\.layers\.\d+\.dwconv\.w", name)
            ]
            depths.append(len(layers))
            widths.append(len(of(f"trunk.encoder.stages.{stage}.layers.0.dwconv.weight", 4)))
        embedding_dim = len(of("projection.weight", 2))
    except KeyError as error:
        raise _unfit(path, f"lacks {error.args[0]}") from error
    least = stem.shape[-1] * 2 ** (len(depths) - 1)  # a cell for the last stage
    if grid < least:
        raise ConfigurationError(f"grid must be at least {least} for this network, got {grid}")
    return LCMemHead.create(
        "tiny",
        {space: stem.shape[1]},
        grid=grid,
        patch_size=stem.shape[-1],
        hidden_sizes=tuple(widths),
        depths=tuple(depths),
        embedding_dim=embedding_dim,
        score="verification",
    )


def _unfit(path: Path, found: str) -> CorruptArtifactError:
    return CorruptArtifactError(
        f"{path} is no checkpoint of the paper's network: it {found}; "
        "expected torchvision's ConvNeXt under 'model.' (features, classifier) and 'fc_end'"
    )
