"""Train a small ``AutoencoderKL`` from scratch, on a CPU."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from .checkpoints import read_checkpoint, write_checkpoint


@dataclass(frozen=True)
class VaeRecipe:
    """Size and schedule of a small autoencoder; pictures shrink to a quarter with three widths in ``channels``."""

    channels: tuple[int, ...] = (16, 32, 64)
    latent_channels: int = 4
    steps: int = 2_000
    batch_size: int = 8
    learning_rate: float = 2e-3
    kl_weight: float = 5e-4
    square_weight: float = 5.0
    seed: int = 0


def train_small_vae(
    pixels: torch.Tensor,
    work: str | os.PathLike[str],
    recipe: VaeRecipe = VaeRecipe(),
    *,
    checkpoint_every: int = 200,
    log: Callable[[str], None] = print,
) -> Any:
    """Train on pictures (N, 3, H, W), uint8.

    The loss is the absolute and squared error of pixels and of their differences to the next pixel, so that thin lines
    count, and a light KL term.

    Goes on from ``work/vae.pt`` where a run was interrupted, or returns what it trained where it was finished.
    The weights are rounded to float16, and ``scaling_factor`` gives the latents of ``pixels`` unit variance.

    Raises:
        ArtifactError: the run was of another recipe.
    """
    vae = _untrained(recipe, pixels.shape[-1])
    checkpoint = Path(work) / "vae.pt"
    optimizer = torch.optim.AdamW(vae.parameters(), recipe.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, recipe.steps, pct_start=0.1
    )
    generator, first = torch.Generator().manual_seed(recipe.seed), 0
    if saved := read_checkpoint(checkpoint, recipe):
        vae.load_state_dict(saved["vae"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        generator.set_state(saved["generator"])
        first = saved["step"]
    since = time.monotonic()
    for step in range(first + 1, recipe.steps + 1):
        rows = torch.randint(len(pixels), (recipe.batch_size,), generator=generator)
        loss = _loss(vae, as_input(pixels[rows]), recipe, generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % checkpoint_every == 0 or step == recipe.steps:
            log(f"vae: step {step}/{recipe.steps} loss {loss.item():.4f} {time.monotonic() - since:.0f} s")
            parts = {"vae": vae, "optimizer": optimizer, "schedule": schedule}
            write_checkpoint(checkpoint, recipe, parts, generator=generator.get_state(), step=step)
    return _finished(vae, pixels)


@torch.no_grad()
def encode_all(vae: Any, pixels: torch.Tensor, batch_size: int = 64) -> torch.Tensor:
    """Pictures (N, 3, H, W), uint8, to scaled latents (N, C, h, w): modes, as diffusers encodes."""
    modes = [vae.encode(as_input(part)).latent_dist.mode() for part in pixels.split(batch_size)]
    return torch.cat(modes) * vae.config.scaling_factor


def as_input(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pixels to float32 in [-1, 1]."""
    return (pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def _untrained(recipe: VaeRecipe, sample_size: int) -> Any:
    torch.manual_seed(recipe.seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(recipe.channels),
        up_block_types=("UpDecoderBlock2D",) * len(recipe.channels),
        block_out_channels=recipe.channels,
        layers_per_block=1,
        latent_channels=recipe.latent_channels,
        norm_num_groups=8,
        sample_size=sample_size,
        mid_block_add_attention=False,
    )
    return vae.to(memory_format=torch.channels_last).train()


def _loss(vae: Any, given: torch.Tensor, recipe: VaeRecipe, generator: torch.Generator) -> torch.Tensor:
    posterior = vae.encode(given).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator)
    made = vae.decode(posterior.mean + posterior.std * noise).sample
    off = made - given
    parts = (off, off.diff(dim=-1), off.diff(dim=-2))
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    error = sum(part.abs().mean() + recipe.square_weight * part.square().mean() for part in parts)
    return error + recipe.kl_weight * kl


def _finished(vae: Any, pixels: torch.Tensor) -> Any:
    vae = vae.half().float().eval().requires_grad_(False)
    vae.register_to_config(scaling_factor=1.0)
    spread = float(encode_all(vae, pixels[:512]).std())
    vae.register_to_config(scaling_factor=round(1 / spread, 4))
    return vae
