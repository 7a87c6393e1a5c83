"""A true index on a tiny pipeline: attaching, what is found, and that nothing unverified comes back."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForImage2Image, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

import lcmem_filter
from lcmem_filter import LCMemHead, MemorizationIndex, calibrate, open_images
from lcmem_filter.errors import (
    ArtifactNotFoundError,
    CalibrationError,
    CorruptArtifactError,
    FilterFailedError,
    IncompleteIndexError,
    LatentSpaceError,
    MemorizationError,
    UnsupportedPipelineError,
)
from lcmem_filter.latents import Encoder
from lcmem_filter.pipeline import MemorizationWarning, attachment

from tests.tiny import RESOLUTION, tiny_pipeline, tiny_vae, turned_vae, write_pictures

PROMPTS = ["a cat", "a dog", "a cat", "a dog"]


def call(pipe, seeds=(0, 1, 2, 3), **changes):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    size = {"height": RESOLUTION, "width": RESOLUTION, "num_inference_steps": 2, "output_type": "np"}
    return pipe(PROMPTS[: len(seeds)], generator=generators, **{**size, **changes})


@pytest.fixture(scope="module")
def memorised(tmp_path_factory):
    """An index of the very latents that the pipeline draws from seeds 0 and 2, saved as that pipeline draws them."""
    folder = tmp_path_factory.mktemp("attach")
    pipe = tiny_pipeline()
    pipe.vae.save_pretrained(folder / "vae")
    torch.manual_seed(0)
    head = LCMemHead.create("micro", {"sd": 4, "other": 4})
    head.add_probes("sd", pipe.vae)
    head.add_probes("other", tiny_vae(seed=8))
    drawn = call(pipe, output_type="latent").images
    write_pictures(folder / "train", range(40))
    write_pictures(folder / "held", range(100, 200))

    class Scripted(Encoder):
        """Encodes pictures as the autoencoder does, but the first two as what the pipeline draws."""

        left = (drawn[0], drawn[2])

        def encode(self, pixels):
            found = super().encode(pixels)
            for row in range(len(found)):
                if self.left:
                    found[row], *rest = self.left
                    self.left = tuple(rest)
            return found

    index = MemorizationIndex.build(
        open_images(folder / "train"),
        Scripted(pipe.vae, str(folder / "vae")),
        head,
        folder / "index",
        resolution=RESOLUTION,
        progress=False,
    )
    calibrate(index, open_images(folder / "held"), false_rejection_rate=0.05, progress=False)
    return folder


def test_memorised_rows_are_found_withheld_and_drawn_again(memorised):
    pipe = tiny_pipeline()
    plain = call(pipe).images
    assert pipe.with_memorization_filter(memorised / "index", on_memorized="flag") is pipe
    flagged = call(pipe)
    assert np.array_equal(flagged.images, plain)
    assert [d.accepted for d in flagged.memorization][::2] == [False, False]
    assert [d.neighbours[0].id for d in flagged.memorization][::2] == ["000.png", "001.png"]
    assert all(d.p_value == 1 / 101 for d in flagged.memorization[::2])

    pipe.with_memorization_filter(memorised / "index", on_memorized="reject")
    with pytest.warns(MemorizationWarning):
        rejected = call(pipe)
    assert not rejected.images[[0, 2]].any()
    passed = [row for row, d in enumerate(rejected.memorization) if d.accepted]
    assert np.array_equal(rejected.images[passed], plain[passed])

    pipe.without_memorization_filter()
    assert np.array_equal(call(pipe).images, plain) and not hasattr(call(pipe), "memorization")


def test_policies_of_exhaustion_and_the_error_that_carries_decisions(memorised):
    pipe = tiny_pipeline().with_memorization_filter(
        memorised / "index", on_memorized="reject", on_exhausted="raise"
    )
    with pytest.raises(MemorizationError) as raised:
        call(pipe)
    assert [d.accepted for d in raised.value.decisions][::2] == [False, False]
    pipe.with_memorization_filter(memorised / "index", on_memorized="reject", on_exhausted="drop")
    with pytest.warns(MemorizationWarning, match="dropped"):
        assert len(call(pipe).images) <= 2


def test_latents_are_judged_without_being_decoded(memorised):
    pipe = tiny_pipeline().with_memorization_filter(memorised / "index", on_memorized="reject")
    with pytest.warns(MemorizationWarning):
        out = call(pipe, output_type="latent")
    assert not out.images[[0, 2]].any() and [d.accepted for d in out.memorization][::2] == [False, False]


@pytest.mark.parametrize("file", ["embeddings.npy", "latents.npy", "records.parquet"])
def test_a_damaged_or_missing_index_does_not_attach(memorised, tmp_path, file):
    import shutil

    pipe = tiny_pipeline()
    plain = type(pipe)
    shutil.copytree(memorised / "index", tmp_path / "index")
    harmed = tmp_path / "index" / "shards" / "00000" / file
    harmed.write_bytes(harmed.read_bytes()[:-1])
    with pytest.raises(CorruptArtifactError, match="checksum"):
        pipe.with_memorization_filter(tmp_path / "index")
    with pytest.raises(ArtifactNotFoundError):
        pipe.with_memorization_filter(tmp_path / "nowhere")
    assert type(pipe) is plain


def test_a_vae_of_another_space_is_refused(memorised):
    pipe = tiny_pipeline()
    pipe.vae = tiny_vae(seed=7)
    built_with = "speaks none of the head's latent spaces.* was built with .*vae: is it of this pipeline's"
    with pytest.raises(LatentSpaceError, match=built_with):
        pipe.with_memorization_filter(memorised / "index")
    assert "memorization_filter" not in pipe.__dict__


def test_a_vae_whose_space_is_not_certain_is_told_of_at_every_step(memorised, tmp_path):
    def warns():
        return pytest.warns(UserWarning, match=r"latent space 'sd' by 0\.\d\d only.*copies may be missed")

    index = MemorizationIndex.load(memorised / "index")
    encoder = Encoder(turned_vae(), str(tmp_path / "vae"))
    encoder.vae.save_pretrained(tmp_path / "vae")
    with warns():
        MemorizationIndex.build(
            open_images(memorised / "train"),
            encoder,
            index.head,
            tmp_path / "index",
            resolution=RESOLUTION,
            progress=False,
        )
    built = MemorizationIndex.load(tmp_path / "index")
    with warns():
        calibrate(
            built,
            open_images(memorised / "held"),
            encoder=encoder,
            false_rejection_rate=0.05,
            progress=False,
        )
    pipe = tiny_pipeline()
    pipe.vae = turned_vae()
    with warns():
        pipe.with_memorization_filter(built)


def by_attribute(pipe, vae):
    pipe.vae = vae
    return pipe


def by_registering(pipe, vae):
    pipe.register_modules(vae=vae)
    return pipe


def in_a_copy(pipe, vae):
    pipe.vae = vae
    return copy.deepcopy(pipe)


def in_what_is_pickled(pipe, vae):
    pipe.vae = vae
    return pickle.loads(pickle.dumps(pipe))


def by_its_weights(pipe, vae):
    pipe.vae.load_state_dict(vae.state_dict())
    return pipe


def by_assigning_weights(pipe, vae):
    pipe.vae.load_state_dict(vae.state_dict(), assign=True)
    return pipe


@pytest.mark.parametrize("output_type", ["np", "latent"])
@pytest.mark.parametrize(
    "replace",
    [
        by_attribute,
        by_registering,
        in_a_copy,
        in_what_is_pickled,
        by_its_weights,
        by_assigning_weights,
    ],
)
def test_an_autoencoder_that_replaces_the_attached_one_is_identified(memorised, replace, output_type):
    pipe = tiny_pipeline().with_memorization_filter(memorised / "index", on_memorized="flag")
    expected = call(pipe).memorization
    pipe = replace(pipe, tiny_vae())
    assert [d.score for d in call(pipe).memorization] == [d.score for d in expected], "the same space"
    pipe = replace(pipe, tiny_vae(seed=8))
    with pytest.raises(
        LatentSpaceError, match=r"attached for latents of 'sd'.* by one of 'other'; attach the filter again"
    ):
        call(pipe, output_type=output_type)
    pipe = replace(pipe, tiny_vae(seed=7))
    with pytest.raises(LatentSpaceError, match="speaks none"):
        call(pipe, output_type=output_type)


def test_a_known_autoencoder_is_not_identified_again(memorised, monkeypatch):
    pipe = tiny_pipeline().with_memorization_filter(memorised / "index", on_memorized="flag")
    probed = []
    encode = type(pipe.vae).encode
    monkeypatch.setattr(type(pipe.vae), "encode", lambda *args: (probed.append(1), encode(*args))[1])
    call(pipe)
    pipe.to(torch.float64)
    pipe.to(torch.float32)
    call(pipe)
    assert not probed
    pipe.vae = tiny_vae()
    call(pipe)
    assert probed
    probed.clear()
    call(pipe)
    assert not probed


def test_latents_that_overflow_return_nothing(memorised):
    pipe = tiny_pipeline().with_memorization_filter(memorised / "index")

    def overflow(pipeline, step, timestep, tensors):
        return {"latents": tensors["latents"] * float("inf")}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(FilterFailedError, match="NaN or infinity"):
            call(pipe, callback_on_step_end=overflow)


def test_an_index_without_calibration_does_not_attach(tmp_path):
    from tests.index.material import build

    pipe = tiny_pipeline()
    with pytest.raises(CalibrationError, match="lcmem-filter calibrate"):
        pipe.with_memorization_filter(build(tmp_path))


def test_an_index_that_lacks_images_attaches_only_when_told_to(memorised, tmp_path):
    import shutil

    from lcmem_filter.index import folder as files

    shutil.copytree(memorised / "index", tmp_path / "index")
    manifest = files.read_manifest(tmp_path / "index")
    files.commit(tmp_path / "index", {**manifest, "complete": False, "unreadable": {"torn.png": "truncated"}})
    pipe = tiny_pipeline()
    with pytest.raises(IncompleteIndexError, match=r"torn\.png.*allow_unindexed=True"):
        pipe.with_memorization_filter(tmp_path / "index")
    pipe.with_memorization_filter(tmp_path / "index", allow_unindexed=True)
    assert pipe.memorization_filter.index.unreadable == {"torn.png": "truncated"}


def test_what_is_no_latent_pipeline_is_refused(memorised):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    with pytest.raises(UnsupportedPipelineError, match="no latent decoder"):
        DDPMPipeline(unet, DDPMScheduler()).with_memorization_filter(memorised / "index")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_memorized": "remove"}, "on_memorized must be one of"),
        ({"on_exhausted": "black"}, "on_exhausted must be one of"),
        ({"max_resamples": 2.5}, "max_resamples must be a whole number, got 2.5"),
        ({"max_seconds": "60"}, "max_seconds must be a number of seconds from 0 or None, got '60'"),
        ({"max_seconds": -1}, "max_seconds must be a number of seconds from 0 or None, got -1"),
        ({"max_seconds": float("nan")}, "max_seconds must be a number of seconds from 0 or None, got nan"),
        ({"max_resamples": 0}, "at least 1"),
    ],
)
def test_options_are_checked(memorised, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline().with_memorization_filter(memorised / "index", **options)


@pytest.mark.parametrize("maker", [StableDiffusionImg2ImgPipeline, AutoPipelineForImage2Image])
def test_from_pipe_carries_the_filter_over(memorised, maker):
    pipe = tiny_pipeline().with_memorization_filter(memorised / "index", on_memorized="flag")
    twin = maker.from_pipe(pipe)
    assert type(twin).__name__ == "StableDiffusionImg2ImgPipeline"
    assert twin.memorization_filter.index is pipe.memorization_filter.index
    assert twin.without_memorization_filter() is twin and "memorization_filter" in pipe.__dict__


def test_the_functions_do_what_the_methods_do(memorised):
    index = MemorizationIndex.load(memorised / "index", backend="faiss")
    pipe = lcmem_filter.attach(tiny_pipeline(), index, on_memorized="flag")
    assert [d.accepted for d in call(pipe).memorization][::2] == [False, False]
    assert not hasattr(call(lcmem_filter.detach(pipe)), "memorization")


def test_the_method_has_the_signature_of_the_function_and_hands_everything_on(monkeypatch):
    def options(of):
        return {
            name: parameter.default
            for name, parameter in inspect.signature(of).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }

    method = StableDiffusionPipeline.with_memorization_filter
    assert options(method) == options(lcmem_filter.attach) != {}
    handed_on = {}
    monkeypatch.setattr(attachment, "attach", lambda pipe, index, **given: handed_on.update(given))
    given = {name: object() for name in options(method)}
    method(None, "index", **given)
    assert handed_on == given
