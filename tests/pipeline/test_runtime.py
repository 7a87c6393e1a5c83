"""How a pipeline is run: precisions, offloading, compilation, adapters, copies. On a CUDA device where there is one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import disk_offload
from accelerate.hooks import CpuOffload
from diffusers import (
    AutoPipelineForImage2Image,
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)

from lcmem_filter.errors import UnsupportedPipelineError
from lcmem_filter.index import MemorizationIndex
from lcmem_filter.latents import encode_pixels
from lcmem_filter.pipeline import MemorizationWarning, attach, detach

from .families.flow import sd3
from .families.packed import flux, flux2, qwen_image
from .families.parts import PROMPTS, embeds
from .scripted import always, reject_first_pass, wear
from tests.tiny import picture, tiny_pipeline, tiny_vae

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

pytestmark = [
    pytest.mark.filterwarnings("ignore:You have passed .* Initial images are now duplicating:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*FluxPosEmbed. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]


def call(pipe: Any, **changes: Any) -> Any:
    text = (
        {"prompt_embeds": embeds()} if getattr(pipe, "tokenizer", None) is None else {"prompt": list(PROMPTS)}
    )
    if pipe.dtype != torch.float32 and "prompt_embeds" in text:
        text["prompt_embeds"] = text["prompt_embeds"].to(pipe.dtype)
    given = {
        **text,
        "num_images_per_prompt": 2,
        "num_inference_steps": 2,
        "height": 32,
        "width": 32,
        "output_type": "np",
        "generator": torch.Generator().manual_seed(0),
    }
    return pipe(**{**given, **changes})


def check_filtered(pipe: Any, plain: np.ndarray) -> list[torch.Tensor]:
    """Nothing rejected: as ``plain``; some rejected: drawn again, the others as ``plain``. Returns what was judged."""
    scripted = wear(pipe, always)
    assert np.array_equal(call(pipe)[0], plain)
    redrawing = wear(pipe, reject_first_pass(1, 2))
    out = call(pipe)
    assert np.array_equal(out[0][[0, 3]], plain[[0, 3]])
    assert not np.allclose(out[0][[1, 2]], plain[[1, 2]], atol=0.1)
    assert [len(batch) for batch in redrawing.seen] == [4, 2]
    detach(pipe)
    return scripted.seen


MAKERS: dict[str, Callable[[], Any]] = {
    "StableDiffusion": tiny_pipeline,
    "StableDiffusion3": sd3,
    "Flux": flux,
    "Flux2": flux2,
    "QwenImage": qwen_image,
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MAKERS)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    pipe = MAKERS[name]().to(DEVICE, dtype)
    plain = call(pipe)[0]
    assert np.isfinite(plain).all() and plain.std() > 0.01
    (judged,) = check_filtered(pipe, plain)
    assert judged.dtype == dtype and judged.device.type == DEVICE.type


def offload_models(pipe: Any, folder: Path) -> None:
    pipe.enable_model_cpu_offload(device=DEVICE)


def offload_sequentially(pipe: Any, folder: Path) -> None:
    """Layer by layer. Without an accelerator, by the same hooks but from disk: accelerate cannot move CPU to CPU."""
    if DEVICE.type != "cpu":
        pipe.enable_sequential_cpu_offload(device=DEVICE)
        return
    for name in ("text_encoder", "unet", "vae"):
        disk_offload(getattr(pipe, name), str(folder / name), execution_device=DEVICE)


def offload_groups(pipe: Any, folder: Path) -> None:
    pipe.enable_group_offload(onload_device=DEVICE, offload_type="leaf_level")


OFFLOADS = {"model": offload_models, "sequential": offload_sequentially, "group": offload_groups}


@pytest.mark.parametrize("before", [True, False], ids=["before attaching", "after attaching"])
@pytest.mark.parametrize("way", OFFLOADS)
def test_offloading(way: str, before: bool, index: MemorizationIndex, tmp_path: Path) -> None:
    pipe = tiny_pipeline().to(DEVICE)
    plain = call(pipe)[0]
    pipe.to("cpu")
    if before:
        OFFLOADS[way](pipe, tmp_path)
        attach(pipe, index)
        assert pipe.memorization_filter.space == "sd"
        detach(pipe)
        wear(pipe, always)
    else:
        wear(pipe, always)
        OFFLOADS[way](pipe, tmp_path)
    hooks = [name for name in ("_hf_hook", "_diffusers_hook") if hasattr(pipe.vae.decoder.conv_in, name)]
    assert bool(hooks) == (way != "model") and (way != "model" or hasattr(pipe.vae, "_hf_hook"))
    np.testing.assert_allclose(call(pipe)[0], plain, atol=1e-5)
    check_filtered(pipe, call(pipe)[0])
    offloaded = next(pipe.vae.parameters()).device.type
    assert offloaded == {"model": "cpu", "sequential": "meta", "group": "cpu"}[way]


def test_attaching_leaves_no_model_on_the_device(
    index: MemorizationIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the hooks are asked to do, since without an accelerator nothing moves."""
    on_device: dict[int, bool] = {}
    load, offload = CpuOffload.pre_forward, CpuOffload.init_hook

    def pre_forward(self: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
        on_device[id(module)] = True
        return load(self, module, *args, **kwargs)

    def init_hook(self: Any, module: Any) -> Any:
        on_device[id(module)] = False
        return offload(self, module)

    monkeypatch.setattr(CpuOffload, "pre_forward", pre_forward)
    monkeypatch.setattr(CpuOffload, "init_hook", init_hook)
    pipe = tiny_pipeline()
    offload_models(pipe, tmp_path)
    encode_pixels(pipe.vae, torch.zeros(1, 3, 32, 32))
    assert on_device[id(pipe.vae)], "the hooks do not tell what is on the device"
    attach(pipe, index)
    assert not any(on_device.values())
    assert next(pipe.vae.parameters()).device.type == "cpu"
    pipe.vae.encode = lambda *_: 1 / 0
    on_device[id(pipe.vae)] = True
    with pytest.raises(UnsupportedPipelineError, match="ZeroDivisionError"):
        attach(pipe, index)
    assert not any(on_device.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("way", OFFLOADS)
def test_an_offloaded_autoencoder_encodes_the_same(way: str, dtype: torch.dtype, tmp_path: Path) -> None:
    pipe = tiny_pipeline().to(dtype)
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    expected = encode_pixels(copy.deepcopy(pipe.vae).to(DEVICE), pixels)
    OFFLOADS[way](pipe, tmp_path)
    exact = {torch.float32: 1e-5, torch.float16: 5e-3}[dtype]
    assert expected.std() > 0.05
    torch.testing.assert_close(encode_pixels(pipe.vae, pixels), expected, atol=exact, rtol=0)


def compile_autoencoder(pipe: Any) -> None:
    pipe.vae = torch.compile(pipe.vae, backend="eager")


def compile_decode(pipe: Any) -> None:
    pipe.vae.decode = torch.compile(pipe.vae.decode, backend="eager")


def compile_in_place(pipe: Any) -> None:
    pipe.vae.compile(backend="eager")
    pipe.vae.decoder.compile(backend="eager")


@pytest.mark.parametrize("compiled", [compile_autoencoder, compile_decode, compile_in_place])
def test_compiled(compiled: Callable[[Any], None], index: MemorizationIndex) -> None:
    torch._dynamo.reset()
    pipe = tiny_pipeline()
    expected = call(pipe)[0]
    compiled(pipe)
    plain = call(pipe)[0]
    np.testing.assert_allclose(plain, expected, atol=1e-5)
    check_filtered(pipe, plain)
    attach(pipe, index)
    assert pipe.memorization_filter.space == "sd"


def save_lora(folder: Path) -> None:
    """A random LoRA of the tiny pipeline's U-Net."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    unet = tiny_pipeline().unet
    torch.manual_seed(1)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet))


def test_a_lora_loaded_after_attaching(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    save_lora(tmp_path)
    without, expected = tiny_pipeline(), tiny_pipeline()
    expected.load_lora_weights(tmp_path)
    plain = call(expected)[0]
    pipe = tiny_pipeline()
    wear(pipe, always)
    pipe.load_lora_weights(tmp_path)
    assert not np.allclose(plain, call(without)[0], atol=1e-3)
    assert np.array_equal(call(pipe)[0], plain)
    check_filtered(pipe, plain)
    wear(pipe, always)
    pipe.unload_lora_weights()
    assert np.array_equal(call(pipe)[0], call(without)[0])


def ending_with(latents: torch.Tensor) -> Callable[..., dict[str, torch.Tensor]]:
    def end(pipeline: Any, step: int, timestep: int, tensors: Any) -> dict[str, torch.Tensor]:
        return {"latents": latents} if step == 1 else {}

    return end


def latents_of(*seeds: int) -> torch.Tensor:
    """What a pipeline that has memorised these pictures would end with."""
    pixels = np.stack([np.asarray(picture(seed)) for seed in seeds])
    vae = tiny_vae()
    encoded = encode_pixels(vae, torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1)
    return encoded * vae.config.scaling_factor


def test_training_pictures_are_recognised_by_the_real_filter(index: MemorizationIndex) -> None:
    pipe = attach(tiny_pipeline(), index, on_memorized="reject")
    given = latents_of(3, 100, 7, 104)  # 0 to 19 are in the index
    with pytest.warns(MemorizationWarning, match="2 of 4"):
        out = call(pipe, callback_on_step_end=ending_with(given))
    assert [d.accepted for d in out.memorization] == [False, True, False, True]
    assert [d.neighbours[0].id for d in out.memorization][::2] == ["003.png", "007.png"]
    assert (out[0][[0, 2]] == 0).all() and out[0][[1, 3]].std() > 0.01


def is_filtered(pipe: Any) -> bool:
    with pytest.warns(MemorizationWarning, match="4 of 4"):
        out = call(pipe, callback_on_step_end=ending_with(latents_of(0, 1, 2, 3)))
    return [d.accepted for d in out.memorization] == [False] * 4


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies_are_filtered(copied: Callable[[Any], Any], index: MemorizationIndex) -> None:
    twin = copied(attach(tiny_pipeline(), index, on_memorized="reject"))
    assert is_filtered(twin)
    assert type(detach(twin)) is StableDiffusionPipeline


def test_from_pipe_carries_the_filter_over(index: MemorizationIndex) -> None:
    pipe = attach(tiny_pipeline(), index, on_memorized="reject", on_exhausted="drop")
    for make in (StableDiffusionImg2ImgPipeline, AutoPipelineForImage2Image):
        made = make.from_pipe(pipe)
        assert isinstance(made, StableDiffusionImg2ImgPipeline)
        with pytest.warns(MemorizationWarning, match="2 of 2 samples.*dropped"):
            out = made(
                PROMPTS,
                image=[picture(0), picture(1)],
                strength=1.0,
                num_inference_steps=2,
                callback_on_step_end=ending_with(latents_of(5, 6)),
            )
        assert out.images == [] and out.memorization == ()
    assert is_filtered_by_dropping(StableDiffusionPipeline.from_pipe(made))
    assert not hasattr(StableDiffusionPipeline.from_pipe(detach(pipe)), "memorization_filter")


def is_filtered_by_dropping(pipe: Any) -> bool:
    with pytest.warns(MemorizationWarning, match="4 of 4.*dropped"):
        return len(call(pipe, callback_on_step_end=ending_with(latents_of(0, 1, 2, 3)))[0]) == 0


def test_moving_and_casting_keep_the_filter(index: MemorizationIndex) -> None:
    pipe = attach(tiny_pipeline(), index, on_memorized="reject")
    pipe.to(torch.bfloat16)
    pipe.enable_attention_slicing()
    pipe.enable_vae_slicing() if hasattr(pipe, "enable_vae_slicing") else pipe.vae.enable_slicing()
    pipe.to(DEVICE, torch.float32)
    assert is_filtered(pipe)


def test_a_saved_pipeline_loads_unfiltered_and_can_be_filtered_again(
    index: MemorizationIndex, tmp_path: Path
) -> None:
    pipe = detach(attach(tiny_pipeline(), index))
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path).with_memorization_filter(
        index, on_memorized="reject"
    )
    loaded.set_progress_bar_config(disable=True)
    assert is_filtered(loaded)
