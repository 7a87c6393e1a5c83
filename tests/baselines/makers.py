"""A small instance of every baseline: random weights from tiny configurations, saved and loaded as users would."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lcmem_filter.baselines import make_baseline
from lcmem_filter.baselines.siamese import SiameseNetwork
from lcmem_filter.errors import ArtifactNotFoundError
from lcmem_filter.head import LCMemHead

SIDE = 32
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": SIDE,
    "patch_size": 8,
}


def _transformers(name: str, model: str, **config: Any) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        import transformers

        torch.manual_seed(0)
        model_class = getattr(transformers, model)
        model_class(model_class.config_class(**config)).save_pretrained(folder)
        return make_baseline(name, weights=folder)

    return make


def _timm(name: str) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        try:
            make_baseline(name)  # where timm is not installed, that is what is said
        except ArtifactNotFoundError:
            import timm

        torch.manual_seed(0)
        architecture = "inception_v3" if name == "inception" else "resnet50"
        torch.save(timm.create_model(architecture, num_classes=0).state_dict(), folder / "weights.pth")
        return make_baseline(name, weights=folder / "weights.pth")

    return make


def _sscd(folder: Path) -> Any:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 7, stride=4), torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten()
    )
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(network, torch.zeros(1, 3, 288, 288)).save(str(folder / "sscd.pt"))
    return make_baseline("sscd", weights=folder / "sscd.pt")


def _siamese(name: Any) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        torch.manual_seed(0)
        SiameseNetwork(name, SIDE, (8, 16), (1, 1), 12).save(folder)
        return make_baseline(name, weights=folder)

    return make


def _head(folder: Path) -> Path:
    torch.manual_seed(0)
    LCMemHead.create("micro").save_pretrained(folder)
    return folder


MAKERS: dict[str, Callable[[Path], Any]] = {
    "mse": lambda folder: make_baseline("mse", side=SIDE),
    "ncc": lambda folder: make_baseline("ncc", side=SIDE),
    "ssim": lambda folder: make_baseline("ssim", side=SIDE),
    "perceptual_hash": lambda folder: make_baseline("perceptual_hash"),
    "raw_latents": lambda folder: make_baseline("raw_latents"),
    "aligned_latents": lambda folder: make_baseline("aligned_latents"),
    "random_head": lambda folder: make_baseline("random_head", size="micro"),
    "lcmem_embedding": lambda folder: make_baseline("lcmem_embedding", head=_head(folder)),
    "lcmem": lambda folder: make_baseline("lcmem", head=_head(folder)),
    "lcmem_not_in_place": lambda folder: make_baseline("lcmem_not_in_place", head=_head(folder)),
    "lcmem_without_middles": lambda folder: make_baseline("lcmem_without_middles", head=_head(folder)),
    "lcmem_without_warps": lambda folder: make_baseline("lcmem_without_warps", head=_head(folder)),
    "clip": _transformers("clip", "CLIPVisionModelWithProjection", projection_dim=12, **VIT),
    "dinov2": _transformers("dinov2", "Dinov2Model", **VIT),
    "dinov3": _transformers("dinov3", "DINOv3ViTModel", **VIT),
    "mae": _transformers("mae", "ViTMAEModel", mask_ratio=0.75, **VIT),
    "data2vec": _transformers("data2vec", "Data2VecVisionModel", **VIT),
    "convnext": _transformers(
        "convnext", "ConvNextModel", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=SIDE
    ),
    "swav": _timm("swav"),
    "byol": _timm("byol"),
    "inception": _timm("inception"),
    "sscd": _sscd,
    "efficientnet_lite0": lambda folder: make_baseline("efficientnet_lite0", side=64),
    "dlib_faces": lambda folder: make_baseline("dlib_faces"),
    "packhaeuser": _siamese("packhaeuser"),
    "dar": _siamese("dar"),
    "dar_unsupervised": _siamese("dar_unsupervised"),
}
