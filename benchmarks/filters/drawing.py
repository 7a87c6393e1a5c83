"""Prompts, seeds, and drawing with the pipeline: plain and filtered runs see exactly the same calls."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import RESOLUTION, Row, own_caption
from diffusers import DiffusionPipeline

BATCH, STEPS, GUIDANCE = 8, 25, 3.0
FIRST_NAMED_SEED = 3_000_000  # apart from all others


@dataclass(frozen=True)
class Sample:
    """One image to draw. ``own`` where the prompt is the caption of a duplicated training image."""

    prompt: str
    seed: int
    own: bool


@dataclass
class Drawn:
    """What was drawn: latents (n, C, h, w) as the decoder got them, uint8 images (n, H, W, 3), decisions."""

    latents: torch.Tensor
    images: np.ndarray
    decisions: list[Any]
    seconds: float


def choose_samples(rows: list[Row], seeds: int, generic: int, seed: int = 0) -> list[Sample]:
    """Each duplicated image's caption with ``seeds`` seeds, and ``generic`` captions as the others have them."""
    draw = random.Random(seed)
    captions = [row.caption for row in rows if row.copies > 1 for _ in range(seeds)]
    others = [row.caption for row in rows if row.copies == 1]
    chosen = [(caption, True) for caption in captions]
    chosen += [(draw.choice(others), False) for _ in range(generic)]
    return [Sample(prompt, number, own) for number, (prompt, own) in enumerate(chosen)]


def choose_named(held_out: list[Row], count: int) -> list[Sample]:
    """Captions that name whom a held-out image shows: worded as those of memorised images, and never trained on."""
    return [Sample(own_caption(row), FIRST_NAMED_SEED + i, False) for i, row in enumerate(held_out[:count])]


def load_pipeline(folder: Path) -> Any:
    """The pipeline that ``train_pipeline.py`` saved, of whichever model."""
    parts = DiffusionPipeline.load_config(folder)
    absent = {name: None for name, kind in parts.items() if kind == [None, None]}  # T5, or a safety checker
    pipe = DiffusionPipeline.from_pretrained(folder, **absent)  # float32, which all parts are opened in
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, samples: list[Sample], log: Callable[[str], None] = print, **further: Any) -> Drawn:
    """Draw every sample, batch by batch, each from a generator of its own."""
    latents: list[torch.Tensor] = []
    images: list[np.ndarray] = []
    decisions: list[Any] = []
    start = time.perf_counter()
    for first in range(0, len(samples), BATCH):
        output, last = call(pipe, samples[first : first + BATCH], **further)
        latents.append(last)
        images.append(to_uint8(output.images))
        decisions += getattr(output, "memorization", ())
        if first // BATCH % 10 == 0:
            log(f"{first + len(last)}/{len(samples)} drawn, {time.perf_counter() - start:.0f} s")
    return Drawn(torch.cat(latents), np.concatenate(images), decisions, time.perf_counter() - start)


def call(pipe: Any, samples: list[Sample], **further: Any) -> tuple[Any, Any]:
    """One call of the pipeline; its output, and the latents after the last step of the first pass, if there was one."""
    seen: list[torch.Tensor] = []

    def look(_: Any, step: int, __: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == STEPS - 1:
            seen.append(values["latents"].clone())
        return {}

    output = pipe(**request(pipe, samples), output_type="np", callback_on_step_end=look, **further)
    scale, shift = pipe.vae.config.scaling_factor, pipe.vae.config.shift_factor or 0.0
    return output, seen[0] / scale + shift if seen else None


def request(pipe: Any, samples: Sequence[Sample]) -> dict[str, Any]:
    """The arguments of a call that draws ``samples``, each from a generator of its own."""
    return {
        "prompt": [sample.prompt for sample in samples],
        "generator": [torch.Generator().manual_seed(sample.seed) for sample in samples],
        **settings(pipe),
    }


def settings(pipe: Any) -> dict[str, Any]:
    """The arguments that all calls of the pipeline share; of Stable Diffusion 3 as many zeros for T5 as it was trained
    with."""
    shared: dict[str, Any] = {
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        "height": RESOLUTION,
        "width": RESOLUTION,
    }
    if "text_encoder_3" in pipe.components:
        shared["max_sequence_length"] = pipe.tokenizer.model_max_length
    return shared


@torch.no_grad()
def decode(vae: Any, latents: torch.Tensor) -> np.ndarray:
    """uint8 images (n, H, W, 3) of unscaled latents."""
    batches = [vae.decode(latents[i : i + 16]).sample for i in range(0, len(latents), 16)]
    return to_uint8((torch.cat(batches).clamp(-1, 1) * 0.5 + 0.5).permute(0, 2, 3, 1).numpy())


def to_uint8(images: np.ndarray) -> np.ndarray:
    return (np.asarray(images) * 255).round().astype(np.uint8)


@contextmanager
def watched_decoder(pipe: Any, watch: Callable[[torch.Tensor, np.ndarray], Any]) -> Iterator[None]:
    """Let ``watch`` see each batch that is decoded and what it decodes to, as a filter after the decoder would."""
    plain = pipe.vae.decode

    def decode_and_watch(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        output = plain(latents, *args, **kwargs)
        sample = output[0] if isinstance(output, tuple) else output.sample
        watch(latents, to_uint8((sample.clamp(-1, 1) * 0.5 + 0.5).permute(0, 2, 3, 1).numpy()))
        return output

    pipe.vae.decode = decode_and_watch
    try:
        yield
    finally:
        del pipe.vae.decode


def keep(path: Path, make: Callable[[], Drawn]) -> Drawn:
    """What ``make`` drew, from ``path`` where it was drawn before."""
    if path.exists():
        saved = torch.load(path, weights_only=True)
        return Drawn(saved["latents"], saved["images"].numpy(), [], saved["seconds"])
    drawn = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {"latents": drawn.latents, "images": torch.from_numpy(drawn.images), "seconds": drawn.seconds}
    torch.save(values, path)
    return drawn
