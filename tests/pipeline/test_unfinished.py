"""Denoising that ends early: told by what is done, whatever was asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, StableDiffusionXLPipeline
from diffusers.modular_pipelines.flux.decoders import FluxDecodeStep

from lcmem_filter.errors import UnsupportedPipelineError
from lcmem_filter.index import MemorizationIndex
from lcmem_filter.pipeline import MemorizationWarning
from lcmem_filter.pipeline.modular import MemorizationFilterStep
from lcmem_filter.pipeline.unfinished import ends_noisy

from .families.stable_diffusion_xl import xl
from .planting import made
from .scripted import always, reject_first_pass, wear
from .test_modular import decode, decoding, latents_of
from tests.tiny import tiny_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array.*:DeprecationWarning")  # of diffusers' own


def call(pipe: Any, **changes: Any) -> Any:
    given = {
        "prompt": ["a cat"],
        "num_images_per_prompt": 2,
        "num_inference_steps": 4,
        "height": 32,
        "width": 32,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "latent",
    }
    return pipe(**{**given, **changes})


@pytest.mark.parametrize("end", [0.9999, 1.0, 2, -0.5, np.float32(0.5)])
def test_an_end_that_cuts_no_step_is_judged(end: Any) -> None:
    pipe = xl()
    plain = call(pipe)[0]
    scripted = wear(pipe, reject_first_pass(1), "resample", allow_partial_latents=True)
    out = call(pipe, denoising_end=end)
    assert [d.accepted for d in out.memorization] == [True, True] and len(scripted.seen) == 2
    assert torch.equal(out.images[0], plain[0]) and not torch.equal(out.images[1], plain[1])


@pytest.mark.parametrize("allowed", [True, False])
def test_an_end_that_the_pipeline_does_not_know_is_judged(allowed: bool) -> None:
    pipe = tiny_pipeline()
    plain = call(pipe)[0]
    scripted = wear(pipe, reject_first_pass(1), "reject", allow_partial_latents=allowed)
    with pytest.warns(MemorizationWarning):
        out = call(pipe, denoising_end=0.5)
    assert [d.accepted for d in out.memorization] == [True, False] and len(scripted.seen) == 1
    assert torch.equal(out.images[0], plain[0]) and not out.images[1].any()
    assert "step" not in pipe.scheduler.__dict__


def test_an_end_that_is_handed_on_unnamed_is_seen() -> None:
    class Hands(StableDiffusionXLPipeline):  # type: ignore[misc]
        def __call__(self, *args: Any, **given: Any) -> Any:
            return super().__call__(*args, **given)

    pipe = xl()
    pipe.__class__ = Hands
    scripted = wear(pipe, always)
    for output_type, told in (
        ("np", "ask for output_type='latent'"),
        ("latent", "allow_partial_latents=True"),
    ):
        with pytest.raises(UnsupportedPipelineError, match=rf"denoising_end=0\.5.*{told}"):
            call(pipe, denoising_end=0.5, output_type=output_type)
    wear(pipe, always, allow_partial_latents=True)
    assert [d.accepted for d in call(pipe, denoising_end=0.5).memorization] == [None, None]
    assert not scripted.seen and "step" not in pipe.scheduler.__dict__


SIGMAS = [14.6, 4.6, 1.9, 0.93]
"""As Euler's scheduler takes them, the last one stays."""


@pytest.mark.parametrize("on_memorized", ["resample", "flag"])
def test_sigmas_that_end_above_zero_are_refused(on_memorized: str) -> None:
    pipe = made("EulerDiscreteScheduler")
    scripted = wear(pipe, always, on_memorized)
    given = {"sigmas": SIGMAS, "num_inference_steps": None}
    with pytest.raises(UnsupportedPipelineError, match=r"at sigma 0\.93, not 0\.00.*output_type='latent'"):
        call(pipe, **given, output_type="np")
    with pytest.raises(UnsupportedPipelineError, match=r"at sigma 0\.93.*allow_partial_latents=True"):
        call(pipe, **given)
    assert not scripted.seen
    for end in (0.0, 0.03):
        call(pipe, sigmas=[*SIGMAS, end], num_inference_steps=None)
    assert len(scripted.seen) == 2


