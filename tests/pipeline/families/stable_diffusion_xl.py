"""Stable Diffusion XL: plain, with standardised latents, with an autoencoder that overflows in float16."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    EulerDiscreteScheduler,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from .family import Family
from .parts import PROMPTS, WIDTH, clip, negative_prompts, quiet, tokenizer
from .stable_diffusion import UNET, controlnet, pictures
from tests.tiny import half_mask, tiny_vae

XL: dict[str, Any] = {
    **UNET,
    "cross_attention_dim": 2 * WIDTH,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
}


def xl(kind: type = StableDiffusionXLPipeline, vae: Any = None, **more: Any) -> Any:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        **XL,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        sample_size=16,
        in_channels=4,
        out_channels=4,
    )
    return quiet(
        kind(
            vae=vae or tiny_vae(),
            text_encoder=clip(seed=1),
            text_encoder_2=clip(projection=True, seed=2),
            tokenizer=tokenizer(),
            tokenizer_2=tokenizer(),
            unet=unet.eval(),
            scheduler=EulerDiscreteScheduler(
                beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
            ),
            add_watermarker=False,
            **more,
        )
    )


def standardised() -> Any:
    vae = tiny_vae()
    vae.register_to_config(
        latents_mean=[-1.6, 0.4, 0.6, -0.3], latents_std=[8.4, 5.0, 5.6, 3.2], scaling_factor=0.5
    )
    return xl(vae=vae)


def upcast() -> Any:
    pipe = xl()
    pipe.vae.register_to_config(force_upcast=True)
    return pipe.to(torch.float16)


def two_texts() -> dict[str, Any]:
    """Everything that may have one entry a prompt, and the sizes and crops, which have not."""
    sizes = {"original_size": (64, 48), "crops_coords_top_left": (4, 8), "target_size": (32, 32)}
    return {**negative_prompts(), "prompt_2": ["a", "cat"], "negative_prompt_2": ["dog", "a dog"], **sizes}


TEXTS = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")

FAMILIES = [
    Family("StableDiffusionXLPipeline", xl, two_texts, per_prompt=TEXTS),
    Family(
        "StableDiffusionXLPipeline",
        standardised,
        two_texts,
        "latents_mean, latents_std",
        per_prompt=TEXTS,
        autoencoder="taesdxl",
    ),
    Family(
        "StableDiffusionXLPipeline", upcast, two_texts, "float16, upcast", per_prompt=TEXTS, tolerance=2e-2
    ),
    Family(
        "StableDiffusionXLImg2ImgPipeline",
        lambda: xl(StableDiffusionXLImg2ImgPipeline),
        lambda: {"prompt": list(PROMPTS), "image": pictures(), "strength": 1.0},
        cycled=("image",),
    ),
    Family(
        "StableDiffusionXLInpaintPipeline",
        lambda: xl(StableDiffusionXLInpaintPipeline),
        lambda: {
            "prompt": list(PROMPTS),
            "image": pictures(),
            "mask_image": [half_mask(0), half_mask(1)],
            "height": 32,
            "width": 32,
            "strength": 0.9,
        },
        cycled=("image", "mask_image"),
    ),
    Family(
        "StableDiffusionXLControlNetPipeline",
        lambda: xl(StableDiffusionXLControlNetPipeline, controlnet=controlnet(**XL)),
        lambda: {"prompt": list(PROMPTS), "image": pictures()},
        per_prompt=("prompt", "image"),
    ),
]
