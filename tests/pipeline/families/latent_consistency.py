"""Latent consistency models."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    LatentConsistencyModelImg2ImgPipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    UNet2DConditionModel,
)

from .family import Family
from .parts import PROMPTS, prompts, quiet
from .stable_diffusion import UNET, pictures, without_safety_checker
from tests.tiny import tiny_pipeline


def consistency_model(kind: type = LatentConsistencyModelPipeline) -> Any:
    parts = without_safety_checker(tiny_pipeline())
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        **UNET,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        sample_size=16,
        in_channels=4,
        out_channels=4,
        time_cond_proj_dim=16,
    )
    scheduler = LCMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
    )
    return quiet(kind(**{**parts, "unet": unet.eval(), "scheduler": scheduler}))


FAMILIES = [
    Family("LatentConsistencyModelPipeline", consistency_model, prompts),
    Family(
        "LatentConsistencyModelImg2ImgPipeline",
        lambda: consistency_model(LatentConsistencyModelImg2ImgPipeline),
        lambda: {"prompt": list(PROMPTS), "image": pictures(), "strength": 1.0},
        cycled=("image",),
    ),
]
