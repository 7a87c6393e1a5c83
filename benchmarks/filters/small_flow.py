"""A small text-to-image Stable Diffusion 3 pipeline, trained from scratch by flow matching, on a CPU.

A multimodal diffusion transformer and two CLIP text encoders (Esser et al., 2024), a few million parameters together,
without T5, for which the pipeline puts zeros. Noise levels are drawn as the paper does, logit-normal, and the pipeline
shifts its steps by 3, as the released one does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection

from lcmem_filter.demo.small_diffusion import (
    SmallRecipe,
    build_tokenizer,
    text_config,
    tokenise,
    train_modules,
    write_report,
)


@dataclass(frozen=True)
class FlowRecipe(SmallRecipe):
    """Of a small Stable Diffusion 3 pipeline. ``width`` is the transformer's, over all its heads."""

    width: int = 192
    heads: int = 6
    layers: int = 4
    shift: float = 3.0
    steps: int = 4_500


def build_flow_pipeline(
    recipe: FlowRecipe, vae: Any, captions: Sequence[str], sample_size: int, folder: Path
) -> Any:
    """An untrained ``StableDiffusion3Pipeline`` of the recipe's size around ``vae``."""
    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer(captions, folder / "tokenizer", recipe.max_tokens)
    config = text_config(recipe, tokenizer)
    transformer = SD3Transformer2DModel(
        sample_size=sample_size,
        patch_size=2,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        num_layers=recipe.layers,
        attention_head_dim=recipe.width // recipe.heads,
        num_attention_heads=recipe.heads,
        joint_attention_dim=2 * recipe.text_width,
        caption_projection_dim=recipe.width,
        pooled_projection_dim=2 * recipe.text_width,
        pos_embed_max_size=sample_size,
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        vae=vae,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=recipe.shift),
        text_encoder=CLIPTextModelWithProjection(config),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def conditioning(pipeline: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the transformer is told of token ids (B, n), as the pipeline makes it: (B, 2n, 2w), whose second half stands
    for T5's and is zeros, and pooled (B, 2w), of two text encoders of width w."""
    encoders = (pipeline.text_encoder, pipeline.text_encoder_2)
    encoded = [encoder(tokens, output_hidden_states=True) for encoder in encoders]
    hidden = torch.cat([one.hidden_states[-2] for one in encoded], -1)
    pooled = torch.cat([one.text_embeds for one in encoded], -1)
    return torch.cat([hidden, torch.zeros_like(hidden)], 1), pooled


def train_flow_pipeline(
    vae: Any,
    latents: torch.Tensor,
    captions: Sequence[str],
    weights: torch.Tensor,
    output: Path,
    recipe: FlowRecipe = FlowRecipe(),
    *,
    log: Callable[[str], None] = print,
) -> Any:
    """Train on ``latents`` (N, C, H, W) as the pipeline denoises them, one caption each, drawn in proportion to
    ``weights`` (N,).

    Resumes from ``output/checkpoint.pt``. Saves the pipeline and ``training.json`` (recipe, losses, seconds) under
    ``output``, and returns the pipeline.
    """
    pipeline = build_flow_pipeline(recipe, vae, captions, latents.shape[-1], output)
    steps = pipeline.scheduler.config.num_train_timesteps
    tokens = tokenise(pipeline.tokenizer, [*captions, ""], recipe.max_tokens)

    def batch_loss(rows: torch.Tensor, dropped: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        clean = latents[rows].float()
        noise = torch.randn(clean.shape, generator=generator)
        sigmas = torch.randn(len(rows), generator=generator).sigmoid()
        noisy = torch.lerp(clean, noise, sigmas[:, None, None, None])
        hidden, pooled = conditioning(pipeline, tokens[torch.where(dropped, len(captions), rows)])
        with torch.autocast("cpu", torch.bfloat16):
            predicted = pipeline.transformer(
                noisy, timestep=sigmas * steps, encoder_hidden_states=hidden, pooled_projections=pooled
            ).sample
        return torch.nn.functional.mse_loss(predicted.float(), noise - clean)

    names = ("transformer", "text_encoder", "text_encoder_2")
    modules = {name: getattr(pipeline, name) for name in names}
    state = train_modules(modules, batch_loss, weights, output, recipe, log=log)
    pipeline.save_pretrained(output)
    write_report(output, recipe, len(captions), state)
    return pipeline
