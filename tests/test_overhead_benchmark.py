"""What the benchmark of the filter's cost writes down."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.index.material import head, saved_encoder
from tests.tiny import picture

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "overhead"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARK))
    sys.modules.pop("run", None)
    import run

    yield run
    for name in ("run", "overhead", "data"):
        sys.modules.pop(name, None)


def table(path: Path) -> Path:
    """As the benchmarks' sets are laid out: 12 images to index, 100 to calibrate with."""
    rows = []
    for number in range(112):
        buffer = io.BytesIO()
        picture(number).save(buffer, "PNG")
        split = "train" if number < 12 else "validation"
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "id": f"p{number}", "split": split})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def written_by(script, folder: Path, monkeypatch, *words: object) -> dict:
    """What a script writes of a small table and encoder in ``folder``, told ``words`` besides."""
    saved_encoder(folder)
    given = {
        "--data": table(folder / "pictures.parquet"),
        "--vae": folder / "vae",
        "--cache": folder / "cache",
        "--output": folder / "written.json",
        "--resolution": 32,
        "--batch": 2,
        "--device": "cpu",
    }
    options = [part for pair in given.items() for part in pair]
    monkeypatch.setattr("sys.argv", [script.__name__, *map(str, (*options, *words))])
    script.main()
    return json.loads((folder / "written.json").read_text())


def test_a_small_pipeline_is_timed(benchmark, tmp_path, monkeypatch):
    head().save_pretrained(tmp_path / "head")
    sizes = (
        "--side",
        32,
        "--steps",
        2,
        "--repeats",
        2,
        "--rows",
        64,
        "--unet",
        "small",
        "--dtype",
        "float32",
    )
    written = written_by(benchmark, tmp_path, monkeypatch, "--head", tmp_path / "head", *sizes)
    seconds = written["overhead"]["seconds_a_batch"]
    assert seconds.keys() == {
        "plain",
        "filter",
        "filter, neighbours compared before",
        "image_space_check",
    }
    assert min(seconds.values()) > 0
    assert written["judging"]["n"] == 2 and written["search"][0]["rows"] == 64
    assert written["hardware"]["cores"] and written["versions"]["torch"] and written["seed"] == 0


@pytest.mark.parametrize(("rounds", "rank"), [(2, 1), (6, 1), (8, 1), (9, 2), (30, 10)])
def test_the_interval_of_a_median_is_of_95_percent_where_there_are_rounds_enough(benchmark, rounds, rank):
    from overhead import share

    found = share([1 + number for number in range(rounds, 0, -1)], [1.0] * rounds)
    assert found["interval"] == [rank, rounds + 1 - rank] and found["n"] == rounds
    if rounds <= 12:
        # every outcome of as many tosses: how often so few, or so many, lie below the true median
        flips = [sum(map(int, f"{number:b}")) for number in range(1 << rounds)]
        missed = sum(heads < rank or heads > rounds - rank for heads in flips) / len(flips)
        assert found["confidence"] == round(1 - missed, 4)
    assert found["confidence"] >= 0.95 or rank == 1


def test_heads_judge_in_turns(benchmark, tmp_path, monkeypatch):
    import heads

    named = [str(tmp_path / "one"), str(tmp_path / "two")]
    for name in named:
        head().save_pretrained(name)
    written = written_by(heads, tmp_path, monkeypatch, "--repeats", 3, "--heads", *named)
    again = [f"{name}, their neighbours compared before" for name in named]
    assert list(written["seconds"]) == [named[0], again[0], named[1], again[1]]
    assert min(written["seconds"].values()) > 0
    assert list(written["extra"]) == list(written["seconds"])[1:] and written["extra"][named[1]]["n"] == 3
    assert "2 pictures in an index of 12 images" in written["about"]
    sys.modules.pop("heads")
