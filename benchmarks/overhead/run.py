"""What the filter costs beside a denoiser of Stable Diffusion's size, and how search grows with the training set.

    python benchmarks/overhead/run.py --cache CACHE/overhead --device cuda --steps 20 --batch 4 --repeats 30

The denoiser and the text encoder have the layout of Stable Diffusion 1 and weights that are drawn: what an image costs
depends on the layout alone. Writes ``benchmarks/results/overhead.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "generation"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "detection"))

from data import data_files, vae_folder
from overhead import overhead

from lcmem_filter import LCMemHead, MemorizationFilter, MemorizationIndex, calibrate, load_encoder
from lcmem_filter.demo.run import WEIGHTS
from lcmem_filter.images import ImageSource, open_images
from lcmem_filter.index.exact import ExactBackend
from lcmem_filter.index.recent import Recent
from lcmem_filter.shortlist import DEEPEST

RESULTS = Path(__file__).resolve().parents[1] / "results" / "overhead.json"
SEED = 0
SIZES: dict[str, dict[str, Any]] = {
    "sd1": {"cross_attention_dim": 768},
    "small": {
        "cross_attention_dim": 768,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 8,
    },
}
"""Denoisers: Stable Diffusion 1's 860 million parameters, and one to try the benchmark with."""


def main() -> None:
    arguments = _parse()
    device = torch.device(arguments.device)
    clock = clock_of(device)
    index = index_of(arguments, device)
    pipe = drawn_pipeline(arguments.unet, arguments.vae, device, getattr(torch, arguments.dtype))
    options = {"num_inference_steps": arguments.steps, "height": arguments.side, "width": arguments.side}
    cost = overhead(pipe, index, ["a picture"], options, arguments.batch, arguments.repeats, clock=clock)
    results = {
        "about": f"wall time, the device waited for; {arguments.unet} denoiser, weights drawn, in {arguments.dtype}, "
        f"{arguments.side} px, {arguments.steps} steps with guidance, an index of {len(index):,} images",
        "head": arguments.head,
        "vae": arguments.vae.name,
        **provenance(device),
        "overhead": {**options, **cost},
        "judging": judging(index, arguments, arguments.side // pipe.vae_scale_factor, clock),
        "search": [
            searching(rows, index.head.config.embedding_dim, arguments, clock) for rows in arguments.rows
        ],
    }
    write(arguments.output, results)


def write(path: Path, results: dict[str, Any]) -> None:
    """Put results into a file, and on stdout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


def drawn_pipeline(unet: str, vae: Path, device: torch.device, dtype: torch.dtype) -> StableDiffusionPipeline:
    """Stable Diffusion's layout; denoiser and text encoder are drawn, the last layer is 0: latents are finite."""
    torch.manual_seed(SEED)
    with device:
        denoiser = UNet2DConditionModel(sample_size=64, **SIZES[unet])
        text = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
            )
        )
    for last in denoiser.conv_out.parameters():
        torch.nn.init.zeros_(last)
    pipe = StableDiffusionPipeline(
        vae=load_encoder(vae).vae,
        text_encoder=text,
        tokenizer=CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer"),
        unet=denoiser,
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device, dtype)


def judging(
    index: MemorizationIndex, arguments: argparse.Namespace, side: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """Seconds that the filter takes for a batch of latents of the pipeline's size, ``side`` cells a side."""
    judge, draw = MemorizationFilter(index), torch.Generator().manual_seed(SEED)
    shape = (arguments.batch, index.head.config.spaces[index.space], side, side)
    latents = torch.randn(shape, generator=draw).to(index.head.device)

    def judged() -> None:
        index.recent = Recent()  # as if none of their neighbours had been compared before
        judge.judge(latents)

    return {"batch_size": arguments.batch, **_timed(judged, arguments.repeats, clock)}


def searching(
    rows: int, dim: int, arguments: argparse.Namespace, clock: Callable[[], float]
) -> dict[str, Any]:
    """Seconds of exact search for a batch, by one key, of as many of so many rows as the filter asks for."""
    device = torch.device(arguments.device)
    draw = torch.Generator(device).manual_seed(SEED)

    def unit(count: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(count, dim, generator=draw, device=device), dim=1)

    stored = torch.cat([unit(min(1 << 20, rows - first)).half() for first in range(0, rows, 1 << 20)])
    backend, queries = ExactBackend(stored), unit(arguments.batch)
    timed = _timed(lambda: backend.propose(queries, min(DEEPEST, rows)), arguments.repeats, clock)
    return {"rows": rows, "batch_size": arguments.batch, **timed}


def provenance(device: torch.device) -> dict[str, Any]:
    libraries = ("torch", "diffusers", "transformers", "accelerate", "numpy")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "seed": SEED,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in libraries}},
        "hardware": {"device": name, "cores": os.cpu_count(), "threads": torch.get_num_threads()},
    }


def _timed(call: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> dict[str, Any]:
    call()
    seconds = []
    for _ in range(repeats):
        since = clock()
        call()
        seconds.append(clock() - since)
    return {
        "seconds": round(statistics.median(seconds), 5),
        "range": [round(min(seconds), 5), round(max(seconds), 5)],
        "n": repeats,
    }


def clock_of(device: torch.device) -> Callable[[], float]:
    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


def index_of(arguments: argparse.Namespace, device: torch.device) -> MemorizationIndex:
    """The training images of one set, calibrated on its validation images."""
    folder = arguments.cache / "index"
    train, held_out = (split_of(arguments, split) for split in ("train", "validation"))
    encoder = load_encoder(arguments.vae).to(device)
    head = LCMemHead.from_pretrained(arguments.head).to(device)
    # unless it is there
    MemorizationIndex.build(train, encoder, head, folder, resolution=arguments.resolution)
    index = MemorizationIndex.load(folder).to(device)
    calibrate(index, held_out, false_rejection_rate=0.01, encoder=encoder)
    return index


def split_of(arguments: argparse.Namespace, split: str) -> ImageSource:
    """Images of one split of the set."""
    table = arguments.data or next(file for file in data_files() if file.stem == "ham10000")
    return open_images(table, identity_column="id", where={"split": split})


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """What every script here is told: whose images are indexed, how, and where it runs."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vae", type=Path, help="autoencoder of Stable Diffusion's space; default LCMEM_VAE")
    parser.add_argument(
        "--data", type=Path, help="table of the index's images; default skin lesions of LCMEM_DATA"
    )
    parser.add_argument(
        "--cache", type=Path, required=True, help="folder of the index, outside the repository"
    )
    parser.add_argument(
        "--resolution", type=int, default=128, help="that images are indexed at (default: 128)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def _parse() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--head", default="lcmem-small", help="name or folder (default: lcmem-small)")
    parser.add_argument("--unet", choices=list(SIZES), default="sd1", help="denoiser (default: sd1)")
    parser.add_argument("--dtype", default="float16", help="of the pipeline (default: float16)")
    parser.add_argument("--side", type=int, default=512, help="of the images, in pixels (default: 512)")
    parser.add_argument("--steps", type=int, default=50, help="of denoising (default: 50)")
    parser.add_argument("--batch", type=int, default=8, help="images at once (default: 8)")
    parser.add_argument("--repeats", type=int, default=6, help="rounds (default: 6)")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.vae = arguments.vae or vae_folder()
    return arguments


if __name__ == "__main__":
    main()
