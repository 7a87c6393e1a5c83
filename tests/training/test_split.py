"""Who is trained on and who is validated on."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from lcmem_filter.calibration import held_out_needed
from lcmem_filter.errors import DataError
from lcmem_filter.images import open_images
from lcmem_filter.latents import Encoder
from lcmem_filter.training.data import LatentSet
from lcmem_filter.training.prepare import prepare_data
from lcmem_filter.training.split import each_picture_once, grouped_by_pictures, split_by_identity
from lcmem_filter.training.validation import Validator

from tests.tiny import tiny_vae, write_pictures
from tests.training.pictures import QUICK


def latent_set(identities: str, pictures: str) -> LatentSet:
    """An image for each letter; a space is a picture of which nothing is known."""
    return LatentSet(
        {"sd": torch.zeros(len(identities), 1, 4, 16, 16)},
        ("clean",),
        np.array(list(identities), dtype=object),
        np.zeros(len(identities), dtype=int),
        ("set",),
        pictures=np.array([one.strip() for one in pictures], dtype=object),
    )


def test_each_picture_stays_once_with_the_identity_of_most_images() -> None:
    assert list(each_picture_once(latent_set("abcc", "xyyz")).identities) == ["a", "c", "c"]
    assert list(each_picture_once(latent_set("aabb", "xxyy")).identities) == ["a", "b"]
    assert list(each_picture_once(latent_set("abcd", "x  x")).identities) == ["a", "b", "c"]
    others = latent_set("q", "y")
    assert list(each_picture_once(latent_set("abc", "xyz"), others).identities) == ["a", "c"]
    plain = latent_set("abc", "xyz")
    assert each_picture_once(plain) is plain
    assert each_picture_once(replace(plain, pictures=None)).pictures is None


def test_what_stays_of_a_picture_has_the_labels_of_all_its_rows() -> None:
    listed = replace(
        latent_set("aabcc", "xxx y"),
        labels=np.array(["mass", "nodule|mass", "effusion", "", "none"], dtype=object),
    )
    once = each_picture_once(listed)
    assert list(once.identities) == ["a", "c", "c"] and list(once.labels) == ["mass|nodule", "", "none"]


def prepared(folder: Path, *validation: Path, progress: bool = False):
    sources, others = ([open_images(one) for one in some] for some in ((folder,), validation))
    encoder = {"sd": Encoder(tiny_vae(), "tiny")}
    config = replace(QUICK, validation_fraction=0.5)
    return prepare_data(
        sources, others, encoder, config, folder.parent / "cache", Accelerator(), progress=progress
    )


def test_a_picture_that_is_stored_twice_is_on_one_side_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_pictures(tmp_path / "images", range(8))
    for file in sorted(folder.glob("*.png")):
        shutil.copy(file, folder / f"again-{file.name}")
    train, held = prepared(folder, progress=True)
    assert len(train) == len(held) == 4 and not {*train.pictures} & {*held.pictures}
    assert "left out: 8 images repeat another picture" in capsys.readouterr().err


def test_sets_of_one_name_hold_other_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The most usual layout: train/images and validation/images, with files of the same names."""
    train, held = (
        write_pictures(tmp_path / part / "images", rows)
        for part, rows in (("train", range(6)), ("validation", range(20, 26)))
    )
    for place, file in enumerate(sorted(held.glob("*.png"))):
        file.rename(held / sorted(train.glob("*.png"))[place].name)
    assert len(prepared(train, held)[1]) == 6
    first = sorted(train.glob("*.png"))[0]
    shutil.copy(first, held / "copied.png")
    assert len(prepared(train, held, progress=True)[1]) == 6
    assert "left out: 1 validation images repeat a picture that is trained on" in capsys.readouterr().err


def test_too_few_identities_are_told_before_anything_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lcmem_filter.training.prepare.encode_plans", None)
    with pytest.raises(DataError, match="training needs two identities and two to validate on, got 3"):
        prepared(write_pictures(tmp_path / "images", range(3)))


def test_how_many_strangers_a_threshold_rests_on() -> None:
    assert held_out_needed(0.01) == 99 and held_out_needed(0.05) == 19 and held_out_needed(0.03) == 33
    held = latent_set("aabbbcdefg", "0123456789")
    assert Validator(held, held, false_rejection_rate=0.01, seed=0).strangers == 3


def test_identities_that_share_a_picture_are_on_one_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One person under two names, by a picture that is stored under both; and by way of a third."""
    folder = write_pictures(tmp_path / "images", range(24), identities=2)
    for a, b in ((0, 1), (1, 2), (5, 9)):
        shutil.copy(folder / f"person{a:03d}" / f"{2 * a:03d}.png", folder / f"person{b:03d}" / "again.png")
    train, held = prepared(folder)
    sides = [{*train.identities}, {*held.identities}]
    together = [{f"person{one:03d}" for one in group} for group in ((0, 1, 2), (5, 9))]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 12
    assert all(group <= sides[0] or group <= sides[1] for group in together)
    others = write_pictures(tmp_path / "held", range(50, 62), identities=2)
    for file in sorted(others.iterdir()):
        file.rename(others / f"other-{file.name}")
    shutil.copy(folder / "person003" / "006.png", others / "other-person025" / "again.png")
    shutil.copy(others / "other-person025" / "050.png", others / "other-person027" / "again.png")
    train, held = prepared(folder, others, progress=True)
    assert {*held.identities} == {f"other-person0{number}" for number in (26, 28, 29, 30)}
    told = capsys.readouterr().err
    assert (
        "left out: 4 validation images are of identities that share another picture with one that is" in told
    )


def test_identities_that_all_share_pictures_cannot_be_divided() -> None:
    whole = latent_set("abbccdef", "xxyy zz ")
    groups = grouped_by_pictures(whole)
    assert groups["a"] == groups["c"] == groups["b"] and groups["d"] == groups["e"] != groups["a"]
    data = each_picture_once(whole)
    train, held = split_by_identity(data, 0.4, 0, groups)
    assert not {*train.identities} & {*held.identities}
    everyone = latent_set("abcde", "01234")
    with pytest.raises(DataError, match="of 5 identities so many share pictures with each other"):
        split_by_identity(everyone, 0.4, 0, dict.fromkeys("abcde", "a"))
