"""DICOM files made by pydicom: how their values are shown, where they are found, and what is refused."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lcmem_filter.errors import DataError, MissingColumnError, MissingExtraError, UnreadableImageError
from lcmem_filter.images import open_images

pydicom = pytest.importorskip("pydicom")

VALUES = np.linspace(0, 4095, 64).round().astype(np.uint16).reshape(8, 8)


def write(path: Path, values: np.ndarray = VALUES, **changes: Any) -> Path:
    """A file of ``values`` (H, W), (H, W, 3) or (n, H, W); ``changes`` set tags, or (``None``) leave them out."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    bits = 8 * values.dtype.itemsize
    shape = values.shape[1:] if "NumberOfFrames" in changes else values.shape
    tags = {
        "Rows": shape[0],
        "Columns": shape[1],
        "SamplesPerPixel": shape[2] if len(shape) == 3 else 1,
        "PhotometricInterpretation": "RGB" if len(shape) == 3 else "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": 12 if bits == 16 else 8,
        "HighBit": 11 if bits == 16 else 7,
        "PixelRepresentation": int(values.dtype.kind == "i"),
        "PlanarConfiguration": 0 if len(shape) == 3 else None,
        "PixelData": values.tobytes(),
        **changes,
    }
    for name, value in tags.items():
        if value is not None:
            setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def seen(path: Path) -> np.ndarray:
    """What comes of the only image in a file's folder, (H, W, 3)."""
    source = open_images(path.parent)
    assert len(source) == 1
    return np.asarray(source.image(0)).astype(int)


def grey(path: Path) -> np.ndarray:
    """The same of a grey picture, (H, W)."""
    found = seen(path)
    assert (found == found[..., :1]).all()
    return found[..., 0]


def linear(values: np.ndarray, black: float, white: float) -> np.ndarray:
    return ((values.astype(float) - black) / (white - black) * 255).round().clip(0, 255)


def test_without_a_window_values_are_stretched_between_percentiles(tmp_path):
    assert np.array_equal(
        grey(write(tmp_path / "a.dcm")), linear(VALUES, *np.percentile(VALUES, (0.5, 99.5)))
    )


def test_rescaled_values_go_through_the_window(tmp_path):
    """A window of centre c and width w is linear over c - 0.5 -+ (w - 1) / 2 (DICOM PS3.3 C.11.2.1.2)."""
    path = write(
        tmp_path / "a.dcm",
        RescaleSlope=1,
        RescaleIntercept=-1024,
        WindowCenter=[40, 300],
        WindowWidth=[400, 1500],
    )
    shown = grey(path)
    assert np.abs(shown - linear(VALUES - 1024.0, 39.5 - 199.5, 39.5 + 199.5)).max() <= 1
    assert {shown.min(), shown.max()} == {0, 255}


