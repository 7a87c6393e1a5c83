"""Calls that are cancelled, as diffusers' guide to callbacks has it: what is half denoised is never handed out."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from lcmem_filter.errors import FilterFailedError
from lcmem_filter.pipeline import MemorizationWarning

from .scripted import always, reject_first_pass, wear
from tests.tiny import call_arguments, tiny_pipeline


def interrupted(pipe, after: int = 2, **changes):
    """Two images, cancelled after so many of four steps of the first draw, or of the ``in_draw``-th."""
    draw, in_draw = -1, changes.pop("in_draw", 0)

    def cancel(pipe, step, timestep, tensors):
        nonlocal draw
        draw += step == 0
        if draw == in_draw and step + 1 == after:
            pipe._interrupt = True
        return tensors

    given = {
        **call_arguments("text-to-image", ["a cat", "a dog"]),
        "num_inference_steps": 4,
        "output_type": "np",
        "generator": torch.Generator().manual_seed(0),
        "callback_on_step_end": cancel,
    }
    return pipe(**{**given, **changes})


@pytest.mark.parametrize("on_memorized", ["reject", "resample"])
def test_what_is_half_denoised_is_neither_judged_nor_returned_nor_drawn_again(on_memorized: str) -> None:
    pipe = tiny_pipeline()
    scripted = wear(pipe, always, on_memorized)
    with pytest.warns(MemorizationWarning, match="2 of 2 samples were not judged: the call was interrupted"):
        out = interrupted(pipe)
    assert (out.images == 0).all()
    assert [(d.accepted, d.attempts) for d in out.memorization] == [(None, 1)] * 2
    assert "interrupted" in out.memorization[0].reason and not scripted.seen


def test_latents_are_withheld_too() -> None:
    pipe = tiny_pipeline()
    wear(pipe, always, "reject")
    with pytest.warns(MemorizationWarning, match="not judged"):
        out = interrupted(pipe, output_type="latent")
    assert (out.images == 0).all()


def test_a_filter_that_only_flags_returns_it_and_says_that_it_was_not_judged() -> None:
    pipe = tiny_pipeline()
    plain = interrupted(pipe).images
    wear(pipe, always, "flag")
    out = interrupted(pipe)
    assert np.array_equal(out.images, plain) and [d.accepted for d in out.memorization] == [None] * 2


def test_a_policy_that_raises_says_what_happened() -> None:
    pipe = tiny_pipeline()
    wear(pipe, always, "reject", on_exhausted="raise")
    with pytest.raises(FilterFailedError, match="interrupted"):
        interrupted(pipe)


def test_what_was_accepted_before_is_kept_when_a_further_draw_is_cancelled() -> None:
    pipe = tiny_pipeline()
    wear(pipe, reject_first_pass(0))
    with pytest.warns(MemorizationWarning, match="1 of 2 samples were not judged"):
        out = interrupted(pipe, in_draw=1)
    assert [(d.accepted, d.attempts) for d in out.memorization] == [(None, 2), (True, 1)]
    assert (out.images[0] == 0).all() and out.images[1].any()


def test_the_next_call_is_judged_again() -> None:
    pipe = tiny_pipeline()
    wear(pipe, always)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MemorizationWarning)
        interrupted(pipe)
    out = interrupted(pipe, after=9)
    assert [d.accepted for d in out.memorization] == [True] * 2


def test_a_call_that_is_cancelled_while_it_is_judged_draws_nothing_again() -> None:
    pipe, steps = tiny_pipeline(), []
    pipe.vae.decoder.register_forward_pre_hook(lambda *_: setattr(pipe, "_interrupt", True))
    scripted = wear(pipe, lambda latent, row, batch: row != 0)
    given = {**call_arguments("text-to-image", ["a cat", "a dog"]), "num_inference_steps": 3}
    with pytest.warns(MemorizationWarning, match="1 of 2 samples were memorised in each of 1 attempt"):
        out = pipe(**given, callback_on_step_end=lambda p, step, t, tensors: steps.append(step) or tensors)
    assert steps == [0, 1, 2] and len(scripted.seen) == 1
    assert [d.accepted for d in out.memorization] == [False, True]
