"""Features of foundation models through transformers; weights from a folder or the hub."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import torch

from ..errors import ArtifactNotFoundError
from .common import IMAGENET_MEAN, IMAGENET_STD, Cosine, as_network_input, unit
from .registry import Sees


class TransformersFeatures(Cosine):
    """Cosine, in [-1, 1], of a vision model's pooled features.

    Size, mean and standard deviation of its input are those of its ``preprocessor_config.json``; pictures are squashed
    to the square, not cropped, since a crop would hide the borders of a copy.

    Args:
        weights: A folder that ``save_pretrained`` wrote, or a hub id; the model's own id by default.
        download: Whether the hub may be asked. Else a folder, or what the hub's cache holds.

    Raises:
        ArtifactNotFoundError: the weights are not there.
    """

    sees: Sees = "pixel"
    hub_id: ClassVar[str]
    model_class: ClassVar[str]

    def __init__(self, weights: str | os.PathLike[str] | None = None, *, download: bool = False) -> None:
        import transformers

        where = os.fspath(weights) if weights is not None else self.hub_id
        options: dict[str, Any] = {"local_files_only": not download}
        try:
            model_class = getattr(transformers, self.model_class)
            self._model = model_class.from_pretrained(where, dtype=torch.float32, **options).eval()
        except Exception as error:
            raise ArtifactNotFoundError(
                f"no weights of {self.model_class} could be loaded from {where!r}: {type(error).__name__}; "
                "give a folder with weights=..., or allow the hub with download=True"
            ) from error
        self._prepare(self._model)
        self._input = _input_of(where, self._model.config, options)

    def _prepare(self, model: Any) -> None:
        """Settings of the model before it is used."""

    def _pool(self, output: Any) -> torch.Tensor:
        """A model's output to features (B, D)."""
        return output.pooler_output

    def _forward(self, pixels: torch.Tensor) -> Any:
        return self._model(pixel_values=pixels)

    @torch.inference_mode()
    def embed(self, images: torch.Tensor) -> torch.Tensor:
        self._model.to(images.device)
        return unit(self._pool(self._forward(as_network_input(images, *self._input))))


class CLIP(TransformersFeatures):
    """CLIP's image embedding (Radford et al., 2021)."""

    hub_id, model_class = "openai/clip-vit-base-patch32", "CLIPVisionModelWithProjection"

    def _pool(self, output: Any) -> torch.Tensor:
        return output.image_embeds


class DINOv2(TransformersFeatures):
    """DINOv2's class token (Oquab et al., 2023)."""

    hub_id, model_class = "facebook/dinov2-base", "Dinov2Model"


class DINOv3(TransformersFeatures):
    """DINOv3's class token (Simeoni et al., 2025)."""

    hub_id, model_class = "facebook/dinov3-vitb16-pretrain-lvd1689m", "DINOv3ViTModel"


class MAE(TransformersFeatures):
    """A masked autoencoder's class token, nothing masked (He et al., 2022)."""

    hub_id, model_class = "facebook/vit-mae-base", "ViTMAEModel"

    def _prepare(self, model: Any) -> None:
        model.config.mask_ratio = 0.0

    def _forward(self, pixels: torch.Tensor) -> Any:
        patches = self._model.embeddings.patch_embeddings.num_patches
        order = torch.arange(
            patches, device=pixels.device, dtype=torch.float32
        )  # patches stay in their order
        return self._model(pixel_values=pixels, noise=order.expand(len(pixels), -1))

    def _pool(self, output: Any) -> torch.Tensor:
        return output.last_hidden_state[:, 0]


class Data2Vec(TransformersFeatures):
    """data2vec's mean patch token (Baevski et al., 2022)."""

    hub_id, model_class = "facebook/data2vec-vision-base", "Data2VecVisionModel"

    def _pool(self, output: Any) -> torch.Tensor:
        return output.last_hidden_state[:, 1:].mean(1)


class ConvNeXt(TransformersFeatures):
    """ConvNeXt's pooled features, trained on ImageNet-22k (Liu et al., 2022)."""

    hub_id, model_class = "facebook/convnext-base-224-22k", "ConvNextModel"


def _input_of(
    where: str, config: Any, options: dict[str, Any]
) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Side, mean and standard deviation of a model's input."""
    from transformers import ImageProcessingMixin

    try:
        found, _ = ImageProcessingMixin.get_image_processor_dict(where, **options)
    except OSError:
        found = {}
    size = found.get("crop_size") or found.get("size") or getattr(config, "image_size", 224)
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge") or 224
    mean, std = found.get("image_mean") or IMAGENET_MEAN, found.get("image_std") or IMAGENET_STD
    return int(size), tuple(mean), tuple(std)
