"""Which baselines there are. Each says what it keeps of an image, and how alike two images are by that.

To add one: a module here with a class as below, its name in ``BASELINES``, its arguments in the test's table.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal, Protocol, cast

import torch

from ..errors import LcmemFilterError

BASELINES = {
    "mse": "mse:MeanSquaredError",
    "ncc": "ncc:CrossCorrelation",
    "ssim": "ssim:StructuralSimilarity",
    "perceptual_hash": "perceptual_hash:PerceptualHash",
    "raw_latents": "raw_latents:RawLatents",
    "aligned_latents": "aligned_latents:AlignedLatents",
    "random_head": "random_head:RandomHead",
    "lcmem_embedding": "lcmem:LCMemEmbedding",
    "lcmem": "lcmem:LCMem",
    "lcmem_not_in_place": "lcmem_not_in_place:LCMemNotInPlace",
    "lcmem_without_middles": "lcmem_without_middles:LCMemWithoutMiddles",
    "lcmem_without_warps": "lcmem_without_warps:LCMemWithoutWarps",
    "clip": "transformers_features:CLIP",
    "dinov2": "transformers_features:DINOv2",
    "dinov3": "transformers_features:DINOv3",
    "mae": "transformers_features:MAE",
    "data2vec": "transformers_features:Data2Vec",
    "convnext": "transformers_features:ConvNeXt",
    "swav": "timm_features:SwAV",
    "byol": "timm_features:BYOL",
    "inception": "timm_features:Inception",
    "sscd": "sscd:SSCD",
    "efficientnet_lite0": "efficientnet_lite0:EfficientNetLite0",
    "dlib_faces": "dlib_faces:DlibFaces",
    "packhaeuser": "siamese:Packhaeuser",
    "dar": "siamese:Dar",
    "dar_unsupervised": "siamese:DarUnsupervised",
}
"""Module and class of each baseline; imported when it is first asked for."""

Sees = Literal["pixel", "normalised_latents"]


class Baseline(Protocol):
    """What is kept of an image, and the similarity of two images by what is kept of them.

    Search takes two steps, as in the index: the inner product of ``query`` and ``key`` proposes ``shortlist`` rows,
    ``similarity`` decides among them. Where the two agree the search is exact.

    Attributes:
        sees: ``"pixel"``: pictures (B, 3, H, W) in [-1, 1]; ``"normalised_latents"``: canonical latents.
        shortlist: Rows that the inner product has to propose, of each way of asking.
    """

    sees: Sees
    shortlist: int

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """What is kept (B, D) of ``images``, float32, on the CPU; each row depends on its own image alone."""
        ...

    def key(self, kept: torch.Tensor) -> torch.Tensor:
        """The stored side (N, E) of the inner product, of what was kept (N, D)."""
        ...

    def query(self, kept: torch.Tensor) -> torch.Tensor:
        """The asking side (B, E) of the inner product, of what was kept (B, D); (W, B, E) where it asks in W ways."""
        ...

    def similarity(self, queries: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
        """How alike (B, K) each of ``queries`` (B, D) is to its own ``stored`` (B, K, D); larger is more alike.

        Where scores are normalised by the further candidates, the K are a whole shortlist; one alone has none.
        """
        ...


def make_baseline(name: str, **options: Any) -> Baseline:
    """The baseline of that name, with the options that its class takes.

    Raises:
        LcmemFilterError: no such baseline.
        MissingExtraError: what it needs is not installed.
        ArtifactNotFoundError: its weights are not there.
    """
    if name not in BASELINES:
        raise LcmemFilterError(f"no baseline {name!r}; choose one of {', '.join(BASELINES)}")
    module, class_name = BASELINES[name].split(":")
    made = getattr(importlib.import_module(f".{module}", __package__), class_name)
    return cast(Baseline, made(**options))
