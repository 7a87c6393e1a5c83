"""A tiny random pipeline in a folder, and an index whose threshold lies amid the scores of what it draws."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from lcmem_filter.filter import MemorizationFilter
from lcmem_filter.index import MemorizationIndex
from lcmem_filter.types import Calibration
from lcmem_filter.verification import STATISTIC

from ..index.material import build
from ..tiny import RESOLUTION, tiny_pipeline

OPTIONS = {"num_inference_steps": 2, "height": RESOLUTION, "width": RESOLUTION, "guidance_scale": 2.0}
PROMPTS = ["a cat", "a dog", "a picture of a bird and a house"] * 4


def material(folder: Path, rejected: float = 0.4) -> None:
    """Write ``pipeline`` and ``index`` so that about that share of draws matches."""
    pipe = tiny_pipeline()
    pipe.save_pretrained(folder / "pipeline")
    index = build(folder, 12)
    scores = tuple(sorted(decision.score for decision in drawn(pipe, index)))
    threshold = scores[round((1 - rejected) * len(scores)) - 1]
    index.set_calibration(
        Calibration(scores, rejected, threshold, index.space, len(scores), {}, (0.0, 1.0), STATISTIC)
    )


def drawn(pipe: Any, index: MemorizationIndex) -> list[Any]:
    """Decisions about forty draws, by a filter that lets everything pass."""
    index.calibrations = {
        index.space: Calibration((0.0,), 0.5, 2.0, index.space, 1, {}, (0.0, 1.0), STATISTIC)
    }
    decisions: list[Any] = []
    judge = MemorizationFilter(index)

    def look(_: Any, step: int, __: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if step == OPTIONS["num_inference_steps"] - 1:
            decisions.extend(judge.judge(values["latents"] / pipe.vae.config.scaling_factor))
        return values

    generators = [torch.Generator().manual_seed(seed) for seed in range(40)]
    prompts = (PROMPTS * 4)[:40]
    pipe(prompts, generator=generators, callback_on_step_end=look, output_type="latent", **OPTIONS)
    return decisions


def loaded(folder: Path) -> Any:
    """The pipeline that lies there."""
    pipe = StableDiffusionPipeline.from_pretrained(folder / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def checksums(job: Path) -> dict[str, str]:
    """SHA-256 of everything that a job delivers, but the report, which has a date."""
    files = [path for path in job.rglob("*") if path.is_file()]
    names = {path.relative_to(job).as_posix(): path for path in files}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in sorted(names.items())
        if not name.startswith(("report/", ".job/"))
    }
