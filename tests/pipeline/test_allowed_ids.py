"""Calls that name the training images that their samples may resemble."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lcmem_filter.errors import AllowedIdsError
from lcmem_filter.index import MemorizationIndex
from lcmem_filter.latents import encode_pixels
from lcmem_filter.pipeline import MemorizationWarning, attach

from . import planting
from .planting import planted
from .scripted import always, wear
from tests.tiny import call_arguments, picture, tiny_pipeline, tiny_vae

pytestmark = pytest.mark.filterwarnings(
    "ignore:You have passed .* Initial images are now duplicating:FutureWarning"
)


def latents_of(*seeds: int) -> torch.Tensor:
    """What a pipeline that has memorised these pictures would end with; 0 to 19 are in the index."""
    pixels = torch.from_numpy(np.stack([np.asarray(picture(seed)) for seed in seeds])).permute(0, 3, 1, 2)
    vae = tiny_vae()
    return encode_pixels(vae, pixels / 127.5 - 1) * vae.config.scaling_factor


def ending_with(*passes: torch.Tensor) -> Callable[..., dict[str, torch.Tensor]]:
    """Makes each pass of a call end with its own latents."""
    left = list(passes)

    def end(pipeline: Any, step: int, timestep: int, tensors: Any) -> dict[str, torch.Tensor]:
        return {"latents": left.pop(0)} if step == 1 else {}

    return end


def call(pipe: Any, *passes: torch.Tensor, kind: str = "text-to-image", **changes: Any) -> Any:
    given = {
        **call_arguments(kind, ["a cat", "a dog"]),
        "num_images_per_prompt": 2,
        "num_inference_steps": 2,
        "output_type": "np",
        "generator": torch.Generator().manual_seed(0),
        "callback_on_step_end": ending_with(*passes),
    }
    return pipe(**{**given, **changes})


@pytest.mark.parametrize("output_type", ["np", "latent"])
@pytest.mark.parametrize("kind", ["text-to-image", "img2img"])
def test_each_row_may_resemble_its_own(kind: str, output_type: str, index: MemorizationIndex) -> None:
    pipe = attach(tiny_pipeline(kind), index, on_memorized="flag")
    allowed = [["003.png"], [], ["007.png"], ["003.png"]]
    latents = latents_of(3, 7, 7, 7)
    out = call(pipe, latents, kind=kind, allowed_ids=allowed, output_type=output_type)
    assert [d.accepted for d in out.memorization] == [True, False, True, False]
    assert [d.allowed_ids for d in out.memorization] == [tuple(ids) for ids in allowed]
    shared = call(pipe, latents, kind=kind, allowed_ids=["007.png"], output_type=output_type)
    assert [d.accepted for d in shared.memorization] == [False, True, True, True]


def test_rows_keep_theirs_when_they_are_drawn_again(index: MemorizationIndex) -> None:
    pipe = attach(planting.made(), index, rungs=["new_seed"], max_resamples=2)
    allowed = [["003.png"], ["007.png"], ["005.png"], ["006.png"]]
    with planted(pipe, {0: 3, 1: 0, 2: 5, 3: 0}, {0: 7, 1: 5}, {0: 6}):
        out = planting.call(pipe, allowed_ids=allowed, num_images_per_prompt=2)
    assert [d.accepted for d in out.memorization] == [True] * 4
    assert [d.attempts for d in out.memorization] == [1, 2, 1, 3]
    assert [d.allowed_ids for d in out.memorization] == [tuple(ids) for ids in allowed]


def test_rows_keep_theirs_when_the_whole_batch_is_drawn_again(index: MemorizationIndex) -> None:
    pipe = tiny_pipeline()
    plain = type(pipe).__call__

    def with_names(
        self: Any, prompt: Any, generator: Any, num_images_per_prompt: int, extra: Any, **more: Any
    ) -> Any:
        return plain(self, prompt, generator=generator, num_images_per_prompt=num_images_per_prompt, **more)

    pipe.__class__ = type("Custom", (type(pipe),), {"__call__": with_names})
    attach(pipe, index, rungs=["new_seed"], max_resamples=1)
    allowed = [["003.png"], ["007.png"], ["005.png"], ["006.png"]]
    passes = latents_of(3, 0, 5, 6), latents_of(0, 7, 0, 0)
    out = call(pipe, *passes, allowed_ids=allowed, extra=torch.zeros(5))
    assert [d.accepted for d in out.memorization] == [True] * 4
    assert [d.attempts for d in out.memorization] == [1, 2, 1, 1]


def test_unknown_ids_are_refused_before_anything_is_drawn(index: MemorizationIndex) -> None:
    pipe = attach(tiny_pipeline(), index)
    drawn: list[Any] = []
    pipe.unet.register_forward_pre_hook(lambda *_: drawn.append(1))
    with pytest.raises(AllowedIdsError, match=r"'nowhere\.png'"):
        call(pipe, allowed_ids=["nowhere.png"])
    assert not drawn
    with pytest.raises(AllowedIdsError, match="2 sequences of ids for 4 images"):
        call(pipe, latents_of(3, 3, 3, 3), allowed_ids=[["003.png"], ["003.png"]])


def test_naming_none_changes_nothing(index: MemorizationIndex) -> None:
    pipe = tiny_pipeline()
    wear(pipe, always)
    assert len(call(pipe, latents_of(0, 1, 2, 3), allowed_ids=None).memorization) == 4
    attach(pipe, index, on_memorized="reject")
    with pytest.warns(MemorizationWarning, match="4 of 4"):
        call(pipe, latents_of(0, 1, 2, 3), allowed_ids=[])
    assert len(pipe.memorization_filter.last_decisions) == 4
    with pytest.raises(AllowedIdsError):
        call(pipe, latents_of(0, 1, 2, 3), allowed_ids=["nowhere.png"])
    assert not pipe.memorization_filter.last_decisions  # of a call that came to none
