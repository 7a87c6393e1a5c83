"""Every rung of the ladder on a tiny pipeline, and what each is for."""

from __future__ import annotations

import json
import random
import time
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, TCDScheduler
from diffusers.callbacks import SDCFGCutoffCallback

from lcmem_filter.index import MemorizationIndex
from lcmem_filter.pipeline import MemorizationWarning, detach
from lcmem_filter.pipeline.call import _reworded
from lcmem_filter.pipeline.rows import BoundCall
from lcmem_filter.pipeline.rungs import RUNGS, make_rungs
from lcmem_filter.pipeline.rungs.prompt_embedding import PromptEmbedding
from lcmem_filter.pipeline.rungs.prompt_perturbation import PromptPerturbation, _vocabulary, noised
from lcmem_filter.pipeline.rungs.repulsion import Repulsion
from lcmem_filter.pipeline.taps import tapped_outputs, tapped_step

from .families.flow import sd3
from .families.latent_consistency import consistency_model
from .families.packed import flux, qwen_image
from .families.parts import SIZE, embeds, prompts
from .families.transformers import hunyuan
from .scripted import always, reject_first_pass, wear
from tests.tiny import call_arguments, tiny_pipeline

# what schedulers say of their own conversions to NumPy
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn.t accept a copy:DeprecationWarning"
)

PROMPTS = ["a cat", "a dog"]
STEPS = 4


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def arguments(**changes: Any) -> dict[str, Any]:
    return {
        **call_arguments("text-to-image", PROMPTS),
        "num_images_per_prompt": 2,
        "num_inference_steps": STEPS,
        "output_type": "np",
        "generator": generator(),
        **changes,
    }


def drawn_by(rung: Any, index: Any, pipe: Any = None, **changes: Any) -> Any:
    """A call whose rows 1 and 2 are rejected once, and drawn again by ``rung``."""
    pipe = pipe or tiny_pipeline()
    wear(pipe, reject_first_pass(1, 2), index=index, rungs=make_rungs([rung]))
    return pipe(**arguments(**changes))


def is_untapped(pipe: Any) -> bool:
    hooks = [*pipe.unet._forward_hooks, *pipe.unet._forward_pre_hooks]
    return not hooks and "step" not in pipe.scheduler.__dict__ and "prepare_latents" not in pipe.__dict__


@pytest.mark.parametrize("name", RUNGS)
def test_a_rung_draws_only_what_was_rejected_and_puts_everything_back(name: str, index: Any) -> None:
    pipe = tiny_pipeline()
    plain = pipe(**arguments()).images
    out = drawn_by(name, index, pipe)
    assert np.array_equal(out.images[[0, 3]], plain[[0, 3]])
    assert not np.allclose(out.images[[1, 2]], plain[[1, 2]], atol=1e-3)
    assert [d.rung for d in out.memorization] == [None, name, name, None]
    assert [d.attempts for d in out.memorization] == [1, 2, 2, 1]
    prompts = [d.prompt for d in out.memorization]
    if name == "prompt_perturbation":  # each row's own
        assert set(PROMPTS[0].split()) < set(prompts[1].split()) and set(PROMPTS[1].split()) < set(
            prompts[2].split()
        )
        prompts[1:3] = [None, None]
    assert prompts == [None] * 4
    again = drawn_by(name, index)
    assert np.array_equal(again.images, out.images)
    assert [d.seed for d in again.memorization] == [d.seed for d in out.memorization]
    assert is_untapped(pipe) and np.array_equal(detach(pipe)(**arguments()).images, plain)


@pytest.mark.parametrize("name", [name for name in RUNGS if name != "new_seed"])
def test_a_rung_does_more_than_a_new_seed(name: str, index: Any) -> None:
    by_seed, by_rung = drawn_by("new_seed", index), drawn_by(name, index)
    assert [d.seed for d in by_seed.memorization] == [d.seed for d in by_rung.memorization]
    for row in (1, 2):
        assert not np.allclose(by_seed.images[row], by_rung.images[row], atol=1e-3)


