"""Cached latents: encoded once, shared, mended, and the same as encoding at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lcmem_filter import images
from lcmem_filter.errors import EmptyDataError, MissingExtraError
from lcmem_filter.images import to_pixels
from lcmem_filter.latents import Encoder, canonical
from lcmem_filter.training import cache
from lcmem_filter.training.cache import CachePlan, encode_plans, pictures_of, read_plan

from tests.tiny import tiny_vae
from tests.training.pictures import Pictures

ENCODER = Encoder(tiny_vae(), "tiny")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SHARD_ROWS", 4)


def plan(folder: Path, source: Any = None, **changes: Any) -> CachePlan:
    return CachePlan(folder, source or Pictures("p", 5, 2), ENCODER, 32, 16, **changes)


def test_cached_latents_are_the_encoders(tmp_path: Path) -> None:
    one = plan(tmp_path)
    assert encode_plans([one], progress=False) == 3
    latents, readable, *_ = read_plan(one)
    pixels = torch.stack([to_pixels(one.source.image(row), 32) for row in range(10)])
    torch.testing.assert_close(latents.float(), canonical(ENCODER.encode(pixels), 16), rtol=0, atol=2e-3)
    assert readable.all() and latents.dtype == torch.float16


def test_what_is_there_is_not_encoded_again(tmp_path: Path) -> None:
    encode_plans([plan(tmp_path)], progress=False)
    assert encode_plans([plan(tmp_path)], progress=False) == 0
    for changed in (
        plan(tmp_path, view=1),
        plan(tmp_path, Pictures("q", 5, 2)),
        plan(tmp_path, view=2),
    ):
        assert encode_plans([changed], progress=False) == 3


def test_a_latent_that_is_not_finite_counts_as_an_image_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, encode = plan(tmp_path), Encoder.encode

    def overflows(self: Encoder, pixels: torch.Tensor) -> torch.Tensor:
        latents = encode(self, pixels).clone()
        latents[1, 0, 0, 0] = torch.inf
        return latents

    monkeypatch.setattr(Encoder, "encode", overflows)
    encode_plans([one], progress=False)
    latents, readable, *_ = read_plan(one)
    assert readable.tolist() == [row not in (1, 5, 9) for row in range(10)] and latents.isfinite().all()


def test_processes_share_the_work(tmp_path: Path) -> None:
    plans = [plan(tmp_path), plan(tmp_path, view=1)]
    assert encode_plans(plans, rank=0, processes=2, progress=False) == 3
    with pytest.raises(EmptyDataError, match="lacks rows"):
        read_plan(plans[0])
    assert encode_plans(plans, rank=1, processes=2, progress=False) == 3
    assert len(read_plan(plans[0])[0]) == len(read_plan(plans[1])[0]) == 10


@pytest.mark.parametrize("harm", ["truncated", "changed", "no receipt", "bad receipt"])
def test_a_harmed_shard_is_encoded_again(tmp_path: Path, harm: str) -> None:
    one = plan(tmp_path)
    encode_plans([one], progress=False)
    before = read_plan(one)[0]
    array, receipt = one.path / "000000004.npy", one.path / "000000004.json"
    if harm == "truncated":
        array.write_bytes(array.read_bytes()[:-9])
    elif harm == "changed":
        array.write_bytes(array.read_bytes()[:-1] + b"\x55")
    elif harm == "no receipt":
        receipt.unlink()
    else:
        receipt.write_text("{")
    assert encode_plans([one], progress=False) == 1
    assert torch.equal(read_plan(one)[0], before)


def test_upside_down_views_lie_as_the_picture_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        cache.AUGMENTATIONS,
        "upside-down",
        lambda image, resolution, draw: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    )
    one = plan(tmp_path, view=1, kind="upside-down")
    encode_plans([one], progress=False)
    pixels = torch.stack([to_pixels(one.source.image(row), 32).flip(-2) for row in range(10)])
    turned_back = canonical(ENCODER.encode(pixels), 16).flip(-2)
    torch.testing.assert_close(read_plan(one)[0].float(), turned_back, rtol=0, atol=2e-3)


def test_augmented_views_are_repeatable_and_differ(tmp_path: Path) -> None:
    clean, one, other = (plan(tmp_path, view=view) for view in (0, 1, 2))
    again = plan(tmp_path / "again", view=1)
    encode_plans([clean, one, other, again], progress=False)
    latents = [read_plan(of)[0] for of in (clean, one, other, again)]
    assert torch.equal(latents[1], latents[3])
    assert not torch.equal(latents[0], latents[1]) and not torch.equal(latents[1], latents[2])


def test_unreadable_images_are_marked(tmp_path: Path) -> None:
    one = plan(tmp_path, Pictures("p", 5, 2, broken=(1, 4, 5, 6, 7)))  # the second shard has none
    encode_plans([one], progress=False)
    latents, readable, *_ = read_plan(one)
    assert readable.tolist() == [row not in (1, 4, 5, 6, 7) for row in range(10)]
    assert latents.shape == (10, 4, 16, 16) and not latents[~readable].any()


def test_nothing_readable(tmp_path: Path) -> None:
    one = plan(tmp_path, Pictures("p", 1, 2, broken=(0, 1)))
    encode_plans([one], progress=False)
    with pytest.raises(EmptyDataError, match="no image of 'p' could be read"):
        read_plan(one)


def test_an_image_is_encoded_as_soon_as_it_can_be_read(tmp_path: Path) -> None:
    source = Pictures("p", 5, 2, broken=(1, 9))
    one = plan(tmp_path, source)
    assert encode_plans([one], progress=False) == 3 and encode_plans([one], progress=False) == 0
    assert list(read_plan(one).unreadable) == [1, 9] and "row 9; repair" in read_plan(one).unreadable[9]
    source.broken = (9,)
    assert encode_plans([one], progress=False) == 1
    assert list(read_plan(one).unreadable) == [9]
    whole = plan(tmp_path / "whole", Pictures("p", 5, 2))
    encode_plans([whole], progress=False)
    found, expected = (read_plan(of).latents[:9].float() for of in (one, whole))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def test_a_missing_extra_ends_the_run_and_leaves_nothing_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(_: bytes) -> Image.Image:
        raise MissingExtraError("install lcmem-filter[dicom]")

    monkeypatch.setattr(images, "decode_image", lacks)
    with pytest.raises(MissingExtraError, match="install lcmem-filter"):
        encode_plans([plan(tmp_path)], progress=False)
    monkeypatch.undo()
    monkeypatch.setattr(cache, "SHARD_ROWS", 4)
    encode_plans([plan(tmp_path)], progress=False)
    assert read_plan(plan(tmp_path)).readable.all()


def test_equal_files_are_known_as_such_also_by_receipts_that_do_not_say_so(tmp_path: Path) -> None:
    class Twice(Pictures):
        def drawn(self, row: int) -> Image.Image:
            return super().drawn(row % 5)

    one = plan(tmp_path, Twice("p", 5, 2, broken=(3,)))
    encode_plans([one], progress=False)
    pictures = pictures_of(one, read_plan(one))
    assert len({*pictures}) == 6 and (pictures[:3] == pictures[5:8]).all() and not pictures[3]
    for receipt in one.path.glob("*.json"):
        written = json.loads(receipt.read_text())
        receipt.write_text(json.dumps({key: written[key] for key in ("sha256", "unreadable")}))
    assert not any(read_plan(one).pictures) and "cannot be read" in read_plan(one).unreadable[3]
    assert (pictures_of(one, read_plan(one)) == pictures).all()
