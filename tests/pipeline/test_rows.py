"""Which arguments of a call are taken apart, and how, without a pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lcmem_filter.pipeline.rows import PICTURES, BoundCall

TOTAL = 4
"""Two images of each of two prompts."""


def bound(pipeline: str = "StableDiffusionPipeline", controlnet: Any = None, **given: Any) -> BoundCall:
    def call(
        self: Any, prompt: Any = None, num_images_per_prompt: int = 1, generator: Any = None, **kwargs: Any
    ) -> None:
        raise AssertionError("not called here")

    pipe = type(pipeline, (), {"controlnet": controlnet})()
    given = {"prompt": ["a", "b"], "num_images_per_prompt": 2, **given}
    return BoundCall.bind(call, pipe, (), given)


def taken(call: BoundCall, *rows: int) -> dict[str, Any]:
    assert call.can_slice(TOTAL)
    return call.for_rows(rows, [torch.Generator() for _ in rows]).arguments


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt_embeds", torch.arange(2)),
        ("pooled_prompt_embeds", torch.arange(2)),
        ("negative_prompt_attention_mask", np.arange(2)),
        ("prompt_embeds", [torch.tensor(0), torch.tensor(1)]),
        ("negative_image_embeds", torch.arange(2)),
    ],
)
def test_entries_of_prompts(name: str, value: Any) -> None:
    assert [int(v) for v in taken(bound(**{name: value}), 0, 1, 2, 3, 2)[name]] == [0, 0, 1, 1, 1]


def test_pictures_have_the_way_of_their_pipeline() -> None:
    pictures = ["first", "second"]
    for pipeline, name, expected in (
        ("StableDiffusionImg2ImgPipeline", "image", ["second", "second"]),
        ("StableDiffusionControlNetPipeline", "image", ["first", "second"]),
        ("StableDiffusionControlNetImg2ImgPipeline", "control_image", ["first", "second"]),
    ):
        assert name in PICTURES[pipeline]
        assert taken(bound(pipeline, **{name: pictures}), 1, 3)[name] == expected


@pytest.mark.parametrize(
    "name", ["original_size", "crops_coords_top_left", "target_size", "timesteps", "sigmas"]
)
def test_lists_of_the_call_stay_whole(name: str) -> None:
    assert taken(bound(**{name: [1, 2]}), 3)[name] == [1, 2]


@pytest.mark.parametrize(
    "given",
    [
        {"ip_adapter_image": ["first", "second"]},
        {"ip_adapter_image_embeds": [torch.zeros(2, 1, 4)]},
        {"something_new": torch.zeros(2)},
        {"pipeline": "KandinskyV22Pipeline", "image_embeds": [torch.zeros(2, 4)]},
        {"prompt_embeds": torch.zeros(3, 4)},  # not one for each prompt
        {"pipeline": "Flux2Pipeline", "image": ["first", "second"]},
        {"pipeline": "StableDiffusionImg2ImgPipeline", "image": [torch.zeros(2, 3, 8, 8)]},
        {"pipeline": "StableDiffusionImg2ImgPipeline", "image": ["a", "b", "c"]},
        {
            "pipeline": "StableDiffusionImg2ImgPipeline",
            "image": torch.zeros(4, 8, 8),
        },  # one of four channels?
        {
            "pipeline": "StableDiffusionControlNetPipeline",
            "controlnet": type("MultiControlNetModel", (), {})(),
            "image": ["for one net", "for the other"],
        },
        {
            "pipeline": "FluxControlNetPipeline",
            "controlnet": type("FluxMultiControlNetModel", (), {})(),
            "control_image": ["for one net", "for the other"],
        },
        {
            "pipeline": "FluxControlNetPipeline",
            "controlnet": [object(), object()],
            "control_image": ["for one net", "for the other"],
        },
    ],
    ids=", ".join,
)
def test_what_is_not_known_is_not_taken_apart(given: dict[str, Any]) -> None:
    call = bound(**given)
    assert not call.can_slice(TOTAL)
    again = call.for_all_rows([torch.Generator()] * TOTAL).arguments
    assert all(
        again[name] is value for name, value in given.items() if name not in ("pipeline", "controlnet")
    )


@pytest.mark.parametrize("made", [torch.zeros, np.zeros])
def test_pictures_given_one_by_one_are_taken_apart_where_they_are_of_one_size(made: Any) -> None:
    for shapes, alike in ((((3, 8, 4), (3, 8, 4)), True), (((3, 8, 4), (3, 4, 8)), False)):
        call = bound("StableDiffusionImg2ImgPipeline", image=[made(shape) for shape in shapes])
        assert call.can_slice(TOTAL) is alike


def test_one_picture_or_text_serves_every_row() -> None:
    single = bound("StableDiffusionControlNetPipeline", image=["only"], negative_prompt="bad", strength=0.5)
    after = taken(single, 1, 3)
    assert after["image"] == ["only", "only"] and after["negative_prompt"] == ["bad", "bad"]
    assert after["strength"] == 0.5 and after["num_images_per_prompt"] == 1


def test_a_caption_serves_every_row_of_its_prompt() -> None:
    caption = {"edit_instruction": "a cat"}
    after = taken(bound(prompt=caption, negative_prompt=None, num_images_per_prompt=TOTAL), 0, 2)
    assert after["prompt"] == [caption, caption] and after["num_images_per_prompt"] == 1


def test_a_single_picture_whose_role_is_not_known_stays_with_its_one_prompt() -> None:
    picture = Image.new("RGB", (8, 8))
    given = {"num_images_per_prompt": TOTAL, "negative_prompt": "bad", "guide": picture}
    for prompt in ("a", ["a"]):
        after = taken(bound(prompt=prompt, **given), 0, 2)
        assert after["prompt"] == prompt and after["negative_prompt"] == "bad" and after["guide"] is picture
        assert after["num_images_per_prompt"] == 2 and len(after["generator"]) == 2
    several = taken(bound(guide=picture), 1, 3)
    assert several["prompt"] == ["a", "b"] and several["num_images_per_prompt"] == 1


def test_a_single_picture_whose_role_is_known_is_given_for_each_row() -> None:
    picture = Image.new("RGB", (8, 8))
    after = taken(bound("StableDiffusion3Img2ImgPipeline", image=picture), 1, 2, 3)
    assert after["image"] == [picture] * 3 and after["prompt"] == ["a", "b", "b"]


def test_the_batch_size_becomes_the_number_of_rows() -> None:
    unprompted = {"prompt": None, "num_images_per_prompt": 1}
    assert taken(bound(**unprompted, batch_size=TOTAL), 1, 3)["batch_size"] == 2
    assert taken(bound(batch_size=None), 1, 3)["batch_size"] is None


@pytest.mark.parametrize(
    "given",
    [
        {"batch_size": 2, "prompt": None, "num_images_per_prompt": 1},
        {"batch_size": TOTAL, "prompt": "a", "num_images_per_prompt": 1},  # may be as many for each prompt
    ],
    ids=", ".join,
)
def test_a_batch_size_that_may_count_something_else_is_not_taken_apart(given: dict[str, Any]) -> None:
    call = bound(**given)
    assert not call.can_slice(TOTAL)
    assert call.for_all_rows([torch.Generator()] * TOTAL).arguments["batch_size"] == given["batch_size"]