def test_latents_of_sigmas_that_end_above_zero_may_be_allowed() -> None:
    pipe = made("EulerDiscreteScheduler")
    plain = call(pipe, sigmas=SIGMAS, num_inference_steps=None)[0]
    scripted = wear(pipe, lambda *_: False, allow_partial_latents=True)
    out = call(pipe, sigmas=SIGMAS, num_inference_steps=None)
    assert torch.equal(out.images, plain) and not scripted.seen
    assert [d.accepted for d in out.memorization] == [None, None] and math.isnan(out.memorization[0].score)
    assert "at sigma 0.93" in out.memorization[0].reason
    with pytest.raises(UnsupportedPipelineError, match="output_type='latent'"):
        call(pipe, sigmas=SIGMAS, num_inference_steps=None, output_type="np")


def test_a_modular_step_refuses_them_too(index: MemorizationIndex) -> None:
    pipe = decoding(MemorizationFilterStep(index, "flag"), FluxDecodeStep())
    scheduler = EulerDiscreteScheduler()
    pipe.scheduler = scheduler
    decode(pipe, latents_of(100))
    scheduler.set_timesteps(sigmas=[*SIGMAS, 0.0])
    decode(pipe, latents_of(100))
    scheduler.set_timesteps(sigmas=SIGMAS)
    with pytest.raises(UnsupportedPipelineError, match=r"at sigma 0\.93"):
        decode(pipe, latents_of(100))


def by_steps(scheduler: Any) -> None:
    scheduler.set_timesteps(5)


FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("CMStochasticIterativeScheduler", {}),
        ("DDIMScheduler", {}),
        ("DEISMultistepScheduler", {}),
        ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}),
        ("DPMSolverMultistepScheduler", {**FLOW, "final_sigmas_type": "sigma_min"}),
        ("DPMSolverMultistepInverseScheduler", {}),
        ("DPMSolverSinglestepScheduler", {}),
        ("EDMEulerScheduler", {"final_sigmas_type": "sigma_min"}),
        ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}),
        ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "timestep_spacing": "leading"}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}),
        ("FlowMatchHeunDiscreteScheduler", {}),
        ("HeunDiscreteScheduler", {}),
        ("KDPM2DiscreteScheduler", {}),
        ("LCMScheduler", {}),
        ("LMSDiscreteScheduler", {}),
        ("SASolverScheduler", {}),
        ("TCDScheduler", {}),
        ("UniPCMultistepScheduler", {**FLOW, "final_sigmas_type": "sigma_min"}),
    ],
)
def test_no_scheduler_is_refused_as_it_is(name: str, config: dict[str, Any], steps: int) -> None:
    scheduler = getattr(diffusers, name)(**config)
    assert ends_noisy(scheduler) is None, "before its steps are set"
    scheduler.set_timesteps(steps)
    assert ends_noisy(scheduler) is None


def shifted_by_hand(scheduler: Any) -> None:
    scheduler.set_timesteps(sigmas=np.linspace(1, 0.4, 5), mu=1.0)


def few_timesteps(scheduler: Any) -> None:
    scheduler.set_timesteps(timesteps=[999, 700, 500])


@pytest.mark.parametrize(
    ("scheduler", "set_steps"),
    [
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), shifted_by_hand),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, invert_sigmas=True), shifted_by_hand),
        (FlowMatchEulerDiscreteScheduler(shift_terminal=0.2), by_steps),
        (EulerDiscreteScheduler(), few_timesteps),
        (None, lambda _: None),
    ],
)
def test_no_end_that_the_scheduler_sets_itself_is_refused(
    scheduler: Any, set_steps: Callable[[Any], None]
) -> None:
    set_steps(scheduler)
    assert ends_noisy(scheduler) is None