@pytest.mark.parametrize("name", RUNGS)
def test_a_rung_puts_everything_back_after_an_error(name: str, index: Any) -> None:
    pipe = tiny_pipeline()

    def breaks_on_drawing_again(latent: torch.Tensor, row: int, batch: int) -> bool:
        if batch:
            raise RuntimeError("broken filter")
        return row != 1

    wear(pipe, breaks_on_drawing_again, index=index, rungs=make_rungs([name]))
    with pytest.raises(RuntimeError, match="broken filter"):
        pipe(**arguments())
    assert is_untapped(pipe)


def test_with_the_whole_ladder_a_clean_call_is_bit_identical(index: Any) -> None:
    pipe = tiny_pipeline()
    plain = pipe(**arguments()).images
    wear(pipe, always, index=index, rungs=make_rungs(tuple(RUNGS)))
    assert np.array_equal(pipe(**arguments()).images, plain)


def test_rungs_follow_each_other_for_each_sample_and_the_last_is_repeated(index: Any) -> None:
    pipe = tiny_pipeline()
    tries = {0: 0, 1: 4, 2: 1, 3: 2}  # how often each row is rejected
    left = dict(tries)

    def verdict(latent: torch.Tensor, row: int, batch: int) -> bool:
        still = [r for r in range(4) if tries[r] >= batch]
        left[still[row]] -= 1
        return left[still[row]] < 0

    wear(pipe, verdict, index=index, rungs=make_rungs(["new_seed", "repulsion", "prompt_perturbation"]))
    out = pipe(**arguments())
    assert [d.accepted for d in out.memorization] == [True] * 4
    assert [d.attempts for d in out.memorization] == [1, 5, 2, 3]
    assert [d.rung for d in out.memorization] == [None, "prompt_perturbation", "new_seed", "repulsion"]


class Recorder:
    """A rung of the user's, which notes what it is given."""

    name = "recorder"

    def __init__(self) -> None:
        self.repeats: list[int] = []

    @contextmanager
    def attempt(self, redraw: Any) -> Any:
        self.repeats.append(redraw.repeats)
        yield redraw.call


def test_users_write_rungs_and_the_budget_is_attempts_and_seconds() -> None:
    pipe, rung = tiny_pipeline(), Recorder()
    wear(pipe, lambda *_: False, max_resamples=3, rungs=make_rungs([rung]))
    with pytest.warns(MemorizationWarning, match="in each of 4 attempt"):
        out = pipe(**arguments())
    assert rung.repeats == [0, 1, 2] and [d.rung for d in out.memorization] == ["recorder"] * 4

    def takes_its_time(*_: object) -> bool:
        time.sleep(0.05)
        return False

    wear(pipe, takes_its_time, max_resamples=50, max_seconds=0.1, rungs=make_rungs([rung]))
    with pytest.warns(MemorizationWarning, match="in each of 2 attempt"):
        pipe(**arguments())


def test_rungs_that_do_not_apply_are_skipped(index: Any) -> None:
    guided = ["delayed_guidance", "prompt_embedding"]
    out = drawn_by_all([*guided, "new_seed"], index, guidance_scale=1.0)
    assert out.memorization[1].rung == "new_seed"
    distilled = consistency_model()
    wear(distilled, reject_first_pass(1), index=index, rungs=make_rungs([*guided, "new_seed"]))
    given = arguments(guidance_scale=8.5)
    assert distilled(**given).memorization[1].rung == "new_seed"
    pipe = tiny_pipeline()
    pipe.scheduler = TCDScheduler.from_config(pipe.scheduler.config)
    wear(pipe, reject_first_pass(1), index=index, rungs=make_rungs(["repulsion"]))
    with pytest.warns(MemorizationWarning) as warned:
        out = pipe(**arguments())
    assert "none of the rungs (repulsion) can draw" in str(warned[0].message)
    assert [d.attempts for d in out.memorization] == [1] * 4 and not out.images[1].any()


def drawn_by_all(rungs: list[str], index: Any, **changes: Any) -> Any:
    pipe = tiny_pipeline()
    wear(pipe, reject_first_pass(1), index=index, rungs=make_rungs(rungs))
    return pipe(**arguments(**changes))


@pytest.mark.parametrize("rungs", [[], "new_seed", ["nonsense"]])
def test_ladders_are_checked(rungs: Any) -> None:
    with pytest.raises(ValueError, match="new_seed"):
        make_rungs(rungs)


# What each rung is for.

