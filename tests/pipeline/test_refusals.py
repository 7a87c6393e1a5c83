"""Pipelines that cannot be filtered, and ways of calling one that cannot be."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    AutoencoderKLWan,
    DDPMPipeline,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    MotionAdapter,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    UNet2DModel,
    VersatileDiffusionPipeline,
    WanPipeline,
)

from lcmem_filter.errors import LcmemFilterError, UnsupportedPipelineError
from lcmem_filter.pipeline import MemorizationWarning, detach
from lcmem_filter.pipeline.call import decoder_of

from .families import families
from .families.packed import flux, flux2
from .families.stable_diffusion_xl import xl
from .scripted import always, reject_first_pass, wear
from tests.tiny import tiny_pipeline

NOWHERE = "no/such/index"
"""What cannot be filtered is refused before an index is looked for."""


def pixel_space() -> Any:
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(16, 16),
        norm_num_groups=8,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    return DDPMPipeline(unet=unet, scheduler=DDPMScheduler())


def wan() -> Any:
    vae = AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False]
    )
    return WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=None,
    )


def animate_diff() -> Any:
    base = tiny_pipeline()
    adapter = MotionAdapter(
        block_out_channels=(16, 32),
        motion_layers_per_block=1,
        motion_norm_num_groups=8,
        motion_num_attention_heads=2,
    )
    parts = {name: getattr(base, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    return AnimateDiffPipeline(**parts, motion_adapter=adapter)


def versatile() -> Any:
    base = tiny_pipeline()
    return VersatileDiffusionPipeline(
        tokenizer=base.tokenizer,
        image_feature_extractor=None,
        text_encoder=base.text_encoder,
        image_encoder=None,
        image_unet=base.unet,
        text_unet=base.unet,
        vae=base.vae,
        scheduler=base.scheduler,
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (pixel_space, "no latent decoder"),
        (versatile, "cannot be called, and what its own methods draw would not be filtered"),
        (wan, "videos or sound.*num_frames"),
        (animate_diff, "videos or sound"),
    ],
)
def test_pipelines_that_draw_no_latent_pictures_are_refused(make: Any, message: str) -> None:
    pipe = make()
    plain = type(pipe)
    with pytest.raises(UnsupportedPipelineError, match=message):
        pipe.with_memorization_filter(NOWHERE)
    assert type(pipe) is plain


@pytest.mark.parametrize(
    "name",
    [
        "AllegroPipeline",
        "AudioLDM2Pipeline",
        "CogVideoXPipeline",
        "HunyuanVideoPipeline",
        "LTXPipeline",
        "MochiPipeline",
        "SanaVideoPipeline",
        "StableAudioPipeline",
        "StableVideoDiffusionPipeline",
        "WanImageToVideoPipeline",
    ],
)
def test_videos_and_sound_are_told_by_their_call(name: str) -> None:
    import diffusers

    kind = type(
        name, (), {"__call__": getattr(diffusers, name).__call__, "vae": SimpleNamespace(decode=None)}
    )
    with pytest.raises(UnsupportedPipelineError, match="videos or sound"):
        decoder_of(kind())


def test_no_family_that_is_tested_is_told_to_draw_videos() -> None:
    import diffusers

    for name in {family.pipeline for family in families()}:
        kind = type(
            name, (), {"__call__": getattr(diffusers, name).__call__, "vae": SimpleNamespace(decode=None)}
        )
        assert decoder_of(kind()) is kind.vae


def test_an_autoencoder_that_cannot_encode_pictures_is_refused() -> None:
    pipe = tiny_pipeline()
    pipe.vae = AutoencoderKL(in_channels=1, out_channels=1, block_out_channels=(16,), norm_num_groups=8)
    with pytest.raises(LcmemFilterError):
        pipe.with_memorization_filter(NOWHERE)


def never(*_: object) -> bool:
    return False


def call(**changes: Any) -> dict[str, Any]:
    return {
        "prompt": ["a cat"],
        "num_images_per_prompt": 2,
        "num_inference_steps": 2,
        "height": 32,
        "width": 32,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "latent",
        **changes,
    }


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_latents_of_an_unfinished_denoising_are_refused() -> None:
    pipe = xl()
    scripted = wear(pipe, always)
    with pytest.raises(UnsupportedPipelineError, match=r"denoising_end=0\.5.*allow_partial_latents=True"):
        pipe(**call(denoising_end=0.5))
    assert not scripted.seen
    scripted = wear(pipe, always, allow_partial_latents=True)
    with pytest.raises(UnsupportedPipelineError, match=r"denoising_end=0\.5.*output_type='latent'"):
        pipe(**call(denoising_end=0.5, output_type="np"))
    assert not scripted.seen
    pipe(**call(denoising_end=None))
    assert len(scripted.seen) == 1


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize("return_dict", [True, False])
def test_allowed_partial_latents_are_not_judged_and_finished_ones_are(return_dict: bool) -> None:
    base, refiner = xl(), xl(StableDiffusionXLImg2ImgPipeline)
    form = {"num_inference_steps": 4, "return_dict": return_dict}
    plain = base(**call(denoising_end=0.5, **form))[0]
    for policy in ("resample", "reject", "flag"):
        scripted = wear(base, never, policy, on_exhausted="raise", allow_partial_latents=True)
        out = base(**call(denoising_end=0.5, **form))
        assert torch.equal(out[0], plain) and not scripted.seen
        decisions = out.memorization if return_dict else scripted.last_decisions
        assert [d.accepted for d in decisions] == [None, None] and math.isnan(decisions[0].score)
        assert "denoising_end=0.5" in decisions[0].reason
    scripted = wear(refiner, reject_first_pass(0), "reject")
    given = {"prompt": ["a cat", "a cat"], "image": plain, "denoising_start": 0.5, "num_inference_steps": 4}
    with pytest.warns(MemorizationWarning, match="1 of 2"):
        finished = refiner(**given, output_type="np", generator=torch.Generator().manual_seed(0))
    assert len(scripted.seen) == 1 and not finished.images[0].any() and finished.images[1].any()


@pytest.mark.filterwarnings("ignore:.*FluxPosEmbed. is deprecated:FutureWarning")
def test_packed_latents_of_a_layout_that_is_not_known_are_refused() -> None:
    pipe = flux()
    wear(pipe, always)
    pipe(**call())
    plain = type(detach(pipe))

    def cropped(self: Any, **given: Any) -> Any:
        return (plain.__call__(self, **given)[0][:, 1:],)

    pipe.__class__ = type("Cropping", (plain,), {"__call__": cropped})
    scripted = wear(pipe, always)
    with pytest.raises(
        UnsupportedPipelineError, match="Cropping returns latents in a layout that cannot be judged"
    ):
        pipe(**call())
    assert not scripted.seen
    pipe.__class__ = type(
        "Repacking", (plain,), {"_unpack_latents": staticmethod(lambda latents, height, width: latents)}
    )
    wear(pipe, always)
    with pytest.raises(UnsupportedPipelineError, match="Repacking returns latents"):
        pipe(**call())


def test_batch_normalised_latents_of_a_layout_that_is_not_known_are_refused() -> None:
    base = flux2()

    class Other(StableDiffusionPipeline):
        """Stable Diffusion on an autoencoder whose latents its pipeline may or may not have normalised by patch."""

    pipe = tiny_pipeline()
    pipe.vae.bn = base.vae.bn
    pipe.__class__ = Other
    scripted = wear(pipe, always)
    with pytest.raises(UnsupportedPipelineError, match="Other returns latents"):
        pipe(**call())
    assert not scripted.seen
    pipe(**call(output_type="np"))
    assert len(scripted.seen) == 1


def test_more_than_one_frame_is_refused_before_the_decoder() -> None:
    pipe = tiny_pipeline()
    plain_call = type(pipe).__call__
    decoded: list[torch.Tensor] = []

    def film(self: Any, output_type: str = "np", **given: Any) -> Any:
        latents = plain_call(self, output_type="latent", **given)[0]
        return self.vae.decode(torch.stack([latents, latents], 2))

    pipe.__class__ = type("Film", (type(pipe),), {"__call__": film})
    pipe.vae.decoder.register_forward_pre_hook(lambda module, inputs: decoded.append(inputs[0]))
    scripted = wear(pipe, always)
    with pytest.raises(UnsupportedPipelineError, match="videos cannot be filtered"):
        pipe(**call(output_type="np"))
    assert not scripted.seen and not decoded


def test_dropping_latents_keeps_the_rest() -> None:
    pipe = tiny_pipeline()
    wear(pipe, reject_first_pass(0), "reject", on_exhausted="drop")
    with pytest.warns(MemorizationWarning, match="dropped"):
        assert pipe(**call())[0].shape[0] == 1
