"""The detection benchmark as a command, on a user's own table of drawn pictures."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lcmem_filter.baselines.siamese import SiameseNetwork

from tests.index.material import head, saved_encoder
from tests.tiny import picture, write_pictures

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "detection" / "run.py"

pytestmark = pytest.mark.slow


def write_table(folder: Path, identities: int = 50) -> Path:
    """Two near pictures of each identity; a fifth validates, two fifths test."""
    with (folder / "mine.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "person", "split"])
        for person in range(identities):
            split = ("train", "train", "validation", "test", "test")[person % 5]
            for visit in range(2):
                name = f"{person}-{visit}.png"
                picture(person).resize((40, 40)).rotate(3 * visit).save(folder / name)
                table.writerow([name, f"p{person}", split])
    return folder / "mine.csv"


def on_ones_own_table(
    script: Path, folder: Path, *words: str, identities: int = 50, **more: object
) -> list[str]:
    """A command line of a benchmark on ``write_table``'s pictures; the folder has to hold ``head`` and ``vae``."""
    options = {
        "data": write_table(folder, identities),
        "identity-column": "person",
        "vae": folder / "vae",
        "head": folder / "head",
        "cache": folder / "cache",
        "resolution": 32,
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, str(script), *words, *given]


def test_ones_own_table_through_the_command(tmp_path):
    pytest.importorskip("sklearn")
    saved_encoder(tmp_path)
    head().save_pretrained(tmp_path / "head")
    (tmp_path / "same.csv").write_text(
        "unseen_set,unseen,indexed_set,indexed,same\n"
        "mine,3-0.png,mine,0-0.png,person\nmine,3-1.png,mine,0-0.png,person\nother,1.png,mine,0-0.png,picture\n"
    )
    SiameseNetwork("packhaeuser", 32, (8, 16), (1, 1), 12).save(tmp_path / "packhaeuser")
    command = on_ones_own_table(
        SCRIPT,
        tmp_path,
        "--methods",
        *("lcmem", "raw_latents", "mse", "clip", "packhaeuser", "dar"),
        weights=f"packhaeuser={tmp_path / 'packhaeuser'}",
        rate=0.2,
        draws=40,
        robustness_images=6,
        near_duplicates=tmp_path / "same.csv",
        output=tmp_path / "out" / "mine.json",
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads((tmp_path / "out" / "mine.json").read_text())
    for task in ("mild_copies", "half_formed_copies", "heavy_copies", "same_identity"):
        (row,) = results["deciding"][task].values()
        assert set(row["methods"]) == {"lcmem", "raw_latents", "mse", "packhaeuser"}
        for cell in row["methods"].values():
            assert 0 <= cell["interval"][0] <= cell["recall"] <= cell["interval"][1] <= 1
            assert cell["recall"] <= cell["rejected"]
    mild = results["deciding"]["mild_copies"]["mine"]
    assert mild["n"] == mild["identities"] == 20
    (others,) = results["deciding"]["same_identity"].values()
    assert others["methods"]["raw_latents"]["recall"] > 0.9
    assert others["n"] == 40 and others["identities"] == 20
    assert "weights" in results["not_run"]["CLIP"]
    assert "--baseline dar" in results["not_run"]["contrastive siamese (Dar et al., 2023)"]
    assert "ResNet-18 at 32 px" in results["notes"]["siamese ResNet (Packhaeuser et al., 2022)"]
    assert results["unseen_rejected"]["mse"]["mine"]["share"] <= 0.2
    assert results["unseen_rejected"]["mse"]["mine"]["n"] == 19
    ((image, indexed, same),) = results["near_duplicates"]["seen_by_eye"]
    assert image in ("3-0.png", "3-1.png") and (indexed, same) == ("0-0.png", "person")
    assert (
        results["robustness"]["recall"]["mse"]["flip"][0] < results["robustness"]["recall"]["mse"]["noise"][0]
    )
    assert results["pairs"]["same_identity"]["raw_latents"]["mine"]["auc"] > 0.9
    assert len(list((tmp_path / "out").glob("mine-*.png"))) == 3


def test_rows_are_added_to_those_that_were_measured_on_the_same_terms(tmp_path):
    pytest.importorskip("sklearn")
    saved_encoder(tmp_path)
    head().save_pretrained(tmp_path / "head")
    output = tmp_path / "mine.json"
    more = {"rate": 0.2, "draws": 20, "robustness_images": 0, "output": output}

    def run(*words: str, **other: object) -> subprocess.CompletedProcess[str]:
        command = on_ones_own_table(SCRIPT, tmp_path, *words, **{**more, **other})
        return subprocess.run(command, capture_output=True, text=True, timeout=600)

    assert run("--skip-pairs", "--methods", "lcmem", "mse").returncode == 0
    before = json.loads(output.read_text())
    done = run("--add", "--methods", "lcmem", "raw_latents")
    assert done.returncode == 0, done.stderr[-4000:]
    after = json.loads(output.read_text())
    assert set(after["labels"]) == {"lcmem", "mse", "raw_latents"} == set(after["unseen_rejected"])
    assert after["fingerprints"] == {"lcmem": after["head"]["fingerprint_of_space"]}
    for task, domains in after["deciding"].items():
        methods = domains["mine"]["methods"]
        assert (
            methods.pop("raw_latents")["recall"] >= 0
            and methods == before["deciding"][task]["mine"]["methods"]
        )
        assert after["curves"][task]["raw_latents"]
    assert "pairs" not in before and set(after["pairs"]["mild_copies"]) == {"lcmem", "raw_latents"}
    assert "raw latents" in before["not_run"] and "raw latents" not in after["not_run"]
    alone = ("--skip-recall", "--skip-pairs", "--methods", "lcmem", "raw_latents")
    written = json.loads(output.read_text())
    assert "needs --add" in run(*alone).stderr
    assert run("--add", *alone, robustness_images=2).returncode == 0
    found = json.loads(output.read_text())
    robust = found.pop("robustness")
    assert found == written and set(robust["recall"]) == {"lcmem", "raw_latents"}
    stale = json.loads(json.dumps(after))
    stale["deciding"]["mild_copies"]["mine"]["methods"]["mse"]["recall"] = 2.0
    output.write_text(json.dumps(stale))
    assert run("--add", "--skip-pairs", "--methods", "lcmem", "mse").returncode == 0
    assert json.loads(output.read_text()) == after  # what is measured again stands in place of what was there
    after["deciding"]["mild_copies"]["mine"]["methods"]["lcmem"]["recall"] -= 0.05
    output.write_text(json.dumps(after))
    assert "lcmem among --methods" in run("--add", "--methods", "ncc").stderr
    refused = run("--add", "--methods", "lcmem", "ncc")
    assert refused.returncode and "measure all rows anew" in refused.stderr
    assert json.loads(output.read_text()) == after


def test_images_that_are_their_own_identities_in_a_folder_without_a_table(tmp_path):
    pytest.importorskip("sklearn")
    saved_encoder(tmp_path)
    head().save_pretrained(tmp_path / "head")
    write_pictures(tmp_path / "mine", range(80))
    options = {
        name: tmp_path / folder for name, folder in (("vae", "vae"), ("head", "head"), ("data", "mine"))
    }
    options |= {
        "cache": tmp_path / "cache",
        "resolution": 32,
        "rate": 0.2,
        "draws": 20,
        "robustness-images": 0,
    }
    options["output"] = tmp_path / "mine.json"
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, str(SCRIPT), *given, "--methods", "lcmem", "mse", "dlib_faces"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads((tmp_path / "mine.json").read_text())
    assert set(results["pairs"]) == {"held_copies", "mild_copies", "half_formed_copies", "heavy_copies"}
    assert results["pairs"]["mild_copies"]["mse"]["mine"]["pairs"] > 10
    assert set(results["labels"]) == {"lcmem", "mse"} and "dlib faces" in results["not_run"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"rate": 0.01}, "needs at least 99 held-out images, got 10 usable"),
        ({"identity-column": "patient"}, "has no column 'patient'"),
        ({"space": "sdxl"}, "encodes into 'sd', not into 'sdxl'; give --space sd"),
        ({"weights": "dinov9=x"}, "--weights: there is no 'dinov9'"),
        ({"near-duplicates": "nothing.csv"}, "nothing.csv cannot be read"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line_before_anything_is_encoded(tmp_path, options, why):
    pytest.importorskip("sklearn")
    saved_encoder(tmp_path)
    head().save_pretrained(tmp_path / "head")
    command = on_ones_own_table(SCRIPT, tmp_path, "--methods", "lcmem", "mse", **options)
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2 and not (tmp_path / "cache").exists()
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("run.py: ")]
    assert why in line


