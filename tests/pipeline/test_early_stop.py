"""Early stop on tiny pipelines with a real index: copies that a denoiser was made to draw, and innocent samples."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from lcmem_filter import EarlyStop
from lcmem_filter.errors import (
    ArtifactNotFoundError,
    CalibrationError,
    CorruptArtifactError,
    UnsupportedPipelineError,
)
from lcmem_filter.index import MemorizationIndex
from lcmem_filter.latents import encode_pixels
from lcmem_filter.pipeline import MemorizationWarning, attach, detach
from lcmem_filter.pipeline.clean import predict_clean
from lcmem_filter.pipeline.early_stop import check_fractions, samples_needed
from lcmem_filter.pipeline.taps import denoiser_of, tapped_inputs, tapped_outputs

from .families.flow import sd3
from .families.latent_consistency import consistency_model
from .families.packed import flux
from .families.parts import PROMPTS
from tests.tiny import picture, tiny_pipeline

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn.t accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*FluxPosEmbed. is deprecated:FutureWarning"),
]

SCHEDULERS = (
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "FlowMatchEulerDiscreteScheduler",
)
STEPS = 6
FRACTIONS = (0.3, 0.6)
"""After 2 and after 4 of the 6 steps."""

SETTINGS = {"num_inference_steps": STEPS, "height": 32, "width": 32, "guidance_scale": 1.0}
FIT: dict[str, Any] = {
    "bound": 0.25,
    "fractions": FRACTIONS,
    "samples": 8,
    "batch_size": 8,
    "progress": False,
}

every_scheduler = pytest.mark.parametrize("scheduler", SCHEDULERS)


def made(scheduler: str = "DDIMScheduler") -> Any:
    if scheduler == "FlowMatchEulerDiscreteScheduler":
        return sd3()
    pipe = tiny_pipeline()
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    return pipe


@pytest.fixture(scope="module")
def early(index: MemorizationIndex) -> Any:
    """Thresholds for each scheduler, fitted when they are first asked for."""
    found: dict[str, EarlyStop] = {}

    def of(scheduler: str = "DDIMScheduler") -> EarlyStop:
        if scheduler not in found:
            pipe = attach(made(scheduler), index)
            found[scheduler] = EarlyStop.fit(pipe, PROMPTS, **FIT, **SETTINGS)
        return found[scheduler]

    return of


def call(pipe: Any, **changes: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    given = {"prompt": list(PROMPTS), "output_type": "np", "generator": generator, **SETTINGS}
    return pipe(**{**given, **changes})


def latent_of(seed: int, vae: Any) -> torch.Tensor:
    """Pictures 0 to 19 are in the index."""
    pixels = torch.from_numpy(np.array(picture(seed))).permute(2, 0, 1)[None]
    encoded = encode_pixels(vae, pixels / 127.5 - 1)[0]
    return (encoded - (getattr(vae.config, "shift_factor", None) or 0)) * vae.config.scaling_factor


@contextmanager
def planted(pipe: Any, *passes: Mapping[int, int], until: int = STEPS) -> Iterator[list[int]]:
    """Let the denoiser predict known pictures: in each pass over the steps, picture ``passes[pass][row]`` in a row.

    Gives a list that gets the pass of each call of the denoiser.
    """
    calls: list[int] = []
    noisy: dict[str, Any] = {}
    targets = [{row: latent_of(seed, pipe.vae) for row, seed in one.items()} for one in passes]

    def note(inputs: Any) -> Any:
        args, kwargs = inputs
        noisy["sample"] = args[0] if args else kwargs["hidden_states"]
        timestep = args[1] if args else kwargs["timestep"]
        noisy["timestep"] = timestep if timestep.ndim == 0 else timestep[0]
        return inputs

    def predict(output: torch.Tensor) -> torch.Tensor:
        scheduler, sample, timestep = pipe.scheduler, noisy["sample"], noisy["timestep"]
        first = bool(timestep == scheduler.timesteps[0])
        calls.append((calls[-1] + 1 if calls else 0) if first else calls[-1])
        if type(scheduler).__name__.startswith("Euler"):
            sample = sample * (scheduler.sigmas[scheduler.step_index] ** 2 + 1) ** 0.5
        predicted = predict_clean(scheduler, output, timestep, sample)
        output = output.clone()
        if calls.count(calls[-1]) <= until and calls[-1] < len(targets):
            for row, target in targets[calls[-1]].items():
                output[row] += (target - predicted.clean[row]) / predicted.slope
        return output

    denoiser = denoiser_of(pipe)
    assert denoiser is not None
    with tapped_inputs(denoiser, note), tapped_outputs(denoiser, predict):
        yield calls


def spy_on_decode(pipe: Any) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    plain = pipe.vae.decode
    pipe.vae.decode = lambda latents, *args, **options: (
        seen.append(latents.clone()),
        plain(latents, *args, **options),
    )[1]
    return seen


def is_untouched(pipe: Any) -> bool:
    return "step" not in pipe.scheduler.__dict__ and not pipe.interrupt


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


# Calibration.


def test_it_is_refused_until_it_was_calibrated_for_this(index: MemorizationIndex, early: Any) -> None:
    pipe = made()
    for given, message in (
        (True, r"must be calibrated for this index first.*EarlyStop\.fit"),
        (replace(early(), index="0" * 64), "for another index"),
        (replace(early(), space="sdxl"), "for latents of 'sdxl', not 'sd'"),
        (early("EulerDiscreteScheduler"), "for EulerDiscreteScheduler, not DDIMScheduler"),
    ):
        with pytest.raises(CalibrationError, match=message):
            attach(pipe, index, early_stop=given)
        assert "memorization_filter" not in pipe.__dict__
    with pytest.raises(ValueError, match="what is stopped cannot be returned"):
        attach(pipe, index, early_stop=early(), on_memorized="flag")
    with planted(attach(pipe, index, on_memorized="reject"), {0: 3, 1: 7}) as calls:
        with pytest.warns(MemorizationWarning):
            call(pipe)
    assert len(calls) == STEPS, "off by default"


def test_what_cannot_be_stopped_is_named_and_filtered_all_the_same(
    index: MemorizationIndex, early: Any
) -> None:
    heun = made("HeunDiscreteScheduler")
    with pytest.warns(
        UserWarning, match=r"not in use.*cannot be read off HeunDiscreteScheduler; it can be off DDIM"
    ):
        attach(heun, index, early_stop=early())
    assert call(heun).memorization[0].steps_run is None
    with pytest.raises(UnsupportedPipelineError, match="HeunDiscreteScheduler"):
        EarlyStop.fit(heun, PROMPTS, **FIT, **SETTINGS)
    with pytest.warns(UserWarning, match="LatentConsistencyModelPipeline cannot be interrupted"):
        attach(consistency_model(), index, early_stop=early())

    pipe = attach(made(), index, on_memorized="reject", early_stop=early())
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    with planted(pipe, {0: 3, 1: 7}) as calls:
        with pytest.warns() as warned:
            out = call(pipe)
    told = [str(one.message) for one in warned]
    assert any("calibrated for DDIMScheduler, not for EulerDiscreteScheduler" in one for one in told)
    assert len(calls) == STEPS and [d.accepted for d in out.memorization] == [False, False]


def test_thresholds_rest_on_accepted_samples(index: MemorizationIndex, early: Any) -> None:
    pipe = attach(made(), index)
    with planted(pipe, {0: 3, 5: 7}):
        fitted = EarlyStop.fit(pipe, PROMPTS, **FIT, **SETTINGS)
    (first, second), plain = fitted.stages, early().stages
    assert (fitted.bound, fitted.scheduler, fitted.space) == (0.25, "DDIMScheduler", "sd")
    assert fitted.index == index.fingerprint and fitted.steps == STEPS
    assert (first.fraction, second.fraction) == FRACTIONS and first.noise > second.noise
    for stage, without in zip(fitted.stages, plain, strict=True):
        scores = stage.calibration.scores
        assert (
            len(scores) == 8
            and stage.calibration.dropped == {"rejected": 2}
            and stage.calibration.given == 16
        )
        # 0.125 of the 8 samples and the one to come may lie above
        assert sum(score > stage.calibration.threshold for score in scores) <= 0.125 * 9
        shared = [one for one in without.calibration.scores if any(abs(one - s) < 1e-4 for s in scores)]
        assert 5 <= len(shared) <= 7, "the samples of the same seeds, but for those that were made copies"


def test_fitting_needs_a_filter_enough_samples_and_prompts_that_are_not_memorised(
    index: MemorizationIndex,
) -> None:
    pipe = made()
    with pytest.raises(CalibrationError, match="has no filter"):
        EarlyStop.fit(pipe, PROMPTS, **FIT, **SETTINGS)
    attach(pipe, index)
    with pytest.raises(CalibrationError, match="needs at least 7 accepted samples, got samples=6"):
        EarlyStop.fit(pipe, PROMPTS, **{**FIT, "samples": 6}, **SETTINGS)
    with planted(pipe, *({row: row for row in range(8)},) * 4):
        with pytest.raises(CalibrationError, match="8 of 8 samples were rejected"):
            EarlyStop.fit(pipe, PROMPTS, **FIT, **SETTINGS)
    with pytest.raises(CalibrationError, match=r"nothing is left to save after 0\.6 of 2 steps"):
        EarlyStop.fit(pipe, PROMPTS, **FIT, **{**SETTINGS, "num_inference_steps": 2})
    assert is_untouched(pipe) and call(detach(pipe)).images.any()
    assert samples_needed((0.3, 0.5), 0.01) == 199 and samples_needed([0.4], 0.05) == 19


@pytest.mark.parametrize("fractions", [(), (0.0, 0.5), (0.5, 1.0), (0.5, 0.3), (0.3, 0.3)])
def test_fractions_ascend_between_0_and_1(fractions: Sequence[float]) -> None:
    with pytest.raises(ValueError, match="ascend between 0 and 1"):
        check_fractions(fractions, 0.01)


def test_saved_and_loaded(index: MemorizationIndex, early: Any, tmp_path: Path) -> None:
    path = tmp_path / "early.json"
    early().save(path)
    assert EarlyStop.load(path) == early()
    pipe = attach(made(), index, on_memorized="reject", early_stop=path)
    with planted(pipe, {0: 3, 1: 7}) as calls, pytest.warns(MemorizationWarning):
        call(pipe)
    assert len(calls) == 2
    with pytest.raises(ArtifactNotFoundError, match=r"EarlyStop\.fit"):
        EarlyStop.load(tmp_path / "nowhere.json")
    stored = json.loads(path.read_text())
    for harmed in (
        path.read_text()[:-40],
        "[]",
        json.dumps({**stored, "format": 2}),
        json.dumps({**stored, "x": 1}),
    ):
        path.write_text(harmed)
        with pytest.raises(CorruptArtifactError, match="no thresholds for early stop"):
            EarlyStop.load(path)
