"""The predicted clean latent in mid-denoising, by the parameterisation of the scheduler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..errors import UnsupportedPipelineError

BY_ALPHA = frozenset({"DDIMScheduler", "DDPMScheduler", "LCMScheduler", "PNDMScheduler"})
"""Samples are alpha x0 + sigma noise, with ``alphas_cumprod`` by timestep."""

BY_ALPHA_AND_SIGMA = frozenset(
    {
        "DEISMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "UniPCMultistepScheduler",
    }
)
"""The same, by place in ``sigmas``; or flow matching, where the scheduler is set so."""

BY_SIGMA = frozenset({"EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler"})
"""Samples are x0 + sigma noise, by place in ``sigmas``."""

FLOW = frozenset({"FlowMatchEulerDiscreteScheduler"})
"""Samples are (1 - sigma) x0 + sigma noise, by place in ``sigmas``; the model predicts noise - x0. Where the scheduler
inverts its sigmas, they are sigma x0 + (1 - sigma) noise, and the model predicts x0 - noise."""

TAPPABLE = BY_ALPHA | BY_ALPHA_AND_SIGMA | BY_SIGMA | FLOW


@dataclass(frozen=True)
class Prediction:
    """A predicted clean latent and its derivative by the model's output.

    Attributes:
        clean: Of the sample's shape, float32, in the pipeline's own scaling and packing.
        slope: d clean / d model output, the same for every element.
        noise: Share of the noise in the sample's amplitude, in [0, 1]: near 1 at the first step, near 0 at the last.
    """

    clean: torch.Tensor
    slope: float
    noise: float


def can_be_tapped(scheduler: Any) -> bool:
    """Whether the clean latent can be read off this scheduler; multi-evaluation ones and TCD, say, cannot."""
    return type(scheduler).__name__ in TAPPABLE and _kind_of(scheduler) is not None


def predict_clean(
    scheduler: Any, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor
) -> Prediction:
    """What ``scheduler.step`` of the same arguments takes for the clean latent; call it before that step.

    Args:
        model_output: Of the denoiser, guided; learned variances behind the prediction are left out.
        timestep: As the pipeline hands it to the scheduler.
        sample: The noisy latent, (B, C, H, W) or packed (B, tokens, C).

    Raises:
        UnsupportedPipelineError: the scheduler cannot be tapped.
    """
    kind = _kind_of(scheduler)
    if not can_be_tapped(scheduler) or kind is None:
        raise UnsupportedPipelineError(
            f"the clean latent cannot be read off {type(scheduler).__name__}; it can be off "
            f"{', '.join(sorted(TAPPABLE))}"
        )
    alpha, sigma = _alpha_and_sigma(scheduler, timestep)
    noise = sigma / (alpha * alpha + sigma * sigma) ** 0.5
    noisy = sample.float()
    output = model_output[:, : sample.shape[1]].float()
    if kind == "sample":
        return Prediction(output, 1.0, noise)
    if kind == "flow":
        slope = sigma if getattr(scheduler.config, "invert_sigmas", False) else -sigma
        return Prediction(noisy + slope * output, slope, noise)
    if kind == "epsilon":
        return Prediction((noisy - sigma * output) / alpha, -sigma / alpha, noise)
    scale = alpha * alpha + sigma * sigma  # 1, but for Euler's samples, which are 1 / alpha as large
    root = scale**0.5
    return Prediction(noisy * alpha / scale - output * sigma / root, -sigma / root, noise)


def _kind_of(scheduler: Any) -> str | None:
    config = scheduler.config
    if type(scheduler).__name__ in FLOW or getattr(config, "use_flow_sigmas", False):
        return "flow"
    kinds: dict[str | None, str] = {
        "epsilon": "epsilon",
        "v_prediction": "velocity",
        "sample": "sample",
        "flow_prediction": "flow",
    }
    return kinds.get(getattr(config, "prediction_type", None))


def _alpha_and_sigma(scheduler: Any, timestep: Any) -> tuple[float, float]:
    name = type(scheduler).__name__
    if name in BY_ALPHA:
        alpha = float(scheduler.alphas_cumprod[int(timestep)])
        return alpha**0.5, (1 - alpha) ** 0.5
    if scheduler.step_index is None:
        scheduler._init_step_index(timestep)  # as its step would do first
    sigma = scheduler.sigmas[scheduler.step_index]
    if getattr(scheduler.config, "invert_sigmas", False):
        sigma = 1 - sigma
    if name in BY_ALPHA_AND_SIGMA:
        alpha_t, sigma_t = scheduler._sigma_to_alpha_sigma_t(sigma)
        return float(alpha_t), float(sigma_t)
    if name in FLOW:
        return max(0.0, 1 - float(sigma)), float(sigma)  # Cosmos begins far above 1, with noise alone
    return 1.0, float(sigma)
