"""What the card of a head says of the training that went before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from lcmem_filter.head import LCMemHead
from lcmem_filter.latents import Encoder
from lcmem_filter.training import train_head, training_record

from tests.tiny import tiny_vae
from tests.training.pictures import QUICK, Pictures

BEFORE = "The head that it went on from was trained on "


def trained(folder: Path, sources: list[Any], terms: str, before: Path | None = None, **more: Any) -> str:
    config = replace(QUICK, steps=2, stage2_steps=2, evaluate_every=2)
    given: dict[str, Any] = {"terms": terms, "progress": False, **more}
    if before is not None:
        given |= {"initial": LCMemHead.from_pretrained(before), "record": training_record(before)}
    train_head(sources, {"sd": Encoder(tiny_vae(), "sd")}, folder, config, **given)
    return (folder / "README.md").read_text()


def test_terms_of_what_a_head_was_trained_on_before_stay_with_it(tmp_path: Path) -> None:
    theirs, mine = [Pictures("theirs", 8, 2)], [Pictures("mine", 10, 1, first=100)]
    assert BEFORE not in trained(tmp_path / "first", theirs, "For research alone.", stages=(1, 2))
    told = trained(tmp_path / "second", mine, "My own.", tmp_path / "first")
    assert told.count(BEFORE) == 1 and "Terms: My own." in told
    assert f"{BEFORE}theirs (" in told and "Terms of these: For research alone." in told
    told = trained(tmp_path / "third", mine, "", tmp_path / "second")
    assert told.count(BEFORE) == 2 and "not stated by who trained it" in told
    assert "Terms of these: My own." in told and "Terms of these: For research alone." in told


def test_a_checkpoint_is_said_to_be_chosen_where_there_was_a_choice(tmp_path: Path) -> None:
    sources: list[Any] = [Pictures("theirs", 8, 2)]
    chose = "They also chose the checkpoint"
    assert chose not in trained(tmp_path / "one", sources, "")
    config = replace(QUICK, steps=4, evaluate_every=2)
    train_head(sources, {"sd": Encoder(tiny_vae(), "sd")}, tmp_path / "two", config, progress=False)
    assert chose in (tmp_path / "two" / "README.md").read_text()
