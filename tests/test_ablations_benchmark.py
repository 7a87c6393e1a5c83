"""The benchmark of the score's parts: its standard variant is the filter's own score, and the command runs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from lcmem_filter.head import LCMemHead

from tests.index.material import saved_encoder
from tests.test_detection_benchmark import on_ones_own_table
from tests.tiny import tiny_vae

SCRIPTS = Path(__file__).resolve().parents[1] / "benchmarks" / "ablations"

pytestmark = pytest.mark.slow


def run(script: str, code: str, tmp_path: Path, *more: str, **changes: Any) -> dict[str, Any]:
    """The results of a command that ``code`` goes around."""
    pytest.importorskip("sklearn")
    saved_encoder(tmp_path)
    torch.manual_seed(0)
    changes = {"token_dim": 8, "match_dim": 8, "match_spaces": ["sd"], **changes}
    head = LCMemHead.create("micro", {"sd": 4}, **changes)
    head.add_probes("sd", tiny_vae())
    head.save_pretrained(tmp_path / "head")
    output = tmp_path / "out" / "ablations.json"
    given = on_ones_own_table(SCRIPTS / script, tmp_path, identities=100, rate=0.2, draws=40, output=output)
    python, *rest = given
    code_or_script = ["-c", code, *rest] if code else rest
    done = subprocess.run([python, *code_or_script, *more], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert not code or "as the filter scores them" in done.stdout
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def test_the_filter_is_the_filter_and_parts_are_worth_something(tmp_path):
    table = run("run.py", COMPARED_WITH_THE_FILTER, tmp_path)["variants"]
    for task, row in table["the filter"].items():
        assert row["gained"] == 0 and row["gained_interval"] == [0, 0], task
        for variant in table.values():
            low, high = variant[task]["gained_interval"]
            assert -1 <= low <= high <= 1 and low <= variant[task]["gained"] + 0.2


def test_a_heads_own_weight_of_its_embeddings_is_the_filters(tmp_path):
    table = run("run.py", COMPARED_WITH_THE_FILTER, tmp_path, token_dim=0, embedding_weight=0.2)["variants"]
    assert not [name for name in table if "tokens" in name]
    fifth = table["descriptors as part of the likeness, embeddings a fifth"]
    assert fifth["mild_copies"]["recall"] == table["the filter"]["mild_copies"]["recall"]
    assert any(row["gained_interval"] != [0, 0] for row in table["descriptors alone"].values())


def test_identities_are_concluded_as_the_filter_concludes_them(tmp_path):
    smaller = ("--index-share", "0.5", "--index-draws", "2")
    results = run("identities.py", CONCLUDED_BY_THE_FILTER, tmp_path, *smaller)
    (table,) = results["heads"].values()
    assert "in two indexes of about 60 images, 2 times with other training images" in results["about"]
    quantiles = table.pop("different identities")
    assert 0 < quantiles["0.5"] <= quantiles["0.95"] <= quantiles["0.99"] <= 1
    for row in table["never"].values():
        assert row["gained"] == 0 and row["gained_interval"] == [0, 0]
    assert {"never", "identities told", "half of the identities told", "0.5", "0.75"} < set(table)


def test_the_filter_stands_beside_itself_without_a_part(tmp_path):
    found = run("without.py", "", tmp_path, "in-place", "--heads", "lcmem-small")
    (tasks,) = found["heads"].values()
    assert set(tasks) == {"mild_copies", "heavy_copies", "same_identity", "half_formed_copies"}
    (one_domain,) = tasks["half_formed_copies"].values()
    formed = one_domain["methods"]
    assert set(formed) == {"lcmem", "lcmem_not_in_place"}
    gained, low, high = formed["lcmem_not_in_place"]["leads"]["lcmem"]
    assert low <= gained <= high and gained == pytest.approx(
        formed["lcmem"]["recall"] - formed["lcmem_not_in_place"]["recall"]
    )
    assert found["fingerprints"]["lcmem"] == found["fingerprints"]["lcmem_not_in_place"] != ""


def test_how_near_a_copys_picture_lies_by_each_key(tmp_path):
    found = run("ranks.py", OWN_AND_OTHER_PICTURES, tmp_path, "--heads", str(tmp_path / "head"))
    for task, least, most in (("own", 1, 1), ("another's", 0, 0.3)):
        (one,) = found["tasks"][task].values()
        assert set(one["by"]) == {"outlines", "embeddings of head"} and one["n"] == 20
        for by in one["by"].values():
            shares = [share for share, low, high in by if low <= share <= high]
            assert least <= shares[0] <= most and shares == sorted(shares) and shares[-1] == 1
            assert len(shares) == len(found["ranks"])


OWN_AND_OTHER_PICTURES = """
import runpy, sys
sys.argv = sys.argv[1:]
script = runpy.run_path(sys.argv[0])
import numpy as np
from protocol import Task
from views import View

