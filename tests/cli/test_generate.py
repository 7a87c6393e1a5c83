"""``lcmem-filter generate``: what it prints and how it exits, in processes that are killed and processes that share."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lcmem_filter.cli._data import read_salt
from lcmem_filter.cli.generate import _bytes
from lcmem_filter.cli.main import main
from lcmem_filter.errors import DataError

from ..generation.material import PROMPTS, checksums, material

ROOT = Path(__file__).resolve().parents[2]
CALL = ["--steps", "2", "--guidance-scale", "2", "--height", "32", "--width", "32", "--device", "cpu"]
CALL += ["--batch-size", "2", "--max-resamples", "1", "--threads", "1", "--stop-rejection-rate", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("generate")
    material(made)
    lines = [f"{prompt},{prompt.split()[1]}" for prompt in PROMPTS]
    (made / "prompts.csv").write_text("prompt,label\n" + "\n".join(lines) + "\n")
    return made


@pytest.fixture
def generate(folder, capsys, monkeypatch):
    """Runs the command in the folder; gives its exit status, what it printed as an object, and stderr."""
    monkeypatch.chdir(folder)

    def run(*arguments: str):
        status = main(["generate", *arguments])
        out, err = capsys.readouterr()
        return status, json.loads(out) if out else None, err

    return run


def job(output: Path) -> list[str]:
    given = ["--index", "index", "--prompts", "prompts.csv", "--output", str(output)]
    return ["generate", "pipeline", *given, *CALL]


def test_a_job_ends_with_0_and_a_summary(generate, tmp_path):
    status, printed, err = generate(*job(tmp_path / "set")[1:], "--no-thumbnails", "--training", "train")
    assert status == 0, err
    assert printed["asked_for"] == len(PROMPTS) == printed["delivered"] + printed["withheld"]
    assert printed["withheld"] > 0 and printed["verdict"] in err and Path(printed["report"]).is_file()
    metadata, manifest = (
        (tmp_path / "set" / name).read_text() for name in ("metadata.jsonl", "manifest.jsonl")
    )
    rows = [json.loads(line) for line in metadata.splitlines()]
    named = [near for row in map(json.loads, manifest.splitlines()) for near in row["nearest"]]
    assert named and not any(json.dumps(name) in metadata for name in named), (
        "what goes out names no training image"
    )
    assert {row["label"] for row in rows} <= {"cat", "dog", "picture"} and len(rows) == printed["delivered"]
    assert "data:image/jpeg" not in (tmp_path / "set" / "report" / "report.html").read_text()


def test_flagged_matches_end_with_1_and_a_stop_with_2(generate, tmp_path):
    options = ["--on-memorized", "flag", "--count", "2", "--training", "train"]
    status, printed, _ = generate(*job(tmp_path / "set")[1:], *options)
    assert (status, printed["delivered"]) == (1, 2 * len(PROMPTS))
    assert "data:image/jpeg" in (tmp_path / "set" / "report" / "report.html").read_text()
    salted = ["--salt-file", str(tmp_path / "salt")]
    assert generate(*job(tmp_path / "set")[1:], *options, *salted)[0] == 1
    rows = map(json.loads, (tmp_path / "set" / "manifest.jsonl").read_text().splitlines())
    named = {near for row in rows for near in row["nearest"]}
    written = [(tmp_path / "set" / "report" / name).read_text() for name in ("report.html", "report.json")]
    assert named and not any(name in text for name in named for text in written)
    assert "data:image/jpeg" in written[0] and len((tmp_path / "salt").read_text()) == 64
    status, printed, err = generate(*job(tmp_path / "small")[1:], "--disk-budget", "8kB")
    assert status == 2 and printed is None and "disk budget of 8,000" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give --prompts FILE, or --count N"),
        (["--count", "2", "--seed-column", "s"], "--seed-column needs --prompts"),
        (["--count", "2"], "pipeline draws from prompts, got none; give --prompts FILE"),
        (["--prompts", "prompts.csv", "--disk-budget", "much"], "a number with a unit"),
        (["--count", "2", "--rungs", "new_seed,prayer"], "no rung 'prayer'; there are new_seed"),
        (["--count", "2", "--max-resamples", "0"], "--max-resamples is at least 1"),
        (["--count", "2", "--steps", "0"], "--steps is at least 1, got 0"),
        (["--count", "2", "--index", "nowhere"], "no index at nowhere"),
        (["--count", "2", "--steps", "2", "pipe"], "no pipeline could be loaded from 'pipe'"),
    ],
)
def test_what_cannot_be_is_refused_with_2(generate, tmp_path, arguments, says):
    pipeline = [] if arguments[-1:] == ["pipe"] else ["pipeline"]
    output = tmp_path / "set"
    status, printed, err = generate("--index", "index", "--output", str(output), *arguments, *pipeline)
    assert status == 2 and printed is None and says in err
    assert not output.exists()


def test_training_images_may_stand_in_a_table_of_the_users_own(folder, generate, tmp_path):
    rows = [f"train/{path.name},{path.name}" for path in sorted((folder / "train").glob("*.png"))]
    (folder / "train.csv").write_text("\n".join(["picture,name", *rows]))
    flag, shown = [*job(tmp_path / "set")[1:], "--on-memorized", "flag"], []
    for given in ([], ["--training", "train.csv", "--image-column", "picture", "--id-column", "name"]):
        status, _, err = generate(*flag, *given)
        assert status == 1, err
        page = (tmp_path / "set" / "report" / "report.html").read_text()
        shown.append(page.count("data:image/jpeg"))
    assert 0 < shown[0] < shown[1]  # matches alone, and beside their training images
    status, _, err = generate(*job(tmp_path / "other")[1:], "--image-column", "picture")
    assert status == 2 and "without --training DATA no images are read; leave out --image-column" in err


def test_the_key_of_a_report_does_not_lie_with_it(generate, tmp_path):
    inside = tmp_path / "set" / "report" / "salt"
    status, _, err = generate(*job(tmp_path / "set")[1:], "--salt-file", str(inside))
    assert status == 2 and "keep the key apart" in err and not inside.exists()


@pytest.mark.parametrize("links", [True, False])
def test_processes_that_start_at_once_share_one_new_key(tmp_path, monkeypatch, links):
    path, link = tmp_path / "salt", os.link
    given = argparse.Namespace(salt_file=str(path), output=str(tmp_path / "set"))

    def linked(aside, name):
        assert len(Path(aside).read_text()) == 64  # nobody sees half of it
        if not links:
            raise PermissionError("links are not supported")
        link(aside, name)

    monkeypatch.setattr(os, "link", linked)
    first = read_salt(given, pictures=False)
    assert len(first) == 64 and path.stat().st_mode & 0o777 == 0o600
    if links:
        monkeypatch.setattr(Path, "exists", lambda self: False)  # as the other process saw it
        assert read_salt(given, pictures=False) == first
    assert [one.name for one in tmp_path.iterdir()] == ["salt"]


TOLD = """
import sys
from pathlib import Path
from lcmem_filter.cli.main import main
from lcmem_filter.processes import this_process

