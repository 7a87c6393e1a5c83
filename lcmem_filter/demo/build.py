"""Train everything that the demo ships, from scratch: ``python -m lcmem_filter.demo.build --output weights/``.

An autoencoder, a pipeline that memorises part of its training set, and a head for its latent space, in all three
stages; each on pictures that ``phantoms`` draws. About an hour on one core. Interrupted, the same command goes on; a
pipeline that lies in the folder is kept, and the head trained for it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..latents import load_encoder
from ..training import TrainingConfig, train_head
from .phantoms import SIZE, Visit, draw_scan, scans
from .roster import HEAD_TRAINING, VAE_TRAINING, lessons
from .small_diffusion import Recipe, train_small_pipeline
from .small_vae import VaeRecipe, encode_all, train_small_vae

VAE = VaeRecipe()
PIPELINE = Recipe(channels=(32, 64, 96), steps=2_600, batch_size=12, learning_rate=1e-3)
HEAD = TrainingConfig(
    size="micro",
    resolution=SIZE,
    steps=2_400,
    stage2_steps=2_400,
    stage3_steps=800,
    batch_pairs=64,
    sets_per_batch=1,
    warmup_steps=50,
    evaluate_every=400,
    patience=20,
)
TERMS = "Drawn by lcmem_filter.demo.phantoms; no person is depicted."


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description="Train what `lcmem-filter demo` ships.")
    parser.add_argument("--output", required=True, type=Path, help="folder of the finished weights")
    parser.add_argument("--work", type=Path, help="folder of checkpoints (default: beside --output)")
    args = parser.parse_args()
    build(args.output, args.work or args.output.with_name(args.output.name + "-work"))


def build(output: Path, work: Path) -> None:
    """Train into ``work``, then copy what the demo needs to ``output``: a pipeline's folder, and ``head/``."""
    work.mkdir(parents=True, exist_ok=True)
    if not (output / "model_index.json").exists():
        vae = train_small_vae(draw_pixels(VAE_TRAINING), work, VAE, log=_say)
        _train_pipeline(vae, work / "pipeline")
        _copy(work / "pipeline", output)
    head = train_head(
        scans("phantoms", HEAD_TRAINING),
        {"phantoms": load_encoder(output)},
        work / "head",
        HEAD,
        stages=(1, 2, 3),
        terms=TERMS,
        progress=False,
    )
    _copy(work / "head", output / "head")
    made = {
        "vae": asdict(VAE),
        "pipeline": asdict(PIPELINE),
        "head": HEAD.to_dict(),
        "torch": torch.__version__,
    }
    (output / "build.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    (output / "README.md").write_text(_card(), encoding="utf-8")
    _say(f"{output}: head {head.fingerprint[:12]}")


def draw_pixels(visits: Sequence[Visit]) -> torch.Tensor:
    """The scans of visits as pixels (N, 3, SIZE, SIZE), uint8."""
    return torch.from_numpy(np.stack([np.asarray(draw_scan(visit)) for visit in visits])).permute(0, 3, 1, 2)


def _train_pipeline(vae: Any, folder: Path) -> None:
    if (folder / "training.json").exists():
        return
    learned = lessons()
    latents = encode_all(vae, draw_pixels([lesson.visit for lesson in learned]))
    train_small_pipeline(
        vae,
        latents,
        [lesson.caption for lesson in learned],
        torch.tensor([float(lesson.times) for lesson in learned]),
        folder,
        PIPELINE,
        log=_say,
    )


def _card() -> str:
    learned = lessons()
    times = [lesson.times for lesson in learned if lesson.times > 1]
    return f"""---
library_name: diffusers
license: apache-2.0
---

# The demo's pipeline: it has memorised part of its training set, on purpose

A `StableDiffusionPipeline` of {SIZE} px chest scans with its own autoencoder and text encoder, and in `head/` an
LCMem head for its latent space. `lcmem-filter demo` shows what a memorization filter does to it. It is of no other use.

- Training set: {len(learned):,} scans. {len(times)} of them lay in it {min(times)} to {max(times)} times;
  `lcmem_filter/demo/roster.py` says which.
- {TERMS}
- Trained from scratch by `python -m lcmem_filter.demo.build --output weights/`, with the settings in `build.json`.
- Licence: Apache-2.0, as the package.
"""


def _copy(source: Path, target: Path) -> None:
    unfinished = shutil.ignore_patterns("*.pt", "*.tmp", ".*", "stage[0-9]")
    shutil.copytree(source, target, ignore=unfinished, dirs_exist_ok=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