def test_a_window_wider_than_the_picture_does_not_stretch_it(tmp_path):
    path = write(tmp_path / "a.dcm", VALUES // 4, WindowCenter=2048, WindowWidth=4096)
    assert 62 <= grey(path).max() <= 65


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_other_functions_of_the_window(tmp_path, function):
    path = write(tmp_path / "a.dcm", WindowCenter=2000, WindowWidth=1000, VOILUTFunction=function)
    expected = {
        "LINEAR_EXACT": linear(VALUES, 1500, 2500),
        "SIGMOID": 255 / (1 + np.exp(-4 * (VALUES - 2000.0) / 1000)),
    }[function]
    assert np.abs(grey(path) - expected).max() <= 1


def test_a_lookup_table_goes_before_a_window(tmp_path):
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    table = Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    table.LUTData = (65_535 - 16 * np.arange(4096)).astype(np.uint16).tobytes()  # dark where values are large
    path = write(
        tmp_path / "a.dcm",
        VOILUTSequence=Sequence([table]),
        WindowCenter=10,
        WindowWidth=10,
        RescaleSlope=1,
        RescaleIntercept=0,
    )
    assert np.abs(grey(path) - linear(65_535 - 16.0 * VALUES, 0, 65_535)).max() <= 1


def test_monochrome1_is_inverted(tmp_path):
    plain = grey(write(tmp_path / "a.dcm", WindowCenter=2048, WindowWidth=4096))
    inverted = write(
        tmp_path / "a.dcm", WindowCenter=2048, WindowWidth=4096, PhotometricInterpretation="MONOCHROME1"
    )
    assert np.array_equal(grey(inverted), 255 - plain)


def test_an_empty_window_is_none(tmp_path):
    expected = grey(write(tmp_path / "a.dcm"))
    assert np.array_equal(grey(write(tmp_path / "a.dcm", WindowCenter="", WindowWidth="")), expected)


def test_signed_values(tmp_path):
    values = (VALUES.astype(np.int16) - 2048).astype(np.int16)
    assert (
        np.abs(
            grey(write(tmp_path / "a.dcm", values, WindowCenter=0, WindowWidth=4096))
            - linear(values, -2048, 2047)
        ).max()
        <= 1
    )


def test_colours(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(seen(write(tmp_path / "a.dcm", rgb)), rgb)
    as_ybr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    path = write(tmp_path / "a.dcm", as_ybr, PhotometricInterpretation="YBR_FULL")
    assert np.abs(seen(path) - rgb.astype(int)).max() <= 4


def test_palettes(tmp_path):
    ramp = (np.arange(256, dtype=np.uint16) * 257).tobytes()
    tags: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, data in (("Red", ramp), ("Green", ramp[::-1]), ("Blue", bytes(512))):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{colour}PaletteColorLookupTableData"] = data
    values = np.arange(64, dtype=np.uint8).reshape(8, 8)
    shown = seen(write(tmp_path / "a.dcm", values, **tags))
    assert np.array_equal(shown[..., 0], values) and np.array_equal(shown[..., 1], 255 - values)
    assert not shown[..., 2].any()


def test_compressed_pixels(tmp_path):
    from pydicom.uid import RLELossless

    path = write(tmp_path / "a.dcm")
    expected = grey(path)
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    dataset.save_as(path)
    assert np.array_equal(grey(path), expected)


def test_files_are_known_by_their_first_bytes_too(tmp_path):
    for name in ("a.dcm", "b.DCM", "IM000001", "1.2.840.10008.55"):
        write(tmp_path / name)
    for name in ("disc 1/DICOMDIR", "disc 2/dicomdir"):
        (tmp_path / name).parent.mkdir()
        write(tmp_path / name)
    write(tmp_path / "notes.txt")
    (tmp_path / "README").write_text("no picture")
    (tmp_path / "empty").write_bytes(b"")
    names = [record.id for record in open_images(tmp_path).records]
    assert names == ["1.2.840.10008.55", "IM000001", "a.dcm", "b.DCM", "notes.txt"]


def without_preamble(path: Path) -> dict[str, bytes]:
    """What may be left of a file: all but the preamble, or the data alone, which may begin with their length."""
    content = write(path).read_bytes()
    dataset = pydicom.dcmread(io.BytesIO(content))
    found = {"header": content[132:]}
    for kind in ("explicit", "implicit"):
        data = pydicom.Dataset(dataset)
        data.set_original_encoding(is_implicit_vr=False, is_little_endian=True)
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, data, implicit_vr=kind == "implicit", little_endian=True)
        how = b"\4\0\0\0" if kind == "implicit" else b"UL\4\0"
        found[kind] = buffer.getvalue()
        found[f"{kind}, length"] = b"\x08\0\0\0" + how + b"\x60\0\0\0" + buffer.getvalue()
    return found


def test_files_without_a_preamble_are_images_that_cannot_be_read(tmp_path):
    """As older archives write them, many without a suffix: nothing else tells what they are."""
    (tmp_path / "numbers").write_bytes(np.array([2, 3, 4, 8, 8, 8], np.int32).tobytes() * 20)
    (tmp_path / "more numbers").write_bytes(np.array([8, 4, 4, 2], np.int32).tobytes() * 20)
    contents = without_preamble(tmp_path / "0.dcm")
    for kind, content in contents.items():
        (tmp_path / kind).write_bytes(content)
        (tmp_path / f"1.2.{kind}").write_bytes(content)
    source = open_images(tmp_path)
    bare = {name for kind in contents for name in (kind, f"1.2.{kind}")}
    assert {record.id for record in source.records} == {"0.dcm", *bare}
    for row, record in enumerate(source.records):
        if record.id in bare:
            with pytest.raises(UnreadableImageError, match=r"DICOM without the preamble .*; write it anew"):
                source.image(row)


def test_several_frames_are_refused(tmp_path):
    path = write(tmp_path / "a.dcm", np.stack([VALUES, VALUES]), NumberOfFrames=2)
    with pytest.raises(UnreadableImageError, match=r"'a\.dcm'.*2 frames; export each frame"):
        seen(path)


@pytest.mark.parametrize("harm", ["truncated", "no pixels", "no preamble", "header only", "rows"])
def test_broken_files_are_one_clear_error(tmp_path, harm):
    path = write(tmp_path / "a.dcm")
    content = path.read_bytes()
    if harm == "no pixels":
        write(path, PixelData=None)
    elif harm == "rows":
        write(path, Rows=None)
    else:
        changed = {"truncated": content[:-40], "no preamble": content[132:], "header only": content[:140]}
        path.write_bytes(changed[harm])
    with pytest.raises(UnreadableImageError, match=r"'a\.dcm' .* cannot be read: .*; repair or convert it"):
        seen(path)


def test_without_pydicom_the_extra_is_named_and_other_images_are_read(tmp_path, monkeypatch):
    write(tmp_path / "a.dcm")
    Image.fromarray(VALUES).save(tmp_path / "b.png")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    source = open_images(tmp_path)
    with pytest.raises(UnreadableImageError, match=r"pip install 'lcmem_filter\[dicom\]'$") as caught:
        source.image(0)
    assert isinstance(caught.value.__cause__, MissingExtraError)
    assert source.image(1).size == (8, 8)


def test_tables_may_name_dicom_files_or_hold_them(tmp_path):
    path = write(tmp_path / "a.dcm")
    expected = seen(path)
    (tmp_path / "list.csv").write_text("path,identity\na.dcm,p1\n")
    assert np.array_equal(np.asarray(open_images(tmp_path / "list.csv").image(0)), expected)
    import datasets

    table = datasets.Dataset.from_dict({"image": [path.read_bytes()]})
    buffer = io.BytesIO()
    table.to_parquet(buffer)
    (tmp_path / "set.parquet").write_bytes(buffer.getvalue())
    assert np.array_equal(np.asarray(open_images(tmp_path / "set.parquet").image(0)), expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"WindowCenter": 50000, "WindowWidth": 10},
        {"WindowCenter": 100, "WindowWidth": 0},
        {"RescaleSlope": 0, "RescaleIntercept": 5},
        {"RescaleSlope": 0, "RescaleIntercept": 5, "WindowCenter": [100, 1], "WindowWidth": [20, 1]},
    ],
)
def test_what_would_show_nothing_is_stretched(tmp_path, changes):
    """Two such pictures would be the same, and copies of neither be found."""
    shown = grey(write(tmp_path / "a.dcm", **changes))
    assert np.array_equal(shown, linear(VALUES, *np.percentile(VALUES, (0.5, 99.5))))


