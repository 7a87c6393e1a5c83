"""Pipelines whose denoiser is made to draw known pictures, and the thresholds of early stop for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import diffusers
import numpy as np
import torch

from lcmem_filter.latents import encode_pixels
from lcmem_filter.pipeline.clean import predict_clean
from lcmem_filter.pipeline.taps import denoiser_of, tapped_inputs, tapped_outputs

from .families.flow import sd3
from .families.parts import PROMPTS
from tests.tiny import picture, tiny_pipeline

SCHEDULERS = (
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "FlowMatchEulerDiscreteScheduler",
)
STEPS = 6
FRACTIONS = (0.3, 0.6)
"""After 2 and after 4 of the 6 steps."""

SETTINGS = {"num_inference_steps": STEPS, "height": 32, "width": 32, "guidance_scale": 1.0}
FIT: dict[str, Any] = {
    "seed": 200,  # thresholds well above the scores of ``call``: fp16 rounding moves those by 0.01
    "bound": 0.25,
    "fractions": FRACTIONS,
    "samples": 8,
    "batch_size": 8,
    "progress": False,
}


def made(scheduler: str = "DDIMScheduler") -> Any:
    if scheduler == "FlowMatchEulerDiscreteScheduler":
        return sd3()
    pipe = tiny_pipeline()
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    return pipe


def call(pipe: Any, **changes: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    given = {"prompt": list(PROMPTS), "output_type": "np", "generator": generator, **SETTINGS}
    return pipe(**{**given, **changes})


def latent_of(seed: int, vae: Any) -> torch.Tensor:
    """Pictures 0 to 19 are in the index."""
    pixels = torch.from_numpy(np.array(picture(seed))).permute(2, 0, 1)[None]
    encoded = encode_pixels(vae, pixels / 127.5 - 1)[0]
    return (encoded - (getattr(vae.config, "shift_factor", None) or 0)) * vae.config.scaling_factor


@contextmanager
def planted(pipe: Any, *passes: Mapping[int, int], until: int = STEPS) -> Iterator[list[int]]:
    """Let the denoiser predict known pictures: in each pass over the steps, picture ``passes[pass][row]`` in a row.

    Gives a list that gets the pass of each call of the denoiser.
    """
    calls: list[int] = []
    noisy: dict[str, Any] = {}
    targets = [{row: latent_of(seed, pipe.vae) for row, seed in one.items()} for one in passes]

    def note(inputs: Any) -> Any:
        args, kwargs = inputs
        noisy["sample"] = args[0] if args else kwargs["hidden_states"]
        timestep = args[1] if args else kwargs["timestep"]
        noisy["timestep"] = timestep if timestep.ndim == 0 else timestep[0]
        return inputs

    def predict(output: torch.Tensor) -> torch.Tensor:
        scheduler, sample, timestep = pipe.scheduler, noisy["sample"], noisy["timestep"]
        first = bool(timestep == scheduler.timesteps[0])
        calls.append((calls[-1] + 1 if calls else 0) if first else calls[-1])
        if type(scheduler).__name__.startswith("Euler"):
            sample = sample * (scheduler.sigmas[scheduler.step_index] ** 2 + 1) ** 0.5
        predicted = predict_clean(scheduler, output, timestep, sample)
        output = output.clone()
        if calls.count(calls[-1]) <= until and calls[-1] < len(targets):
            for row, target in targets[calls[-1]].items():
                output[row] += (target - predicted.clean[row]) / predicted.slope
        return output

    denoiser = denoiser_of(pipe)
    assert denoiser is not None
    with tapped_inputs(denoiser, note), tapped_outputs(denoiser, predict):
        yield calls


def spy_on_decode(pipe: Any) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    plain = pipe.vae.decode
    pipe.vae.decode = lambda latents, *args, **options: (
        seen.append(latents.clone()),
        plain(latents, *args, **options),
    )[1]
    return seen


def is_untouched(pipe: Any) -> bool:
    return "step" not in pipe.scheduler.__dict__ and not pipe.interrupt
