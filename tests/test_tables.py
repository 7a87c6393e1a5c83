"""Tables that are divided into parts, saved to disk or held in memory, as ``datasets`` has them."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import numpy as np
import pytest

from lcmem_filter.errors import DataError, EmptyDataError, MissingColumnError, UnreadableImageError
from lcmem_filter.images import ImageRecord, columns_of, is_table, open_images
from lcmem_filter.table_files import PART

from tests.tiny import picture, write_pictures


def rows_of(numbers: list[int]) -> datasets.Dataset:
    pictures = []
    for number in numbers:
        buffer = io.BytesIO()
        picture(number).save(buffer, "PNG")
        pictures.append({"bytes": buffer.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(), "who": datasets.Value("string")})
    people = [f"p{number // 2}" for number in numbers]
    return datasets.Dataset.from_dict({"image": pictures, "who": people}, features=features)


def write_parts(folder: Path, split: str = "train") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part, numbers in enumerate(([0, 1, 2], [3, 4])):
        rows_of(numbers).to_parquet(folder / f"{split}-{part:05}-of-00002.parquet")
    return folder


def given(kind: str, folder: Path) -> tuple[object, str]:
    """The same five images in one way, and what they are called together."""
    if kind == "memory":
        return rows_of([0, 1, 2, 3, 4]), "dataset"
    if kind == "saved":
        rows_of([0, 1, 2, 3, 4]).save_to_disk(folder / "set", num_shards=2)
        return folder / "set", "set"
    write_parts(folder / "set" / "data")
    return {
        "folder": folder / "set",
        "folder of the parts": folder / "set" / "data",
        "pattern": folder / "set" / "data" / "train-*.parquet",
    }[kind], "train"


@pytest.mark.parametrize("kind", ["folder", "folder of the parts", "pattern", "saved", "memory"])
def test_parts_are_one_table(tmp_path, kind):
    data, name = given(kind, tmp_path)
    source = open_images(data, identity_column="who")
    assert source.name == name
    assert source.records == [ImageRecord(f"{name}/{row}", f"p{row // 2}") for row in range(5)]
    for row in range(5):
        assert np.array_equal(np.asarray(source.image(row)), np.asarray(picture(row)))
    assert open_images(data, identity_column="who").fingerprint == source.fingerprint
    assert open_images(data).fingerprint != source.fingerprint
    some = open_images(data, where={"who": "p1"})
    assert [record.id for record in some.records] == [f"{name}/2", f"{name}/3"]
    assert np.array_equal(np.asarray(some.image(1)), np.asarray(picture(3)))
    with pytest.raises(MissingColumnError, match="has no column 'patient'; it has image, who"):
        open_images(data, identity_column="patient")
    if kind != "memory":
        assert is_table(data) and columns_of(data) == ["image", "who"]


def test_columns_of_parquet_are_read_without_a_copy_of_its_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "copies")
    data, _ = given("folder", tmp_path)
    assert columns_of(data) == ["image", "who"] and not (tmp_path / "copies").exists()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        columns_of(tmp_path / "broken.parquet")
    open_images(data)
    assert list((tmp_path / "copies").glob("lcmem-table-*"))


@pytest.mark.parametrize("kind", ["folder", "saved", "memory"])
def test_a_fingerprint_is_of_every_part(tmp_path, kind):
    data, _ = given(kind, tmp_path)
    before = open_images(data).fingerprint
    changed = rows_of([3, 5])
    if kind == "folder":
        changed.to_parquet(tmp_path / "set" / "data" / "train-00001-of-00002.parquet")
    elif kind == "saved":
        datasets.concatenate_datasets([rows_of([0, 1, 2]), changed]).save_to_disk(
            tmp_path / "other" / "set", num_shards=2
        )
        data = tmp_path / "other" / "set"
    else:
        assert open_images(data.select([0, 1, 2, 4, 3])).fingerprint != before
        assert (
            open_images(datasets.concatenate_datasets([rows_of([0, 1]), rows_of([2, 3, 4])])).fingerprint
            == before
        )
        data = datasets.concatenate_datasets([rows_of([0, 1, 2]), changed])
    assert open_images(data).fingerprint != before


def test_a_fingerprint_in_memory_is_of_the_rows_however_they_came_together(tmp_path):
    def some(first: int, last: int) -> datasets.Dataset:
        names = [None if number % 3 == 0 else f"p{number}" for number in range(first, last)]
        pictures = rows_of([number % 4 for number in range(first, last)]).remove_columns("who")
        return pictures.add_column("who", names).add_column("ages", [[name] for name in names])

    rows, more = some(0, 70), some(0, 90)
    rows.to_parquet(tmp_path / "t.parquet")
    expected = open_images(rows).fingerprint
    for same in (
        datasets.concatenate_datasets([some(0, 11), some(11, 70)]),
        more.select(range(70)),
        more.filter(lambda row, number: number < 70, with_indices=True),
        more.select([*range(69, -1, -1)]).select([*range(69, -1, -1)]),
        datasets.Dataset.from_parquet(str(tmp_path / "t.parquet"), cache_dir=str(tmp_path)),
    ):
        assert open_images(same).fingerprint == expected
    assert open_images(more.select(range(1, 71))).fingerprint != expected


@pytest.mark.parametrize(
    "name",
    ["train-00000-of-00002", "train-00000-of-00001-b513d9e388d56453", "train_3", "train.007", "train12"],
)
def test_how_parts_are_called(name):
    assert PART.sub("", name) == "train"


def test_what_training_makes_of_rows_is_not_looked_at():
    plain = open_images(rows_of([0, 1]), identity_column="who")
    for shown in (
        rows_of([0, 1]).with_format("numpy"),
        rows_of([0, 1]).with_transform(lambda rows: {"x": [0] * 2}),
    ):
        source = open_images(shown, identity_column="who")
        assert source.records == plain.records and source.fingerprint == plain.fingerprint
        assert np.array_equal(np.asarray(source.image(1)), np.asarray(picture(1)))


def test_a_format_that_was_saved_with_a_data_set_is_not_looked_at(tmp_path):
    rows = rows_of([0, 1]).remove_columns("who").add_column("who", [7, 8])
    rows.save_to_disk(tmp_path / "plain" / "set")
    plain = open_images(tmp_path / "plain" / "set", identity_column="who")
    for kind, columns in {"torch": ["who"], "numpy": None, "arrow": None}.items():
        rows.with_format(kind, columns=columns).save_to_disk(tmp_path / kind / "set")
        source = open_images(tmp_path / kind / "set", identity_column="who")
        assert source.records == plain.records and source.fingerprint == plain.fingerprint
        assert np.array_equal(np.asarray(source.image(1)), np.asarray(picture(1)))


def test_pictures_are_read_one_by_one(monkeypatch):
    rows, asked = rows_of([0, 1, 2]), []
    read = datasets.Dataset.__getitem__

    def counted(self, key):
        found = read(self, key)
        asked.append(key if "image" in self.column_names else None)
        return found

    source = open_images(rows)
    monkeypatch.setattr(datasets.Dataset, "__getitem__", counted)
    source.encoded(1)
    assert asked == [1]


@pytest.mark.parametrize("kind", ["several", "array"])
def test_what_is_no_image_in_a_row_is_told(kind):
    pixels = np.zeros((2, 2, 3), np.uint8).tolist()
    several = rows_of([0]).cast_column("image", datasets.Image(decode=False))["image"][:]
    source = open_images(datasets.Dataset.from_dict({"image": [several if kind == "several" else pixels]}))
    with pytest.raises(
        UnreadableImageError, match="row 0 of the table has a list for an image: give a row for each"
    ):
        source.image(0)


def test_a_split_is_called_as_its_parts_are(tmp_path):
    write_parts(tmp_path)
    files = str(tmp_path / "train-*.parquet")
    loaded = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert open_images(loaded).records == open_images(files).records


def test_parts_behind_links_are_found_and_hidden_ones_are_not(tmp_path):
    write_parts(tmp_path / "storage")
    write_parts(tmp_path / "set" / ".cache", "old")
    (tmp_path / "set" / "data").symlink_to(tmp_path / "storage")
    assert len(open_images(tmp_path / "set")) == 5


def test_parts_with_their_suffix_in_capitals_are_found(tmp_path):
    write_parts(tmp_path)
    (tmp_path / "train-00001-of-00002.parquet").rename(tmp_path / "train-00001-of-00002.PARQUET")
    assert len(open_images(tmp_path)) == 5


def test_missing_parts_are_told(tmp_path):
    """As where a download did not end; some of those that are there may be meant, in a pattern or as one file."""
    write_parts(tmp_path)
    assert len(open_images(tmp_path / "train-*1-of-00002.parquet")) == 2
    (tmp_path / "train-00001-of-00002.parquet").unlink()
    for data in (tmp_path, tmp_path / "train-*.parquet"):
        with pytest.raises(DataError, match=r"has 1 of the 2 parts train-\*-of-00002; get the others"):
            open_images(data)
    assert len(open_images(tmp_path / "train-00000-of-00002.parquet")) == 3
    rows_of([0, 1]).save_to_disk(tmp_path / "saved", num_shards=2)
    (tmp_path / "saved" / "data-00000-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"has 1 of the 2 parts data-\*-of-00002"):
        open_images(tmp_path / "saved")


@pytest.mark.parametrize("empty", [0, 1])
def test_parts_without_rows_are_no_harm(tmp_path, empty):
    for part in range(2):
        rows_of([] if part == empty else [3]).to_parquet(tmp_path / f"train-{part:05}-of-00002.parquet")
    rows_without_columns = datasets.Dataset.from_dict({})
    if empty == 0:
        rows_without_columns.to_parquet(tmp_path / "train-00000-of-00002.parquet")
    source = open_images(tmp_path)
    assert columns_of(tmp_path) == ["image", "who"]
    assert [record.id for record in source.records] == ["train/0"]
    assert np.array_equal(np.asarray(source.image(0)), np.asarray(picture(3)))
    with pytest.raises(EmptyDataError, match="has no rows"):
        open_images(tmp_path / f"train-{empty:05}-of-00002.parquet")


def test_what_a_pattern_names_beside_tables_is_told(tmp_path):
    write_pictures(tmp_path, [0, 1])
    (tmp_path / "metadata.csv").write_text("file_name\n000.png\n")
    with pytest.raises(DataError, match=r"names what is no table too \(.*000\.png\)"):
        open_images(tmp_path / "*")


def test_parts_that_are_numbered_alone_are_called_as_their_folder(tmp_path):
    for part in range(2):
        (tmp_path / "faces").mkdir(exist_ok=True)
        rows_of([part]).to_parquet(tmp_path / "faces" / f"{part:04}.parquet")
    assert [record.id for record in open_images(tmp_path).records] == ["faces/0", "faces/1"]


def test_several_tables_are_not_taken_for_one(tmp_path):
    write_parts(tmp_path / "set")
    write_parts(tmp_path / "set", "test")
    with pytest.raises(
        DataError, match=r"several tables \(.*test, .*train\); .* in quotes: '.*/set/test\*\.parquet'"
    ):
        open_images(tmp_path / "set")
    assert len(open_images(tmp_path / "set" / "train*.parquet")) == 5
    with pytest.raises(DataError, match="tables of several folders or kinds"):
        write_parts(tmp_path / "set2")
        open_images(tmp_path / "set*" / "train*.parquet")
    splits = datasets.DatasetDict(train=rows_of([0]), test=rows_of([1]))
    splits.save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=r"several data sets \(test, train\)"):
        open_images(tmp_path / "saved")
    assert len(open_images(tmp_path / "saved" / "train")) == 1
    with pytest.raises(DataError, match=r"such as dataset\['train'\]"):
        open_images(splits)
    with pytest.raises(DataError, match="without streaming"):
        open_images(rows_of([0]).to_iterable_dataset())


def test_parts_with_other_columns_are_told(tmp_path):
    write_parts(tmp_path)
    rows_of([3]).rename_column("who", "identity").to_parquet(tmp_path / "train-00001-of-00002.parquet")
    with pytest.raises(DataError, match="parts of one table have the same"):
        open_images(tmp_path)


@pytest.mark.parametrize("kind", ["memory", "parquet"])
def test_classes_are_read_by_their_names(tmp_path, kind):
    classes = datasets.ClassLabel(names=["Anna", "Ben"])
    rows = rows_of([0, 1, 2])
    for name, values in {"identity": [1, 0, None], "label": [0, -1, 1]}.items():
        rows = rows.add_column(name, values).cast_column(name, classes)
    rows = rows.add_column("labels", [[0, 1], [], [1]])
    several = type(rows.features["labels"])(classes)
    rows = rows.cast_column("labels", several)
    data = rows
    if kind == "parquet":
        data = tmp_path / "t.parquet"
        rows.to_parquet(data)
    records = open_images(data).records
    assert [one.identity for one in records] == ["Ben", "Anna", None]
    assert [one.labels for one in records] == ["Anna|Ben", "", "Ben"]
    assert (
        len(open_images(data, where={"label": "Anna"})) == len(open_images(data, where={"label": "0"})) == 1
    )
    known = [one.labels for one in open_images(rows.remove_columns("labels")).records]
    assert known == ["Anna", "", "Ben"]


def test_a_saved_data_set_that_is_broken_is_told(tmp_path):
    rows_of([0]).save_to_disk(tmp_path / "set")
    (tmp_path / "set" / "data-00000-of-00001.arrow").write_bytes(b"broken")
    with pytest.raises(DataError, match="cannot be read as a data set that was saved to disk"):
        open_images(tmp_path / "set")
    (tmp_path / "set" / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"does not say which files .* KeyError"):
        open_images(tmp_path / "set")


def test_what_was_made_of_a_saved_data_set_is_no_part_of_it(tmp_path):
    data, _ = given("saved", tmp_path)
    before = open_images(data)
    made = datasets.load_from_disk(str(data)).map(lambda row: {"age": 3})
    assert len(made) == 5 and list(data.glob("cache-*.arrow"))
    assert open_images(data).fingerprint == before.fingerprint


def test_a_folder_of_images_stays_one_beside_tables_of_what_is_in_it(tmp_path):
    write_pictures(tmp_path, [0, 1])
    for name in ("ages", "sizes"):
        datasets.Dataset.from_dict({"file_name": ["000.png"], name: [3]}).to_parquet(
            tmp_path / f"{name}.parquet"
        )
    assert [record.id for record in open_images(tmp_path).records] == ["000.png", "001.png"]
    assert not is_table(tmp_path)


def test_images_beside_tables_that_hold_images_are_told(tmp_path):
    write_pictures(tmp_path / "set", [0])
    write_parts(tmp_path / "set" / "data")
    with pytest.raises(
        DataError, match=r"has images \(000\.png\) and tables that hold images \(data/train-00000"
    ):
        open_images(tmp_path / "set")
    assert len(open_images(tmp_path / "set" / "data")) == 5


def write_lists(path: Path) -> None:
    pictures = rows_of([0]).cast_column("image", datasets.Image(decode=False))["image"][:]
    datasets.Dataset.from_dict({"several": [pictures]}).to_parquet(path)


@pytest.mark.parametrize(
    ("name", "write", "what"),
    [
        ("t.parquet", write_lists, r"tables that hold images \(t\.parquet"),
        ("T.PARQUET", lambda path: rows_of([0]).to_parquet(path), r"tables that hold images \(T\.PARQUET"),
        (
            "t.parquet",
            lambda path: path.write_text("oid sha256:"),
            r"t\.parquet .* cannot be read as parquet",
        ),
        ("saved", lambda path: rows_of([0]).save_to_disk(path), r"datasets keeps \(saved/data-00000"),
    ],
)
def test_images_that_lie_elsewhere_in_a_folder_of_images_are_told(tmp_path, name, write, what):
    write_pictures(tmp_path, [0])
    write(tmp_path / name)
    with pytest.raises(DataError, match=what):
        open_images(tmp_path)


def test_a_data_set_below_another_is_told(tmp_path):
    write_parts(tmp_path)
    rows_of([5]).save_to_disk(tmp_path / "more" / "train")
    with pytest.raises(
        DataError, match=r"more/train/data-00000-of-00001\.arrow\), but is not the folder of one"
    ):
        open_images(tmp_path)


def test_a_file_that_is_called_as_one_of_a_saved_data_set_makes_none(tmp_path):
    write_pictures(tmp_path, [0])
    (tmp_path / "state.json").write_text('{"step": 3}')
    assert len(open_images(tmp_path)) == 1


def test_a_pattern_that_names_nothing_is_told(tmp_path):
    write_pictures(tmp_path, [0])
    for pattern in ("*.parquet", "*.png"):
        with pytest.raises(DataError, match="no such folder or table"):
            open_images(tmp_path / pattern)
