"""Train the small Stable Diffusion pipeline that memorises, on real images in Stable Diffusion's own latent space.

    python benchmarks/filters/train_pipeline.py --output CACHE/pipeline

Resumable: run the same command again after an interruption.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
from data import Row, read_pictures, split_rows, vae_folder
from diffusers import AutoencoderTiny

from lcmem_filter.demo.small_diffusion import Recipe, train_small_pipeline


@torch.no_grad()
def encode(vae: AutoencoderTiny, rows: list[Row]) -> torch.Tensor:
    batches = []
    for start in range(0, len(rows), 16):
        pixels = torch.from_numpy(read_pictures(rows[start : start + 16]))
        images = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        batches.append(vae.encode(images).latents * vae.config.scaling_factor)
    return torch.cat(batches)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows = split_rows()["pipeline"]
    vae = AutoencoderTiny.from_pretrained(vae_folder(), torch_dtype=torch.float32)
    cache = arguments.output / "latents.pt"
    if not cache.exists():
        torch.save(encode(vae, rows), cache)
    latents = torch.load(cache, weights_only=True)
    (arguments.output / "rows.json").write_text(json.dumps([asdict(row) for row in rows], indent=0))
    weights = torch.tensor([float(row.copies) for row in rows])
    print(f"{len(rows)} images, {int((weights > 1).sum())} of them duplicated", flush=True)
    recipe = Recipe(steps=arguments.steps)
    train_small_pipeline(
        vae,
        latents,
        [row.caption for row in rows],
        weights,
        arguments.output,
        recipe,
        log=lambda line: print(line, flush=True),
    )


if __name__ == "__main__":
    main()
