"""Train a small pipeline that memorises, on real images: Stable Diffusion's, or Stable Diffusion 3's by flow matching.

    python benchmarks/filters/train_pipeline.py --output CACHE/pipeline
    LCMEM_VAE=.../taesd3 python benchmarks/filters/train_pipeline.py --model sd3 --output CACHE/pipeline-sd3

Resumable: run the same command again after an interruption.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from data import Row, read_pictures, split_rows, vae_folder
from diffusers import AutoencoderTiny
from small_flow import FlowRecipe, train_flow_pipeline

from lcmem_filter.demo.small_diffusion import Recipe, train_small_pipeline

MODELS: dict[str, tuple[Any, Any]] = {
    "sd": (train_small_pipeline, Recipe()),
    "sd3": (train_flow_pipeline, FlowRecipe()),
}


@torch.no_grad()
def encode(vae: AutoencoderTiny, rows: list[Row]) -> torch.Tensor:
    batches = []
    for start in range(0, len(rows), 16):
        pixels = torch.from_numpy(read_pictures(rows[start : start + 16]))
        images = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        batches.append((vae.encode(images).latents - vae.config.shift_factor) * vae.config.scaling_factor)
    return torch.cat(batches)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", choices=list(MODELS), default="sd", help="what LCMEM_VAE has to fit")
    parser.add_argument("--steps", type=int, help="training steps; by default those of the recipe")
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
    train, recipe = MODELS[arguments.model]
    if arguments.steps:
        recipe = replace(recipe, steps=arguments.steps)
    train(
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
