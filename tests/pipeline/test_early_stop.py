"""Early stop on tiny pipelines with a real index: copies that a denoiser was made to draw, and innocent samples."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPanoramaPipeline

from lcmem_filter import EarlyStop
from lcmem_filter.index import MemorizationIndex
from lcmem_filter.pipeline import MemorizationWarning, attach

from .families.packed import flux
from .families.parts import PROMPTS
from .planting import FIT, SCHEDULERS, SETTINGS, STEPS, call, is_untouched, made, planted, spy_on_decode
from tests.tiny import tiny_pipeline

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn.t accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*FluxPosEmbed. is deprecated:FutureWarning"),
]

every_scheduler = pytest.mark.parametrize("scheduler", SCHEDULERS)


@every_scheduler
def test_a_batch_of_copies_is_stopped_and_never_decoded(
    scheduler: str, index: MemorizationIndex, early: Any
) -> None:
    pipe = made(scheduler)
    decoded = spy_on_decode(pipe)
    attach(pipe, index, on_memorized="reject", early_stop=early(scheduler))
    with planted(pipe, {0: 3, 1: 7}) as calls, pytest.warns(MemorizationWarning, match="2 of 2"):
        out = call(pipe)
    assert len(calls) == 2, "the denoiser ran for 0.3 of 6 steps"
    assert [(d.accepted, d.stopped, d.flagged_at) for d in out.memorization] == [(False, True, 0.3)] * 2
    assert [(d.steps_run, d.steps_saved) for d in out.memorization] == [(2, 4)] * 2
    assert [d.neighbours[0].id for d in out.memorization] == ["003.png", "007.png"]
    stage = early(scheduler).stages[0]
    for decision in out.memorization:
        assert decision.score > decision.threshold == stage.calibration.threshold
        assert decision.p_value == 1 / 9
    (given,) = decoded
    shift = getattr(pipe.vae.config, "shift_factor", None) or 0
    assert not given.any() or torch.allclose(given, torch.full_like(given, shift))
    assert not out.images.any() and is_untouched(pipe)


@every_scheduler
def test_innocent_samples_are_bit_identical(scheduler: str, index: MemorizationIndex, early: Any) -> None:
    pipe = made(scheduler)
    plain = call(pipe).images
    attach(pipe, index)
    without = call(pipe)
    attach(pipe, index, early_stop=early(scheduler))
    out = call(pipe)
    assert np.array_equal(out.images, plain) and is_untouched(pipe)
    assert [d.accepted for d in out.memorization] == [True, True]
    for with_it, decision in zip(out.memorization, without.memorization, strict=True):
        assert decision.steps_run is None and decision.steps_saved is None
        assert (with_it.steps_run, with_it.steps_saved) == (STEPS, 0)
        assert replace(with_it, steps_run=None, steps_saved=None) == decision


def test_a_pipeline_that_does_not_stop_is_judged_by_what_it_ended_with(
    index: MemorizationIndex, early: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some have the property ``interrupt`` and never look at it in their loop."""
    pipe = attach(made("DDIMScheduler"), index, on_memorized="reject", early_stop=early("DDIMScheduler"))
    with (
        planted(pipe, {0: 3, 1: 7}) as calls,
        pytest.warns(MemorizationWarning, match="2 of 2 samples were memor"),
    ):
        # its loop asks once a step, the filter when all are done
        heard = property(lambda self: len(calls) == STEPS and self._interrupt)
        monkeypatch.setattr(type(pipe), "interrupt", heard)
        out = call(pipe)
    assert len(calls) == STEPS
    assert [(d.accepted, d.stopped) for d in out.memorization] == [(False, False)] * 2


