"""Kandinsky 2.2, which decodes with ``movq``, and Stable Cascade, which decodes with ``vqgan``."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMWuerstchenScheduler,
    KandinskyV22Img2ImgPipeline,
    KandinskyV22Pipeline,
    StableCascadeDecoderPipeline,
    StableCascadeUNet,
    UNet2DConditionModel,
    VQModel,
)
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel

from .family import Family
from .parts import PROMPTS, WIDTH, clip, embeds, quiet, tokenizer
from .stable_diffusion import pictures


def movq() -> Any:
    torch.manual_seed(0)
    return VQModel(
        block_out_channels=(32, 32, 32, 32),  # spatial norms come in 32 groups
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=8,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    ).eval()


def kandinsky(kind: type = KandinskyV22Pipeline) -> Any:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        in_channels=4,
        out_channels=8,
        sample_size=16,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(32, 32),
        layers_per_block=1,
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        resnet_time_scale_shift="scale_shift",
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    return quiet(kind(unet=unet.eval(), scheduler=scheduler, movq=movq()))


def image_embeds() -> dict[str, Any]:
    return {
        "image_embeds": embeds()[:, 0],
        "negative_image_embeds": embeds(seed=1)[:, 0],
        "height": 64,
        "width": 64,
    }


def cascade() -> Any:
    torch.manual_seed(0)
    vqgan = PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=8, embed_dim=16).eval()
    decoder = StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        conditioning_dim=32,
        block_out_channels=(16, 32),
        num_attention_heads=(-1, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(1, 1),
        block_types_per_layer=(
            ("SDCascadeResBlock", "SDCascadeTimestepBlock"),
            ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
        ),
        clip_text_pooled_in_channels=WIDTH,
        clip_seq=1,
        effnet_in_channels=4,
        dropout=0.0,
    ).eval()
    return quiet(
        StableCascadeDecoderPipeline(
            decoder=decoder,
            tokenizer=tokenizer(),
            text_encoder=clip(projection=True),
            scheduler=DDPMWuerstchenScheduler(),
            vqgan=vqgan,
            latent_dim_scale=4.0,
        )
    )


def from_the_prior() -> dict[str, Any]:
    """Two embeddings a prompt: the decoder draws one image from each."""
    return {
        "prompt": list(PROMPTS),
        "image_embeddings": embeds(4, 4, 16).unflatten(2, (4, 4)),
        "num_images_per_prompt": 1,
    }


FAMILIES = [
    Family(
        "KandinskyV22Pipeline",
        kandinsky,
        image_embeds,
        decoder="movq",
        per_prompt=("image_embeds", "negative_image_embeds"),
        tolerance=5e-4,
    ),
    Family(
        "KandinskyV22Img2ImgPipeline",
        lambda: kandinsky(KandinskyV22Img2ImgPipeline),
        lambda: {**image_embeds(), "image": pictures(64), "strength": 1.0},
        decoder="movq",
        per_prompt=("image_embeds", "negative_image_embeds", "image"),
    ),
    Family(
        "StableCascadeDecoderPipeline",
        cascade,
        from_the_prior,
        decoder="vqgan",
        taken_apart=False,
    ),
]
