"""A picture's own latent, as a pipeline of each family would end with it, reaches the judge as it was encoded.

With the real tiny autoencoders of madebyollin/taesd, from the folder named by ``LCMEM_VAES``, or ``../shared/vae``
beside the checkout.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lcmem_filter.latents import canonical, encode_pixels, load_encoder

from .families import families
from .families.flow import sd3
from .families.packed import flux, flux2, uneven_batch_norm
from .families.parts import embeds
from .families.stable_diffusion_xl import xl
from .scripted import always, wear
from tests.tiny import picture, tiny_pipeline

FOLDER = Path(os.environ.get("LCMEM_VAES") or Path(__file__).resolve().parents[3] / "shared" / "vae")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*FluxPosEmbed. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]


def autoencoder(name: str) -> Any:
    if not (FOLDER / name / "config.json").exists():
        pytest.skip(f"the autoencoder {name} is not in {FOLDER}; set LCMEM_VAES to a folder that has it")
    return load_encoder(FOLDER / name, trust_remote_code=name == "taef2").vae


def scaled(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    return (latents - (getattr(vae.config, "shift_factor", None) or 0)) * vae.config.scaling_factor


def standardised(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    return (latents - mean) * vae.config.scaling_factor / std


def packed(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    return pipe._pack_latents(scaled(pipe.vae, latents), *latents.shape)


def patched(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    """As FLUX.2 ends: patches, standardised by the batch norm, then packed."""
    bn = pipe.vae.bn
    mean, variance = (s.view(1, -1, 1, 1) for s in (bn.running_mean, bn.running_var))
    patches = pipe._patchify_latents(latents)
    return pipe._pack_latents((patches - mean) / torch.sqrt(variance + pipe.vae.config.batch_norm_eps))


def sd_pipeline(vae: Any) -> Any:
    pipe = tiny_pipeline()
    pipe.vae = vae
    return with_sizes(pipe, scaling_factor=0.18215)


def sdxl_pipeline(vae: Any) -> Any:
    pipe = xl(vae=vae)
    means, stds = [-1.6574, 0.886, -0.1234, 0.4], [8.4927, 5.9022, 6.5498, 5.2299]
    return with_sizes(pipe, scaling_factor=0.5, latents_mean=means, latents_std=stds)


def sd3_pipeline(vae: Any) -> Any:
    return with_sizes(sd3(vae=vae, channels=16), scaling_factor=1.5305, shift_factor=0.0609)


def flux_pipeline(vae: Any) -> Any:
    return with_sizes(flux(vae=vae, channels=16), scaling_factor=0.3611, shift_factor=0.1159)


def flux2_pipeline(vae: Any) -> Any:
    """The tiny autoencoder has no batch norm, which this pipeline reads: it is given one."""
    vae.bn = torch.nn.BatchNorm2d(4 * 32, affine=False).eval()
    uneven_batch_norm(vae.bn)
    vae.register_to_config(batch_norm_eps=1e-4)
    return with_sizes(flux2(vae=vae, channels=32))


def with_sizes(pipe: Any, **config: Any) -> Any:
    pipe.vae.register_to_config(**config)
    pipe.vae_scale_factor = 8
    pipe.image_processor.register_to_config(vae_scale_factor=8)
    return pipe


@dataclass(frozen=True)
class Case:
    autoencoder: str
    make: Callable[[Any], Any]
    ending: Callable[[Any, torch.Tensor], torch.Tensor]
    prompt: str = "prompt"


CASES = {
    "StableDiffusionPipeline": Case("taesd", sd_pipeline, lambda pipe, latents: scaled(pipe.vae, latents)),
    "StableDiffusionXLPipeline": Case(
        "taesdxl", sdxl_pipeline, lambda pipe, latents: standardised(pipe.vae, latents)
    ),
    "StableDiffusion3Pipeline": Case("taesd3", sd3_pipeline, lambda pipe, latents: scaled(pipe.vae, latents)),
    "FluxPipeline": Case("taef1", flux_pipeline, packed),
    "Flux2Pipeline": Case("taef2", flux2_pipeline, patched, "prompt_embeds"),
}


def test_every_family_that_names_a_real_autoencoder_is_here() -> None:
    named = {family.pipeline: family.autoencoder for family in families() if family.autoencoder}
    assert named == {name: case.autoencoder for name, case in CASES.items()}


@pytest.mark.parametrize("output_type", ["np", "latent"])
@pytest.mark.parametrize("name", CASES)
def test_the_latent_of_a_training_picture_reaches_the_judge(name: str, output_type: str) -> None:
    case = CASES[name]
    pipe = case.make(autoencoder(case.autoencoder))
    assert type(pipe).__name__ == name
    pixels = torch.stack([pixels_of(seed) for seed in (3, 4)])
    direct = encode_pixels(pipe.vae, pixels)
    ending = case.ending(pipe, direct)

    def end_with_training_pictures(
        pipeline: Any, step: int, timestep: int, tensors: Any
    ) -> dict[str, torch.Tensor]:
        return {"latents": ending} if step == 1 else {}

    scripted = wear(pipe, always)
    out = pipe(
        **{case.prompt: ["a cat", "a dog"] if case.prompt == "prompt" else embeds()},
        height=128,
        width=128,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type=output_type,
        callback_on_step_end=end_with_training_pictures,
    )[0]
    (judged,) = scripted.seen
    assert judged.shape == direct.shape == (2, direct.shape[1], 16, 16)
    torch.testing.assert_close(canonical(judged, 16), canonical(direct, 16), atol=1e-4, rtol=0)
    distance = (canonical(direct[:1], 16) - canonical(direct[1:], 16)).abs().mean()
    assert distance > 0.1, "two pictures must differ for the comparison to mean anything"
    if output_type == "latent":
        assert torch.equal(out, ending)
    else:
        shown = torch.from_numpy(out).permute(0, 3, 1, 2) * 2 - 1
        assert (shown - pixels).square().mean() < 0.1 * pixels.square().mean(), (
            "the pictures themselves are returned"
        )


def pixels_of(seed: int) -> torch.Tensor:
    """The picture of ``seed`` (3, 128, 128) in [-1, 1]."""
    return torch.from_numpy(np.asarray(picture(seed, 128)).copy()).permute(2, 0, 1) / 127.5 - 1
