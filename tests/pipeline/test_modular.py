"""The step for modular diffusers, with the real index of the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, FluxAutoBlocks
from diffusers.modular_pipelines import ModularPipelineBlocks, SequentialPipelineBlocks
from diffusers.modular_pipelines.flux.decoders import FluxDecodeStep
from diffusers.modular_pipelines.flux2.decoders import Flux2DecodeStep
from diffusers.modular_pipelines.helios.decoders import HeliosDecodeStep
from diffusers.modular_pipelines.qwenimage.modular_blocks_qwenimage import QwenImageAutoDecodeStep

from lcmem_filter.errors import (
    FilterFailedError,
    LatentSpaceError,
    MemorizationError,
    UnsupportedPipelineError,
)
from lcmem_filter.index import MemorizationIndex
from lcmem_filter.latents import canonical, encode_pixels
from lcmem_filter.pipeline import MemorizationWarning, attach
from lcmem_filter.pipeline.modular import MemorizationFilterStep, filter_before_decode
from lcmem_filter.pipeline.spaces import decoder_space

from .families.flow import shifted_vae
from .families.packed import flux, flux2
from tests.tiny import picture, tiny_pipeline, tiny_vae

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*FluxPosEmbed. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]


def latents_of(*seeds: int) -> torch.Tensor:
    """Pictures 0 to 19 are in the index."""
    vae = shifted_vae()
    pixels = torch.from_numpy(np.stack([np.asarray(picture(seed)) for seed in seeds])).permute(0, 3, 1, 2)
    return (encode_pixels(vae, pixels / 127.5 - 1) - vae.config.shift_factor) * vae.config.scaling_factor


def decoding(*steps: Any, vae: Any = None) -> Any:
    """A modular pipeline of ``steps`` (the filter's, and a decode step of FLUX.1's)."""
    names = ["memorization" if isinstance(step, MemorizationFilterStep) else "decode" for step in steps]
    pipe = SequentialPipelineBlocks.from_blocks_dict(dict(zip(names, steps, strict=True))).init_pipeline()
    pipe.update_components(vae=vae or shifted_vae())
    return pipe


def decode(pipe: Any, latents: torch.Tensor) -> Any:
    return pipe(latents=latents, output_type="pt", output=["images", "memorization"])


def test_memorised_latents_do_not_reach_the_decode_step(index: MemorizationIndex) -> None:
    latents = latents_of(3, 100, 7, 104)
    plain = decoding(FluxDecodeStep())(latents=latents, output_type="pt", output="images")
    blank = decoding(FluxDecodeStep())(latents=torch.zeros_like(latents), output_type="pt", output="images")
    pipe = decoding(MemorizationFilterStep(index), FluxDecodeStep())
    with pytest.warns(MemorizationWarning, match="2 of 4"):
        out = decode(pipe, latents)
    assert [d.accepted for d in out["memorization"]] == [False, True, False, True]
    assert torch.equal(out["images"][[1, 3]], plain[[1, 3]])
    torch.testing.assert_close(out["images"][[0, 2]], blank[[0, 2]])
    assert not torch.allclose(plain[[0, 2]], blank[[0, 2]], atol=1e-2)


def test_nothing_memorised_is_bit_identical(index: MemorizationIndex) -> None:
    latents = latents_of(100, 104)
    plain = decoding(FluxDecodeStep())(latents=latents, output_type="pt", output="images")
    out = decode(decoding(MemorizationFilterStep(index), FluxDecodeStep()), latents)
    assert torch.equal(out["images"], plain) and [d.accepted for d in out["memorization"]] == [True, True]


def test_samples_may_resemble_what_is_named(index: MemorizationIndex) -> None:
    pipe = decoding(MemorizationFilterStep(index, "flag"), FluxDecodeStep())
    given = {"latents": latents_of(3, 7), "output": ["memorization"]}
    assert [d.accepted for d in pipe(**given, allowed_ids=["003.png"])["memorization"]] == [True, False]
    assert [d.accepted for d in pipe(**given, allowed_ids=[[], ["007.png"]])["memorization"]] == [False, True]


def test_what_becomes_of_memorised_samples(index: MemorizationIndex) -> None:
    latents = latents_of(3, 100)
    plain = decoding(FluxDecodeStep())(latents=latents, output_type="pt", output="images")
    flagged = decode(decoding(MemorizationFilterStep(index, "flag"), FluxDecodeStep()), latents)
    assert torch.equal(flagged["images"], plain) and [d.accepted for d in flagged["memorization"]] == [
        False,
        True,
    ]
    with pytest.warns(MemorizationWarning, match="dropped"):
        dropped = decode(
            decoding(MemorizationFilterStep(index, on_exhausted="drop"), FluxDecodeStep()), latents
        )
    torch.testing.assert_close(dropped["images"], plain[1:], atol=1e-5, rtol=0)
    assert [d.accepted for d in dropped["memorization"]] == [True]
    with pytest.raises(MemorizationError, match="1 of 2"):
        decode(decoding(MemorizationFilterStep(index, on_exhausted="raise"), FluxDecodeStep()), latents)
    with pytest.raises(MemorizationError, match="1 of 1"):
        decode(decoding(MemorizationFilterStep(index, on_exhausted="drop"), FluxDecodeStep()), latents[:1])


def test_wrong_uses_return_nothing(index: MemorizationIndex) -> None:
    latents = latents_of(100)
    with pytest.raises(FilterFailedError, match="has no index"):
        decode(decoding(MemorizationFilterStep(), FluxDecodeStep()), latents)
    with pytest.raises(FilterFailedError, match="behind the decode step"):
        decode(decoding(FluxDecodeStep(), MemorizationFilterStep(index)), latents)
    with pytest.raises(UnsupportedPipelineError, match=r"cannot be judged.*put the step behind"):
        decode(decoding(MemorizationFilterStep(index), FluxDecodeStep()), latents.flatten(2))
    with pytest.raises(UnsupportedPipelineError, match=r"denoising_end=0\.8"):
        decoding(MemorizationFilterStep(index), FluxDecodeStep())(latents=latents, denoising_end=0.8)
    other = AutoencoderTiny(
        encoder_block_out_channels=(16, 16),
        decoder_block_out_channels=(16, 16),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    with pytest.raises(LatentSpaceError):
        decode(decoding(MemorizationFilterStep(index), FluxDecodeStep(), vae=other), latents)
    with pytest.raises(ValueError, match="'reject' or 'flag'"):
        MemorizationFilterStep(index, "resample")  # type: ignore[arg-type]


def test_an_autoencoder_whose_weights_are_overwritten_is_identified_again(index: MemorizationIndex) -> None:
    pipe = decoding(MemorizationFilterStep(index, "flag"), FluxDecodeStep())
    expected = decode(pipe, latents_of(100))["memorization"]
    pipe.vae.load_state_dict(shifted_vae().state_dict())
    assert decode(pipe, latents_of(100))["memorization"] == expected
    pipe.vae.load_state_dict(tiny_vae(seed=7).state_dict())
    with pytest.raises(LatentSpaceError):
        decode(pipe, latents_of(100))


@pytest.mark.parametrize("backend", ["exact", "faiss"])
def test_it_slots_into_the_blocks_of_a_pipeline(index: MemorizationIndex, backend: str) -> None:
    index = MemorizationIndex.load(index.path, backend=backend)
    blocks = filter_before_decode(FluxAutoBlocks(), MemorizationFilterStep(index))
    filter_before_decode(blocks, MemorizationFilterStep(index))
    names = list(blocks.sub_blocks)
    assert names[-2:] == ["memorization", "decode"] and names.count("memorization") == 1
    plain = flux()
    pipe = blocks.init_pipeline()
    assert pipe.blocks.sub_blocks["memorization"]._index is index, "blocks are copied, the index is not"
    pipe.update_components(**{name: part for name, part in plain.components.items() if part is not None})
    pipe.set_progress_bar_config(disable=True)
    out = pipe(
        prompt=["a cat", "a dog"],
        height=32,
        width=32,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
        output=["images", "memorization"],
    )
    assert out["images"].shape == (2, 32, 32, 3) and len(out["memorization"]) == 2
    without = SequentialPipelineBlocks.from_blocks_dict({"memorization": MemorizationFilterStep(index)})
    with pytest.raises(UnsupportedPipelineError, match="no block named 'decode'"):
        filter_before_decode(without, MemorizationFilterStep(index))
    assert list(without.sub_blocks) == ["memorization"]


def test_a_pipeline_is_filtered_by_making_another_of_its_blocks(index: MemorizationIndex) -> None:
    pipe = decoding(FluxDecodeStep())
    step = MemorizationFilterStep(index)
    with pytest.raises(UnsupportedPipelineError, match=r"got .*ModularPipeline; of a pipeline, make another"):
        filter_before_decode(pipe, step)
    filtered = filter_before_decode(pipe.blocks, step).init_pipeline()
    filtered.update_components(**pipe.components)
    with pytest.warns(MemorizationWarning, match="1 of 2"):
        assert len(decode(filtered, latents_of(3, 100))["memorization"]) == 2
    assert "memorization" not in pipe.blocks.sub_blocks


def test_a_step_is_no_branch_that_may_not_be_run(index: MemorizationIndex) -> None:
    branches = QwenImageAutoDecodeStep()
    assert "decode" in branches.sub_blocks
    with pytest.raises(UnsupportedPipelineError, match="got QwenImageAutoDecodeStep"):
        filter_before_decode(branches, MemorizationFilterStep(index))


def test_what_decodes_something_else_than_the_judged_latents_is_refused(index: MemorizationIndex) -> None:
    """Chunks of a video: the latents that lie beside them are those of the last one."""
    blocks = SequentialPipelineBlocks.from_blocks_dict({"decode": HeliosDecodeStep()})
    with pytest.raises(UnsupportedPipelineError, match="HeliosDecodeStep decodes no 'latents'"):
        filter_before_decode(blocks, MemorizationFilterStep(index))
    assert list(blocks.sub_blocks) == ["decode"]


def test_batch_normalised_patches_are_brought_to_the_decoders_space() -> None:
    """FLUX.2's blocks hand over patches; they hold no method to take them apart, as its pipeline does."""
    vae = flux2().vae
    seen: list[torch.Tensor] = []
    plain = vae.decode
    vae.decode = lambda latents, **options: (seen.append(latents), plain(latents, **options))[1]
    pipe = decoding(Flux2DecodeStep(), vae=vae)
    patches = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    pipe(latents=patches, output_type="pt", output="images")
    judged = decoder_space(pipe, vae, patches, None)
    torch.testing.assert_close(judged, seen[0])
    assert not torch.allclose(canonical(judged, 16), canonical(torch.pixel_shuffle(patches, 2), 16), atol=0.1)


def test_it_is_shared_as_blocks_are(index: MemorizationIndex, tmp_path: Path) -> None:
    MemorizationFilterStep(index).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["modular.py", "modular_config.json"]
    assert str(index.path) not in (tmp_path / "modular_config.json").read_text()
    step = ModularPipelineBlocks.from_pretrained(str(tmp_path), trust_remote_code=True, index=index)
    assert isinstance(step, MemorizationFilterStep)
    with pytest.warns(MemorizationWarning, match="1 of 2"):
        out = decode(decoding(step, FluxDecodeStep()), latents_of(3, 100))
    assert [d.accepted for d in out["memorization"]] == [False, True]


def test_a_whole_modular_pipeline_takes_a_step_and_not_the_filter(index: MemorizationIndex) -> None:
    pipe = decoding(FluxDecodeStep())
    with pytest.raises(UnsupportedPipelineError, match=r"is modular.*filter_before_decode\(pipe\.blocks"):
        attach(pipe, index)
    with pytest.raises(TypeError, match="index has to be of MemorizationIndex, got MemorizationFilter"):
        attach(tiny_pipeline(), attach(tiny_pipeline(), index).memorization_filter)
