"""Stable Diffusion 1 and 2 and their ControlNets and upscaler."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    DDPMScheduler,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
)

from .family import Family
from .parts import PROMPTS, negative_prompts, quiet
from tests.tiny import call_arguments, picture, tiny_pipeline

UNET: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 8,
    "cross_attention_dim": 16,
}


def controlnet(**changes: Any) -> Any:
    """A random ControlNet for an autoencoder that downscales by 2, its zero convolutions made random as well."""
    torch.manual_seed(0)
    net = ControlNetModel(**{**UNET, "conditioning_embedding_out_channels": (8, 16), **changes})
    for convolution in [
        *net.controlnet_down_blocks,
        net.controlnet_mid_block,
        net.controlnet_cond_embedding.conv_out,
    ]:
        torch.nn.init.normal_(convolution.weight, std=0.3)
    return net.eval()


def without_safety_checker(pipe: Any) -> dict[str, Any]:
    parts = {
        name: part
        for name, part in pipe.components.items()
        if name not in ("image_encoder", "safety_checker")
    }
    return {**parts, "safety_checker": None, "requires_safety_checker": False}


def with_controlnet() -> Any:
    parts = without_safety_checker(tiny_pipeline())
    return quiet(StableDiffusionControlNetPipeline(**parts, controlnet=controlnet()))


def img2img_with_controlnet() -> Any:
    parts = without_safety_checker(tiny_pipeline())
    return quiet(StableDiffusionControlNetImg2ImgPipeline(**parts, controlnet=controlnet()))


def upscaler() -> Any:
    base = tiny_pipeline()
    base.vae.register_to_config(scaling_factor=0.08333)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        **UNET,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        sample_size=16,
        in_channels=7,
        out_channels=4,
        num_class_embeds=100,
    )
    return quiet(
        StableDiffusionUpscalePipeline(
            vae=base.vae,
            text_encoder=base.text_encoder,
            tokenizer=base.tokenizer,
            unet=unet.eval(),
            scheduler=base.scheduler,
            low_res_scheduler=DDPMScheduler(),
            max_noise_level=50,
        )
    )


def pictures(size: int = 32) -> list[Any]:
    return [picture(row, size) for row in range(2)]


FAMILIES = [
    Family(
        "StableDiffusionPipeline",
        tiny_pipeline,
        negative_prompts,
        per_prompt=("prompt", "negative_prompt"),
        autoencoder="taesd",
    ),
    Family(
        "StableDiffusionImg2ImgPipeline",
        lambda: tiny_pipeline("img2img"),
        lambda: call_arguments("img2img", list(PROMPTS)),
        cycled=("image",),
    ),
    Family(
        "StableDiffusionInpaintPipeline",
        lambda: tiny_pipeline("inpaint"),
        lambda: call_arguments("inpaint", list(PROMPTS)),
        cycled=("image", "mask_image"),
    ),
    Family(
        "StableDiffusionControlNetPipeline",
        with_controlnet,
        lambda: {"prompt": list(PROMPTS), "image": pictures()},
        per_prompt=("prompt", "image"),
    ),
    Family(
        "StableDiffusionControlNetImg2ImgPipeline",
        img2img_with_controlnet,
        lambda: {
            "prompt": list(PROMPTS),
            "image": pictures(),
            "control_image": pictures()[::-1],
            "strength": 1.0,
        },
        per_prompt=("prompt", "control_image"),
        cycled=("image",),
    ),
    Family(
        "StableDiffusionUpscalePipeline",
        upscaler,
        lambda: {"prompt": list(PROMPTS), "image": pictures(16)},
        cycled=("image",),
    ),
]
