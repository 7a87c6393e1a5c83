"""The benchmark of the training recipe's parts: heads differ by what is changed, and are compared seed by seed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from lcmem_filter.head import LCMemHead

from tests.index.material import head, saved_encoder
from tests.test_detection_benchmark import on_ones_own_table
from tests.tiny import tiny_vae

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "recipe" / "run.py"

pytestmark = pytest.mark.slow


def test_variants_are_trained_and_compared_with_the_recipe(tmp_path):
    pytest.importorskip("sklearn")
    saved_encoder(tmp_path)
    head().save_pretrained(tmp_path / "head")
    output = tmp_path / "out" / "recipe.json"
    command = on_ones_own_table(
        SCRIPT,
        tmp_path,
        *("--variants", "a head of 0.2 million parameters"),
        identities=60,
        rate=0.2,
        draws=40,
        steps=4,
        pairs=8,
        seeds=2,
        output=output,
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    table = json.loads(output.read_text())["variants"]
    assert list(table) == ["the recipe", "a head of 0.2 million parameters"]
    for name, row in table.items():
        assert row["seeds"] == [0, 1]
        assert row["loss"]["0"] != row["loss"]["1"], name
        assert name == "the recipe" or row["loss"]["0"] != table["the recipe"]["loss"]["0"]
        for score in ("filter", "embedding"):
            for task, cell in row[score].items():
                low, high = cell["gained_interval"]
                assert -1 <= low <= high <= 1
                usual = table["the recipe"][score][task]
                assert cell["gained"] == pytest.approx(
                    sum(cell["of_seeds"]) / 2 - sum(usual["of_seeds"]) / 2, abs=1e-9
                )
    assert table["the recipe"]["filter"]["heavy_copies"]["gained_interval"] == [0, 0]

    other = ("--variants", "half of the identities", "--descriptors", "2", "--seeds", "1")
    command += [*other, "--output", str(tmp_path / "descriptors.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"{tmp_path / 'cache' / 'recipe' / 'the-recipe-0'} is finished already" in done.stderr
    results = json.loads((tmp_path / "descriptors.json").read_text())
    assert list(results["variants"]) == ["the recipe", "half of the identities"]
    assert "then 2 steps of stage 3" in results["about"]
    for name, row in results["variants"].items():
        assert [step for step, _ in row["loss"]["0"]] == [2], name


def test_a_stem_of_the_shared_head_is_compared_with_a_head_of_the_space(tmp_path):
    pytest.importorskip("sklearn")
    saved_encoder(tmp_path)
    head().save_pretrained(tmp_path / "head")
    tiny_vae(seed=1, latent_channels=6).save_pretrained(tmp_path / "other")
    output = tmp_path / "out" / "recipe-spaces.json"
    steps = {"steps": 4, "descriptors": 2, "stem_steps": 3}
    command = on_ones_own_table(
        SCRIPT.with_name("spaces.py"),
        tmp_path,
        *("--further", f"other={tmp_path / 'other'}"),
        identities=60,
        rate=0.2,
        draws=40,
        pairs=8,
        seeds=1,
        output=output,
        **steps,
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    first = json.loads(output.read_text())
    spaces = first["spaces"]
    assert {name: list(heads) for name, heads in spaces.items()} == {
        "sd": ["own"],
        "other": ["own", "shared"],
    }
    own, shared = spaces["other"]["own"], spaces["other"]["shared"]
    assert own["embedding"] != shared["embedding"]
    for score in ("filter", "embedding"):
        for task, cell in shared[score].items():
            usual = own[score][task]
            assert usual["gained"] == 0 and usual["gained_interval"] == [0, 0]
            assert cell["gained"] == pytest.approx(cell["of_seeds"][0] - usual["of_seeds"][0], abs=1e-9)
    taught = LCMemHead.from_pretrained(tmp_path / "cache" / "recipe-spaces" / "other-added-0")
    trunk = LCMemHead.from_pretrained(tmp_path / "cache" / "recipe-spaces" / "sd-0-descriptors")
    assert set(taught.spaces) == {"sd", "other"} and taught.has_descriptors("other")
    assert taught.fingerprint_of("sd") == trunk.fingerprint_of("sd")

    results = json.loads(output.read_text())
    results["spaces"]["another"] = results["spaces"].pop("other")
    output.write_text(json.dumps(results))
    done = subprocess.run([*command, "--add"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr.count("is finished already") == 4 and "stem of other" not in done.stderr
    assert json.loads(output.read_text()) == {**first, "spaces": {**spaces, "another": spaces["other"]}}

    results["spaces"]["sd"]["own"]["filter"]["mild_copies"]["gained"] = 0.5
    output.write_text(json.dumps(results))
    done = subprocess.run([*command, "--add"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and "other figures for sd" in done.stderr
    assert json.loads(output.read_text()) == results