def test_a_pipeline_that_finishes_the_parts_of_a_step_is_stopped_after_it(
    index: MemorizationIndex, early: Any
) -> None:
    """Of a panorama each timestep takes a step for each view, and the next timestep is not begun."""
    pipe = StableDiffusionPanoramaPipeline(**tiny_pipeline().components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    low = tuple(
        replace(stage, calibration=replace(stage.calibration, threshold=-1)) for stage in early().stages
    )
    attach(pipe, index, on_memorized="reject", early_stop=replace(early(), stages=low))
    begun: list[int] = []

    def note(pipe: Any, step: int, timestep: Any, tensors: Any) -> Any:
        begun.append(step)
        return tensors

    assert len(pipe.get_views(32, 640)) == 3
    with pytest.warns(MemorizationWarning, match="2 of 2"):
        out = call(pipe, width=640, callback_on_step_end=note)
    assert begun == [0, 1]
    assert [(d.accepted, d.stopped, d.flagged_at) for d in out.memorization] == [(False, True, 0.3)] * 2
    assert [(d.steps_run, d.steps_saved) for d in out.memorization] == [(2, 4)] * 2
    assert not out.images.any()


def test_who_cancels_in_the_step_in_which_it_stops_gets_no_further_draw(
    index: MemorizationIndex, early: Any
) -> None:
    pipe = attach(made("DDIMScheduler"), index, early_stop=early("DDIMScheduler"))

    def cancel(pipe: Any, step: int, timestep: Any, tensors: Any) -> Any:
        if step == 1:
            pipe._interrupt = True
        return tensors

    with (
        planted(pipe, {0: 3, 1: 7}) as calls,
        pytest.warns(MemorizationWarning, match="2 of 2 samples were not judged"),
    ):
        out = call(pipe, callback_on_step_end=cancel)
    assert len(calls) == 2 and [d.attempts for d in out.memorization] == [1, 1]
    assert not out.images.any()


@every_scheduler
def test_stopped_samples_are_drawn_again(scheduler: str, index: MemorizationIndex, early: Any) -> None:
    pipe = attach(made(scheduler), index, early_stop=early(scheduler), rungs=["new_seed"])
    with planted(pipe, {0: 3, 1: 7}, {0: 3}) as calls:
        out = call(pipe)
    # stopped together; then the second was new, so the first was finished with it, and rejected; then it was new
    assert calls == [0] * 2 + [1] * STEPS + [2] * STEPS
    assert [d.accepted for d in out.memorization] == [True, True] and all(image.any() for image in out.images)
    assert [d.attempts for d in out.memorization] == [3, 2]
    assert [d.steps_run for d in out.memorization] == [2 + 2 * STEPS, 2 + STEPS]
    assert [d.steps_saved for d in out.memorization] == [4, 4]
    assert not any(d.stopped or d.flagged_at for d in out.memorization)


def test_a_copy_beside_innocent_samples_is_finished_with_them(index: MemorizationIndex, early: Any) -> None:
    pipe = made()
    plain = call(pipe).images
    attach(pipe, index, on_memorized="reject", early_stop=early())
    with planted(pipe, {0: 3}) as calls, pytest.warns(MemorizationWarning, match="1 of 2"):
        out = call(pipe)
    first, second = out.memorization
    assert len(calls) == STEPS and first.steps_run == STEPS and first.steps_saved == 0
    assert (first.accepted, first.stopped, first.flagged_at) == (False, False, 0.3)
    assert first.threshold == pipe.memorization_filter.calibration.threshold, "judged at the end, as always"
    assert (second.accepted, second.flagged_at) == (True, None)
    assert not out.images[0].any()
    np.testing.assert_allclose(out.images[1], plain[1], atol=1e-5)


def test_rows_flagged_at_different_stages_are_stopped_at_the_later(
    index: MemorizationIndex, early: Any
) -> None:
    strict = early()
    first, second = strict.stages
    never = replace(first.calibration, threshold=2.0)
    pipe = attach(
        made(),
        index,
        on_memorized="reject",
        early_stop=replace(strict, stages=(replace(first, calibration=never), second)),
    )
    with planted(pipe, {0: 3, 1: 7}) as calls, pytest.warns(MemorizationWarning):
        out = call(pipe)
    assert len(calls) == 4 and [d.flagged_at for d in out.memorization] == [0.6, 0.6]


def test_what_is_finished_is_judged_by_what_it_became(index: MemorizationIndex, early: Any) -> None:
    pipe = attach(made(), index, early_stop=early())
    with planted(pipe, {0: 3}, until=2) as calls:
        out = call(pipe)
    assert len(calls) == STEPS
    assert [(d.accepted, d.flagged_at) for d in out.memorization] == [(True, 0.3), (True, None)]
    assert [d.attempts for d in out.memorization] == [1, 1]


@pytest.mark.parametrize("return_dict", [True, False])
def test_stopped_latents_are_not_returned(return_dict: bool, index: MemorizationIndex, early: Any) -> None:
    pipe = attach(made(), index, on_memorized="reject", early_stop=early())
    with planted(pipe, {0: 3, 1: 7}), pytest.warns(MemorizationWarning, match="2 of 2"):
        out = call(pipe, output_type="latent", return_dict=return_dict)
    assert not out[0].any()
    assert all(d.stopped for d in pipe.memorization_filter.last_decisions)


def test_samples_that_may_resemble_a_training_image_are_not_stopped_for_it(
    index: MemorizationIndex, early: Any
) -> None:
    # pictures resemble the index more than what a random denoiser draws, which the thresholds were fitted on
    stages = tuple(
        replace(stage, calibration=replace(stage.calibration, threshold=0.7)) for stage in early().stages
    )
    pipe = attach(made(), index, on_memorized="reject", early_stop=replace(early(), stages=stages))
    with planted(pipe, {0: 3, 1: 7}) as calls:
        out = call(pipe, allowed_ids=[["003.png"], ["007.png"]])
    assert len(calls) == STEPS and [d.accepted for d in out.memorization] == [True, True]
    with planted(pipe, {0: 3, 1: 7}), pytest.warns(MemorizationWarning):
        out = call(pipe, allowed_ids=["001.png"])
    assert [d.allowed_ids for d in out.memorization] == [("001.png",)] * 2
    assert all(d.stopped for d in out.memorization)


def test_of_a_whole_batch_drawn_again_only_the_wanted_rows_count(
    index: MemorizationIndex, early: Any
) -> None:
    pipe = made()
    plain = type(pipe).__call__

    def with_extra(self: Any, prompt: Any, generator: Any, extra: Any, output_type: str) -> Any:
        return plain(self, prompt, generator=generator, output_type=output_type, **SETTINGS)

    pipe.__class__ = type("Custom", (type(pipe),), {"__call__": with_extra})
    attach(pipe, index, early_stop=early(), rungs=["new_seed"])
    given = {
        "prompt": list(PROMPTS),
        "generator": torch.Generator().manual_seed(0),
        "extra": torch.zeros(5),
        "output_type": "np",
    }
    with planted(pipe, {1: 7}, {1: 7}) as calls:
        out = pipe(**given)
    assert calls == [0] * STEPS + [1] * 2 + [2] * STEPS
    assert [d.accepted for d in out.memorization] == [True, True] and all(image.any() for image in out.images)
    assert [d.attempts for d in out.memorization] == [1, 3]
    assert [d.steps_saved for d in out.memorization] == [0, 4]


def test_what_a_rung_steers_is_not_stopped(index: MemorizationIndex, early: Any) -> None:
    pipe = attach(made(), index, early_stop=early(), rungs=["repulsion"], max_resamples=1)
    with planted(pipe, {0: 3, 1: 7}, {0: 3, 1: 7}) as calls:
        with suppress(MemorizationWarning):  # whether the push is enough is not what is tested
            call(pipe)
    assert calls == [0] * 2 + [1] * STEPS
    assert [d.steps_run for d in pipe.memorization_filter.last_decisions] == [2 + STEPS] * 2


def test_a_stage_at_another_share_of_noise_is_passed_over(index: MemorizationIndex, early: Any) -> None:
    stages = tuple(replace(stage, noise=stage.noise - 0.3) for stage in early().stages)
    pipe = attach(made(), index, on_memorized="reject", early_stop=replace(early(), stages=stages))
    with planted(pipe, {0: 3, 1: 7}) as calls, pytest.warns(MemorizationWarning, match="2 of 2"):
        out = call(pipe)
    assert len(calls) == STEPS
    assert [(d.accepted, d.flagged_at) for d in out.memorization] == [(False, None)] * 2


def test_everything_is_put_back_after_an_error(
    index: MemorizationIndex, early: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = attach(made(), index, early_stop=early())
    monkeypatch.setattr(type(pipe.memorization_filter), "score", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call(pipe)
    assert is_untouched(pipe) and "decode" not in pipe.vae.__dict__


def test_packed_latents(index: MemorizationIndex) -> None:
    pipe = flux()
    settings = {"num_inference_steps": STEPS, "height": 32, "width": 32}
    plain = call(pipe, guidance_scale=3.5).images
    attach(pipe, index)
    fitted = EarlyStop.fit(pipe, PROMPTS, **FIT, **settings)
    attach(pipe, index, early_stop=fitted, on_memorized="reject")
    assert np.array_equal(call(pipe, guidance_scale=3.5).images, plain)
    low = tuple(
        replace(stage, calibration=replace(stage.calibration, threshold=-1.0)) for stage in fitted.stages
    )
    attach(pipe, index, early_stop=replace(fitted, stages=low), on_memorized="reject")
    with pytest.warns(MemorizationWarning, match="2 of 2"):
        out = call(pipe, guidance_scale=3.5)
    assert [(d.stopped, d.steps_run) for d in out.memorization] == [(True, 2)] * 2 and not out.images.any()
