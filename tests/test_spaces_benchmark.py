"""The benchmark across spaces and resolutions as a command, on a user's own table of drawn pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lcmem_filter.head import LCMemHead

from tests.index.material import saved_encoder
from tests.test_detection_benchmark import write_table
from tests.tiny import tiny_vae

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "spaces" / "run.py"

pytestmark = pytest.mark.slow


def test_cells_are_measured_once(tmp_path):
    pytest.importorskip("sklearn")
    saved_encoder(tmp_path)
    other = tiny_vae(seed=1, latent_channels=6)
    other.save_pretrained(tmp_path / "other")
    torch.manual_seed(0)
    head = LCMemHead.create("micro", {"sd": 4, "other": 6}, token_dim=8, match_dim=8, match_spaces=["sd"])
    head.add_probes("sd", tiny_vae())
    head.add_probes("other", other)
    head.save_pretrained(tmp_path / "head")
    table = write_table(tmp_path, 60)

    def measured(*encoders: str) -> dict[str, dict[str, dict[str, object]]]:
        output = tmp_path / "out" / "spaces.json"
        options = {"head": tmp_path / "head", "data": table, "cache": tmp_path / "cache", "output": output}
        more = {"identity-column": "person", "rate": 0.2, "draws": 20, "resolution": 32}
        given = [word for name, value in {**options, **more}.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, str(SCRIPT), *given, "--vae", *encoders]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-4000:]
        rows = json.loads(output.read_text())["table"]
        return {f"{row['query']} in {row['index']}": row for row in rows}

    first = measured(f"sd={tmp_path / 'vae'}", f"other={tmp_path / 'other'}")
    assert list(first) == ["sd in sd", "sd in other", "other in sd", "other in other"]
    assert [row["by"] for row in first.values()] == ["descriptors", "tokens", "tokens", "tokens"]
    for name in ("sd in sd", "other in other"):  # random stems agree within themselves, not with each other
        assert first[name]["auc"]["same_identity"] > 0.95 > first["sd in other"]["auc"]["same_identity"]
    for row in first.values():
        for share, low, high in row["recall"]["mild_copies"].values():
            assert 0 <= low <= high <= 1 and 0 <= share <= 1
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache" / "cells").glob("*.json")}
    assert len(kept) == 4
    again = measured(f"sd={tmp_path / 'vae'}", f"other@64={tmp_path / 'other'}")
    assert again["sd in sd"] == first["sd in sd"]
    assert again["other@64 in other@64"]["auc"] != first["other in other"]["auc"]
    cells = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache" / "cells").glob("*.json")}
    assert len(cells) == 7 and kept.items() <= cells.items()
