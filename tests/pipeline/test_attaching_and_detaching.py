"""What putting a filter on a pipeline and taking it off leaves behind, with verdicts that the test decides."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from lcmem_filter.errors import FilterFailedError
from lcmem_filter.pipeline import MemorizationWarning, detach

from .scripted import always, wear
from .test_call import arguments, never
from tests.tiny import tiny_pipeline


def test_attached_twice_and_detached_once_is_the_original() -> None:
    pipe = tiny_pipeline("text-to-image")
    plain = type(pipe)
    wear(pipe, never)
    wear(pipe, always)
    assert type(pipe) is not plain and isinstance(pipe, plain)
    assert (type(pipe).__name__, type(pipe).__module__) == (plain.__name__, plain.__module__)
    pipe(**arguments())
    assert detach(pipe) is pipe and type(pipe) is plain
    assert detach(pipe) is pipe
    assert not {"memorization_filter", "_memorization_policy"} & set(pipe.__dict__)


def test_save_and_load_round_trip(tmp_path) -> None:
    pipe = tiny_pipeline("text-to-image")
    plain = pipe(**arguments()).images
    wear(pipe, never)
    with pytest.warns(UserWarning, match="holds no memorization filter"):
        pipe.save_pretrained(tmp_path)
    loaded = type(detach(pipe)).from_pretrained(tmp_path)
    np.testing.assert_allclose(loaded(**arguments()).images, plain, atol=1e-5)


def test_copies_keep_the_filter() -> None:
    pipe = tiny_pipeline("text-to-image")
    wear(pipe, never, "reject")
    for twin in (copy.copy(pipe), copy.deepcopy(pipe)):
        with pytest.warns(MemorizationWarning, match="4 of 4"):
            twin(**arguments())


def test_a_pipeline_made_from_a_filtered_class_does_not_run_unfiltered() -> None:
    pipe = tiny_pipeline("text-to-image")
    wear(pipe, always)
    twin = type(pipe)(**pipe.components, requires_safety_checker=False)
    with pytest.raises(FilterFailedError, match="has no filter of its own"):
        twin(**arguments())
    detach(twin)(**arguments())
