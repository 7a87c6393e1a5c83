"""PixArt-Sigma, Sana and HunyuanDiT: transformers with one cross-attention on the text."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
)
from transformers import BertConfig, BertModel

from .family import Family
from .parts import WIDTH, gemma, negative_prompts, quiet, t5, tokenizer
from tests.tiny import tiny_vae


def pixart() -> Any:
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        sample_size=16,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=WIDTH,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
    )
    return quiet(
        PixArtSigmaPipeline(
            transformer=transformer.eval(),
            scheduler=DDIMScheduler(),
            vae=tiny_vae(),
            text_encoder=t5(),
            tokenizer=tokenizer(),
        )
    )


def sana() -> Any:
    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
    )
    return quiet(
        SanaPipeline(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=deep_compression_vae(),
            text_encoder=gemma(),
            tokenizer=tokenizer(),
        )
    )


def deep_compression_vae() -> Any:
    torch.manual_seed(0)
    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    ).eval()


def eightfold_vae() -> Any:
    """An autoencoder that downscales by 8, which HunyuanDiT takes for granted."""
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16,) * 4,
        norm_num_groups=8,
    ).eval()


def hunyuan() -> Any:
    torch.manual_seed(0)
    transformer = HunyuanDiT2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        cross_attention_dim=WIDTH,
        cross_attention_dim_t5=WIDTH,
        pooled_projection_dim=16,
        hidden_size=16,
        text_len=77,
        text_len_t5=256,
        activation_fn="gelu-approximate",
    )
    torch.manual_seed(0)
    bert = BertConfig(
        vocab_size=len(tokenizer()),
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=80,
    )
    return quiet(
        HunyuanDiTPipeline(
            transformer=transformer.eval(),
            scheduler=DDPMScheduler(),
            vae=eightfold_vae(),
            text_encoder=BertModel(bert).eval(),
            tokenizer=tokenizer(),
            text_encoder_2=t5(),
            tokenizer_2=tokenizer(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def unbinned() -> dict[str, Any]:
    return {**negative_prompts(), "use_resolution_binning": False}


TEXTS = ("prompt", "negative_prompt")

FAMILIES = [
    Family("PixArtSigmaPipeline", pixart, unbinned, per_prompt=TEXTS),
    Family("SanaPipeline", sana, unbinned, per_prompt=TEXTS),
    Family("HunyuanDiTPipeline", hunyuan, unbinned, per_prompt=TEXTS),
]