def test_a_picture_of_one_value_stays_that(tmp_path):
    assert not grey(
        write(tmp_path / "a.dcm", np.full((8, 8), 7, np.uint16), WindowCenter=9, WindowWidth=4)
    ).any()


def test_an_attribute_that_files_state_names_whose_images_they_are(tmp_path):
    """In a folder as an archive exports it, whose subfolders are none of a patient's."""
    folder = tmp_path / "export"
    for name, patient in {
        "a/1.dcm": "p7",
        "a/2.dcm": "p8",
        "b/IM1": "p7",
        "c.dcm": "",
        "d.dcm": None,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name, PatientID=patient)
    Image.new("L", (8, 8)).save(folder / "e.png")
    (folder / "f.dcm").write_bytes((folder / "c.dcm").read_bytes()[:150])
    by_folder, source = open_images(folder), open_images(folder, identity_column="PatientID")
    assert [(record.id, record.identity) for record in source.records] == [
        ("a/1.dcm", "p7"),
        ("a/2.dcm", "p8"),
        ("b/IM1", "p7"),
        ("c.dcm", None),
        ("d.dcm", None),
        ("e.png", None),
        ("f.dcm", None),
    ]
    assert by_folder.named_by_folders and not source.named_by_folders  # what files state is believed
    assert source.fingerprint != by_folder.fingerprint
    with pytest.raises(
        MissingColumnError, match="no column 'PatientName', and none of them is DICOM that states it"
    ):
        open_images(folder, identity_column="PatientName")
    for file in folder.rglob("*"):
        if file.is_file() and file.suffix != ".png":
            write(file, PatientID="ANONYMOUS")
    for beside in ("a picture", "nothing"):
        with pytest.raises(DataError, match=r"all 6 files .* that state a PatientID state the same"):
            open_images(folder, identity_column="PatientID")
        assert (folder / "e.png").exists() == (beside == "a picture")
        (folder / "e.png").unlink(missing_ok=True)


def test_an_attribute_needs_the_package_that_reads_it(tmp_path, monkeypatch):
    (tmp_path / "plain").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "plain" / "a.png")
    write(tmp_path / "a.dcm", PatientID="p7")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MissingExtraError, match=r"lcmem_filter\[dicom\]"):
        open_images(tmp_path, identity_column="PatientID")
    with pytest.raises(MissingColumnError, match="folder of images without a table"):  # which needs none
        open_images(tmp_path / "plain", identity_column="PatientID")
