"""Features of convolutional networks through timm; weights from a checkpoint or the hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import torch

from ..errors import ArtifactNotFoundError, MissingExtraError
from .common import Cosine, as_network_input, unit
from .registry import Sees


class TimmFeatures(Cosine):
    """Cosine, in [-1, 1], of a timm model's pooled features.

    Args:
        weights: A checkpoint that timm reads (safetensors, or a state dict without code in it). By default timm's own
            weights, where it has some.
        download: Whether the hub may be asked for those.

    Raises:
        MissingExtraError: timm is not installed.
        ArtifactNotFoundError: the weights are not there.
    """

    sees: Sees = "pixel"
    architecture: ClassVar[str]
    on_hub: ClassVar[bool] = False

    def __init__(self, weights: str | os.PathLike[str] | None = None, *, download: bool = False) -> None:
        try:
            import timm
        except (ImportError, RuntimeError) as error:  # torchvision of another torch raises a RuntimeError
            raise MissingExtraError(
                f"the {type(self).__name__} baseline needs timm ({error}); run: pip install 'lcmem-filter[bench]'"
            ) from error
        if weights is None and not (self.on_hub and download):
            raise ArtifactNotFoundError(
                f"{type(self).__name__} has no weights: give a checkpoint of {self.architecture} with weights=..."
                + (", or allow the hub with download=True" if self.on_hub else "")
            )
        if weights is not None and not Path(weights).is_file():
            raise ArtifactNotFoundError(
                f"no checkpoint at {os.fspath(weights)}; give a file with weights=..."
            )
        self._model = timm.create_model(
            self.architecture,
            pretrained=weights is None,
            checkpoint_path="" if weights is None else os.fspath(weights),
            num_classes=0,
        ).eval()
        found = timm.data.resolve_model_data_config(self._model)
        self._input = (int(found["input_size"][-1]), tuple(found["mean"]), tuple(found["std"]))

    @torch.inference_mode()
    def embed(self, images: torch.Tensor) -> torch.Tensor:
        self._model.to(images.device)
        return unit(self._model(as_network_input(images, *self._input)))


class SwAV(TimmFeatures):
    """SwAV's ResNet-50 (Caron et al., 2020)."""

    architecture = "resnet50"


class BYOL(TimmFeatures):
    """BYOL's ResNet-50 (Grill et al., 2020)."""

    architecture = "resnet50"


class Inception(TimmFeatures):
    """Inception-v3 (Szegedy et al., 2016), whose features the Frechet inception distance is made of."""

    architecture, on_hub = "inception_v3", True
