"""Larger latents for a trained head."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lcmem_filter.cli.main import main
from lcmem_filter.errors import ArtifactError, ConfigurationError, LatentSpaceError
from lcmem_filter.head import LCMemHead
from lcmem_filter.images import to_pixels
from lcmem_filter.latents import Encoder, to_grid
from lcmem_filter.training import (
    AddHalvingConfig,
    AddSpaceConfig,
    add_halving,
    add_space,
    train_head,
    training_record,
)
from lcmem_filter.training.weights import with_descriptors

from tests.tiny import picture, tiny_vae
from tests.training.pictures import QUICK, Pictures

SOURCES: list[Any] = [Pictures("twice", 12, 2), Pictures("once", 12, 1, first=100)]
HALVING = AddHalvingConfig(steps=60, batch_images=16, resolution=32, validation_fraction=0.3)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(tiny_vae(), "tiny")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, encoder: Encoder) -> Path:
    folder = tmp_path_factory.mktemp("heads") / "trained"
    train_head(SOURCES, {"sd": encoder}, folder, replace(QUICK, steps=20), progress=False)
    return folder


@torch.no_grad()
def alike(head: LCMemHead, encoder: Encoder, times: int = 2) -> float:
    """Mean cosine of embeddings of unseen pictures at once and several times the size."""
    small, large = (
        encoder.encode(torch.stack([to_pixels(picture(1000 + i), side) for i in range(12)]))
        for side in (2 * head.grid, 2 * times * head.grid)
    )
    assert large.shape[-1] == times * small.shape[-1] == times * head.grid
    return float(torch.cosine_similarity(head.embed(large, "sd"), head.embed(small, "sd")).mean())


def test_larger_latents_become_alike_and_nothing_else_moves(
    tmp_path: Path, trained: Path, encoder: Encoder
) -> None:
    before = with_descriptors(LCMemHead.from_pretrained(trained), ("sd",), replace(QUICK, match_dim=8))
    given: dict[str, Any] = {"record": training_record(trained), "progress": False}
    after = add_halving(before, encoder, SOURCES, tmp_path / "after", HALVING, **given)
    for name, value in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], value), name
    assert alike(after, encoder) > alike(before, encoder) + 0.005
    assert alike(after, encoder, 4) > alike(before, encoder, 4)
    small = torch.randn(3, 4, 2 * after.grid - 1, 40, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(after.embed(small, "sd"), before.embed(small, "sd"), rtol=0, atol=0)
    assert after.fingerprint_of("sd") != before.fingerprint_of("sd")
    loaded = LCMemHead.from_pretrained(tmp_path / "after")
    assert loaded.fingerprint == after.fingerprint and alike(loaded, encoder) == alike(after, encoder)
    added = json.loads((tmp_path / "after" / "training.json").read_text())["halvings"]["sd"]
    assert added["added_to"] == before.fingerprint_of("sd")
    found = added["validation"]
    for what in ("embeddings", "latents", "descriptors"):
        assert found["halved"][what] > found["averaged"][what]
    assert f"{found['halved']['embeddings']:.3f}" in (tmp_path / "after" / "README.md").read_text()
    assert not (tmp_path / "after" / ".latents").exists()  # pictures could be had from them


def test_an_untrained_network_takes_means_and_other_spaces_do_not_mind() -> None:
    torch.manual_seed(0)
    head = LCMemHead.create("micro", {"sd": 4, "sd3": 16}, halved_spaces=["sd"])
    latents = torch.randn(2, 4, 70, 66, generator=torch.Generator().manual_seed(0))
    means = torch.nn.functional.avg_pool2d(torch.nn.functional.avg_pool2d(latents, 2), 2)
    torch.testing.assert_close(
        head.canonical(latents, "sd"), head.canonical(to_grid(means, 16), "sd"), rtol=0, atol=1e-5
    )
    plain = LCMemHead.create("micro", {"sd": 4, "sd3": 16})
    plain.load_state_dict(head.state_dict(), strict=False)
    assert plain.fingerprint_of("sd3") == head.fingerprint_of("sd3")
    assert plain.fingerprint_of("sd") != head.fingerprint_of("sd")
    half = LCMemHead.create("micro", {"sd": 4, "sd3": 16}, halved_spaces=["sd"])
    half.load_state_dict(head.state_dict())
    torch.testing.assert_close(half.half().embed(latents, "sd"), head.embed(latents, "sd"), rtol=0, atol=5e-3)


def test_what_cannot_be_halved_is_refused(tmp_path: Path, trained: Path, encoder: Encoder) -> None:
    head = LCMemHead.from_pretrained(trained)
    stranger = Encoder(tiny_vae(seed=1, latent_channels=6), "other")
    with pytest.raises(LatentSpaceError, match="speaks none"):
        add_halving(head, stranger, SOURCES, tmp_path / "no", HALVING, progress=False)
    for side, better in ((16, 32), (64, 32)):
        with pytest.raises(ConfigurationError, match=f"give resolution {better}"):
            add_halving(
                head, encoder, SOURCES, tmp_path / "no", replace(HALVING, resolution=side), progress=False
            )
    quick = replace(HALVING, steps=1)
    once = add_halving(head, encoder, SOURCES, tmp_path / "once", quick, progress=False)
    with pytest.raises(ArtifactError, match="halves latents of 'sd' already"):
        add_halving(once, encoder, SOURCES, tmp_path / "no", HALVING, progress=False)
    with pytest.raises(ArtifactError, match="already holds a head"):
        add_halving(head, encoder, SOURCES, tmp_path / "once", HALVING, progress=False)
    assert not (tmp_path / "no").exists()


def test_further_training_keeps_the_network(tmp_path: Path, trained: Path, encoder: Encoder) -> None:
    initial = LCMemHead.from_pretrained(trained)
    once = add_halving(
        initial, encoder, SOURCES, tmp_path / "once", HALVING, record=training_record(trained), progress=False
    )
    given: dict[str, Any] = {"initial": once, "record": training_record(tmp_path / "once"), "progress": False}
    config = replace(QUICK, steps=4)
    further = train_head(SOURCES, {"sd": encoder}, tmp_path / "further", config, **given)
    for name, value in once.halvings.state_dict().items():
        assert torch.equal(further.halvings.state_dict()[name], value), name
    assert "--add-halving" in (tmp_path / "further" / "README.md").read_text()
    (found,) = training_record(tmp_path / "further")["halvings"].values()  # type: ignore[index]
    assert found["validation"] == {}
    assert "not measured since the head was trained on" in (tmp_path / "further" / "README.md").read_text()
    for larger in ({"resolution": 64}, {"further_resolutions": (64,)}):  # which the cache would average
        with pytest.raises(
            ConfigurationError, match="halves latents of 'sd' of 32x32 and more, and at 64 px"
        ):
            train_head(SOURCES, {"sd": encoder}, tmp_path / "no", replace(config, **larger), **given)
    stranger, stem = (
        Encoder(tiny_vae(seed=1, latent_channels=6), "other"),
        AddSpaceConfig(reference_resolution=64),
    )
    with pytest.raises(ConfigurationError, match="at 64 px"):
        add_space(once, "other", stranger, encoder, SOURCES, tmp_path / "no", stem, progress=False)
    assert not (tmp_path / "no").exists()


def test_the_command_teaches_sizes(
    tmp_path: Path, trained: Path, encoder: Encoder, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i in range(8):
        picture(i).save(images / f"{i}.png")
    encoder.vae.save_pretrained(tmp_path / "vae")
    command = ["train", str(images), "--vae", str(tmp_path / "vae"), "--output", str(tmp_path / "head")]
    command += ["--add-halving", "--initial", str(trained), "--steps", "2", "--resolution", "32"]
    assert main([*command, "--validation-fraction", "0.4"]) == 0
    assert json.loads(capsys.readouterr().out)["spaces"] == ["sd"]
    assert list(LCMemHead.from_pretrained(tmp_path / "head").halvings) == ["sd"]
    for wrong, told in (
        (["--stages", "1"], "--stages"),
        (["--space", "x"], "--space"),
        (["--elastic", "1"], "--elastic"),
    ):
        assert main([*command, *wrong]) == 2
        assert told in capsys.readouterr().err
    baseline = [
        "train",
        str(images),
        "--baseline",
        "dar",
        "--add-halving",
        "--output",
        str(tmp_path / "siamese"),
    ]
    assert main(baseline) == 2 and "--add-halving" in capsys.readouterr().err
    assert main([*command, "--add-space", "--reference-vae", str(tmp_path / "vae")]) == 2
    assert "not --add-space" in capsys.readouterr().err
