"""The examples: each runs, withholds what matches, and shows in its README the lines that the filter took."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image

from lcmem_filter.filter import MemorizationFilter
from lcmem_filter.index import MemorizationIndex
from lcmem_filter.types import Calibration
from lcmem_filter.verification import STATISTIC

from .generation.material import material

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))

everything = pytest.mark.parametrize("index", ["index", "everything-matches"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny pipeline, an index, and one that finds a match in whatever is drawn."""
    made = tmp_path_factory.mktemp("examples")
    material(made, rejected=0.2)
    (made / "prompts.txt").write_text("a cat\na dog\n")
    copy = made / "everything-matches"
    shutil.copytree(made / "index", copy)
    strict = MemorizationIndex.load(copy)
    strict.set_calibration(Calibration((-1.0,), 0.5, -1.0, strict.space, 1, {}, (0.0, 1.0), STATISTIC))
    return made


@pytest.fixture
def run(folder, monkeypatch, tmp_path, recwarn):
    """Runs a script as a user does, but in this process; gives the folder of its images."""

    def start(script: str, index: str, *more: str, left: str) -> Path:
        shutil.copy(folder / "train" / "002.png", tmp_path / left)  # by an earlier run without the filter
        arguments = [script, str(folder / "pipeline"), str(folder / index), str(tmp_path), *more]
        monkeypatch.setattr(sys, "argv", arguments)
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return tmp_path

    return start


def pictures(where: Path) -> list[str]:
    """Names of the images there, none of them blank."""
    paths = sorted(where.glob("*.png"))
    assert all(max(high - low for low, high in Image.open(path).getextrema()) > 0 for path in paths)
    return [path.name for path in paths]


@pytest.mark.filterwarnings("default::lcmem_filter.pipeline.MemorizationWarning")
@everything
def test_plain_script(run, index):
    names = pictures(run("text_to_image.py", index, "a cat", left="7.png"))
    assert len(names) == 0 if index == "everything-matches" else 1 <= len(names) <= 8


@pytest.mark.filterwarnings("default::lcmem_filter.pipeline.MemorizationWarning")
@everything
def test_augmentation(run, folder, index, tmp_path_factory, monkeypatch):
    images = tmp_path_factory.mktemp("images")
    for name in ("000.png", "001.png"):
        (images / name).write_bytes((folder / "train" / name).read_bytes())
    named = []
    plain = MemorizationFilter.judge

    def judge(self, latents, *, allowed_ids=None):
        named.append(allowed_ids)
        return plain(self, latents, allowed_ids=allowed_ids)

    monkeypatch.setattr(MemorizationFilter, "judge", judge)
    names = pictures(run("augment.py", index, str(images), "a cat", left="000-1.png"))
    assert named[0] == ("000.png",) and set(named) == {("000.png",), ("001.png",)}
    assert len(names) == 0 if index == "everything-matches" else 1 <= len(names) <= 4


def test_variants_do_not_take_the_place_of_images(run, tmp_path):
    with pytest.raises(SystemExit, match="OUTPUT is the folder of IMAGES"):
        run("augment.py", "index", str(tmp_path), "a cat", left="000-1.png")
    assert pictures(tmp_path) == ["000-1.png"]


@pytest.mark.filterwarnings("default::lcmem_filter.pipeline.MemorizationWarning")
@everything
def test_batch_job_in_one_process(run, folder, index):
    names = pictures(run("batch_job.py", index, str(folder / "prompts.txt"), left="000001.png"))
    assert set(names) <= {"000000.png", "000001.png"} and bool(names) == (index == "index")


@pytest.mark.slow
def test_batch_job_in_two_processes(folder, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    script = tmp_path / "told.py"
    script.write_text(
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "mine = [number for number, _ in runpy.run_path(sys.argv[0])['mine']]\n"
        "sys.stdout.write(f'prompts {mine}\\n')\n"
    )
    launch += [str(script), str(EXAMPLES / "batch_job.py")]
    output = tmp_path / "images"
    arguments = [str(folder / "pipeline"), str(folder / "index"), str(output), str(folder / "prompts.txt")]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run([*launch, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert set(pictures(output)) <= {"000000.png", "000001.png"} and pictures(output)
    assert {line for line in done.stdout.splitlines() if line[:8] == "prompts "} == {
        "prompts [0]",
        "prompts [1]",
    }


@everything
def test_service(folder, index, monkeypatch):
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    uvicorn = type(sys)("uvicorn")  # the server itself is not under test
    monkeypatch.setitem(sys.modules, "uvicorn", uvicorn)
    service = runpy.run_path(str(EXAMPLES / "service.py"))["service"]
    with TestClient(service(str(folder / "pipeline"), str(folder / index))) as client:
        answers = [client.get("/image", params={"prompt": "a cat"}) for _ in range(2)]
        if index == "everything-matches":
            assert [answer.status_code for answer in answers] == [503, 503]
            assert not any(answer.content for answer in answers)
        else:
            assert 200 in [answer.status_code for answer in answers]
            assert {answer.content[:4] for answer in answers if answer.status_code == 200} == {b"\x89PNG"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_diff_is_what_the_script_has(script):
    readme = (EXAMPLES / "README.md").read_text()
    section = readme.split(f"## [{script}]")[1].split("\n## ")[0]
    lines = re.search(r"```diff\n(.*?)```", section, re.DOTALL)[1].splitlines()
    added = [line[1:] for line in lines if line.startswith("+")]
    assert 1 <= len(added) <= 3
    shown = "\n".join(line[1:] for line in lines)
    source = (EXAMPLES / script).read_text()
    assert shown in source
    plain = "\n".join(line for line in source.splitlines() if line not in added)
    compile(plain, script, "exec")
    code = plain.split('"""')[2]
    assert "lcmem" not in code and "memorization" not in code


def test_without_its_lines_a_script_is_a_plain_one(run, folder, tmp_path, monkeypatch):
    """So the diff shows all that it takes."""
    source = (EXAMPLES / "text_to_image.py").read_text().splitlines()
    (tmp_path / "plain.py").write_text(
        "\n".join(line for line in source if "memorization_filter" not in line)
    )
    called = []
    monkeypatch.setattr(StableDiffusionPipeline, "with_memorization_filter", called.append)
    monkeypatch.setattr(
        sys, "argv", ["plain.py", str(folder / "pipeline"), "no index", str(tmp_path), "a cat"]
    )
    runpy.run_path(str(tmp_path / "plain.py"), run_name="__main__")
    assert len(pictures(tmp_path)) == 8 and not called
