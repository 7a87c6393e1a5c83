"""What is taught to a trained head, cut off and called again."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lcmem_filter.errors import ArtifactError
from lcmem_filter.head import LCMemHead
from lcmem_filter.latents import Encoder
from lcmem_filter.training import (
    AddHalvingConfig,
    AddSpaceConfig,
    add_halving,
    add_space,
    extend,
    train_head,
    training_record,
)

from tests.tiny import tiny_vae
from tests.training.pictures import QUICK, Pictures

SOURCES: list[Any] = [Pictures("twice", 12, 2), Pictures("once", 12, 1, first=100)]
STEPS, EVERY, CUT = 8, 3, 7  # cut off in step 7, after the checkpoint of step 6
Teach = Callable[..., LCMemHead]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads") / "trained"
    train_head(SOURCES, {"sd": Encoder(tiny_vae(), "sd")}, folder, replace(QUICK, steps=4), progress=False)
    return folder


@pytest.fixture(params=["add_space", "add_halving"])
def taught(request: pytest.FixtureRequest, trained: Path) -> tuple[Teach, Any, str]:
    """A call that teaches a head in a folder, its module, and the part of the record that it writes."""
    head, known = LCMemHead.from_pretrained(trained), Encoder(tiny_vae(), "sd")
    known_as: dict[str, Any] = {"record": training_record(trained), "progress": False}
    sizes: dict[str, Any] = {"batch_images": 8, "resolution": 32, "validation_fraction": 0.3}

    def space(output: Path | str, steps: int = STEPS, terms: str = "", **given: Any) -> LCMemHead:
        other, recipe = Encoder(tiny_vae(seed=1, latent_channels=6), "other"), AddSpaceConfig(steps, **sizes)
        given = {**known_as, "terms": terms, **given}
        return add_space(head, "other", other, known, SOURCES, output, recipe, **given)

    def halving(output: Path | str, steps: int = STEPS, terms: str = "", **given: Any) -> LCMemHead:
        recipe = AddHalvingConfig(steps, **sizes)
        return add_halving(head, known, SOURCES, output, recipe, **{**known_as, "terms": terms, **given})

    module = importlib.import_module(f"lcmem_filter.training.{request.param}")
    teach, part = {"add_space": (space, "added_spaces"), "add_halving": (halving, "halvings")}[request.param]
    return teach, module, part


class Cut(Exception):
    pass


def test_what_is_cut_off_goes_on_and_ends_in_the_same_weights(
    tmp_path: Path, taught: tuple[Teach, Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    teach, module, kind = taught
    monkeypatch.setattr(extend, "CHECKPOINT_EVERY", EVERY)
    whole = teach(tmp_path / "whole")
    plain, done = module.apart, 0

    def counted(*given: Any) -> Any:
        nonlocal done
        done += 1
        if done == CUT:
            raise Cut
        return plain(*given)

    monkeypatch.setattr(module, "apart", counted)
    with pytest.raises(Cut):
        teach(tmp_path / "cut")
    with pytest.raises(ArtifactError, match=r"another run \(steps was 8, is 9\)"):
        teach(tmp_path / "cut", STEPS + 1)
    found = teach(tmp_path / "cut")
    assert done == CUT + STEPS - CUT // EVERY * EVERY, "steps after the last checkpoint alone"
    for name, values in whole.state_dict().items():
        assert torch.equal(found.state_dict()[name], values), name
    records = [json.loads((tmp_path / name / "training.json").read_text()) for name in ("whole", "cut")]
    histories = [next(iter(record[kind].values()))["history"] for record in records]
    for history in histories:
        assert [entry["step"] for entry in history] == [3, 6, 8]
    assert [entry["loss"] for entry in histories[0]] == [entry["loss"] for entry in histories[1]]
    assert not (tmp_path / "cut" / ".training").exists()


def test_what_is_cut_off_as_it_is_saved_is_saved_again(
    tmp_path: Path, taught: tuple[Teach, Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    teach, module, _ = taught
    with monkeypatch.context() as patch:
        patch.setattr(extend, "write_card", lambda *_: (_ for _ in ()).throw(Cut))
        with pytest.raises(Cut):
            teach(tmp_path / "head")
    assert (tmp_path / "head" / "config.json").exists()
    monkeypatch.setattr(module, "apart", lambda *_: pytest.fail("trained again"))
    teach(tmp_path / "head")
    assert (tmp_path / "head" / "README.md").exists()


def test_what_is_finished_is_not_trained_again(
    tmp_path: Path,
    taught: tuple[Teach, Any, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    teach, module, kind = taught
    first, output = teach(tmp_path / "head"), tmp_path / "head"
    monkeypatch.setattr(module, "apart", lambda *_: pytest.fail("trained again"))
    (output / ".training" / "step-00000008").mkdir(parents=True)  # killed while it was dropped
    assert teach(output).fingerprint == first.fingerprint
    assert "is finished already" in capsys.readouterr().err and not (output / ".training").exists()
    card = (output / "README.md").read_text()
    teach(output, terms="CC BY 4.0")
    assert (output / "README.md").read_text() == card.replace(
        "Terms of these: not stated by who trained it.", "Terms of these: CC BY 4.0"
    )
    assert card != (output / "README.md").read_text()
    assert (
        next(iter(json.loads((output / "training.json").read_text())[kind].values()))["terms"] == "CC BY 4.0"
    )
    with pytest.raises(ArtifactError, match="already holds a head"):
        teach(output, STEPS + 1)


def test_what_is_finished_without_a_record_is_not_trained_again_either(
    tmp_path: Path, taught: tuple[Teach, Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    teach, module, _ = taught
    first, output = teach(tmp_path / "head", record=None), tmp_path / "head"
    assert not (output / "training.json").exists() and not (output / "README.md").exists()
    monkeypatch.setattr(module, "apart", lambda *_: pytest.fail("trained again"))
    assert teach(output, terms="CC BY 4.0", record=None).fingerprint == first.fingerprint
    with pytest.raises(ArtifactError, match="already holds a head"):
        teach(output, STEPS + 1, record=None)
    with pytest.raises(ArtifactError, match="already holds a head"):
        train_head(
            SOURCES, {"sd": Encoder(tiny_vae(), "sd")}, output, replace(QUICK, steps=4), progress=False
        )


def test_a_folder_of_output_that_is_named_as_a_shipped_head_is_the_folder(
    tmp_path: Path, taught: tuple[Teach, Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    teach, _, part = taught
    monkeypatch.chdir(tmp_path)
    made = teach("lcmem-small")
    assert teach("./lcmem-small", terms="mine").fingerprint == made.fingerprint
    written = json.loads((tmp_path / "lcmem-small" / "training.json").read_text())
    assert [one["terms"] for one in written[part].values()] == ["mine"] and written["step"] == 4
