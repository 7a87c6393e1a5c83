"""SSCD, the copy-detection network, from its TorchScript file."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch

from ..errors import ArtifactNotFoundError
from .common import IMAGENET_MEAN, IMAGENET_STD, Cosine, as_network_input, unit
from .registry import Sees


class SSCD(Cosine):
    """Cosine, in [-1, 1], of SSCD's descriptors (Pizzi et al., CVPR 2022), pictures squashed to 288 px.

    Args:
        weights: A TorchScript file such as ``sscd_disc_mixup.torchscript.pt``. It holds code that is run.

    Raises:
        ArtifactNotFoundError: no file was given, or it is no TorchScript.
    """

    sees: Sees = "pixel"
    side = 288

    def __init__(self, weights: str | os.PathLike[str] | None = None) -> None:
        if weights is None or not Path(weights).is_file():
            raise ArtifactNotFoundError(
                f"no SSCD at {weights}: give its TorchScript file with weights=... "
                "(github.com/facebookresearch/sscd-copy-detection lists them)"
            )
        try:
            with warnings.catch_warnings():  # torch deprecates TorchScript, SSCD comes as nothing else
                warnings.simplefilter("ignore", DeprecationWarning)
                self._model = torch.jit.load(os.fspath(weights), map_location="cpu").eval()
        except RuntimeError as error:
            raise ArtifactNotFoundError(f"{os.fspath(weights)} is no TorchScript file: {error}") from error

    @torch.inference_mode()
    def embed(self, images: torch.Tensor) -> torch.Tensor:
        self._model.to(images.device)
        return unit(self._model(as_network_input(images, self.side, IMAGENET_MEAN, IMAGENET_STD)))
