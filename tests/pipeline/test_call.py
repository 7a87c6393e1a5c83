"""Filtered calls of tiny random Stable Diffusion pipelines, with verdicts that the test decides."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Collection
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Pipeline, StableDiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback, SDCFGCutoffCallback
from PIL import Image

from lcmem_filter.errors import FilterFailedError
from lcmem_filter.pipeline import MemorizationWarning, detach
from lcmem_filter.pipeline.outputs import replace_rows
from lcmem_filter.types import Decision, Neighbour

from .families import Family, families
from .families.flow import z_image
from .families.packed import flux2
from .families.parts import embeds, prompts
from .planting import spy_on_decode
from .scripted import always, reject_first_pass, wear
from tests.tiny import KINDS, VAES, call_arguments, tiny_pipeline

# what img2img says where one picture serves several images
pytestmark = pytest.mark.filterwarnings(
    "ignore:You have passed .* Initial images are now duplicating:FutureWarning"
)

PROMPTS = ["a cat", "a dog"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def arguments(kind: str = "text-to-image", prompts=PROMPTS, images: int = 2, **changes):
    return {
        **call_arguments(kind, prompts),
        "num_images_per_prompt": images,
        "num_inference_steps": 2,
        "output_type": "np",
        "generator": generator(),
        **changes,
    }


def spy_on_decoder(pipe) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    pipe.vae.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    return seen


def pixels(images) -> np.ndarray:
    if isinstance(images, torch.Tensor):
        return images.numpy()
    return np.stack([np.asarray(image) for image in images])


@pytest.mark.parametrize("vae", VAES)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_rejected_is_bit_identical_to_the_plain_pipeline(kind: str, vae: str) -> None:
    pipe = tiny_pipeline(kind, vae)
    plain = pipe(**arguments(kind)).images
    wear(pipe, always)
    filtered = pipe(**arguments(kind))
    assert np.array_equal(plain, filtered.images)
    assert [d.accepted for d in filtered.memorization] == [True] * 4
    assert [d.attempts for d in filtered.memorization] == [1] * 4


@pytest.mark.parametrize("vae", VAES)
@pytest.mark.parametrize("kind", KINDS)
def test_rejected_latents_never_reach_the_decoder(kind: str, vae: str) -> None:
    pipe = tiny_pipeline(kind, vae)
    plain = pipe(**arguments(kind)).images
    scripted = wear(pipe, reject_first_pass(1, 2), on_memorized="reject")
    decoded = spy_on_decoder(pipe)
    with pytest.warns(MemorizationWarning, match="2 of 4"):
        out = pipe(**arguments(kind))
    assert np.array_equal(out.images[[0, 3]], plain[[0, 3]])
    assert (out.images[[1, 2]] == 0).all()
    assert [d.accepted for d in out.memorization] == [True, False, False, True]
    (latents,) = scripted.seen
    for given in decoded:
        for rejected in latents[[1, 2]]:
            assert all(
                not torch.allclose(row, rejected, atol=1e-3) for row in given if row.shape == rejected.shape
            )


def test_rows_are_drawn_again_at_the_size_of_the_latents_that_were_given() -> None:
    pipe = tiny_pipeline()
    given = {**arguments(), "generator": None}
    whole = pipe(**given).images.shape
    given["latents"] = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = pipe(**given).images
    assert plain.shape[1] != whole[1]
    wear(pipe, lambda latent, row, batch: batch > 0 or row != 1)
    out = pipe(**given)
    assert out.images.shape == plain.shape and [d.attempts for d in out.memorization] == [1, 2, 1, 1]
    assert np.array_equal(out.images[[0, 2, 3]], plain[[0, 2, 3]])


@pytest.mark.parametrize("kind", [Flux2Pipeline, Flux2KleinPipeline])
def test_latents_that_are_taken_patched_tell_the_size_too(kind: type) -> None:
    pipe = flux2(kind)
    patched = torch.randn(2, 16, 16, 16, generator=generator())
    given = {
        "prompt_embeds": embeds(),
        "latents": patched,
        "height": 64,
        "width": 64,
        "num_inference_steps": 2,
    }
    if kind is Flux2KleinPipeline:
        given["negative_prompt_embeds"] = embeds(seed=1)
    scripted = wear(pipe, reject_first_pass(1))
    out = pipe(**given)
    assert [image.size for image in out.images] == [(64, 64)] * 2
    assert [latents.shape[2:] for latents in scripted.seen] == [(32, 32)] * 2


@pytest.mark.parametrize(
    "made", [lambda side: Image.new("RGB", (side, side)), lambda side: np.zeros((side, side, 3))]
)
def test_an_image_of_another_size_does_not_take_a_rows_place(made: Callable[[int], Any]) -> None:
    drawn, smaller, again = ([made(side)] for side in (32, 16, 32))
    with pytest.raises(FilterFailedError, match=r"size \(32, 32.* was drawn again as one of \(16, 16"):
        replace_rows((drawn,), [0], (smaller,), [0], 1)
    assert replace_rows((drawn,), [0], (again,), [0], 1)[0][0] is again[0]


@pytest.mark.parametrize("kind", KINDS)
def test_rejected_rows_are_drawn_again_and_accepted_rows_stay(kind: str) -> None:
    pipe = tiny_pipeline(kind)
    plain = pipe(**arguments(kind)).images
    scripted = wear(
        pipe, lambda latent, row, batch: not (batch == 0 and row in (1, 2)) and not (batch == 1 and row == 1)
    )
    out = pipe(**arguments(kind))
    assert np.array_equal(out.images[[0, 3]], plain[[0, 3]])
    assert [d.attempts for d in out.memorization] == [1, 2, 3, 1]
    assert [d.accepted for d in out.memorization] == [True] * 4
    assert [len(batch) for batch in scripted.seen] == [4, 2, 1]
    assert not np.allclose(out.images[[1, 2]], plain[[1, 2]], atol=1e-3)
    again = pipe_again(kind)
    assert np.array_equal(again.images, out.images), "a run can be repeated from the same generator"
    assert [d.seed for d in again.memorization] == [d.seed for d in out.memorization]
    assert len({d.seed for d in out.memorization}) == 3  # None and two seeds


def pipe_again(kind: str):
    pipe = tiny_pipeline(kind)
    wear(
        pipe, lambda latent, row, batch: not (batch == 0 and row in (1, 2)) and not (batch == 1 and row == 1)
    )
    return pipe(**arguments(kind))


@pytest.mark.parametrize("row", range(4))
def test_a_redrawn_row_is_what_its_prompt_and_seed_give(row: int) -> None:
    pipe = tiny_pipeline("text-to-image")
    negatives = ["blurred", "washed out"]
    wear(pipe, reject_first_pass(row))
    out = pipe(**arguments(negative_prompt=negatives))
    detach(pipe)
    alone = pipe(
        **arguments(
            prompts=[PROMPTS[row // 2]],
            images=1,
            negative_prompt=[negatives[row // 2]],
            generator=generator(out.memorization[row].seed),
        )
    )
    np.testing.assert_allclose(out.images[row], alone.images[0], atol=1e-4)


@pytest.mark.parametrize("kind", ["img2img", "inpaint"])
@pytest.mark.parametrize("row", range(4))
def test_a_redrawn_row_starts_from_its_own_picture(kind: str, row: int) -> None:
    pipe = tiny_pipeline(kind)
    full = arguments(kind)
    wear(pipe, reject_first_pass(row))
    out = pipe(**full)
    detach(pipe)
    own = {name: [full[name][row % 2]] for name in ("image", "mask_image") if name in full}
    changes = {"prompt": [PROMPTS[row // 2]], "num_images_per_prompt": 1, **own}
    alone = pipe(**{**arguments(kind), **changes, "generator": [generator(out.memorization[row].seed)]})
    np.testing.assert_allclose(out.images[row], alone.images[0], atol=1e-4)


def test_embeddings_instead_of_prompts_are_sliced_too() -> None:
    pipe = tiny_pipeline("text-to-image")
    embeds, negative = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
    given = arguments(prompts=None, prompt_embeds=embeds, negative_prompt_embeds=negative)
    wear(pipe, reject_first_pass(3))
    by_embeds = pipe(**given)
    wear(pipe, reject_first_pass(3))
    by_prompt = pipe(**arguments())
    np.testing.assert_allclose(by_embeds.images, by_prompt.images, atol=1e-5)


def test_arguments_of_unknown_rows_draw_the_whole_batch_again() -> None:
    pipe = tiny_pipeline("text-to-image")
    scripted = wear(pipe, reject_first_pass(1))
    plain_guess = arguments(cross_attention_kwargs=None, ip_adapter_image_embeds=None)
    out = pipe(**plain_guess)
    assert len(scripted.seen[1]) == 1

    def original(self, prompt, extra=None, generator=None, num_images_per_prompt=1, output_type="np"):
        return plain_call(
            self,
            prompt,
            generator=generator,
            num_images_per_prompt=num_images_per_prompt,
            output_type=output_type,
            num_inference_steps=2,
        )

    plain_call = type(detach(pipe)).__call__
    custom = type("Custom", (type(pipe),), {"__call__": original})
    pipe.__class__ = custom
    scripted = wear(pipe, reject_first_pass(1))
    whole = pipe(PROMPTS, extra=torch.zeros(5), generator=generator(), num_images_per_prompt=2)
    assert [len(batch) for batch in scripted.seen] == [4, 4]
    assert np.array_equal(whole.images[[0, 2, 3]], out.images[[0, 2, 3]])
    assert whole.memorization[1].attempts == 2


@pytest.mark.parametrize("output_type", ["latent", "pt", "np", "pil"])
@pytest.mark.parametrize("return_dict", [True, False])
def test_output_types(output_type: str, return_dict: bool) -> None:
    pipe = tiny_pipeline("text-to-image")
    form = {"output_type": output_type, "return_dict": return_dict}
    plain = pipe(**arguments(**form))
    scripted = wear(pipe, reject_first_pass(2))
    out = pipe(**arguments(**form))
    assert type(out) is type(plain) and len(out) == len(plain)
    assert type(out[0]) is type(plain[0])
    before, after = pixels(plain[0]), pixels(out[0])
    assert np.array_equal(before[[0, 1, 3]], after[[0, 1, 3]])
    assert not np.allclose(before[2], after[2], atol=1e-3)
    decisions = scripted.last_decisions if not return_dict else out.memorization
    assert [d.attempts for d in decisions] == [1, 1, 2, 1]


def test_rejected_latents_are_not_returned_as_latents() -> None:
    pipe = tiny_pipeline("text-to-image")
    scripted = wear(pipe, reject_first_pass(0), on_memorized="reject")
    with pytest.warns(MemorizationWarning):
        out = pipe(**arguments(output_type="latent"))
    assert (out.images[0] == 0).all() and torch.equal(out.images[1:], scripted.seen[0][1:])


def test_generator_lists_and_no_generator() -> None:
    pipe = tiny_pipeline("text-to-image")
    wear(pipe, reject_first_pass(1, 3))
    lists = [pipe_with_rejections(pipe, generator=[generator(s) for s in range(4)]) for _ in range(2)]
    assert np.array_equal(lists[0].images, lists[1].images)
    torch.manual_seed(5)
    first = pipe_with_rejections(pipe, generator=None)
    torch.manual_seed(5)
    assert np.array_equal(first.images, pipe_with_rejections(pipe, generator=None).images)


def pipe_with_rejections(pipe, **changes):
    wear(pipe, reject_first_pass(1, 3))
    return pipe(**arguments(**changes))


def never(*_: object) -> bool:
    return False


def test_an_error_in_the_filter_returns_nothing_and_puts_the_decoder_back() -> None:
    pipe = tiny_pipeline("text-to-image")
    decoded = spy_on_decoder(pipe)

    def broken(*_: object) -> bool:
        raise RuntimeError("broken filter")

    wear(pipe, broken)
    with pytest.raises(RuntimeError, match="broken filter"):
        pipe(**arguments())
    assert not decoded and "decode" not in pipe.vae.__dict__


def test_an_error_while_drawing_again_returns_nothing() -> None:
    pipe = tiny_pipeline("text-to-image")

    def breaks_later(latent: torch.Tensor, row: int, batch: int) -> bool:
        if batch:
            raise RuntimeError("broken filter")
        return row != 1

    wear(pipe, breaks_later)
    with pytest.raises(RuntimeError, match="broken filter"):
        pipe(**arguments())


def test_a_callback_that_swaps_the_latents_is_judged_on_what_it_swapped_in() -> None:
    pipe = tiny_pipeline("text-to-image")
    stolen = torch.full((4, *pipe(**arguments(output_type="latent")).images.shape[1:]), 0.7)

    def swap(pipeline, step: int, timestep: int, tensors):
        return {"latents": stolen[: len(tensors["latents"])]} if step == 1 else {}

    decoded = spy_on_decoder(pipe)
    wear(pipe, lambda latent, row, batch: not torch.allclose(latent / latent.mean(), torch.ones(())))
    with pytest.warns(MemorizationWarning, match="4 of 4"):
        out = pipe(**arguments(callback_on_step_end=swap))
    assert (out.images == 0).all()
    assert decoded


def test_a_callback_that_decodes_or_calls_the_pipeline_is_refused() -> None:
    pipe = tiny_pipeline("text-to-image")

    def preview(pipeline, step: int, timestep: int, tensors):
        pipeline.vae.decode(tensors["latents"])
        return {}

    def nested(pipeline, step: int, timestep: int, tensors):
        pipeline(**arguments())
        return {}

    wear(pipe, always)
    for callback, message in ((preview, "more than once"), (nested, "from within")):
        with pytest.raises(FilterFailedError, match=message):
            pipe(**arguments(callback_on_step_end=callback))
        assert "decode" not in pipe.vae.__dict__


def test_a_pipeline_that_goes_around_the_gate_returns_nothing() -> None:
    pipe = tiny_pipeline("text-to-image")
    plain_call = type(pipe).__call__

    def around(self, prompt, output_type="np", **kwargs):
        latents = plain_call(self, prompt, output_type="latent", **kwargs).images
        return (self.vae.decoder(latents).clamp(0, 1),)

    pipe.__class__ = type("Around", (type(pipe),), {"__call__": around})
    wear(pipe, always)
    with pytest.raises(FilterFailedError, match="without calling its decoder"):
        pipe(PROMPTS, num_inference_steps=2)


def test_the_pipelines_own_errors_survive() -> None:
    pipe = tiny_pipeline("text-to-image")
    wear(pipe, always)
    with pytest.raises(TypeError, match="multiple values for argument 'width'"):
        pipe("a cat", 64, 64, width=3)
    with pytest.raises(ValueError, match="prompt"):
        pipe()


def test_positional_arguments() -> None:
    pipe = tiny_pipeline("text-to-image")
    plain = pipe(PROMPTS, 32, 32, 2, output_type="np", generator=generator())
    wear(pipe, always)
    assert np.array_equal(
        pipe(PROMPTS, 32, 32, 2, output_type="np", generator=generator()).images, plain.images
    )


def test_hooks_on_the_vae_run_before_the_gate_and_survive() -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    class Recorder(ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            self.calls += 1
            return args, kwargs

    pipe = tiny_pipeline("text-to-image")
    recorder = Recorder()
    add_hook_to_module(pipe.vae, recorder)
    pipe(**arguments())
    plain_calls = recorder.calls
    wear(pipe, always)
    pipe(**arguments())
    assert plain_calls > 0 and recorder.calls == 2 * plain_calls


def test_a_compiled_decoder() -> None:
    pipe = tiny_pipeline("text-to-image")
    plain = pipe(**arguments()).images
    pipe.vae.decode = torch.compile(pipe.vae.decode, backend="eager")
    compiled = pipe.vae.decode
    wear(pipe, reject_first_pass(1))
    out = pipe(**arguments())
    assert np.array_equal(out.images[[0, 2, 3]], plain[[0, 2, 3]])
    assert pipe.vae.__dict__["decode"] is compiled


def test_two_threads_on_one_vae_each_get_their_own_decisions() -> None:
    pipes = [tiny_pipeline("text-to-image"), tiny_pipeline("text-to-image")]
    pipes[1].vae = pipes[0].vae
    plain = pipes[0](**arguments()).images
    filters = [wear(pipes[0], always), wear(pipes[1], never, "reject")]
    outs: dict[int, list] = {0: [], 1: []}

    def run(i: int) -> None:
        outs[i] = [pipes[i](**arguments()) for _ in range(3)]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    with warnings.catch_warnings():  # around the threads: it changes the whole process
        warnings.simplefilter("ignore", MemorizationWarning)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(np.array_equal(out.images, plain) for out in outs[0]) and len(outs[0]) == 3
    assert all((out.images == 0).all() for out in outs[1]) and len(outs[1]) == 3
    assert [len(f.seen) for f in filters] == [3, 3]


@pytest.mark.parametrize("by_position", [True, False])
def test_a_subclass_that_hands_its_arguments_on(by_position: bool) -> None:
    pipe = tiny_pipeline("text-to-image")
    plain_call = type(pipe).__call__
    plain = pipe(**arguments()).images

    def handing_on(self, *args, **kwargs):
        return plain_call(self, *args, **kwargs)

    pipe.__class__ = type("Child", (type(pipe),), {"__call__": handing_on})
    scripted = wear(pipe, reject_first_pass(2))
    given = arguments()
    args = (given.pop("prompt"),) if by_position else ()
    out = pipe(*args, **given)
    assert np.array_equal(out.images[[0, 1, 3]], plain[[0, 1, 3]])
    assert not np.allclose(out.images[2], plain[2], atol=1e-3)
    assert [len(batch) for batch in scripted.seen] == [4, 4 if by_position else 1]


@pytest.mark.parametrize("number", ["of prompts", "of images"])
def test_a_subclass_that_draws_more_than_is_asked_has_all_rows_in_each_draw(number: str) -> None:
    pipe = tiny_pipeline("text-to-image")
    plain_call = type(pipe).__call__

    def drawing_more(self, prompt, **kwargs):
        more = {"num_images_per_prompt": 3} if number == "of images" else {}
        views = prompt if more else [f"{prompt} {view}" for view in ("above", "beside", "below")]
        return plain_call(self, views, **more, **kwargs)

    pipe.__class__ = type("Child", (type(pipe),), {"__call__": drawing_more})
    given = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "np"}
    plain = pipe("a cat", generator=generator(), **given).images
    wear(pipe, reject_first_pass(1))
    out = pipe("a cat", generator=generator(), **given)
    assert [d.attempts for d in out.memorization] == [1, 2, 1]
    assert np.array_equal(out.images[[0, 2]], plain[[0, 2]])
    assert not np.allclose(out.images[1], plain[1], atol=1e-3)


def test_single_texts_stand_for_every_row() -> None:
    pipe = tiny_pipeline("text-to-image")
    scripted = wear(pipe, reject_first_pass(0, 2))
    out = pipe(**arguments(prompts="a cat", images=3, negative_prompt="blurred"))
    assert [d.attempts for d in out.memorization] == [2, 1, 2] and len(scripted.seen[1]) == 2
    detach(pipe)
    seed = generator(out.memorization[2].seed)
    alone = pipe(**arguments(prompts="a cat", images=1, negative_prompt="blurred", generator=seed))
    np.testing.assert_allclose(out.images[2], alone.images[0], atol=1e-4)


def test_rows_that_are_drawn_again_are_judged_knowing_what_they_were_rejected_for(index: Any) -> None:
    pipe = tiny_pipeline("text-to-image")
    seen: list[list[str]] = []
    looked_at: list[torch.Tensor] = []
    scripted = wear(pipe, reject_first_pass(1, 2), index=index)

    def twice(decision: Decision, latent: torch.Tensor, rejected_for: Collection[str]) -> Decision:
        looked_at.append(latent)
        seen.append(sorted(rejected_for))
        if len(seen) == 2:
            near = Neighbour(index.records[7].id, 0.4, 0.4)
            return replace(decision, accepted=False, neighbours=(near,), reason="again")
        return decision

    scripted.decide_again = twice
    decoded = spy_on_decode(pipe)
    out = pipe(**arguments("text-to-image"))
    ids = [index.records[row].id for row in (1, 2, 7)]
    assert seen == [[ids[0]], [ids[1]], sorted(ids[1:])]
    assert torch.equal(torch.cat(looked_at), torch.cat(scripted.seen[1:]))
    assert [d.attempts for d in out.memorization] == [1, 2, 3, 1]
    assert not decoded[1][1].any() and decoded[1][0].any(), "what is rejected then is not decoded either"


def test_a_rung_is_at_work_while_no_other_thread_draws() -> None:
    """What a rung changes on the pipeline, its scheduler's step for one, must not be seen by another thread's call."""
    pipe, inside, seen, started = tiny_pipeline(), [], [], threading.Event()

    class Slow:
        name = "slow"

        @contextmanager
        def attempt(self, redraw):
            inside.append(threading.get_ident())
            started.set()
            threading.Event().wait(0.2)
            yield redraw.call
            inside.pop()

    def accept(latent: torch.Tensor, row: int, batch: int) -> bool:
        seen.append((threading.get_ident(), list(inside)))
        return batch > 0

    wear(pipe, accept, rungs=(Slow(),))

    def other() -> None:
        started.wait(5)
        pipe(**arguments(prompts=["a bird"], images=1))

    thread = threading.Thread(target=other)
    thread.start()
    pipe(**arguments(prompts=["a cat"], images=1))
    thread.join(30)
    assert [bool(rung) for _, rung in seen] == [False, True, False]
    assert all(rung in ([], [judged_by]) for judged_by, rung in seen)


@pytest.mark.parametrize("on_memorized", ["reject", "resample"])
def test_whatever_else_is_returned_of_a_withheld_row_is_blank_too(on_memorized: str) -> None:
    class Tells(StableDiffusionPipeline):  # type: ignore[misc]
        @torch.no_grad()
        def __call__(self, *args: Any, output_type: str = "pt", more: Any = None, **given: Any) -> Any:
            latents = super().__call__(*args, output_type="latent", return_dict=False, **given)[0]
            images = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
            small = [Image.fromarray(np.full((4, 4), 9, np.uint8)) for _ in latents]
            return (
                self.image_processor.postprocess(images, output_type=output_type),
                latents,
                latents.numpy(),
                small,
                [True] * len(latents),
                *(() if more is None else (more,)),
            )

    pipe = tiny_pipeline()
    pipe.__class__ = Tells
    plain = pipe(**arguments(output_type="pt"))
    wear(pipe, lambda latent, row, batch: row != 1 if batch == 0 else False, on_memorized)
    with pytest.warns(MemorizationWarning):
        images, latents, arrays, small, flags = pipe(**arguments(output_type="pt"))
    assert [bool(one.any()) for one in images] == [True, False, True, True]
    assert (
        [bool(one.any()) for one in latents]
        == [bool(one.any()) for one in arrays]
        == [True, False, True, True]
    )
    assert torch.equal(latents[[0, 2, 3]], plain[1][[0, 2, 3]])
    assert [one.getextrema() for one in small] == [(9, 9), (0, 0), (9, 9), (9, 9)] and flags == [True] * 4
    with pytest.raises(FilterFailedError, match="returns 3 of something for 4 images"):
        pipe(**arguments(output_type="pt"), more=torch.ones(3, 2))


@dataclass
class Further:
    latents: torch.Tensor


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (lambda latents: {"latents": latents}, "in a dict"),
        (lambda latents: {"steps": {"last": [latents.numpy()]}}, "in a dict"),
        (tuple, "in a tuple"),
        (lambda latents: [list(latents)] * 4, "in a list"),
        (lambda latents: [[Image.new("L", (4, 4))]] * 4, "in a list"),
        (Further, "in a Further"),
        (lambda latents: [latents] * 4, "4 of something for 4"),
        (lambda latents: [latents.flatten(1)] * 4, "4 of something for 4"),
        (lambda latents: [latents[0], [latents[1]], latents[2], latents[3]], "4 of something for 4"),
    ],
)
def test_what_may_show_withheld_rows_anywhere_is_not_returned(more: Any, told: str) -> None:
    class Tells(StableDiffusionPipeline):  # type: ignore[misc]
        @torch.no_grad()
        def __call__(self, *args: Any, **given: Any) -> Any:
            latents: list[torch.Tensor] = []
            output = super().__call__(
                *args,
                callback_on_step_end=lambda pipe, i, t, tensors: latents.append(tensors["latents"]) or {},
                **given,
            )
            return output.images, more(latents[-1])

    pipe = tiny_pipeline()
    pipe.__class__ = Tells
    wear(pipe, always, "reject")
    assert len(pipe(**arguments())) == 2
    for on_memorized in ("reject", "resample"):
        wear(pipe, reject_first_pass(1), on_memorized)
        with pytest.raises(FilterFailedError, match=f"{told}.* no image is returned"):
            pipe(**arguments())


@pytest.mark.parametrize(
    "more", [{"steps": 2, "loss": torch.ones(())}, ("a", 0.5), [[True, False]] * 4, None]
)
def test_what_shows_nothing_is_returned_as_it_is(more: Any) -> None:
    class Tells(StableDiffusionPipeline):  # type: ignore[misc]
        def __call__(self, *args: Any, **given: Any) -> Any:
            return super().__call__(*args, **given).images, more

    pipe = tiny_pipeline()
    pipe.__class__ = Tells
    wear(pipe, reject_first_pass(1))
    assert pipe(**arguments())[1] == more


@pytest.mark.parametrize("kind", ["img2img", "inpaint"])
def test_pictures_of_several_sizes_draw_the_whole_batch_again(kind: str) -> None:
    pipe, given = tiny_pipeline(kind), arguments(kind, images=1)
    given["image"] = [one.resize((side, side)) for one, side in zip(given["image"], (32, 64), strict=True)]
    scripted = wear(pipe, reject_first_pass(1))
    out = pipe(**given)
    assert [len(batch) for batch in scripted.seen] == [2, 2] and out.memorization[1].attempts == 2


def test_a_crop_around_the_mask_is_drawn_again() -> None:
    pipe, given = tiny_pipeline("inpaint"), arguments("inpaint", images=2, output_type="pil")
    for name in ("prompt", "image", "mask_image"):
        given[name] = given[name][0]
    scripted = wear(pipe, reject_first_pass(0))
    out = pipe(**given, padding_mask_crop=4)
    assert [len(batch) for batch in scripted.seen] == [2, 2] and out.memorization[0].attempts == 2


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize(
    "family", [one for one in families() if "image" in one.cycled], ids=lambda family: family.name
)
@pytest.mark.parametrize("several", [False, True], ids=["one picture", "a list of one"])
def test_one_picture_for_all_rows_is_drawn_again(family: Family, several: bool) -> None:
    """All of them, for the sake of the callback."""
    pipe, given = family.make(), family.arguments()
    if "callback_on_step_end" not in inspect.signature(type(pipe).__call__).parameters:
        pytest.skip("its call takes no such callback")
    for name in (*family.per_prompt, *family.cycled):
        given[name] = given[name][:1] if several else given[name][0]

    def twice(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": tensors["latents"] * 1.01}

    asked: dict[str, Any] = {"num_images_per_prompt": 3, "num_inference_steps": 3, "output_type": "np"}
    asked |= {**given, "callback_on_step_end": twice}
    plain = pipe(**asked, generator=generator()).images
    scripted = wear(pipe, reject_first_pass(1))
    out = pipe(**asked, generator=generator())
    assert [len(batch) for batch in scripted.seen] == [3, 3] and out.memorization[1].attempts == 2
    assert np.array_equal(out.images[[0, 2]], plain[[0, 2]]) and not np.array_equal(out.images[1], plain[1])


OF_EACH_ROW = torch.arange(4.0).view(4, 1, 1, 1)


def moved(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return {**tensors, "latents": tensors["latents"] + OF_EACH_ROW}


def moved_in_place(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    tensors["latents"] += OF_EACH_ROW
    return {}


class Moves(PipelineCallback):  # type: ignore[misc]
    tensor_inputs = ("latents",)

    def callback_fn(self, pipeline: Any, step: int, timestep: Any, tensors: Any) -> Any:
        return moved(pipeline, step, timestep, tensors)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("callback", [moved, moved_in_place, Moves(1.0)])
def test_a_callback_that_changes_rows_has_all_of_them_in_each_draw(callback: Any, mode: Any) -> None:
    pipe = tiny_pipeline()
    with mode():
        plain = pipe(**arguments(callback_on_step_end=callback)).images
        scripted = wear(pipe, reject_first_pass(2, 3))
        out = pipe(**arguments(callback_on_step_end=callback))
    assert [len(batch) for batch in scripted.seen] == [4, 4]
    assert np.array_equal(out.images[:2], plain[:2]) and [d.attempts for d in out.memorization] == [
        1,
        1,
        2,
        2,
    ]


def with_another_embedding(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    first, second = tensors["prompt_embeds"]
    return {"prompt_embeds": [first, torch.zeros_like(second)]}


def with_another_embedding_in_place(
    pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]
) -> dict[str, Any]:
    tensors["prompt_embeds"][1] = torch.zeros_like(tensors["prompt_embeds"][1])
    return {}


@pytest.mark.parametrize("callback", [with_another_embedding, with_another_embedding_in_place])
def test_a_callback_that_changes_a_list_has_all_rows_in_each_draw(callback: Any) -> None:
    pipe = z_image()
    given = {**prompts(), "num_inference_steps": 2, "output_type": "np", "guidance_scale": 0.0}
    scripted = wear(pipe, reject_first_pass(0))
    pipe(
        **given,
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
    )
    assert [len(batch) for batch in scripted.seen] == [2, 2]


@pytest.mark.parametrize(
    "callback",
    [
        lambda pipe, step, timestep, tensors: {},
        lambda pipe, step, timestep, tensors: tensors,
        SDCFGCutoffCallback(cutoff_step_ratio=1.0),
        MultiPipelineCallbacks([SDCFGCutoffCallback(cutoff_step_ratio=1.0)]),
    ],
)
def test_a_callback_that_looks_on_or_is_diffusers_own_has_rejected_rows_alone(callback: Any) -> None:
    pipe = tiny_pipeline()
    scripted = wear(pipe, reject_first_pass(2))
    pipe(**arguments(callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["latents"]))
    assert [len(batch) for batch in scripted.seen] == [4, 1]
