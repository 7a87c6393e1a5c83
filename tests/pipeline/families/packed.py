"""FLUX.1, FLUX.2 and Qwen-Image: transformers on latents packed into tokens."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxImg2ImgPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)

from .family import Family
from .flow import shifted_vae
from .parts import SIZE, WIDTH, clip, embeds, prompts, quiet, t5, tokenizer
from .stable_diffusion import pictures

FLUX: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "axes_dims_rope": (4, 4, 8),
}


def flux(kind: type = FluxPipeline, vae: Any = None, channels: int = 4, **more: Any) -> Any:
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(**{**FLUX, "in_channels": 4 * channels}, pooled_projection_dim=WIDTH)
    return quiet(
        kind(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=vae or shifted_vae(),
            text_encoder=clip(),
            tokenizer=tokenizer(),
            text_encoder_2=t5(),
            tokenizer_2=tokenizer(),
            **more,
        )
    )


def flux_with_controlnet() -> Any:
    torch.manual_seed(0)
    net = FluxControlNetModel(**FLUX, pooled_projection_dim=WIDTH)
    for linear in [*net.controlnet_blocks, *net.controlnet_single_blocks, net.controlnet_x_embedder]:
        torch.nn.init.normal_(linear.weight, std=0.3)
    return flux(FluxControlNetPipeline, controlnet=net.eval())


def flux2(kind: type = Flux2Pipeline, vae: Any = None, channels: int = 4) -> Any:
    """Without a text encoder: called with embeddings."""
    torch.manual_seed(0)
    shape = {**FLUX, "in_channels": 4 * channels, "axes_dims_rope": (4, 4, 4, 4)}
    transformer = Flux2Transformer2DModel(**shape, guidance_embeds=kind is Flux2Pipeline)
    return quiet(
        kind(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=vae or flux2_vae(),
            text_encoder=None,
            tokenizer=None,
        )
    )


def flux2_vae() -> Any:
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
    )
    uneven_batch_norm(vae.bn)
    return vae.eval()


def uneven_batch_norm(bn: Any) -> None:
    """Statistics that differ within a patch, so that leaving them in shows."""
    draw = torch.Generator().manual_seed(0)
    bn.running_mean.copy_(torch.randn(bn.num_features, generator=draw))
    bn.running_var.copy_(torch.rand(bn.num_features, generator=draw) * 4 + 0.2)


def qwen_image() -> Any:
    """Without a text encoder: called with embeddings."""
    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.5, -0.2, 0.1, -0.8],
        latents_std=[2.8, 1.4, 2.3, 0.7],
    )
    return quiet(
        QwenImagePipeline(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=vae.eval(),
            text_encoder=None,
            tokenizer=None,
        )
    )


def qwen_embeds() -> dict[str, Any]:
    masks = torch.tensor([[1] * 5 + [0] * 2] * 2)
    positive = {"prompt_embeds": embeds(), "prompt_embeds_mask": masks}
    negative = {"negative_prompt_embeds": embeds(seed=1), "negative_prompt_embeds_mask": masks}
    return {**positive, **negative, **SIZE, "true_cfg_scale": 2.0}


FAMILIES = [
    Family("FluxPipeline", flux, prompts, autoencoder="taef1"),
    Family(
        "FluxImg2ImgPipeline",
        lambda: flux(FluxImg2ImgPipeline),
        lambda: {**prompts(), "image": pictures(), "strength": 0.5},
        cycled=("image",),
    ),
    Family(
        "FluxControlNetPipeline",
        flux_with_controlnet,
        lambda: {**prompts(), "control_image": pictures()},
        per_prompt=("prompt", "control_image"),
    ),
    Family(
        "Flux2Pipeline",
        flux2,
        lambda: {"prompt_embeds": embeds(), **SIZE},
        per_prompt=("prompt_embeds",),
        autoencoder="taef2",
    ),
    Family(
        "Flux2Pipeline",
        flux2,
        lambda: {"prompt_embeds": embeds(), **SIZE, "image": pictures(64)},
        "reference images",
        per_prompt=("prompt_embeds",),
        taken_apart=False,
    ),
    Family(
        "Flux2KleinPipeline",
        lambda: flux2(Flux2KleinPipeline),
        lambda: {"prompt_embeds": embeds(), "negative_prompt_embeds": embeds(seed=1), **SIZE},
        per_prompt=("prompt_embeds", "negative_prompt_embeds"),
    ),
    Family(
        "QwenImagePipeline",
        qwen_image,
        qwen_embeds,
        per_prompt=(
            "prompt_embeds",
            "prompt_embeds_mask",
            "negative_prompt_embeds",
            "negative_prompt_embeds_mask",
        ),
    ),
]
