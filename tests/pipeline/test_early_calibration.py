"""The thresholds of early stop: what they rest on, how they are kept, and that nothing is stopped without them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
from diffusers import FluxPipeline

from lcmem_filter import EarlyStop
from lcmem_filter.errors import (
    ArtifactNotFoundError,
    CalibrationError,
    CorruptArtifactError,
    DataError,
    UnsupportedPipelineError,
)
from lcmem_filter.index import MemorizationIndex
from lcmem_filter.pipeline import MemorizationWarning, attach, detach
from lcmem_filter.pipeline.early_fit import check_fractions, samples_needed

from .families.latent_consistency import consistency_model
from .families.packed import flux
from .families.parts import PROMPTS
from .planting import FIT, FRACTIONS, SETTINGS, STEPS, call, is_untouched, made, planted

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn.t accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*FluxPosEmbed. is deprecated:FutureWarning"),
]


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
    euler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.warns(UserWarning, match="not carried over: early stop was calibrated for DDIMScheduler"):
        other = type(detach(made())).from_pipe(pipe, scheduler=euler)
    assert other.memorization_filter.index is index

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
            and 2 <= stage.calibration.dropped["rejected"] <= 3  # the planted copies, and one of its own
            and stage.calibration.given == 16
        )
        # 0.125 of the 8 samples and the one to come may lie above
        assert sum(score > stage.calibration.threshold for score in scores) <= 0.125 * 9
        shared = [one for one in without.calibration.scores if any(abs(one - s) < 1e-4 for s in scores)]
        assert 5 <= len(shared) <= 7, "the samples of the same seeds, but for those that were made copies"


def test_nothing_is_stopped_for_a_score_that_would_be_accepted_at_the_end(
    index: MemorizationIndex, early: Any
) -> None:
    own = index.calibration.threshold  # type: ignore[union-attr]
    stages = early().stages
    # what a random denoiser draws resembles the index less than held-out pictures do, so its own scores ask for less
    assert all(max(stage.calibration.scores) < own for stage in stages)
    assert [stage.calibration.threshold for stage in stages] == [own] * len(stages)


def test_fitting_needs_a_filter_enough_samples_and_prompts_that_are_not_memorised(
    index: MemorizationIndex,
) -> None:
    pipe = made()
    with pytest.raises(CalibrationError, match="has no filter"):
        EarlyStop.fit(pipe, PROMPTS, **FIT, **SETTINGS)
    attach(pipe, index)
    with pytest.raises(CalibrationError, match="needs at least 7 accepted samples, got samples=6"):
        EarlyStop.fit(pipe, PROMPTS, **{**FIT, "samples": 6}, **SETTINGS)
    for no_prompts in ("a cat", []):
        with pytest.raises(DataError, match="prompts are a list of texts"):
            EarlyStop.fit(pipe, no_prompts, **FIT, **SETTINGS)
    with planted(pipe, *({row: row for row in range(8)},) * 4):
        with pytest.raises(CalibrationError, match="8 of 8 samples were rejected"):
            EarlyStop.fit(pipe, PROMPTS, **FIT, **SETTINGS)
    with pytest.raises(CalibrationError, match=r"nothing is left to save after 0\.6 of 2 steps"):
        EarlyStop.fit(pipe, PROMPTS, **FIT, **{**SETTINGS, "num_inference_steps": 2})
    assert is_untouched(pipe) and call(detach(pipe)).images.any()
    assert samples_needed((0.3, 0.5), 0.01) == 199 and samples_needed([0.4], 0.05) == 19


def test_latents_in_a_layout_that_is_not_known_are_told_of_though_images_are_asked_for(
    index: MemorizationIndex,
) -> None:
    class Other(FluxPipeline):  # type: ignore[misc]
        @staticmethod
        def _unpack_latents(latents, height, width, vae_scale_factor, patch_size=2):  # type: ignore[no-untyped-def]
            return FluxPipeline._unpack_latents(latents, height, width, vae_scale_factor)

    pipe = attach(flux(Other), index)
    asked = {"num_inference_steps": STEPS, "height": 32, "width": 32, "output_type": "np"}
    with pytest.raises(UnsupportedPipelineError, match=r"\(8, 64, 16\)\); do without early stop"):
        EarlyStop.fit(pipe, PROMPTS, **FIT, **asked)


@pytest.mark.parametrize("fractions", [(), (0.0, 0.5), (0.5, 1.0), (0.5, 0.3), (0.3, 0.3)])
def test_fractions_ascend_between_0_and_1(fractions: Sequence[float]) -> None:
    with pytest.raises(ValueError, match="ascend between 0 and 1"):
        check_fractions(fractions, 0.01)


def test_a_filter_of_an_earlier_calibration_fits_nothing(index: MemorizationIndex, tmp_path: Path) -> None:
    """Its thresholds would be taken for those of the calibration in force, and stop what that accepts."""
    shutil.copytree(index.path, tmp_path / "index")
    own = MemorizationIndex.load(tmp_path / "index")
    pipe, before = attach(made(), own), own.calibration
    assert before is not None
    own.set_calibration(replace(before, threshold=before.threshold + 0.1))
    with pytest.raises(
        CalibrationError, match="calibrated again since the filter was attached; attach it again"
    ):
        EarlyStop.fit(pipe, PROMPTS, **FIT, **SETTINGS)


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
        json.dumps({**stored, "format": 1}),
        json.dumps({**stored, "x": 1}),
    ):
        path.write_text(harmed)
        with pytest.raises(CorruptArtifactError, match="no thresholds for early stop"):
            EarlyStop.load(path)


def test_calls_that_are_interrupted_calibrate_nothing(index: MemorizationIndex) -> None:
    def cancel(pipe: Any, step: int, timestep: Any, tensors: Any) -> Any:
        pipe._interrupt = step == 2
        return tensors

    pipe = attach(made(), index)
    with pytest.raises(CalibrationError, match="interrupted; leave out the callback"):
        EarlyStop.fit(pipe, PROMPTS, **FIT, **SETTINGS, callback_on_step_end=cancel)


def test_settings_are_given_as_for_one_sample(index: MemorizationIndex) -> None:
    pipe = attach(made(), index)
    guided = {**SETTINGS, "guidance_scale": 3.0}
    plain = EarlyStop.fit(pipe, PROMPTS, **FIT, **guided)
    assert EarlyStop.fit(pipe, PROMPTS, **FIT, **guided, negative_prompt="blurred") != plain
    for name, value in (
        ("num_images_per_prompt", 2),
        ("allowed_ids", ["a"]),
        ("generator", 1),
        ("prompt", "a"),
    ):
        with pytest.raises(DataError, match=f"decides {name} itself"):
            EarlyStop.fit(pipe, PROMPTS, **FIT, **SETTINGS, **{name: value})
