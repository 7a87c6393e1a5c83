"""What becomes of samples that stay rejected, by the policy that was chosen."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from lcmem_filter.errors import MemorizationError
from lcmem_filter.pipeline import MemorizationWarning

from .scripted import wear
from .test_call import arguments, never
from tests.tiny import tiny_pipeline


def test_exhausted_blank() -> None:
    pipe = tiny_pipeline("text-to-image")
    scripted = wear(pipe, lambda latent, row, batch: row == 0 and batch == 0, max_resamples=2)
    with pytest.warns(MemorizationWarning, match="3 of 4 samples were memorised in each of 3 attempt"):
        out = pipe(**arguments())
    assert (out.images[1:] == 0).all() and out.images[0].any()
    assert [d.attempts for d in out.memorization] == [1, 3, 3, 3]
    assert [len(batch) for batch in scripted.seen] == [4, 3, 3]


def test_exhausted_drop() -> None:
    pipe = tiny_pipeline("text-to-image")
    plain = pipe(**arguments()).images
    scripted = wear(pipe, lambda latent, row, batch: row in (0, 3), "reject", on_exhausted="drop")
    with pytest.warns(MemorizationWarning, match="dropped"):
        out = pipe(**arguments())
    assert np.array_equal(out.images, plain[[0, 3]]) and len(out.memorization) == 2
    assert len(scripted.last_decisions) == 4


def test_exhausted_raise_carries_the_decisions() -> None:
    pipe = tiny_pipeline("text-to-image")
    wear(pipe, never, max_resamples=1, on_exhausted="raise")
    with pytest.raises(MemorizationError, match="4 of 4") as raised:
        pipe(**arguments())
    assert [d.accepted for d in raised.value.decisions] == [False] * 4


def test_flag_returns_everything_with_its_verdict() -> None:
    pipe = tiny_pipeline("text-to-image")
    plain = pipe(**arguments()).images
    wear(pipe, never, "flag")
    with warnings.catch_warnings():
        warnings.simplefilter("error", MemorizationWarning)
        out = pipe(**arguments())
    assert np.array_equal(out.images, plain)
    assert [d.accepted for d in out.memorization] == [False] * 4
