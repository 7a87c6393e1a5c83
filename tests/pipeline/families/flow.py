"""Stable Diffusion 3, Lumina 2 and Z-Image: transformers on unpacked latents, with flow matching."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import Qwen3Config, Qwen3Model

from .family import Family
from .parts import PROMPTS, WIDTH, clip, gemma, negative_prompts, prompts, quiet, tokenizer
from .stable_diffusion import pictures
from tests.tiny import tiny_vae


def shifted_vae(latent_channels: int = 4) -> Any:
    """The autoencoder of the tests, with a scaling factor and a shift."""
    vae = tiny_vae(latent_channels=latent_channels)
    vae.register_to_config(scaling_factor=1.5305, shift_factor=0.0609)
    return vae


def sd3(kind: type = StableDiffusion3Pipeline, vae: Any = None, channels: int = 4) -> Any:
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=channels,
        out_channels=channels,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
    )
    return quiet(
        kind(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=vae or shifted_vae(),
            text_encoder=clip(projection=True, seed=1),
            tokenizer=tokenizer(),
            text_encoder_2=clip(projection=True, seed=2),
            tokenizer_2=tokenizer(),
            text_encoder_3=None,
            tokenizer_3=None,
        )
    )


def lumina() -> Any:
    torch.manual_seed(0)
    transformer = Lumina2Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=16,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=2,
        multiple_of=16,
        axes_dim_rope=[4, 2, 2],
        axes_lens=[300, 16, 16],
        cap_feat_dim=WIDTH,
    )
    return quiet(
        Lumina2Pipeline(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=shifted_vae(),
            text_encoder=gemma(),
            tokenizer=tokenizer(),
        )
    )


def z_image() -> Any:
    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=16,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 2, 2],
        axes_lens=[256, 32, 32],
    )
    with torch.no_grad():  # made with torch.empty
        transformer.x_pad_token.fill_(1)
        transformer.cap_pad_token.fill_(1)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer()),
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    return quiet(
        ZImagePipeline(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=shifted_vae(),
            text_encoder=Qwen3Model(config).eval(),
            tokenizer=tokenizer(),
        )
    )


FAMILIES = [
    Family(
        "StableDiffusion3Pipeline",
        sd3,
        negative_prompts,
        per_prompt=("prompt", "negative_prompt"),
        autoencoder="taesd3",
    ),
    Family(
        "StableDiffusion3Img2ImgPipeline",
        lambda: sd3(StableDiffusion3Img2ImgPipeline),
        lambda: {"prompt": list(PROMPTS), "image": pictures(), "height": 32, "width": 32, "strength": 0.5},
        cycled=("image",),
    ),
    Family("Lumina2Pipeline", lumina, prompts),
    Family("ZImagePipeline", z_image, negative_prompts, per_prompt=("prompt", "negative_prompt")),
]
