"""What training sees of its sources."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from lcmem_filter.errors import ConfigurationError, DataError
from lcmem_filter.images import open_images, to_pixels
from lcmem_filter.latents import Encoder, canonical
from lcmem_filter.training import train_head
from lcmem_filter.training.prepare import prepare_data

from tests.tiny import tiny_vae, write_pictures
from tests.training.pictures import QUICK, Pictures


class Resized(Pictures):
    """Pictures of ``side`` pixels, the first of which cannot be read."""

    def __init__(self, name: str, side: int) -> None:
        super().__init__(f"{name}-{side}", 6, 1, broken=(0,))
        self.side = side

    def drawn(self, row: int) -> Image.Image:
        return super().drawn(row).resize((self.side, self.side))


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(tiny_vae(), "tiny")


def test_large_images_are_encoded_at_further_resolutions_too(tmp_path: Path, encoder: Encoder) -> None:
    sources = [Resized("small", 40), Resized("large", 64)]
    config = replace(QUICK, further_resolutions=(64,), image_views=1)
    train, held = prepare_data(sources, (), {"sd": encoder}, config, tmp_path, Accelerator(), progress=False)
    assert train.views == held.views == ("clean", "clean", "light")
    assert {0, 1} == set(train.sets)
    for row, (name, s) in enumerate(zip(train.identities, train.sets, strict=True)):
        source = sources[s]
        image = source.image([one.identity for one in source.records].index(name))
        for view, side in ((0, 32), (1, 64 if s else 32)):
            expected = canonical(encoder.encode(to_pixels(image, side)[None]), 16)[0]
            torch.testing.assert_close(train.latents["sd"][row, view].float(), expected, atol=2e-3, rtol=0)


def test_images_that_somebody_named_are_not_validated_on(tmp_path: Path, encoder: Encoder) -> None:
    """They are left out of validation alone, by set and id where there are several sets."""
    sources: list[Any] = [Pictures("a", 8, 2), Pictures("b", 8, 1, first=100)]
    others: list[Any] = [Pictures("c", 4, 1, first=200), Pictures("d", 4, 1, first=300)]

    def held_out(validation: list[Any], *names: str) -> set[str]:
        given = (sources, validation, {"sd": encoder}, QUICK, tmp_path, Accelerator())
        train, held = prepare_data(*given, leave_out=names, progress=False)
        if validation:
            assert len(train) == 24
        return set(held.ids)

    ids = [record.id for record in others[0].records]
    assert held_out(others[:1], ids[1]) == set(ids) - {ids[1]}
    whole = held_out(others)
    assert held_out(others, f"d/{others[1].records[0].id}") == whole - {f"d/{others[1].records[0].id}"}
    split = held_out([])
    assert held_out([], min(split)) == split - {min(split)}
    with pytest.raises(DataError, match="no validation image 'e/0' to leave out"):
        held_out(others, "e/0")
    with pytest.raises(DataError, match="every validation image is left out"):
        held_out(others[:1], *ids)


def test_a_share_of_the_identities_is_trained_on(tmp_path: Path, encoder: Encoder) -> None:
    """Whole identities; a smaller share is part of a larger one, and validation stays as it is."""
    sources = [Pictures("a", 16, 2)]
    found = [
        prepare_data(
            sources,
            (),
            {"sd": encoder},
            replace(QUICK, identity_share=share),
            tmp_path,
            Accelerator(),
            progress=False,
        )
        for share in (1.0, 0.5, 0.25)
    ]
    whole, half, quarter = (set(train.identities) for train, _ in found)
    assert quarter < half < whole and len(half) == round(len(whole) / 2)
    assert all(len(train) == 2 * len(set(train.identities)) for train, _ in found)
    assert len({tuple(held.ids) for _, held in found}) == 1
    with pytest.raises(ValueError, match="identity_share must be in"):
        replace(QUICK, identity_share=0.0)


def test_further_resolutions_are_sides() -> None:
    with pytest.raises(ValueError, match=r"resolutions must be at least 16, got 32 \(256, 0\)"):
        replace(QUICK, further_resolutions=(256, 0))
    assert replace(QUICK, further_resolutions=(256,)).to_dict()["further_resolutions"] == [256]


def test_validation_on_nobody_else_is_told_before_anything_is_encoded(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lcmem_filter.training.prepare.encode_plans", None)
    sources: list[Any] = [Pictures("a", 8, 2)]

    def prepared(validation: Any, *names: str) -> None:
        given = (sources, [validation], {"sd": encoder}, QUICK, tmp_path, Accelerator())
        prepare_data(*given, leave_out=names, progress=False)

    with pytest.raises(DataError, match="every validation image is left out, or of an identity"):
        prepared(Pictures("a", 4, 2))
    with pytest.raises(DataError, match="two identities that are not trained on, got 'a8' alone"):
        prepared(Pictures("a", 9, 2))
    with pytest.raises(DataError, match="two identities that are not trained on, got 'a9' alone"):
        prepared(Pictures("a", 10, 2), "a/16", "a/17")


def test_a_class_of_one_set_is_a_class_in_all(
    tmp_path: Path, encoder: Encoder, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where folders of classes are large to train on, and small to validate on."""
    made = {"images": {"ill": range(21), "anna": (30, 31)}, "held": {"ill": (40, 41), "berta": (50, 51)}}
    sets = {}
    for name, folders in made.items():
        for folder, seeds in folders.items():
            write_pictures(tmp_path / name / folder, seeds)
        sets[name] = open_images(tmp_path / name)
    for sources in ([sets["images"]], [sets["images"], sets["held"]]):
        validation = [] if len(sources) == 2 else [sets["held"]]
        given = (sources, validation, {"sd": encoder}, QUICK, tmp_path / "cache", Accelerator())
        train, held = prepare_data(*given)
        of = {*train.identities, *held.identities}
        assert "ill" not in of and len(of) == 21 + 1 + 2 + 1
        told = capsys.readouterr().err
        assert "held: folders taken for classes, not for identities, as in another set: ill\n" in told
        assert "of identities that are trained on" not in told


def test_further_resolutions_that_no_set_has_are_told_before_anything_is_encoded(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lcmem_filter.training.prepare.encode_plans", None)
    sources, config = (
        [Resized("small", 40), Resized("large", 64)],
        replace(QUICK, further_resolutions=(64, 80)),
    )
    told = "no set's first image is 80 px large, the largest 64 px: give smaller"
    with pytest.raises(ConfigurationError, match=told):
        prepare_data(sources, (), {"sd": encoder}, config, tmp_path, Accelerator(), progress=False)


def test_a_card_says_which_sets_were_seen_at_further_resolutions(
    tmp_path: Path, encoder: Encoder, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [Resized("small", 40), Resized("large", 64)]
    config = replace(QUICK, further_resolutions=(64, 40), steps=1, evaluate_every=1)
    train_head(sources, {"sd": encoder}, tmp_path, config)
    assert (
        "encoded at 64 px too: large-64\nencoded at 40 px too: small-40, large-64\n"
        in capsys.readouterr().err
    )
    card = (tmp_path / "README.md").read_text()
    assert "on those at 32 and 64 (large-64) and 40 (small-40, large-64)\n  px." in card
