"""Predicted clean latents: against what schedulers predict themselves, and against latents that are known."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from lcmem_filter.errors import UnsupportedPipelineError
from lcmem_filter.pipeline.clean import BY_ALPHA_AND_SIGMA, FLOW, TAPPABLE, can_be_tapped, predict_clean

FLOWING = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
TELLING = sorted(TAPPABLE - FLOW - {"DEISMultistepScheduler", "LCMScheduler", "PNDMScheduler"})
"""Schedulers that show which clean latent they predicted."""

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn.t accept a copy:DeprecationWarning"
)


def draw(seed: int) -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def made(name: str, **config: Any) -> Any:
    config |= {"clip_sample": False} if name in ("DDIMScheduler", "DDPMScheduler") else {}
    config |= {"solver_order": 1, "lower_order_final": True} if "Singlestep" in name else {}
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(5)
    return scheduler


@pytest.mark.parametrize(
    ("name", "config"),
    [
        *((name, {"prediction_type": kind}) for name in TELLING for kind in ("epsilon", "v_prediction")),
        ("DDIMScheduler", {"prediction_type": "sample"}),
        *((name, FLOWING) for name in TELLING if name in BY_ALPHA_AND_SIGMA),
    ],
)
def test_it_is_what_the_scheduler_itself_predicts(name: str, config: dict[str, Any]) -> None:
    scheduler, sample = made(name, **config), draw(0)
    for step, timestep in enumerate(scheduler.timesteps[:3]):
        scheduler.scale_model_input(sample, timestep)
        output = draw(step + 1)
        found = predict_clean(scheduler, output, timestep, sample)
        moved = predict_clean(scheduler, output + 0.5, timestep, sample)
        result = scheduler.step(output, timestep, sample)
        own = (
            result["pred_original_sample"]
            if "pred_original_sample" in result
            else scheduler.model_outputs[-1]
        )
        scale = float(own.abs().max())
        torch.testing.assert_close(found.clean / scale, own / scale, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            (moved.clean - found.clean) / scale,
            torch.full_like(own, found.slope * 0.5 / scale),
            atol=1e-4,
            rtol=0,
        )
        sample = result.prev_sample


@pytest.mark.parametrize("place", [1, 3])
@pytest.mark.parametrize(
    ("name", "config"),
    [
        *((name, {"prediction_type": "epsilon"}) for name in sorted(TAPPABLE - FLOW)),
        *((name, FLOWING) for name in sorted(BY_ALPHA_AND_SIGMA)),
        ("FlowMatchEulerDiscreteScheduler", {}),
    ],
)
def test_a_perfect_model_predicts_the_latent_that_was_noised(
    name: str, config: dict[str, Any], place: int
) -> None:
    scheduler, clean, noise = made(name, **config), draw(0), draw(1)
    timestep = scheduler.timesteps[place]
    flowing = name in FLOW or "use_flow_sigmas" in config
    if name in FLOW:
        sample = scheduler.scale_noise(clean, timestep[None], noise)
    else:
        sample = scheduler.add_noise(clean, noise, timestep[None])
    # and learned variances behind the prediction, which are to be left out
    output = torch.cat([noise - clean if flowing else noise, draw(2)], dim=1)
    found = predict_clean(scheduler, output, timestep, sample)
    torch.testing.assert_close(found.clean, clean, atol=1e-3, rtol=0)


def test_inverted_sigmas_lead_from_noise_to_the_clean_latent() -> None:
    """As OmniGen's do."""
    scheduler = made("FlowMatchEulerDiscreteScheduler", invert_sigmas=True)
    clean, noise = draw(0), draw(1)
    sample, output = noise, clean - noise
    for timestep in scheduler.timesteps:
        found = predict_clean(scheduler, output, timestep, sample)
        moved = predict_clean(scheduler, output + 0.5, timestep, sample)
        torch.testing.assert_close(found.clean, clean, atol=1e-5, rtol=0)
        shift = torch.full_like(clean, found.slope * 0.5)
        torch.testing.assert_close(moved.clean - found.clean, shift, atol=1e-5, rtol=0)
        sample = scheduler.step(output, timestep, sample).prev_sample
    torch.testing.assert_close(sample, clean, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "config"),
    [
        *((name, {}) for name in sorted(TAPPABLE)),
        *((name, FLOWING) for name in sorted(BY_ALPHA_AND_SIGMA)),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}),
    ],
)
def test_the_share_of_noise_falls_from_nearly_all(name: str, config: dict[str, Any]) -> None:
    scheduler, sample = made(name, **config), draw(0)
    shares = []
    for timestep in scheduler.timesteps:
        shares.append(predict_clean(scheduler, draw(1), timestep, sample).noise)
        sample = scheduler.step(draw(1), timestep, sample).prev_sample
    assert 0.95 < shares[0] <= 1
    assert sorted(shares, reverse=True) == shares and shares[-1] < 0.7


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "TCDScheduler"])
def test_others_are_refused(name: str) -> None:
    scheduler = made(name)
    assert not can_be_tapped(scheduler)
    with pytest.raises(UnsupportedPipelineError, match=f"cannot be read off {name}"):
        predict_clean(scheduler, draw(0), scheduler.timesteps[0], draw(1))
