"""Tiny random pipelines, autoencoders and heads, made in code: no hub, no files, the same on every machine."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from lcmem_filter.demo.small_diffusion import build_tokenizer
from lcmem_filter.encoding import EncodedImages, encode_batches
from lcmem_filter.images import ImageSource
from lcmem_filter.latents import Encoder, encode_pixels

KINDS = ("text-to-image", "img2img", "inpaint")
VAES = ("AutoencoderKL", "AutoencoderTiny")
RESOLUTION = 32

_CLASSES = {
    "text-to-image": StableDiffusionPipeline,
    "img2img": StableDiffusionImg2ImgPipeline,
    "inpaint": StableDiffusionInpaintPipeline,
}


def tiny_vae(kind: str = "AutoencoderKL", seed: int = 0, latent_channels: int = 4) -> Any:
    """A random autoencoder that downscales by 2: 32 px pictures have 16x16 latents."""
    torch.manual_seed(seed)
    if kind == "AutoencoderTiny":
        vae: Any = AutoencoderTiny(
            latent_channels=latent_channels,
            encoder_block_out_channels=(16, 16),
            decoder_block_out_channels=(16, 16),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        )
    else:
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(16, 16),
            norm_num_groups=8,
            latent_channels=latent_channels,
            sample_size=RESOLUTION,
        )
    return vae.eval()


def turned_vae() -> Any:
    """``tiny_vae``, with channels that hold three quarters of their neighbour too: it agrees by about 0.8."""
    vae = tiny_vae()
    with torch.no_grad():
        vae.quant_conv.weight[:4] += 0.75 * vae.quant_conv.weight[[1, 2, 3, 0]]
    return vae


def tiny_pipeline(kind: str = "text-to-image", vae: str = "AutoencoderKL", seed: int = 0) -> Any:
    """A random Stable Diffusion pipeline for 32 px pictures; the same weights for the same arguments."""
    decoder = tiny_vae(vae, seed)
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=RESOLUTION // 2,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        cross_attention_dim=16,
        in_channels=9 if kind == "inpaint" else 4,
        out_channels=4,
    )
    tokenizer = _tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            projection_dim=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1
    )
    pipe = _CLASSES[kind](
        vae=decoder,
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call_arguments(kind: str, prompts: Sequence[str] | None) -> dict[str, Any]:
    """Arguments that a pipeline of ``kind`` needs for ``prompts``, one picture a prompt."""
    arguments: dict[str, Any] = {"prompt": prompts}
    if kind == "text-to-image":
        return {**arguments, "height": RESOLUTION, "width": RESOLUTION}
    rows = range(len(prompts or ()))
    arguments |= {"image": [picture(row) for row in rows], "strength": 1.0}
    if kind == "inpaint":
        arguments |= {
            "mask_image": [half_mask(row) for row in rows],
            "height": RESOLUTION,
            "width": RESOLUTION,
        }
    return arguments


def picture(seed: int, size: int = RESOLUTION) -> Image.Image:
    """Smooth random colours, the same for the same seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def write_unjudgeable(folder: Path) -> list[str]:
    """Write two pictures that ``fussy_encode`` makes nothing of, and return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for colour in ("black", "white"):
        Image.new("RGB", (RESOLUTION, RESOLUTION), colour).save(folder / f"{colour}.png")
    return ["black.png", "white.png"]


def fussy_encode(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """``encode_pixels`` of an encoder that gives a constant for black pictures, and NaN for white ones."""
    latents = encode_pixels(vae, pixels)
    latents[(pixels == -1).flatten(1).all(1)] = 0.25
    latents[(pixels == 1).flatten(1).all(1)] = torch.nan
    return latents


def half_mask(side: int) -> Image.Image:
    """White on the left half for an even ``side``, on the right half for an odd one."""
    mask = np.zeros((RESOLUTION, RESOLUTION), dtype=np.uint8)
    half = slice(0, RESOLUTION // 2) if side % 2 == 0 else slice(RESOLUTION // 2, None)
    mask[:, half] = 255
    return Image.fromarray(mask)


def write_pictures(folder: Path, seeds: Sequence[int], identities: int = 0) -> Path:
    """Write pictures into ``folder``; with ``identities``, so many in a subfolder of each."""
    for seed in seeds:
        where = folder / f"person{seed // identities:03d}" if identities else folder
        where.mkdir(parents=True, exist_ok=True)
        picture(seed).save(where / f"{seed:03d}.png")
    return folder


def encode_images(
    source: ImageSource, rows: Sequence[int], encoder: Encoder, resolution: int
) -> EncodedImages:
    """All ``rows`` of ``source`` as one batch."""
    ((_, encoded),) = encode_batches(source, rows, encoder, resolution, len(rows))
    return encoded


@cache
def _tokenizer() -> Any:
    words = ["a cat", "a dog", "blurred", "washed out", "a picture of a bird and a house"]
    with tempfile.TemporaryDirectory() as folder:
        return build_tokenizer(words, Path(folder), 16)
