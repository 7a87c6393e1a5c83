"""A further latent space for a trained head."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from lcmem_filter.cli.main import main
from lcmem_filter.errors import ArtifactError, LatentSpaceError
from lcmem_filter.head import LCMemHead
from lcmem_filter.images import to_pixels
from lcmem_filter.latents import Encoder, canonical
from lcmem_filter.training import AddSpaceConfig, add_space, train_head, training_record
from lcmem_filter.training.add_space import _known_as
from lcmem_filter.training.prepare import prepare_data
from lcmem_filter.training.weights import with_descriptors

from tests.tiny import picture, tiny_vae, turned_vae
from tests.training.pictures import QUICK, Pictures

SOURCES: list[Any] = [Pictures("twice", 12, 2), Pictures("once", 12, 1, first=100)]
STEM = AddSpaceConfig(steps=80, batch_images=16, resolution=32, validation_fraction=0.3, learning_rate=1e-2)


@pytest.fixture(scope="module")
def known() -> Encoder:
    return Encoder(tiny_vae(), "known")


@pytest.fixture(scope="module")
def other() -> Encoder:
    return Encoder(tiny_vae(seed=1, latent_channels=6), "other")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, known: Encoder) -> Path:
    folder = tmp_path_factory.mktemp("heads") / "trained"
    train_head(SOURCES, {"sd": known}, folder, replace(QUICK, steps=20), progress=False)
    return folder


@torch.no_grad()
def alike(head: LCMemHead, known: Encoder, other: Encoder) -> tuple[float, float]:
    """Mean cosine of embeddings, and of tokens, of unseen pictures between the spaces."""
    pixels = torch.stack([to_pixels(picture(1000 + i), 32) for i in range(12)])
    a, b = head.describe(known.encode(pixels), "sd"), head.describe(other.encode(pixels), "other")
    cosines = [
        torch.cosine_similarity(x, y, dim=-1).mean()
        for x, y in ((a.embedding, b.embedding), (a.tokens, b.tokens))
    ]
    return float(cosines[0]), float(cosines[1])


def test_a_stem_learns_and_nothing_else_moves(
    tmp_path: Path, trained: Path, known: Encoder, other: Encoder
) -> None:
    before = LCMemHead.from_pretrained(trained)
    given: dict[str, Any] = {"record": training_record(trained), "progress": False}
    short = add_space(
        before, "other", other, known, SOURCES, tmp_path / "short", replace(STEM, steps=1), **given
    )
    after = add_space(before, "other", other, known, SOURCES, tmp_path / "after", STEM, **given)
    for name, value in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], value), name
    assert after.fingerprint_of("sd") == before.fingerprint_of("sd")
    assert after.fingerprint_of("other") != short.fingerprint_of("other")
    assert after.fingerprint != before.fingerprint
    untrained, learned = alike(short, known, other), alike(after, known, other)
    assert learned[0] > untrained[0] + 0.1 and learned[1] > untrained[1] + 0.1
    loaded = LCMemHead.from_pretrained(tmp_path / "after")
    assert set(loaded.spaces) == {"sd", "other"} and loaded.fingerprint == after.fingerprint
    assert loaded.identify_space(other.vae).space == "other"
    assert loaded.identify_space(known.vae).space == "sd"
    record = json.loads((tmp_path / "after" / "training.json").read_text())
    assert set(record["added_spaces"]["other"]["validation"]) == {
        "sd in sd",
        "other in sd",
        "sd in other",
        "other in other",
    }
    assert "| other in sd |" in (tmp_path / "after" / "README.md").read_text()
    assert not (tmp_path / "after" / ".latents").exists()  # pictures could be had from them


def test_a_stem_learns_descriptors_too(tmp_path: Path, trained: Path, known: Encoder, other: Encoder) -> None:
    initial = with_descriptors(LCMemHead.from_pretrained(trained), ("sd",), replace(QUICK, match_dim=8))
    short, after = (
        add_space(initial, "other", other, known, SOURCES, tmp_path / str(steps), config, progress=False)
        for steps, config in ((1, replace(STEM, steps=1)), (80, STEM))
    )
    assert after.has_descriptors("sd") and after.has_descriptors("other")
    pixels = torch.stack([to_pixels(picture(1000 + i), 32) for i in range(12)])
    alike = []
    for head in (short, after):
        with torch.no_grad():
            a, b = (head.descriptors(e.encode(pixels), s) for e, s in ((known, "sd"), (other, "other")))
        alike.append(float(torch.cosine_similarity(a, b, dim=1).mean()))
    assert alike[1] > alike[0] + 0.1
    assert after.fingerprint_of("sd") == initial.fingerprint_of("sd")


def test_names_and_references_are_checked(
    tmp_path: Path, trained: Path, known: Encoder, other: Encoder
) -> None:
    head = LCMemHead.from_pretrained(trained)
    with pytest.raises(ArtifactError, match="has a stem for 'sd' already"):
        add_space(head, "sd", other, known, SOURCES, tmp_path / "no", STEM, progress=False)
    with pytest.raises(LatentSpaceError, match="speaks none"):
        add_space(head, "other", known, other, SOURCES, tmp_path / "no", STEM, progress=False)
    with pytest.raises(ArtifactError, match=r"knows this VAE's space as 'sd' \(agreement 1.00"):
        add_space(head, "another", known, known, SOURCES, tmp_path / "no", STEM, progress=False)
    assert not (tmp_path / "no").exists()
    head.save_pretrained(tmp_path / "taken")
    with pytest.raises(ArtifactError, match="already holds a head"):
        add_space(head, "other", other, known, SOURCES, tmp_path / "taken", STEM, progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="is a file"):
        add_space(head, "other", other, known, SOURCES, tmp_path / "file", STEM, progress=False)


def test_the_command_adds_a_space(
    tmp_path: Path, trained: Path, known: Encoder, other: Encoder, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, encoder in (("known", known), ("other", other)):
        encoder.vae.save_pretrained(tmp_path / name)
    (tmp_path / "images").mkdir()
    for i in range(12):
        picture(i).save(tmp_path / "images" / f"{i}.png")
    options = [
        "train",
        str(tmp_path / "images"),
        "--vae",
        str(tmp_path / "other"),
        "--output",
        str(tmp_path / "head"),
    ]
    assert main([*options, "--add-space"]) == 2
    whole = [*options, "--add-space", "--initial", str(trained), "--reference-vae", str(tmp_path / "known")]
    assert main([*whole, "--strong-views", "2"]) == 2
    assert "leave out --strong-views" in capsys.readouterr().err
    assert main([*whole, "--leave-out", str(tmp_path / "nothing.txt")]) == 2
    assert "one id a line" in capsys.readouterr().err
    assert main([*options, "--reference-resolution", "32"]) == 2
    assert "leave out --reference-resolution" in capsys.readouterr().err
    whole += ["--terms", "Ours alone."]
    assert main([*whole, "--steps", "20", "--resolution", "32", "--reference-resolution", "16"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1])["spaces"] == ["sd", "other"]
    assert "other in sd: mild copies" in said.err
    card = (tmp_path / "head" / "README.md").read_text()
    assert "| 32 px | other in sd |" in card
    assert "That of other was trained on images (" in card and "Terms of these: Ours alone." in card
    recipe = json.loads((tmp_path / "head" / "training.json").read_text())["added_spaces"]["other"]["recipe"]
    assert (recipe["resolution"], recipe["reference_resolution"]) == (32, 16)


def test_each_encoder_has_its_own_resolution(tmp_path: Path, known: Encoder, other: Encoder) -> None:
    """Encoders that shrink pictures differently see them at sizes whose latents are as fine."""
    train, _ = prepare_data(
        SOURCES[1:],
        SOURCES[:1],
        {"sd": known, "other": other},
        replace(QUICK, resolution=32, image_views=0),
        tmp_path,
        Accelerator(),
        resolutions={"sd": 64},
    )
    image = SOURCES[1].image(0)
    for space, encoder, side in (("sd", known, 64), ("other", other, 32)):
        encoded = canonical(encoder.encode(to_pixels(image, side)[None]), train.latents[space].shape[-1])
        assert torch.allclose(train.latents[space][0, :1].float(), encoded, atol=2e-3), space


def test_a_space_that_is_not_certain_counts_as_unknown() -> None:
    head = LCMemHead.create("micro", {"sd": 4})
    head.add_probes("sd", tiny_vae())
    assert head.identify_space(turned_vae()).space == "sd"
    assert _known_as(head, Encoder(turned_vae(), "vae")) is None
    assert _known_as(head, Encoder(tiny_vae(), "vae")).space == "sd"