def tasks(design, keeper):
    own = View("own", design.test, design.copied, lambda picture, draw: picture, keeper.resolution)
    images = own.open(keeper.cache)
    return [Task("own", design.copied, images), Task("another's", np.roll(design.copied, 1), images)]

script["main"].__globals__["main_tasks"] = tasks
script["main"]()
print("each lies where its picture does, as the filter scores them")
"""

COMPARED_WITH_THE_FILTER = """
import runpy, sys
sys.argv = sys.argv[1:]
script = runpy.run_path(sys.argv[0])
import torch
from lcmem_filter.baselines import Searcher

def same(baseline, every, queries, task, design, compared=script["compared"]):
    found = compared(baseline, every, queries, task, design)
    if task.name == "mild_copies":
        rows = design.index_rows(0)
        first = [i for i in range(len(queries)) if design.half[task.rows[i]] == 0]
        told = baseline.told(every, torch.from_numpy(design.identity))
        for name, stored in (("the filter", every), ("identities told", told)):
            of = script["scores"](found, script["variants_of"](baseline.head)[name]).amax(1)
            expected = Searcher(baseline, stored[rows]).search(queries[first], 1).similarity[:, 0]
            torch.testing.assert_close(of[first], expected, rtol=0, atol=1e-5)
        print(len(first), "copies as the filter scores them")
    return found

script["main"].__globals__["compared"] = same
script["main"]()
"""

CONCLUDED_BY_THE_FILTER = """
import runpy, sys
from pathlib import Path
sys.argv = sys.argv[1:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
script = runpy.run_path(sys.argv[0])
import numpy as np
import torch
from lcmem_filter.baselines import Searcher

def same(baseline, every, queries, task, design, compared=script["compared"]):
    found = compared(baseline, every, queries, task, design)
    if task.name == "mild_copies":
        rows = design.index_rows(0)
        first = [i for i in range(len(queries)) if design.half[task.rows[i]] == 0]
        likeness, each = float(found.to_first.median()), np.arange(len(every))
        known = np.random.default_rng(script["SEED"]).random(design.told.max() + 1) < 0.5
        half = baseline.told(every, torch.from_numpy(np.where(known[design.told], design.told, -1 - each)))
        before = []
        for stored, share, least in ((every, 0, 0), (every, 0, likeness), (half, 0.5, 0), (half, 0.5, likeness)):
            baseline.head.register_to_config(same_identity=least)
            baseline._last = None
            identities = script["told"](found, share)
            identities = script["concluded"](found, least, identities) if least else identities
            of = script["scores"](found, identities).amax(1)[first]
            expected = Searcher(baseline, stored[rows]).search(queries[first], 1).similarity[:, 0]
            torch.testing.assert_close(of, expected, rtol=0, atol=1e-5)
            before.append(of)
        plain, concluded, _, mixed = before
        assert (concluded - plain).abs().max() > 1e-3 and (mixed - plain).abs().max() > 1e-3
        assert (mixed - concluded).abs().max() > 1e-3
        baseline.head.register_to_config(same_identity=0.0)
        print(len(first), "copies as the filter scores them")
    return found

script["main"].__globals__["compared"] = same
script["main"]()
"""
