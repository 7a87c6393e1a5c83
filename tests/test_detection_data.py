"""How the detection benchmark divides a user's own images, and what it refuses to divide."""

from __future__ import annotations

import csv
import importlib
import sys
from pathlib import Path

import pytest

from lcmem_filter.errors import DataError, EmptyDataError, MissingColumnError

from tests.tiny import write_pictures

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "detection"


@pytest.fixture
def data(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "data", raising=False)
    yield importlib.import_module("data")
    sys.modules.pop("data", None)


def write(path: Path, columns: str, *rows: str) -> Path:
    """A table of images that nobody reads."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", *columns.split()])
        table.writerows([f"{number}.png", *row.split(",")] for number, row in enumerate(rows))
    return path


def test_identities_in_two_splits_are_refused(data, tmp_path):
    of = {"ann": ("train", "test"), "ben": ("validation", "test"), "cem": ("test",), "dan": ("train",)}
    rows = [f"{person},{split}" for person, splits in of.items() for split in splits]
    table = write(tmp_path / "mine.csv", "person split", *rows)
    with pytest.raises(
        DataError, match=r"split test that stand in train or validation too: 2 \(the first: 'ann'"
    ):
        data.open_splits([table], "person")
    validated = write(tmp_path / "other.csv", "person split", "cem,test", "dan,train", "dan,validation")
    with pytest.raises(DataError, match=r"split validation that stand in train too: 1 \(the first: 'dan'"):
        data.open_splits([validated], "person")


def test_identities_in_two_splits_of_two_files_are_refused(data, tmp_path):
    rows = ["ann,train", "ben,validation", "cem,test"]
    tables = [write(tmp_path / "one.csv", "person split", *rows)]
    tables.append(write(tmp_path / "two.csv", "person split", *rows))
    assert {split: len(images) for split, images in data.open_splits(tables, "person").items()} == {
        "train": 2,
        "validation": 2,
        "test": 2,
    }
    tables.append(write(tmp_path / "three.csv", "person split", "ann,test"))
    with pytest.raises(DataError, match="'ann'"):
        data.open_splits(tables, "person")


def test_splits_are_known_by_other_spellings(data, tmp_path):
    rows = ["a,Train", "b,train", "c,val", "d,Valid", "e,VALIDATION", "f,Test"]
    splits = data.open_splits([write(tmp_path / "mine.csv", "person split", *rows)], "person")
    found = {split: sorted(images.identities) for split, images in splits.items()}
    assert found == {"train": ["a", "b"], "validation": ["c", "d", "e"], "test": ["f"]}


def test_rows_of_no_known_split_are_refused(data, tmp_path):
    rows = ["a,train", "b,val", "c,test", "d,held out", "e,"]
    table = write(tmp_path / "mine.csv", "person split", *rows)
    with pytest.raises(
        DataError, match=r"mine\.csv has rows whose split is '', 'held out'; a split is one of train"
    ):
        data.open_splits([table], "person")


def test_an_empty_split_is_refused(data, tmp_path):
    table = write(tmp_path / "mine.csv", "person split", "a,train", "b,train", "c,test")
    with pytest.raises(EmptyDataError, match="got 2 of train, 0 of validation, 1 of test"):
        data.open_splits([table], "person")
    with pytest.raises(EmptyDataError, match="or more identities"):
        data.open_splits([write(tmp_path / "few.csv", "person", "a", "a", "a")], "person")


@pytest.mark.parametrize(
    ("columns", "identities"),
    [
        ("id", {"x0", "x1", "x2"}),
        ("name", {"mine/0.png", "mine/1.png", "mine/2.png"}),
        ("identity", {"x0", "x1", "x2"}),
    ],
)
def test_identities_are_found_where_no_column_is_named(data, tmp_path, columns, identities):
    rows = [f"x{number},{split}" for number, split in enumerate(data.SPLITS)]
    splits = data.open_splits([write(tmp_path / "mine.csv", f"{columns} split", *rows)], None)
    assert {person for images in splits.values() for person in images.identities} == identities


def test_identity_goes_before_id(data, tmp_path):
    rows = [f"{number},x{number},{split}" for number, split in enumerate(data.SPLITS)]
    splits = data.open_splits([write(tmp_path / "mine.csv", "id identity split", *rows)], None)
    assert [images.identities.tolist() for images in splits.values()] == [["x0"], ["x1"], ["x2"]]


def test_files_of_one_name_in_two_sets_are_no_identity(data, tmp_path):
    for name in ("a", "b"):
        write_pictures(tmp_path / name, range(30))
    splits = data.open_splits([tmp_path / "a", tmp_path / "b"], None)
    every = [person for images in splits.values() for person in images.identities]
    assert len(every) == len(set(every)) == 60


def test_a_folder_without_a_table_needs_no_column(data, tmp_path):
    write_pictures(tmp_path / "mine", range(30))
    splits = data.open_splits([tmp_path / "mine"], None)
    assert sum(len(images) for images in splits.values()) == 30
    with pytest.raises(MissingColumnError, match="'patient'"):
        data.open_splits([tmp_path / "mine"], "patient")