def test_the_nearest_unseen_images_are_shown(tmp_path):
    saved_encoder(tmp_path)
    head().save_pretrained(tmp_path / "head")
    command = on_ones_own_table(
        SCRIPT.with_name("look.py"),
        tmp_path,
        "--methods",
        "raw_latents",
        "mse",
        most=5,
        output=tmp_path / "sheets",
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    with (tmp_path / "sheets" / "pairs.csv").open() as file:
        pairs = list(csv.DictReader(file))
    assert 5 <= len(pairs) <= 10 and (tmp_path / "sheets" / "00.png").stat().st_size > 1000
    for pair in pairs:
        unseen, indexed = (int(pair[key].split("-")[0]) for key in ("unseen", "indexed"))
        assert unseen % 5 > 2 and unseen != indexed and pair["proposed_by"]


def test_a_second_head_is_a_row_of_its_own_beside_shipped_heads_only(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.delitem(sys.modules, "methods", raising=False)
    from methods import open_methods

    names = ["lcmem", "lcmem_told", "lcmem_lcmem_reid", "lcmem_lcmem_reid_told"]
    methods, absent = open_methods(names, "lcmem-small", "sd", {}, False)
    assert [method.row.name for method in methods] == names
    small, _, reid, told = methods
    assert small.baseline.head.fingerprint != reid.baseline.head.fingerprint == told.baseline.head.fingerprint
    assert len({method.kept_key for method in methods}) == 2 and len({method.key for method in methods}) == 4
    head().save_pretrained(tmp_path / "head")
    methods, absent = open_methods(names, str(tmp_path / "head"), "sd", {}, False)
    assert [method.row.name for method in methods] == names[:2]
    assert absent["LCMem, lcmem-reid"] == "a shipped head, beside another that ships only"
    sys.modules.pop("methods")
