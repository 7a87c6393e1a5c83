"""Views that are made on the device that trains: what ``views`` makes with Pillow, of many pictures at once."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from lcmem_filter.images import to_pixels
from lcmem_filter.training.cache import AUGMENTATIONS
from lcmem_filter.training.on_device import CHANGES, change, through_jpeg
from lcmem_filter.training.views import generator_for

from tests.tiny import picture

SIDE = 64
KINDS = pytest.mark.parametrize("kind", list(CHANGES))


def pixels(*seeds: int) -> torch.Tensor:
    """Pictures (B, 3, SIDE, SIDE) in [0, 1]."""
    return torch.stack([to_pixels(picture(seed), SIDE) for seed in seeds]) / 2 + 0.5


def as_image(values: torch.Tensor) -> Image.Image:
    return Image.fromarray((values.permute(1, 2, 0) * 255).round().byte().numpy())


def as_values(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def test_there_is_one_of_each_kind_of_cached_views() -> None:
    assert set(CHANGES) == set(AUGMENTATIONS)


@KINDS
def test_what_is_drawn_depends_on_the_generator_alone(kind: str) -> None:
    given = pixels(1, 2)
    first, again, other = (change(given, kind, generator_for(seed, kind)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == given.shape and first.min() >= 0 and first.max() <= 1
    torch.testing.assert_close(first, (first * 255).round() / 255)


@KINDS
def test_pictures_are_changed_as_far_as_pillow_changes_them(kind: str) -> None:
    """Over many draws, the mean distance from the original is that of the cached views, within a fifth."""
    given = pixels(*range(12)).repeat(8, 1, 1, 1)
    ours = change(given, kind, generator_for("ours", kind))
    theirs = torch.stack(
        [
            as_values(AUGMENTATIONS[kind](as_image(one), SIDE, generator_for("theirs", kind, i)))
            for i, one in enumerate(given)
        ]
    )
    upright = given.flip(-2) if kind == "upside-down" else given
    apart = [(made - upright).abs().mean() for made in (ours, theirs)]
    assert 0.8 < apart[0] / apart[1] < 1.25
    fine = [(made[..., 1:] - made[..., :-1]).abs().mean() for made in (ours, theirs)]
    assert 0.8 < fine[0] / fine[1] < 1.25


@pytest.mark.parametrize("quality", [10, 30, 50, 75, 90])
def test_jpeg_is_what_a_codec_makes_of_it(quality: int) -> None:
    given = pixels(3, 4, 5)
    ours = through_jpeg(given, torch.full((3,), quality))
    for one, mine in zip(given, ours, strict=True):
        buffer = io.BytesIO()
        as_image(one).save(buffer, "JPEG", quality=quality)
        theirs = as_values(Image.open(buffer).convert("RGB"))
        lost = (theirs - one).abs().mean()
        assert (mine - theirs).abs().mean() < 0.35 * lost + 1 / 255


def test_each_picture_gets_its_own_quality() -> None:
    given = pixels(3, 3)
    low, high = (through_jpeg(given, torch.tensor([10, 90])) - given).abs().mean((1, 2, 3))
    assert low > 3 * high