status, this = main(sys.argv[1:]), this_process()
Path(__file__).with_name(f"process {this.process_index} of {this.num_processes}").touch()
sys.exit(status)
"""
"""What a command does, and which process it was done by."""


@pytest.mark.slow
def test_a_killed_process_and_two_processes_give_the_same_bytes(folder, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    alone = [sys.executable, "-m", "lcmem_filter", *job(tmp_path / "killed")]
    process = subprocess.Popen(alone, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
    receipts = tmp_path / "killed" / ".job" / "batches"
    while process.poll() is None and not list(receipts.glob("*.json")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "killed" / "metadata.jsonl").exists()
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    (tmp_path / "told.py").write_text(TOLD)
    launch += [str(tmp_path / "told.py")]
    for output in ("killed", "two"):
        command = [*launch, *job(tmp_path / output)]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        (summary,) = done.stdout.splitlines()
        assert json.loads(summary)["asked_for"] == len(PROMPTS)
        assert {path.name for path in tmp_path.glob("process *")} == {"process 0 of 2", "process 1 of 2"}
    assert checksums(tmp_path / "killed") == checksums(tmp_path / "two")
    assert len(list((tmp_path / "two" / "images").iterdir())) > 1


@pytest.mark.parametrize(
    ("text", "expected"), [("20GB", 20e9), ("1.5 TiB", 1.5 * 2**40), ("512k", 512e3), ("7 B", 7)]
)
def test_a_disk_budget_has_a_unit(text, expected):
    assert _bytes(text) == expected
    with pytest.raises(DataError, match="with a unit"):
        _bytes(text.rstrip("GTiBk "))
