"""The wheel that users install: what is in it, and that it works where nothing else is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lcmem_filter"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source")
    shutil.copytree(PACKAGE, source / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(
            ROOT / name, source
        )  # a copy, since building leaves files behind that later builds pick up
    pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", folder, source)
    (built,) = folder.glob("lcmem_filter-*.whl")
    return built


@pytest.fixture(scope="module")
def clean_python(wheel, tmp_path_factory) -> Path:
    """The interpreter of a new environment with the wheel, its dependencies and nothing else."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip(python, "install", "--quiet", "-c", ROOT / "constraints.txt", f"{wheel}[cpu]")
    return python


def pip(python, *arguments) -> None:
    command = [python, "-m", "pip", *arguments]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def run(*command, cwd: Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**environment, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_wheel_holds_the_whole_package_and_nothing_else(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    sources = {str(path.relative_to(ROOT)) for path in package_files(PACKAGE)}
    assert {"lcmem_filter/py.typed", "lcmem_filter/cli/main.py"} <= sources
    assert sources - packed == set()
    assert {name for name in packed - sources if ".dist-info/" not in name} == set()


def test_wheel_has_weights_and_licence(wheel):
    packed = zipfile.ZipFile(wheel).namelist()
    for folder in ("lcmem_filter/heads/", "lcmem_filter/demo/weights/"):
        assert any(name.startswith(folder) and name.endswith(".safetensors") for name in packed), folder
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in packed)


def test_installed_command_answers_and_its_demo_runs(clean_python, tmp_path):
    script = clean_python.parent / "lcmem-filter"
    about = run(script, "--help", cwd=tmp_path)
    assert about.returncode == 0 and "demo" in about.stdout, about.stderr
    demo = run(script, "demo", "--output", tmp_path / "demo", cwd=tmp_path)
    assert demo.returncode == 0, demo.stdout[-2000:] + demo.stderr[-4000:]
    assert list((tmp_path / "demo").glob("*.png"))
    for images, status in (("without", 1), ("with", 0)):  # 0: the threshold is not doubted either
        check = run(script, "check", f"demo/{images}", "--index", "demo/index", cwd=tmp_path)
        assert check.returncode == status, check.stderr[-4000:]
        assert [line for line in check.stderr.splitlines() if line.startswith("[")] == []  # of other packages


def test_installed_head_loads_by_name(clean_python, tmp_path):
    code = "import lcmem_filter; print(lcmem_filter.LCMemHead.from_pretrained('lcmem-small').spaces)"
    done = run(clean_python, "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "sd" in done.stdout


def package_files(folder: Path) -> list[Path]:
    """Files of the package that belong in a wheel: all but what running it leaves behind."""
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
