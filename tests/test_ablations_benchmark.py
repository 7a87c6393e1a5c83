"""The benchmark of the score's parts: its standard variant is the filter's own score, and the command runs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from lcmem_filter.head import LCMemHead

from tests.index.material import saved_encoder
from tests.test_detection_benchmark import on_ones_own_table
from tests.tiny import tiny_vae

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "ablations" / "run.py"

pytestmark = pytest.mark.slow


def test_the_filter_is_the_filter_and_parts_are_worth_something(tmp_path):
    pytest.importorskip("sklearn")
    saved_encoder(tmp_path)
    torch.manual_seed(0)
    head = LCMemHead.create("micro", {"sd": 4}, token_dim=8, match_dim=8, match_spaces=["sd"])
    head.add_probes("sd", tiny_vae())
    head.save_pretrained(tmp_path / "head")
    output = tmp_path / "out" / "ablations.json"
    python, *rest = on_ones_own_table(SCRIPT, tmp_path, identities=100, rate=0.2, draws=40, output=output)
    command = [python, "-c", COMPARED_WITH_THE_FILTER, *rest]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "as the filter scores them" in done.stdout
    table = json.loads(output.read_text())["variants"]
    for task, row in table["the filter"].items():
        assert row["gained"] == 0 and row["gained_interval"] == [0, 0], task
        for variant in table.values():
            low, high = variant[task]["gained_interval"]
            assert -1 <= low <= high <= 1 and low <= variant[task]["gained"] + 0.2


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
            of = script["scores"](found, script["VARIANTS"][name]).amax(1)
            expected = Searcher(baseline, stored[rows]).search(queries[first], 1).similarity[:, 0]
            torch.testing.assert_close(of[first], expected, rtol=0, atol=1e-5)
        print(len(first), "copies as the filter scores them")
    return found

script["main"].__globals__["compared"] = same
script["main"]()
"""
