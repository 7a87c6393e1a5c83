"""Stable Diffusion's safety checker, for its time alone: it is what pipelines pay for a check already."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor

# CLIP ViT-L/14, the size that Stable Diffusion 1 and 2 ship
VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
    "projection_dim": 768,
}


class SafetyChecker:
    """diffusers' checker of the published size with random weights: what it says of an image means nothing.

    Its thresholds are those of a new network, which no cosine exceeds: every image passes.
    """

    label = "Stable Diffusion safety checker (random weights: time only)"

    def __init__(self, vision: dict[str, int] = VISION) -> None:
        config = CLIPConfig(vision_config=dict(vision), projection_dim=vision["projection_dim"])
        self.checker = StableDiffusionSafetyChecker(config).eval()
        side = vision["image_size"]
        self.processor = CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )

    @contextmanager
    def attached(self, pipe: Any) -> Iterator[None]:
        """The pipeline checks what it decodes, where diffusers does."""
        before = {"safety_checker": pipe.safety_checker, "feature_extractor": pipe.feature_extractor}
        pipe.register_modules(safety_checker=self.checker, feature_extractor=self.processor)
        try:
            yield
        finally:
            pipe.register_modules(**before)

    def describe(self, seconds: dict[str, Any]) -> dict[str, Any]:
        """Its row beside the filters: no shares, since it knows nothing of the training set."""
        parameters = sum(weight.numel() for weight in self.checker.parameters())
        note = "CLIP ViT-L/14 with random weights, built from its configuration; measured for its time alone."
        return {"label": self.label, "note": note, "parameters": parameters, **seconds}
