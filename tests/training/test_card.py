"""What the card of a head says of the training that went before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from lcmem_filter.head import LCMemHead
from lcmem_filter.latents import Encoder
from lcmem_filter.training import AddSpaceConfig, add_space, train_head, training_record
from lcmem_filter.training.card import _too_few

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


def test_whom_a_head_saw_before_is_said_to_be_unknown_unless_it_is_known(tmp_path: Path) -> None:
    sources: list[Any] = [Pictures("theirs", 8, 2)]
    known, unknown = "No identity here was trained on. ", "whether one was before"
    told = trained(tmp_path / "first", sources, "", stages=(1, 2))
    assert known in told and "A rate of 0.01 takes 99 in each half:" in told
    assert known in trained(tmp_path / "same", sources, "", tmp_path / "first", stages=(2,))
    for name, before in (("others", "first"), ("later", "others")):
        told = trained(tmp_path / name, [Pictures("mine", 8, 2)], "", tmp_path / before, stages=(2,))
        assert unknown in told and known not in told
    head, record = LCMemHead.from_pretrained(tmp_path / "first"), training_record(tmp_path / "first")
    config = replace(QUICK, steps=2, stage2_steps=2, evaluate_every=2)
    for name, seed, its in (("drawn anew", 1, record), ("without a record", 0, None)):
        given = {"sd": Encoder(tiny_vae(), "sd")}, tmp_path / name, replace(config, seed=seed)
        train_head(sources, *given, stages=(2,), initial=head, record=its, progress=False)
        assert unknown in (tmp_path / name / "README.md").read_text()
    assert _too_few(198, 0.01) == "" and "takes 99" in _too_few(197, 0.01)


def test_terms_and_encoders_of_spaces_that_were_added_stay_with_the_head(tmp_path: Path) -> None:
    theirs: list[Any] = [Pictures("theirs", 8, 2)]
    sd, other = Encoder(tiny_vae(), "sd"), Encoder(tiny_vae(seed=1, latent_channels=6), "other")
    trained(tmp_path / "first", theirs, "", stages=(1, 2))
    given: dict[str, Any] = {"record": training_record(tmp_path / "first"), "terms": "Ask the clinic."}
    first = LCMemHead.from_pretrained(tmp_path / "first")
    stem, mine = AddSpaceConfig(resolution=32, steps=1, batch_images=8), [Pictures("mine", 8, 2, first=50)]
    add_space(first, "other", other, sd, mine, tmp_path / "added", stem, progress=False, **given)
    told = "mine (12 images)"
    for name, space, stages, more in (
        ("kept", "sd", (2,), {"keep_spaces": True}),
        ("descriptors", "sd", (3,), {}),
        ("in it", "other", (2,), {}),
    ):
        config = replace(QUICK, steps=2, stage2_steps=2, stage3_steps=1, evaluate_every=2, **more)
        again = Encoder(tiny_vae(seed=1, latent_channels=6), "named otherwise")
        head, record = LCMemHead.from_pretrained(tmp_path / "added"), training_record(tmp_path / "added")
        assert record is not None
        train_head(
            theirs,
            {space: again if space == "other" else sd},
            tmp_path / name,
            config,
            stages=stages,
            initial=head,
            record=record,
            progress=False,
        )
        card = (tmp_path / name / "README.md").read_text()
        assert card.count("Ask the clinic.") == 1 and told in card, name
        assert ("| other | named otherwise |" in card) == (space == "other")
        assert "whether one was before" in card  # the stem saw others
        assert ("| size |" in card) == (stages != (3,)) and "| stage2_steps |" not in card


def test_samples_of_a_head_that_is_gone_on_from_ask_as_before(tmp_path: Path) -> None:
    theirs: list[Any] = [Pictures("theirs", 8, 2)]
    trained(tmp_path / "first", theirs, "")
    first = LCMemHead.from_pretrained(tmp_path / "first")
    first.register_to_config(middles=True)
    config = replace(QUICK, steps=1, stage2_steps=1)
    given: dict[str, Any] = {"stages": (2,), "initial": first, "progress": False}
    head = train_head(theirs, {"sd": Encoder(tiny_vae(), "sd")}, tmp_path / "second", config, **given)
    assert head.config.middles


def test_any_text_goes_on_a_card_and_whatever_the_systems_encoding(tmp_path: Path) -> None:
    record = training_record("lcmem-small")
    assert record is not None
    given = {
        **record,
        "terms": "\xa9 Gr\xf6\xdfe",
        "data": {**record["data"], "train": {"\xfc\udca9": (1, 1)}},
    }
    (tmp_path / "given.json").write_text(json.dumps(given), encoding="utf-8")
    script = (
        "import json, pathlib, sys\n"
        "from lcmem_filter import LCMemHead\n"
        "from lcmem_filter.training.card import write_card\n"
        "record = json.loads(pathlib.Path('given.json').read_text())\n"
        "write_card(pathlib.Path(), LCMemHead.from_pretrained('lcmem-small'), record)"
    )
    plain = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": os.getcwd()}
    subprocess.run([sys.executable, "-X", "utf8=0", "-c", script], cwd=tmp_path, env=plain, check=True)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "Terms: \xa9 Gr\xf6\xdfe\n" in card and "| \xfc\\udca9 | 1 | 1 |" in card


def test_a_recipe_lists_what_the_stage_went_by_and_no_more(tmp_path: Path) -> None:
    theirs, others = [Pictures("theirs", 8, 2)], [Pictures("others", 8, 1, first=100)]
    never = "keep_initial first_space"
    of_one = "loss temperature margin spread token_weight token_temperature augment elastic same_labels keep_spaces"
    of_two, of_three = "mild_views strong_views half_formed hard_negatives", "match_dim match_width deformed"
    plain = trained(tmp_path / "first", theirs, "")
    for card, there, not_there in (
        (plain, f"{of_one} validation_fraction", f"{of_two} {of_three} {never}"),
        (trained(tmp_path / "given", theirs, "", validation=others), of_one, "validation_fraction"),
        (
            trained(tmp_path / "second", theirs, "", tmp_path / "first", stages=(2,)),
            f"{of_one} {of_two} keep_initial",
            f"{of_three} first_space",
        ),
    ):
        assert not [name for name in there.split() if f"| {name} |" not in card]
        assert not [name for name in not_there.split() if f"| {name} |" in card]
    given = {"sd": Encoder(tiny_vae(), "sd")}, tmp_path / "tokenless", replace(QUICK, size="resnet", steps=1)
    train_head(theirs, *given, progress=False)
    card = (tmp_path / "tokenless" / "README.md").read_text()
    assert "| spread |" in card and "| token_" not in card
