"""The package as a whole: what importing it costs, what is public, what the README says of it."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import lcmem_filter
from lcmem_filter.cli.main import build_parser, commands

from tools.readme import PAGES, README, refreshed

HEAVY = (
    "torch",
    "diffusers",
    "transformers",
    "datasets",
    "accelerate",
    "faiss",
    "matplotlib",
    "numpy",
    "pyarrow",
)


def run_python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments, "-c", code], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LOADED = f"import sys; print([name for name in {HEAVY} if name in sys.modules])"


@pytest.mark.parametrize(
    "statement",
    [
        "import lcmem_filter",
        "import lcmem_filter.types, lcmem_filter.errors, lcmem_filter.pipeline",
        "from lcmem_filter.cli.main import build_parser; build_parser().format_help()",
    ],
)
def test_importing_loads_nothing_heavy(statement):
    assert run_python(f"{statement}; {LOADED}").strip() == "[]"


@pytest.mark.parametrize("order", ["import lcmem_filter, diffusers", "import diffusers, lcmem_filter"])
def test_pipelines_get_their_methods_whichever_is_imported_first(order):
    code = f"{order}; p = diffusers.StableDiffusionPipeline; print(p.with_memorization_filter.__name__)"
    assert run_python(code).strip() == "with_memorization_filter"


def test_public_names_are_pinned_and_all_there():
    assert sorted(lcmem_filter.__all__) == [
        "Decision",
        "EarlyStop",
        "LCMemHead",
        "LcmemFilterError",
        "MemorizationError",
        "MemorizationFilter",
        "MemorizationIndex",
        "Neighbour",
        "TrainingConfig",
        "attach",
        "audit_images",
        "calibrate",
        "detach",
        "generate",
        "load_encoder",
        "open_images",
        "train_head",
        "write_report",
    ]
    for name in lcmem_filter.__all__:
        assert getattr(lcmem_filter, name) is not None


def test_commands_are_the_expected_ones():
    assert list(commands()) == [
        "app",
        "audit",
        "calibrate",
        "check",
        "convert",
        "demo",
        "generate",
        "index",
        "train",
    ]


@pytest.mark.parametrize("name", sorted(commands()))
def test_command_has_help_and_a_readme_entry(name, capsys):
    assert commands()[name].HELP[0].isupper() and not commands()[name].HELP.endswith(".")
    with pytest.raises(SystemExit) as stop:
        build_parser().parse_args([name, "--help"])
    assert stop.value.code == 0
    assert f"usage: lcmem-filter {name}" in capsys.readouterr().out
    assert f"lcmem-filter {name}" in README.read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_generated_blocks_are_current(page):
    assert page.read_text() == refreshed(page), "run: python -m tools.readme"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_links_lead_somewhere(page):
    for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), target
        assert not heading or heading in headings(file), f"{target}#{heading}"


def headings(page):
    """What links call the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


def test_module_sizes_stay_readable():
    package = README.parent / "lcmem_filter"
    sizes = {path.name: len(path.read_text().splitlines()) for path in package.rglob("*.py")}
    assert {name: size for name, size in sizes.items() if size > 400} == {}