SIZES = [[5.0, 3.0, 4.0, 1.0], [1.0, 2.0, 1.0, 2.0]]
"""How far the text prediction is from the unconditional one, by row and step: the first local minima are at 1 and 0."""


@contextmanager
def scripted_denoiser(pipe: Any, separate: bool = False) -> Any:
    """Let the denoiser of ``pipe`` predict 0 without a text, and a constant of ``SIZES`` with one."""
    calls: list[int] = []

    def predict(output: torch.Tensor) -> torch.Tensor:
        step, part = divmod(len(calls), 2) if separate else (len(calls), 0)
        calls.append(step)
        half = output if separate else output[: len(output) // 2]
        text = torch.ones_like(half) * torch.tensor(SIZES)[:, step % STEPS].view(-1, *[1] * (half.ndim - 1))
        if separate:
            return text if part == 0 else torch.zeros_like(text)
        return torch.cat([torch.zeros_like(text), text])

    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    with tapped_outputs(denoiser, predict):
        yield


@pytest.mark.parametrize("make", [tiny_pipeline, sd3, qwen_image], ids=lambda make: make.__name__)
def test_delayed_guidance_waits_for_each_rows_first_local_minimum(make: Any) -> None:
    pipe = make()
    separate = make is qwen_image
    scale: Any = "true_cfg_scale" if separate else "guidance_scale"
    wear(pipe, lambda latent, row, batch: batch > 0, rungs=make_rungs(["delayed_guidance"]))
    outputs: list[torch.Tensor] = []

    def note(step: Any, output: torch.Tensor, *rest: Any, **options: Any) -> Any:
        outputs.append(output.clone())
        return step(output, *rest, **options)

    text = (
        {"prompt": None, "prompt_embeds": embeds(), "negative_prompt_embeds": embeds(seed=1)}
        if separate
        else {}
    )
    given = {**arguments(num_images_per_prompt=1, output_type="latent", **text), scale: 2.0}
    with scripted_denoiser(pipe, separate), tapped_step(pipe.scheduler, note):
        out = pipe(**given)
    assert [d.rung for d in out.memorization] == ["delayed_guidance"] * 2
    # the first pass is guided throughout; the second from the step after each row's minimum
    found = torch.stack([step.flatten(1).abs().amax(1) for step in outputs], dim=1)
    sizes = torch.tensor(SIZES) * (1 if separate else 2)  # Qwen-Image keeps the text prediction's length
    waited = sizes.clone()
    waited[0, :2] = 0
    waited[1, :1] = 0
    assert found.nan_to_num(0).tolist() == torch.cat([sizes, waited], dim=1).tolist()


def test_prompts_are_perturbed_around_their_own_words(index: Any) -> None:
    pipe, seen = tiny_pipeline(), []
    encode = pipe.encode_prompt
    pipe.encode_prompt = lambda prompt, *args, **kwargs: (
        seen.append(prompt) or encode(prompt, *args, **kwargs)
    )
    wear(pipe, lambda latent, row, batch: batch > 1, index=index, rungs=make_rungs([PromptPerturbation(3)]))
    pipe(**arguments())
    assert seen[0] == PROMPTS
    for pass_, more in ((1, 3), (2, 6)):  # each repetition adds as many again
        assert len(set(seen[pass_])) == 4
        for perturbed, own in zip(seen[pass_], ["a cat", "a cat", "a dog", "a dog"], strict=True):
            words = perturbed.split()
            assert len(words) == 2 + more
            assert [word for word in words if word in own.split()][:2] == own.split() or set(
                own.split()
            ) <= set(words)


CAPTION = {"edit_instruction": "a cat", "objects": [{"description": "a dog and a bird", "count": 2}]}


@pytest.mark.parametrize("several", [False, True], ids=["one prompt", "two prompts"])
@pytest.mark.parametrize("written", [json.dumps, dict], ids=["JSON", "dict"])
def test_a_caption_that_is_perturbed_stays_one(written: Any, several: bool) -> None:
    """Pipelines as Bria's, which draw from captions, refuse what is none."""
    prompt = [written(CAPTION), "a cat"] if several else written(CAPTION)
    redraw: Any = SimpleNamespace(
        pipe=SimpleNamespace(), call=BoundCall({"prompt": prompt}, {}), seeds=[1, 2], repeats=0
    )
    with PromptPerturbation(3).attempt(redraw) as call:
        assert call is not None
    drawn = call.arguments["prompt"]
    first = drawn[0] if several else drawn
    assert type(first) is type(written(CAPTION))
    found = first if isinstance(first, dict) else json.loads(first)
    words = found["objects"][0].pop("description").split()
    assert found == {"edit_instruction": "a cat", "objects": [{"count": 2}]}
    assert len(words) == 5 + 3 and {"dog", "bird"} <= set(words)
    assert not several or len(drawn[1].split()) == 2 + 3


@pytest.mark.parametrize(
    ("given", "drawn", "row", "expected"),
    [
        ("a", "a b", 3, "a b"),
        (["a"], ["a b"], 3, "a b"),  # one for all
        (["a", "c"], ["a b", "c"], 0, "a b"),
        (["a", "c"], ["a b", "c"], 2, None),
        (None, None, 0, None),
    ],
)
def test_what_a_row_was_drawn_from_is_told_where_it_is_not_what_was_asked(
    given: Any, drawn: Any, row: int, expected: str | None
) -> None:
    calls = (SimpleNamespace(arguments={"prompt": one, "num_images_per_prompt": 2}) for one in (drawn, given))
    assert _reworded(*calls, row) == expected  # type: ignore[arg-type]


def test_embeddings_given_as_prompts_are_perturbed_with_noise(index: Any) -> None:
    pipe = tiny_pipeline()
    embeds, negative = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
    given = {"prompt": None, "prompt_embeds": embeds, "negative_prompt_embeds": negative}
    small, large = (drawn_by(PromptPerturbation(noise=noise), index, **given).images for noise in (1e-7, 0.3))
    plain = drawn_by("new_seed", index, **given).images
    np.testing.assert_allclose(small, plain, atol=1e-3)
    assert not np.allclose(large[[1, 2]], plain[[1, 2]], atol=1e-3)


def test_noise_does_not_depend_on_torchs_defaults() -> None:
    given = (torch.ones(2, 3, 4).cumsum(1), [5, 6], 0.3)
    expected = noised(*given)
    with torch.device("meta"):
        assert torch.equal(noised(*given), expected)
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(noised(*given), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_an_optimised_embedding_lowers_the_texts_pull(index: Any) -> None:
    pulls: dict[str, torch.Tensor] = {}
    for name, rung in (("seed", "new_seed"), ("embedding", PromptEmbedding(target=0.7))):
        pipe, sizes = tiny_pipeline(), []

        def note(output: torch.Tensor, sizes: list[torch.Tensor] = sizes) -> torch.Tensor:
            without, text = output.chunk(2)
            sizes.append((text - without).flatten(1).norm(dim=1).detach())
            return output

        with tapped_outputs(pipe.unet, note):
            drawn_by(rung, index, pipe)
        first_pass, pulls[name] = sizes[:STEPS], sizes[-STEPS]
        assert len(first_pass[0]) == 4 and len(pulls[name]) == 2
    ratio = pulls["embedding"] / pulls["seed"]
    assert (ratio < 0.75).all() and (ratio > 0.3).all(), ratio


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_repulsion_lowers_the_similarity_to_the_match(scheduler: str, index: Any) -> None:
    import diffusers

    def similarity(rung: Any) -> torch.Tensor:
        pipe = tiny_pipeline()
        pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
        latents = torch.from_numpy(drawn_by(rung, index, pipe, output_type="latent").images.numpy())
        stored = index.embeddings_of([record.id for record in index.records[:3]])
        return (index.head.embed(latents, "sd") * stored[[0, 1, 2, 0]]).sum(
            1
        )  # rows 1 and 2 match images 1 and 2

    by_seed, pushed = similarity("new_seed"), similarity(Repulsion(strength=0.2))
    assert torch.equal(by_seed[[0, 3]], pushed[[0, 3]])
    assert (pushed[1:3] < by_seed[1:3] - 0.02).all(), (by_seed, pushed)


def test_repulsion_on_packed_latents(index: Any) -> None:
    def similarity(rung: Any) -> float:
        pipe = flux()
        wear(pipe, reject_first_pass(0), index=index, rungs=make_rungs([rung]))
        pipe(**arguments())
        latents = pipe.memorization_filter.seen[-1]
        return float((index.head.embed(latents, "sd") @ index.embeddings_of([index.records[0].id]).T)[0])

    assert similarity(Repulsion(strength=0.2)) < similarity("new_seed") - 0.02


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_denoiser_is_tapped(in_place: bool, index: Any) -> None:
    torch._dynamo.reset()
    expected = drawn_by("delayed_guidance", index)
    pipe = tiny_pipeline()
    if in_place:
        pipe.unet.compile(backend="eager")
    else:
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    out = drawn_by("delayed_guidance", index, pipe)
    np.testing.assert_allclose(out.images, expected.images, atol=1e-4)
    assert not in_place or pipe.unet._compiled_call_impl is not None


@pytest.mark.parametrize("name", RUNGS)
def test_every_rung_is_at_work_in_inference_mode(name: str, index: Any) -> None:
    pipe = tiny_pipeline()
    with torch.inference_mode():
        out = drawn_by(name, index, pipe)
    assert [one.rung for one in out.memorization] == [None, name, name, None]


def test_repulsion_is_at_work_although_the_head_was_loaded_and_moved_in_inference_mode(index: Any) -> None:
    with torch.inference_mode():
        loaded = MemorizationIndex.load(index.path)
        loaded.to("meta")
    assert not any(weight.is_inference() for weight in loaded.head.parameters())
    with torch.inference_mode():
        loaded = MemorizationIndex.load(index.path)
    assert drawn_by("repulsion", loaded).memorization[1].rung == "repulsion"


def test_weights_that_were_made_in_inference_mode_have_no_gradient_to_follow(index: Any) -> None:
    with torch.inference_mode():
        pipe = tiny_pipeline()
    wear(pipe, reject_first_pass(1), index=index, rungs=make_rungs(["prompt_embedding", "new_seed"]))
    assert pipe(**arguments()).memorization[1].rung == "new_seed"


def test_repulsion_draws_unpushed_where_predictions_are_in_a_layout_that_is_not_known(index: Any) -> None:
    class Other(FluxPipeline):
        @staticmethod
        def _unpack_latents(latents, height, width, vae_scale_factor, patch_size=2):  # type: ignore[no-untyped-def]
            return FluxPipeline._unpack_latents(latents, height, width, vae_scale_factor)

    images = []
    for rung in ("new_seed", "repulsion"):
        pipe = flux(Other)
        wear(pipe, reject_first_pass(1), index=index, rungs=make_rungs([rung]))
        out = pipe(**{**prompts(), **SIZE}, num_inference_steps=2, output_type="np", generator=generator())
        assert out.memorization[1].rung == rung
        images.append(out.images)
    np.testing.assert_array_equal(*images)


class Processor:
    """As transformers' processors, which FLUX.2 has for a tokenizer: they decode, and have no length."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.decode = tokenizer.decode


def test_words_come_from_the_tokenizer_of_a_processor() -> None:
    tokenizer = tiny_pipeline().tokenizer
    for given in (tokenizer, Processor(tokenizer)):
        found = {_vocabulary(SimpleNamespace(tokenizer=given))(random.Random(seed)) for seed in range(20)}
        assert len(found) > 3 and not any(word.isdigit() for word in found)
    without = SimpleNamespace(tokenizer=SimpleNamespace(decode=tokenizer.decode))
    assert _vocabulary(without)(random.Random(0)).isdigit()


def test_an_embedding_is_optimised_beside_lists_in_inference_mode(index: Any) -> None:
    pipe = hunyuan()
    with torch.inference_mode():
        out = drawn_by("prompt_embedding", index, pipe)
    assert [one.attempts for one in out.memorization] == [1, 2, 2, 1]


@pytest.mark.parametrize("name", ["delayed_guidance", "prompt_embedding"])
def test_guidance_that_a_callback_ends_is_guidance(name: str, index: Any) -> None:
    pipe = tiny_pipeline()
    wear(pipe, reject_first_pass(0), index=index, rungs=make_rungs([name]))
    ending = SDCFGCutoffCallback(
        cutoff_step_ratio=0.5
    )  # which takes the guidance scale to 0, of one image alone
    out = pipe(**arguments(prompt=["a cat"], num_images_per_prompt=1, callback_on_step_end=ending))
    assert out.memorization[0].rung == name
