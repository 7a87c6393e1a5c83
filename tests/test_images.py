"""Images from folders and tables, and what goes wrong with them."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from lcmem_filter.errors import DataError, EmptyDataError, MissingColumnError, UnreadableImageError
from lcmem_filter.images import ImageRecord, ImageSource, can_be_read, open_images, to_pixels

from tests.tiny import picture, write_pictures


def write_csv(path: Path, header: list[str], rows: list[list[object]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_folder_of_images(tmp_path):
    source = open_images(write_pictures(tmp_path, [3, 1, 2]))
    assert source.records == [ImageRecord(name) for name in ("001.png", "002.png", "003.png")]
    assert np.array_equal(np.asarray(source.image(1)), np.asarray(picture(2)))
    assert source.image(0).mode == "RGB"


@pytest.mark.parametrize("kind", ["folder", "csv", "parquet"])
def test_a_fingerprint_changes_with_the_images(tmp_path, kind):
    import pyarrow as pa
    import pyarrow.parquet as pq

    def opened(folder):
        write_pictures(folder, [0, 1])
        names = ["000.png", "001.png"]
        if kind == "csv":
            write_csv(folder / "metadata.csv", ["file_name"], [[name] for name in names])
        if kind == "parquet":
            image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
            rows = pa.array([{"bytes": None, "path": name} for name in names], image)
            pq.write_table(pa.table({"image": rows}), folder / "metadata.parquet")
        return open_images(folder)

    first = opened(tmp_path / "a")
    assert open_images(tmp_path / "a").fingerprint == first.fingerprint
    (tmp_path / "a" / "001.png").write_bytes(b"broken")
    broken = open_images(tmp_path / "a")
    assert broken.fingerprint != first.fingerprint
    (tmp_path / "a" / "001.png").unlink()
    if kind != "folder":
        assert open_images(tmp_path / "a").fingerprint not in (first.fingerprint, broken.fingerprint)
    elsewhere = opened(tmp_path / "b")
    picture(7).save(tmp_path / "b" / "001.png")
    assert open_images(tmp_path / "b").fingerprint not in (first.fingerprint, elsewhere.fingerprint)


def test_folder_of_identities(tmp_path):
    write_pictures(tmp_path, [1, 2], identities=1)
    picture(9).save(tmp_path / "person001" / "009.png")
    records = open_images(tmp_path).records
    assert [(record.id, record.identity) for record in records] == [
        ("person001/001.png", "person001"),
        ("person001/009.png", "person001"),
        ("person002/002.png", "person002"),
    ]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_tables_of_paths(tmp_path, kind):
    import datasets

    write_pictures(tmp_path, [0, 1, 2])
    rows = [
        {
            "path": f"00{i}.png",
            "who": ["a", "a", None][i],
            "split": ["train", "test", "train"][i],
            "labels": "x|y",
        }
        for i in range(3)
    ]
    table = datasets.Dataset.from_list(rows)
    file = tmp_path / f"list.{kind}"
    {"csv": table.to_csv, "jsonl": table.to_json, "parquet": table.to_parquet}[kind](str(file))
    source = open_images(file, identity_column="who", where={"split": "train"})
    assert source.records == [ImageRecord("000.png", "a", "x|y"), ImageRecord("002.png", None, "x|y")]
    assert np.array_equal(np.asarray(source.image(1)), np.asarray(picture(2)))


def test_parquet_with_images_in_it(tmp_path):
    import datasets

    write_pictures(tmp_path, [0, 1])
    features = datasets.Features({"image": datasets.Image(), "identity": datasets.Value("string")})
    files = [tmp_path / f"00{i}.png" for i in range(2)]
    rows = [{"image": {"bytes": file.read_bytes(), "path": None}, "identity": "p"} for file in files]
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(tmp_path / "set.parquet"))
    for file in files:
        file.unlink()
    source = open_images(tmp_path / "set.parquet")
    assert [(r.id, r.identity) for r in source.records] == [("set/0", "p"), ("set/1", "p")]
    assert np.array_equal(np.asarray(source.image(1)), np.asarray(picture(1)))


@pytest.mark.parametrize("content", ["aVZCT1J3MEtHZ28=", [137, 80, 78, 71]])
def test_bytes_that_are_text_or_numbers_are_an_image_that_cannot_be_read(tmp_path, content):
    """As libraries write pictures into JSON."""
    write_pictures(tmp_path, [0])
    rows = [{"bytes": content, "path": "000.png"}, {"bytes": None, "path": "000.png"}]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"image": row}) for row in rows))
    source = open_images(tmp_path / "t.jsonl")
    with pytest.raises(UnreadableImageError, match=r"row 0 of the table has text or numbers for bytes"):
        source.image(0)
    assert source.digest(0) is None and can_be_read(source, 1)


def test_imagefolder_with_metadata(tmp_path):
    write_pictures(tmp_path, [0, 1])
    (tmp_path / "metadata.jsonl").write_text(
        "\n".join(json.dumps({"file_name": f"00{i}.png", "identity": f"p{i}"}) for i in range(2))
    )
    assert [record.identity for record in open_images(tmp_path).records] == ["p0", "p1"]


def test_a_table_is_read_anew_though_its_time_is_that_of_before(tmp_path):
    """As of files that were unpacked from images of containers, whose times are all one."""
    write_pictures(tmp_path, [0])
    for who in ("p", "q"):
        (tmp_path / "t.jsonl").write_text(json.dumps({"file_name": "000.png", "identity": who}))
        os.utime(tmp_path / "t.jsonl", (1, 1))
        assert open_images(tmp_path / "t.jsonl").records == [ImageRecord("000.png", who)]


def test_columns_are_found_in_small_and_capital_letters(tmp_path):
    write_pictures(tmp_path, [0])
    names = ["IDENTITY", "File_Name", "Labels", "file"]
    table = write_csv(tmp_path / "t.csv", names, [["p", "000.png", "x", "gone.png"]])
    assert open_images(table).records == [ImageRecord("000.png", "p", "x")]
    table = write_csv(tmp_path / "u.csv", ["Identity", "file_name", "identity"], [["p", "000.png", "q"]])
    assert open_images(table).records == [ImageRecord("000.png", "q")]


def test_what_stands_in_csv_is_text(tmp_path):
    write_pictures(tmp_path, [0, 1, 2])
    rows = [["000.png", "007", "01"], ["001.png", "7", "1"], ["002.png", "", "01"]]
    for name, separator in (("t.csv", ","), ("t.tsv", "\t")):
        lines = [separator.join(row) for row in (["path", "who", "fold"], *rows)]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        source = open_images(tmp_path / name, identity_column="who")
        assert [record.identity for record in source.records] == ["007", "7", None]
        chosen = open_images(tmp_path / name, where={"fold": "01"}).records
        assert [record.id for record in chosen] == ["000.png", "002.png"]


def test_what_says_that_nothing_is_known_is_no_identity(tmp_path):
    write_pictures(tmp_path, [0, 1, 2, 3])
    unknown = ["NA", "nan", "NA", "p"]
    rows = [[f"00{i}.png", who, who] for i, who in enumerate(unknown)]
    records = open_images(write_csv(tmp_path / "t.csv", ["path", "identity", "labels"], rows)).records
    assert [(one.identity, one.labels) for one in records] == [
        *[(None, "")] * 3,
        ("p", "p"),
    ]


def test_numbers_are_the_same_text_whether_one_is_missing_or_not(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [f"{row}.png" for row in range(4)]
    whole = pa.table({"file_name": names, "patient": [7, 7, 12, 3], "labels": ["a", "", "b", None]})
    missing = pa.table(
        {
            "file_name": names,
            "patient": pa.array([7.0, 7.0, float("nan"), None], pa.float64()),
            "labels": pa.array([1.0, float("nan"), 2.5, None], pa.float64()),
        }
    )
    opened = []
    for name, table in (("whole", whole), ("missing", missing)):
        pq.write_table(table, tmp_path / f"{name}.parquet")
        opened.append(open_images(tmp_path / f"{name}.parquet", identity_column="patient"))
    assert [one.identity for one in opened[0].records] == ["7", "7", "12", "3"]
    assert [one.identity for one in opened[1].records] == ["7", "7", None, None]
    assert [one.labels for one in opened[1].records] == ["1", "", "2.5", ""]
    for value in ("7", "7.0"):
        chosen = open_images(tmp_path / "missing.parquet", where={"patient": value})
        assert [one.id for one in chosen.records] == names[:2]


def test_identities_are_the_same_text_in_each_kind_of_table(tmp_path):
    names = [f"{row}.png" for row in range(4)]
    day, other = "2020-01-02", "2020-01-03"
    for values, expected in (
        ([1, 2, None, 1], ["1", "2", None, "1"]),
        (pandas.to_datetime([day, other, None, day]), [day, other, None, day]),
        (
            pandas.to_datetime([f"{day} 10:11:12", f"{other} 00:00:00", None, f"{day} 00:00:00"]),
            [f"{day} 10:11:12", f"{other} 00:00:00", None, f"{day} 00:00:00"],
        ),
    ):
        table = pandas.DataFrame({"file_name": names, "identity": values})
        table.to_csv(tmp_path / "t.csv", index=False)
        table.to_parquet(tmp_path / "t.parquet")
        as_json = [int(one) if one is not None and one.isdigit() else one for one in expected]
        lines = zip(names, as_json, strict=True)
        (tmp_path / "t.jsonl").write_text(
            "\n".join(json.dumps({"file_name": name, "identity": one}) for name, one in lines)
        )
        for kind in ("csv", "parquet", "jsonl"):
            assert [one.identity for one in open_images(tmp_path / f"t.{kind}").records] == expected, kind
    (tmp_path / "mixed.csv").write_text("file_name,identity\n0.png,1.0\n1.png,1\n2.png,x\n")
    assert [one.identity for one in open_images(tmp_path / "mixed.csv").records] == ["1.0", "1", "x"]


def test_whole_numbers_that_were_read_as_fractions_and_may_be_others_are_refused(tmp_path):
    rows = [9007199254740993, 9007199254740992, 1.5]
    lines = [json.dumps({"file_name": f"{row}.png", "identity": one}) for row, one in enumerate(rows)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"'identity', 9007199254740992 was read as a fraction.*as text"):
        open_images(tmp_path / "t.jsonl")
    (tmp_path / "t.jsonl").write_text("\n".join(lines[:2]))
    assert [one.identity for one in open_images(tmp_path / "t.jsonl").records] == [
        str(one) for one in rows[:2]
    ]


def test_an_image_may_be_listed_several_times(tmp_path):
    """As where a table has a row for each finding."""
    write_pictures(tmp_path, [0, 1])
    rows = [["000.png", "a"], ["001.png", "b"], ["000.png", "c"], ["000.png", "d"]]
    source = open_images(write_csv(tmp_path / "t.csv", ["file_name", "labels"], rows))
    assert [one.id for one in source.records] == ["000.png", "001.png", "000.png#2", "000.png#3"]
    assert source.encoded(0) == source.encoded(3) and source.records[3].labels == "d"


@pytest.mark.parametrize("ending", ["", ",", ",,"])
def test_rows_that_end_in_a_separator_are_no_other_columns(tmp_path, ending):
    write_pictures(tmp_path, [0, 1])
    (tmp_path / "t.csv").write_text(f"file_name,who\n000.png,a{ending}\n001.png,b{ending}\n")
    found = open_images(tmp_path / "t.csv", identity_column="who").records
    assert found == [ImageRecord("000.png", "a"), ImageRecord("001.png", "b")]
    (tmp_path / "u.csv").write_text("file_name,who\n000.png,a,lost\n001.png,b,\n")
    with pytest.raises(DataError, match="more cells than the header's 2 names"):
        open_images(tmp_path / "u.csv")


@pytest.mark.parametrize("empty", [0, 1])
def test_a_row_without_an_image_is_one_that_cannot_be_read(tmp_path, empty):
    write_pictures(tmp_path, [0, 1])
    names = ["000.png", "001.png"]
    names[empty] = ""
    source = open_images(write_csv(tmp_path / "t.csv", ["path", "who"], [[name, "a"] for name in names]))
    assert [record.id for record in source.records] == [name or f"t/{row}" for row, name in enumerate(names)]
    with pytest.raises(UnreadableImageError, match=f"row {empty} of the table names no image"):
        source.image(empty)
    assert source.image(1 - empty).size and not can_be_read(source, empty)


def test_images_that_a_folders_table_does_not_name_are_told(tmp_path):
    write_pictures(tmp_path, [0, 1, 2])
    table = write_csv(tmp_path / "metadata.csv", ["file_name"], [["000.png"], ["002.png"]])
    with pytest.raises(
        DataError, match=r"does not name 1 of the images in its folder \(the first: 001\.png\)"
    ):
        open_images(tmp_path)
    assert [record.id for record in open_images(table).records] == ["000.png", "002.png"]
    (tmp_path / ".cache").mkdir()
    (tmp_path / "001.png").rename(tmp_path / ".cache" / "001.png")
    assert len(open_images(tmp_path)) == 2
    picture(7).save(tmp_path / "mask.png")
    write_csv(table, ["file_name", "mask_file_name"], [["000.png", "mask.png"], ["002.png", ""]])
    assert len(open_images(tmp_path)) == 2
    table.unlink()
    named = [json.dumps({"image": {"path": name}}) for name in ("000.png", "002.png")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(named))
    with pytest.raises(DataError, match=r"does not name 1 .*mask\.png"):
        open_images(tmp_path)


def test_layers_and_reduced_pages_are_no_further_pictures(tmp_path):
    whole, small = picture(1), picture(1).resize((16, 16))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    whole.save(tmp_path / "reduced.tiff", save_all=True, append_images=[small])
    with Image.open(tmp_path / "reduced.tiff") as opened:
        assert opened.n_frames == 2
    assert np.array_equal(np.asarray(open_images(tmp_path).image(0)), np.asarray(whole))


def test_the_page_that_is_not_reduced_is_the_picture(tmp_path):
    small, whole = picture(1).resize((16, 16)), picture(1)
    small.encoderinfo, whole.encoderinfo = {"tiffinfo": {254: 1}}, {"tiffinfo": {254: 0}}
    small.save(tmp_path / "preview first.tiff", tiffinfo={254: 1}, save_all=True, append_images=[whole])
    small.save(tmp_path / "previews.tiff", tiffinfo={254: 1}, save_all=True, append_images=[small])
    source = open_images(tmp_path)
    assert source.image(0).size == whole.size
    with pytest.raises(UnreadableImageError, match="it holds 2 pictures"):
        source.image(1)


def test_nothing_in_a_folder_is_passed_over_in_silence(tmp_path):
    for name in ("in the folder", "elsewhere"):
        (tmp_path / name).mkdir()
        picture(1).save(tmp_path / name / "a.png")
    folder = tmp_path / "in the folder"
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "linked" / "round").symlink_to(folder)
    picture(2).save(folder / "without", "PNG")
    picture(3).save(folder / "b.jpg.bak", "JPEG")
    picture(4).save(folder / "c.webp.old", "WEBP")
    for name in ("d.heic", "e.jxl", "f.IMA", "g.dcm.gz"):
        (folder / name).write_bytes(b"unknown here")
    (folder / "notes.txt").write_text("no picture")
    source = open_images(folder)
    readable = ["a.png", "b.jpg.bak", "c.webp.old", "linked/a.png", "without"]
    assert [record.id for record in source.records] == sorted(
        [*readable, "d.heic", "e.jxl", "f.IMA", "g.dcm.gz"]
    )
    assert [record.id for row, record in enumerate(source.records) if can_be_read(source, row)] == readable


def test_formats_that_are_not_known_here_are_images_that_cannot_be_read(tmp_path):
    picture(1).save(tmp_path / "0.png")
    suffixes = [
        "exr",
        "hdr",
        "cr3",
        "raf",
        "rw2",
        "orf",
        "x3f",
        "jxr",
        "wdp",
        "svg",
        "img",
        "mgh",
        "mgz",
        "eps",
        "jpg.zst",
        "dcm.Z",
        "EXR",
    ]
    begins = {
        "exr": b"v/1\x01\2\0\0\0",
        "radiance": b"#?RADIANCE\n",
        "raf": b"FUJIFILMCCD-RAW 0201",
        "cr3": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
        "jxr": b"II\xbc\x01",
        "fits.fz": b"SIMPLE  = T",
    }
    for suffix in suffixes:
        (tmp_path / f"a.{suffix}").write_bytes(b"unknown here")
    picture(2).save(tmp_path / "b.eps")
    for name, content in begins.items():
        (tmp_path / f"c {name}").write_bytes(content + bytes(200))
    for name in ("d.npy", "d.npz", "d.mat", "d.zip", "d.tar", "d.pdf", "d.txt", "d.mp4"):
        (tmp_path / name).write_bytes(b"no picture")
    source = open_images(tmp_path)
    expected = ["0.png", *(f"a.{one}" for one in suffixes), "b.eps", *(f"c {one}" for one in begins)]
    assert [one.id for one in source.records] == sorted(expected)
    assert [can_be_read(source, row) for row in range(len(source))] == [True] + [False] * (len(source) - 1)


def test_a_link_to_what_may_not_be_looked_at_is_an_image_that_cannot_be_read(tmp_path, monkeypatch):
    picture(1).save(tmp_path / "0.png")
    (tmp_path / "closed").symlink_to("/closed/picture")
    real = Path.exists

    def refusing(self, **options):
        if self.name == "closed":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, **options)

    monkeypatch.setattr(Path, "exists", refusing)
    source = open_images(tmp_path)
    assert [(one.id, can_be_read(source, row)) for row, one in enumerate(source.records)] == [
        ("0.png", True),
        ("closed", False),
    ]


def test_images_are_known_by_what_is_in_them(tmp_path):
    """Whatever Pillow writes, in a file without a suffix; what it may not know, by how it begins."""
    written = []
    for number, kind in enumerate(sorted(set(Image.registered_extensions().values()) & set(Image.SAVE))):
        for mode in ("RGB", "L", "1", "RGBA"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                picture(number).convert(mode).save(tmp_path / kind, kind)
                written.append(kind)
                break
    others = {"EPS", "PDF", "PALM"}  # documents, and what Pillow writes and cannot read
    unknown_here = {"heic": b"\0\0\0\x18ftypheic", "jxl": b"\xff\x0a", "film": b"\0\0\0\x18ftypisom"}
    for name, begins in unknown_here.items():
        (tmp_path / name).write_bytes(begins + bytes(200))
    (tmp_path / "LICENSE").write_text("Apache License")
    (tmp_path / "numbers").write_bytes(np.arange(9.0).tobytes())
    assert {"AVIF", "JPEG2000", "PPM", "TGA", "ICO"} <= set(written)
    found = {record.id for record in open_images(tmp_path).records}
    assert found == {*written, "heic", "jxl"} - others


def test_one_image_alone(tmp_path):
    for name in ("a.png", "b", "c.png"):
        picture(3).save(tmp_path / name, "PNG")
    for name in ("a.png", "b"):
        source = open_images(tmp_path / name)
        assert [record.id for record in source.records] == [name] and can_be_read(source, 0)
    with pytest.raises(MissingColumnError, match="is an image without a table, so it has no column 'who'"):
        open_images(tmp_path / "a.png", image_column="who")


def test_a_folder_has_its_name_from_within_too(tmp_path, monkeypatch):
    write_pictures(tmp_path / "faces" / "new", [0, 1])
    monkeypatch.chdir(tmp_path / "faces" / "new")
    assert open_images(".").name == open_images(tmp_path / "faces" / "new").name == "new"
    assert open_images("..").name == "faces"
    Path("metadata.csv").write_text("file_name\n000.png\n001.png\n")
    assert open_images(".").name == open_images(tmp_path / "faces" / "new").name == "new"


def test_a_file_name_that_is_no_text_is_refused(tmp_path):
    picture(1).save(tmp_path / os.fsdecode(b"\xe9.png"))
    with pytest.raises(DataError, match="no text in UTF-8; give it another name"):
        open_images(tmp_path)


def test_spaces_before_names_and_cells_of_csv_do_not_count(tmp_path):
    picture(1).save(tmp_path / "1.png")
    (tmp_path / "table.csv").write_text("image, identity\n1.png, p1\n")
    assert open_images(tmp_path / "table.csv").records[0].identity == "p1"


def test_a_file_of_several_pictures_is_refused(tmp_path):
    pages = [picture(i) for i in range(3)]
    for name in ("pages.tiff", "moving.gif", "moving.webp"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    picture(1).save(tmp_path / "one.tiff")
    source = open_images(tmp_path)
    for row, record in enumerate(source.records):
        if record.id == "one.tiff":
            assert source.image(row).size
        else:
            with pytest.raises(UnreadableImageError, match="it holds 3 pictures; export them one by one"):
                source.image(row)


def test_messages_say_the_same_every_time(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(UnreadableImageError) as error:
        open_images(tmp_path).image(0)
    assert "damaged, or of a format such as HEIC" in str(error.value) and "0x" not in str(error.value)


def test_ids_of_a_column_must_be_unique(tmp_path):
    write_pictures(tmp_path, [0, 1])
    table = write_csv(tmp_path / "t.csv", ["path", "key"], [["000.png", "k"], ["001.png", "k"]])
    with pytest.raises(DataError, match="two images of id 'k'"):
        open_images(table, id_column="key")


def test_pixels_are_in_the_range_that_diffusers_encodes():
    black, white = (Image.new("RGB", (9, 7), colour) for colour in ("black", "white"))
    assert to_pixels(black, 4).unique().tolist() == [-1.0] and to_pixels(white, 4).unique().tolist() == [1.0]
    assert to_pixels(black, 4).shape == (3, 4, 4) and to_pixels(black, 4).dtype == torch.float32


def test_sixteen_bit_greyscale_is_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65_535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    seen = np.asarray(open_images(tmp_path).image(0))[..., 0]
    assert np.array_equal(seen, (ramp / 257).round().astype(np.uint8))


def test_pictures_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert open_images(tmp_path).image(0).size == (4, 8)


@pytest.mark.parametrize("harm", ["truncated", "text", "empty", "gone"])
def test_an_unreadable_image_is_one_clear_error(tmp_path, harm):
    file = write_pictures(tmp_path, [0, 1]) / "001.png"
    source = open_images(tmp_path)
    content = file.read_bytes()
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes({"truncated": content[: len(content) // 2], "text": b"no image", "empty": b""}[harm])
    told = {
        "truncated": "repair or convert it",
        "text": "it is no picture that Pillow knows.*; repair or convert it",
        "empty": "it is empty; repair or convert it",
        "gone": "FileNotFoundError: .*; have it readable",
    }
    with pytest.raises(UnreadableImageError, match=rf"'001\.png' .* cannot be read: .*{told[harm]}"):
        source.image(1)
    assert source.image(0).size == (32, 32)


def test_nothing_there(tmp_path):
    with pytest.raises(EmptyDataError, match="has no images"):
        open_images(tmp_path)
    with pytest.raises(DataError, match="no such folder or table"):
        open_images(tmp_path / "missing")
    with pytest.raises(EmptyDataError, match="no rows"):
        open_images(
            write_csv(tmp_path / "t.csv", ["path", "split"], [["a.png", "test"]]), where={"split": "train"}
        )


def test_a_missing_column_is_named_with_those_there_are(tmp_path):
    table = write_csv(tmp_path / "t.csv", ["path", "patient"], [["a.png", 1]])
    with pytest.raises(MissingColumnError, match="no column 'person'; it has path, patient"):
        open_images(table, identity_column="person")
    with pytest.raises(
        MissingColumnError, match="no column image, file_name, path or file; it has patient; name"
    ):
        open_images(write_csv(tmp_path / "u.csv", ["patient"], [[1]]))
    with pytest.raises(MissingColumnError, match="folder of images without a table"):
        open_images(write_pictures(tmp_path / "plain", [0]), identity_column="person")


def test_what_is_no_table(tmp_path):
    (tmp_path / "t.xlsx").write_text("")
    (tmp_path / "t.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="no table that can be read"):
        open_images(tmp_path / "t.xlsx")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        open_images(tmp_path / "t.parquet")


def test_the_fingerprint_follows_the_images(tmp_path):
    write_pictures(tmp_path / "a", [0, 1])
    before = open_images(tmp_path / "a").fingerprint
    assert open_images(tmp_path / "a").fingerprint == before
    picture(5).save(tmp_path / "a" / "001.png")
    assert open_images(tmp_path / "a").fingerprint != before
    write_pictures(tmp_path / "a", [2])
    table = write_csv(tmp_path / "t.csv", ["path", "who"], [["a/000.png", "p"], ["a/001.png", "q"]])
    assert open_images(table).fingerprint != open_images(table, identity_column="who").fingerprint


def test_an_image_by_its_id(tmp_path):
    source = open_images(write_pictures(tmp_path, [1, 2]))
    (tmp_path / "001.png").write_text("no image")
    found = source.image_of("002.png")
    assert found is not None and found.tobytes() == picture(2).tobytes()
    assert source.image_of("001.png") is None and source.image_of("003.png") is None


def test_an_own_source():
    source = ImageSource("mine", [ImageRecord("x", "p")], lambda row: b"no image", "v1")
    assert len(source) == 1
    with pytest.raises(UnreadableImageError):
        source.image(0)


def test_links_that_lead_nowhere_are_images_that_cannot_be_read(tmp_path):
    """As those of storage that is not there today, of single files and of whole folders."""
    write_pictures(tmp_path / "set" / "p1", [0])
    for name, target in (("p1/x.png", "/nowhere/x.png"), ("p2", "/nowhere/p2"), ("loop", "loop")):
        (tmp_path / "set" / name).symlink_to(target)
    (tmp_path / "there").mkdir()
    (tmp_path / "set" / "empty").symlink_to(tmp_path / "there")
    source = open_images(tmp_path / "set")
    assert [one.id for one in source.records] == ["loop", "p1/000.png", "p1/x.png", "p2"]
    assert [can_be_read(source, row) for row in range(4)] == [False, True, False, False]


def test_files_of_no_known_name_that_cannot_be_opened_are_images_that_cannot_be_read(tmp_path, monkeypatch):
    write_pictures(tmp_path, [0])
    (tmp_path / "scan1").write_bytes((tmp_path / "000.png").read_bytes())
    (tmp_path / "notes.txt").write_text("BMI is no picture")
    picture(1).save(tmp_path / "bitmap", format="BMP")
    plain = Path.open

    def refusing(self, *args, **options):
        if self.name == "scan1":
            raise PermissionError(13, "Permission denied", str(self))
        return plain(self, *args, **options)

    monkeypatch.setattr(Path, "open", refusing)
    source = open_images(tmp_path)
    assert [one.id for one in source.records] == ["000.png", "bitmap", "scan1"]
    assert [can_be_read(source, row) for row in range(3)] == [True, True, False]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_what_pandas_writes_where_nobody_is_known_is_nobody(tmp_path, kind):
    table = pandas.DataFrame({"image": ["000.png", "001.png", "002.png"], "identity": ["a", "nan", "None"]})
    file = tmp_path / f"set.{kind}"
    if kind == "jsonl":
        table.to_json(file, orient="records", lines=True)
    else:
        {"csv": table.to_csv, "parquet": table.to_parquet}[kind](str(file))
    assert [one.identity for one in open_images(file).records] == ["a", None, None]


def test_a_column_label_is_read_where_there_is_none_of_labels(tmp_path):
    write_csv(tmp_path / "one.csv", ["image", "label"], [["000.png", "cat"]])
    assert open_images(tmp_path / "one.csv").records == [ImageRecord("000.png", None, "cat")]
    write_csv(tmp_path / "both.csv", ["image", "label", "labels"], [["000.png", "cat", "a|b"]])
    assert open_images(tmp_path / "both.csv").records == [ImageRecord("000.png", None, "a|b")]


def test_an_image_without_an_id_and_a_table_without_rows_are_told(tmp_path):
    write_csv(tmp_path / "a.csv", ["image", "id"], [["000.png", "x"], ["001.png", ""]])
    with pytest.raises(DataError, match=r"a\.csv: row 1 has no id; fill it in"):
        open_images(tmp_path / "a.csv", id_column="id")
    write_csv(tmp_path / "b.csv", ["image"], [])
    with pytest.raises(EmptyDataError, match=r"b\.csv has no rows$"):
        open_images(tmp_path / "b.csv")


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("name", ["set[12]", "set*", "set?", "a::b", "d [1]/metadata"])
def test_a_tables_name_is_no_pattern(tmp_path, kind, name):
    write_pictures(tmp_path, [0])
    (tmp_path / "d [1]").mkdir()
    (tmp_path / "d 1").mkdir()
    for other in ("set1", "set12", "b", "d 1/metadata", name):
        said = pandas.DataFrame(
            {"file_name": ["000.png"], "identity": ["this" if other == name else "another"]}
        )
        file = tmp_path / f"{other}.{kind}"
        said.to_parquet(file) if kind == "parquet" else said.to_json(
            file, orient="records", lines=kind == "jsonl"
        )
    assert open_images(tmp_path / f"{name}.{kind}").records == [ImageRecord("000.png", "this")]


@pytest.mark.parametrize(("kind", "home"), [("jsonl", True), ("parquet", True), ("parquet", False)])
def test_no_copy_of_a_tables_pictures_is_left_with_a_home_or_without(tmp_path, kind, home):
    write_pictures(tmp_path, [0])
    rows = {"image": [(tmp_path / "000.png").read_bytes().hex() if kind == "jsonl" else {"bytes": b"secret"}]}
    table, file = pandas.DataFrame(rows), tmp_path / f"set.{kind}"
    table.to_json(file, orient="records", lines=True) if kind == "jsonl" else table.to_parquet(file)
    code = f"from lcmem_filter.images import open_images; print(len(open_images({str(file)!r})))"
    left = {name: str(tmp_path / name) for name in ("HF_HOME", "TMPDIR")}
    (tmp_path / "TMPDIR").mkdir()
    if home:
        (tmp_path / "HF_HOME").mkdir()
    else:
        (tmp_path / "HF_HOME").touch()  # no folder can be made in it, not even by root
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **left}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "1"
    assert not [one for folder in left.values() for one in Path(folder).rglob("*.arrow")]


def test_a_folders_table_may_name_its_images_in_any_way(tmp_path):
    write_pictures(tmp_path / "set", [0, 1, 2])
    (tmp_path / "link").symlink_to(tmp_path / "set")
    names = ["./000.png", "../set/001.png", str(tmp_path / "link" / "002.png")]
    write_csv(tmp_path / "set" / "metadata.csv", ["file_name"], [[name] for name in names])
    assert len(open_images(tmp_path / "set")) == 3
    write_csv(tmp_path / "set" / "metadata.csv", ["file_name"], [[name] for name in names[:2]])
    with pytest.raises(
        DataError, match=r"does not name 1 of the images in its folder \(the first: 002\.png\)"
    ):
        open_images(tmp_path / "set")


def test_hidden_files_are_images_where_they_begin_as_such(tmp_path):
    write_pictures(tmp_path, range(2))
    (tmp_path / ".001.png").write_bytes((tmp_path / "001.png").read_bytes())
    (tmp_path / "._000.png").write_bytes(b"\0\5\x16\7 what a Mac says of the file beside it")
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (tmp_path / ".#000.png").symlink_to("nobody@nowhere.1")  # of an editor that has it open
    assert [one.id for one in open_images(tmp_path).records] == [".001.png", "000.png", "001.png"]
