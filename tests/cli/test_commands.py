"""The commands end to end, on drawn pictures: what they print, and how they exit."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest

from lcmem_filter import MemorizationFilter, MemorizationIndex, calibration
from lcmem_filter.cli import index as command
from lcmem_filter.cli.main import main
from lcmem_filter.index import build as building

from tests.index.material import head, saved_encoder
from tests.tiny import fussy_encode, write_pictures, write_unjudgeable


def run(capsys, *arguments: object) -> tuple[int, list[dict], str]:
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, [json.loads(line) for line in out.splitlines()], err


@pytest.fixture
def folder(tmp_path):
    saved_encoder(tmp_path)
    head().save_pretrained(tmp_path / "head")
    write_pictures(tmp_path / "train", range(40))
    write_pictures(tmp_path / "held", range(100, 200))
    return tmp_path


def build(capsys, folder, *more: object, data: str = "train"):
    given = (
        "--vae",
        folder / "vae",
        "--head",
        folder / "head",
        "--output",
        folder / "index",
        "--device",
        "cpu",
    )
    return run(capsys, "index", "build", folder / data, *given, "--resolution", 32, *more)


def exit_code(calibrated):
    """Of a calibration: nobody trained the head, so that it may miss most of the training images."""
    above, of = calibrated["own_found"]
    return int(2 * above < of)


def test_build_calibrate_check(folder, capsys, monkeypatch):
    status, (built,), _ = build(capsys, folder)
    assert status == 0 and (built["images"], built["space"], built["latents"]) == (40, "sd", True)
    status, (found,), err = run(
        capsys,
        "calibrate",
        folder / "index",
        folder / "held",
        "--false-rejection-rate",
        0.05,
        "--device",
        "cpu",
    )
    above, of = found["own_found"]
    assert status == exit_code(found) and found["n"] == 100 and "comes out between" in err
    assert f"cell of their latents, the threshold finds {above}" in err and of == 32
    assert all(f"{image}  {nearest}\n" in err for image, nearest, _ in found["highest"])
    (folder / "seen.txt").write_bytes(f"\ufeff{found['highest'][0][0]}\r\n".encode())  # as on Windows
    given = (folder / "index", folder / "held", "--false-rejection-rate", 0.05, "--device", "cpu")
    status, (without,), _ = run(capsys, "calibrate", *given, "--leave-out", folder / "seen.txt")
    assert status == exit_code(without) and without["dropped"] == {"left out by name": 1}
    assert without["threshold"] <= found["threshold"]
    for above, suspicious, code in (
        (15, True, 1),
        (0, True, 1),
        (28, True, 0),
        (29, False, 0),
        (32, False, 0),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(calibration, "_own_found", lambda *_, above=above: (above, 32))
            status, _, err = run(capsys, "calibrate", *given)
        assert f"the threshold finds {above}" in err and status == code
        assert ("copies of training images may have set it" in err) == suspicious
        doubted = (
            pytest.warns(UserWarning, match=f"Of 32 .* finds {above}: copies") if code else nullcontext()
        )
        with doubted:
            MemorizationFilter(folder / "index")
    write_pictures(folder / "made", [4, 500, 501, 9])
    status, lines, err = run(capsys, "check", folder / "made", "--index", folder / "index", "--device", "cpu")
    assert status == 1 and "2 clean, 2 matches, 0 not checked" in err
    assert {line["id"]: line["accepted"] for line in lines} == {
        "004.png": False, "009.png": False, "500.png": True, "501.png": True
    }  # fmt: skip
    assert lines[0]["neighbours"][0]["id"] == "004.png" and lines[0]["score"] > found["threshold"]
    write_pictures(folder / "clean", [500, 501])
    clean = ("check", folder / "clean", "--index", folder / "index", "--device", "cpu")
    assert run(capsys, *clean)[0] == 0
    index = MemorizationIndex.load(folder / "index")
    index.set_calibration(replace(index.calibration, own_found=(15, 32)))
    with pytest.warns(UserWarning, match="finds 15"):
        status, _, err = run(capsys, *clean)
    assert status == 2 and "2 clean, 0 matches" in err and "no match says little. Of 32" in err
    index.set_calibration(replace(index.calibration, own_found=(32, 32)))
    (folder / "clean" / "broken.png").write_text("no image")
    status, lines, err = run(
        capsys, "check", folder / "clean", "--index", folder / "index", "--device", "cpu"
    )
    assert status == 2 and "1 not checked" in err and lines[-1]["accepted"] is None
    assert "cannot be read" in lines[-1]["reason"]
    (folder / "clean" / "broken.png").unlink()
    bad = write_unjudgeable(folder / "clean")
    monkeypatch.setattr("lcmem_filter.latents.encode_pixels", fussy_encode)
    status, lines, err = run(
        capsys, "check", folder / "clean", "--index", folder / "index", "--device", "cpu"
    )
    assert status == 2 and "2 clean, 0 matches, 2 not checked" in err
    assert [line["id"] for line in lines if line["accepted"] is None] == bad
    assert "constant" in lines[2]["reason"] and "NaN" in lines[3]["reason"]


def test_names_that_are_taken_for_classes_are_told(folder, capsys):
    write_pictures(folder / "train" / "healthy", range(21))
    write_pictures(folder / "train" / "patient 7", range(21, 23))
    for picture in (folder / "train").glob("*.png"):
        picture.unlink()
    _, (built,), err = build(capsys, folder)
    assert (built["images"], built["identities"]) == (23, 1)
    assert (
        "taken for classes, not for identities, since each has more than 20 pictures: healthy; where" in err
    )


@pytest.mark.parametrize("people", [1, 40])
def test_a_column_that_may_be_of_classes_is_told(folder, capsys, people):
    pictures = sorted((folder / "train").glob("*.png"))
    # the first stands there as often as it was trained on, which makes no class of it
    rows = [f"{one.name},p{number % people}" for number, one in enumerate(pictures)] + [
        f"{pictures[0].name},p0"
    ] * 40
    (folder / "train" / "metadata.csv").write_text("\n".join(["file_name,identity", *rows]))
    _, (built,), err = build(capsys, folder)
    assert built["identities"] == min(people, len(pictures))
    told = f"{len(rows)} of {len(rows)} images have an identity of more than 20 pictures, which is believed: p0; where"
    assert (told in err) == (people == 1)


def test_a_training_set_that_grew_is_told_how_and_reuses_its_index(folder, capsys):
    _, (first,), _ = build(capsys, folder)
    write_pictures(folder / "train", range(70, 72))
    status, _, err = build(capsys, folder)
    assert status == 2 and f"into another folder with --reuse {folder / 'index'}" in err
    again = ("--reuse", folder / "index", "--output", folder / "grown")
    status, (built,), _ = build(capsys, folder, *again)
    assert status == 0 and built["images"] == first["images"] + 2


def test_the_size_that_pictures_are_encoded_at_is_told_where_nobody_named_it(folder, capsys):
    given = (
        "--vae",
        folder / "vae",
        "--head",
        folder / "head",
        "--device",
        "cpu",
        "--output",
        folder / "index",
    )
    status, (built,), err = run(capsys, "index", "build", folder / "train", *given)
    assert status == 0 and f"pictures are encoded at {built['resolution']} px; where the pipeline" in err
    assert "pictures are encoded at" not in build(capsys, folder, "--output", folder / "named")[2]


def test_show_prints_what_an_index_was_built_with_and_its_thresholds(folder, capsys, monkeypatch):
    (folder / "train" / "broken.png").write_bytes(b"no picture")
    _, (built,), _ = build(capsys, folder)
    status, (shown,), _ = run(capsys, "index", "show", folder / "index")
    assert status == 0 and built.items() <= shown.items() and list(shown["unreadable"]) == ["broken.png"]
    assert shown["head"] is None and shown["head_fingerprint"] == head().fingerprint
    assert shown["encoder"]["path"] == str(folder / "vae") and shown["calibrations"] == {}
    given = (folder / "index", folder / "held", "--false-rejection-rate", 0.05, "--device", "cpu")
    _, (found,), _ = run(capsys, "calibrate", *given, "--allow-unindexed")
    _, (shown,), _ = run(capsys, "index", "show", folder / "index")
    threshold = shown["calibrations"]["sd"]
    assert threshold.pop("usable") == (exit_code(found) == 0) and threshold.items() <= found.items()
    for above in (15, 16):
        monkeypatch.setattr(calibration, "_own_found", lambda *_, above=above: (above, 32))
        run(capsys, "calibrate", *given, "--allow-unindexed")
        _, (shown,), _ = run(capsys, "index", "show", folder / "index")
        assert shown["calibrations"]["sd"]["usable"] == (above == 16)
    assert {"n", "false_rejection_rate", "threshold", "own_found"} <= threshold.keys()
    head().save_pretrained(folder / "shipped" / "ours")
    monkeypatch.setattr("lcmem_filter.shipped.SHIPPED", folder / "shipped")
    _, (shown,), _ = run(capsys, "index", "show", folder / "index")
    assert shown["head"] == "ours"
    next((folder / "index").rglob("embeddings.npy")).write_bytes(b"")
    assert run(capsys, "index", "show", folder / "index")[0] == 2


def test_what_deep_folders_are_taken_for_is_told(folder, capsys):
    for picture in (folder / "train").glob("*.png"):
        picture.unlink()
    write_pictures(folder / "train" / "site 0" / "patient 7", range(3))
    _, (built,), err = build(capsys, folder)
    assert built["identities"] == 1 and command.SHARD_ROWS == building.SHARD_ROWS
    assert "3 images of" in err and "first folder, as 'site 0', is taken for the identity" in err


def test_an_attribute_of_dicom_files_names_patients(folder, capsys):
    pytest.importorskip("pydicom")
    from tests.test_dicom import VALUES, write

    for picture in (folder / "train").glob("*.png"):
        picture.unlink()
    for number in range(4):
        (deep := folder / "train" / "site" / f"study {number}").mkdir(parents=True)
        write(deep / "image.dcm", np.roll(VALUES, number), PatientID=f"p{number // 2}")
    _, (built,), err = build(capsys, folder)
    assert built["identities"] == 1 and "1 subfolders hold images of several patients" in err
    assert "with --identity-column PatientID" in err and "taken for the identity" not in err
    _, (built,), err = build(capsys, folder, "--identity-column", "PatientID", "--output", folder / "named")
    assert built["identities"] == 2 and "identity" not in err
    for number in range(4):
        (folder / "train" / "site" / f"study {number}" / "image.dcm").rename(
            folder / "train" / f"{number}.dcm"
        )
    _, (built,), err = build(capsys, folder, "--output", folder / "flat")
    assert built["identities"] == 0 and "(such as PatientID), name it (--identity-column)" in err


@pytest.mark.parametrize(
    ("folders", "patients", "told"),
    [
        ("abab", "pqpq", None),
        (
            "abab",
            "ppqq",
            "2 subfolders hold images of several patients, and images of 2 patients are told apart",
        ),
        (
            "abcd",
            "ppqr",
            "0 subfolders hold images of several patients, and images of 1 patients are told apart",
        ),
        ("aabb", "pppp", None),  # anonymised
        ("aabb", "    ", None),
    ],
)
def test_subfolders_that_say_otherwise_whose_dicom_files_are_than_these_do_are_told(
    folder, capsys, folders, patients, told
):
    pytest.importorskip("pydicom")
    from tests.test_dicom import VALUES, write

    for number, (place, patient) in enumerate(zip(folders, patients, strict=True)):
        (within := folder / "scans" / place).mkdir(parents=True, exist_ok=True)
        write(within / f"{number}.dcm", np.roll(VALUES, 7 * number), PatientID=patient.strip())
    status, _, err = build(capsys, folder, data="scans")
    assert status == 0
    assert (told in err) if told else "DICOM" not in err


def test_a_table_that_names_nobody_is_told_its_columns(folder, capsys):
    rows = [f"{path.name},{path.stem[:-1]}" for path in sorted((folder / "train").glob("*.png"))]
    (folder / "train" / "metadata.csv").write_text("\n".join(["file_name,patient", *rows]))
    _, (built,), err = build(capsys, folder)
    assert built["identities"] == 0 and "one does (file_name, patient), name it (--identity-column)" in err
    _, (built,), err = build(capsys, folder, "--identity-column", "patient", "--output", folder / "named")
    assert built["identities"] > 0 and "name it" not in err


def test_calibrate_asks_who_is_in_the_held_out_images_where_the_index_says_so(folder, capsys):
    rows = [f"{path.name},{number // 2}" for number, path in enumerate(sorted((folder / "train").iterdir()))]
    (folder / "train" / "metadata.csv").write_text("\n".join(["file_name,patient", *rows]))
    rows = [f"{path.name},{1000 + number}" for number, path in enumerate(sorted((folder / "held").iterdir()))]
    (folder / "held" / "metadata.csv").write_text("\n".join(["file_name,patient", *rows]))
    build(capsys, folder, "--identity-column", "patient")
    given = ("calibrate", folder / "index", folder / "held", "--false-rejection-rate", 0.3, "--device", "cpu")
    _, _, err = run(capsys, *given)
    assert (
        "one does (file_name, patient), name it (--identity-column): images of people who are in the" in err
    )
    _, _, err = run(capsys, *given, "--identity-column", "patient")
    assert "--identity-column" not in err


def test_calibrate_tells_how_many_more_images_set_the_threshold(folder, capsys):
    build(capsys, folder)
    given = (folder / "index", folder / "held", "--false-rejection-rate", 0.3, "--device", "cpu")
    _, (found,), err = run(capsys, "calibrate", *given)
    assert len(found["highest"]) == 30 and "  and 10 more, in `highest`" in err
    assert found["highest"][19][0] in err and found["highest"][20][0] not in err


def test_calibrate_shows_what_sets_the_threshold(folder, capsys):
    build(capsys, folder)
    page = folder / "pages" / "pairs.html"
    given = (folder / "index", folder / "held", "--false-rejection-rate", 0.05, "--device", "cpu")
    _, (found,), err = run(capsys, "calibrate", *given, "--pairs", page, "--training", folder / "train")
    shown = page.read_text()
    assert f"to look at: {page}" in err and shown.count("<img ") == 2 * len(found["highest"])
    assert all(image in shown and nearest in shown for image, nearest, _ in found["highest"])
    for more, told in (
        (("--training", folder / "train"), "--training is shown on a page; name it with --pairs FILE"),
        (
            ("--pairs", page, "--training", folder / "held"),
            "none of the 100 images of 'held' is a training image",
        ),
        (("--pairs", folder / "held"), "Is a directory"),
    ):
        status, lines, err = run(capsys, "calibrate", *given, *more)
        assert status == 2 and not lines and told in err


def test_an_incomplete_index_exits_2_and_is_refused_afterwards(folder, capsys):
    (folder / "train" / "broken.png").write_text("no image")
    status, (built,), err = build(capsys, folder)
    assert status == 2 and list(built["unreadable"]) == ["broken.png"] and "allow_unindexed=True" in err
    calibration = (
        "calibrate",
        folder / "index",
        folder / "held",
        "--false-rejection-rate",
        0.05,
        "--device",
        "cpu",
    )
    status, lines, err = run(capsys, *calibration)
    assert status == 2 and not lines and "lacks 1 training images" in err
    status, (found,), _ = run(capsys, *calibration, "--allow-unindexed")
    assert status == exit_code(found)


def test_errors_are_one_line(folder, capsys):
    build(capsys, folder)
    for arguments, message in (
        (("check", folder / "held", "--index", folder / "index"), "no threshold for latents of 'sd' yet"),
        (("check", folder / "held", "--index", folder / "missing"), "no index at"),
        (("calibrate", folder / "index", folder / "missing"), "no such folder or table"),
        (("calibrate", folder / "index", folder / "held", "--identity-column", "who"), "no column 'who'"),
        (("calibrate", folder / "index", folder / "held", "--where", "split"), "COLUMN=VALUE"),
        (("calibrate", folder / "index", folder / "held", "--device", "typo"), "no device 'typo'"),
        (("calibrate", folder / "index", folder / "held", "--device", "cuda:99"), "no device 'cuda:99'"),
        (("calibrate", folder / "index", folder / "held", "--leave-out", "nothing.txt"), "one id a line"),
        (
            ("calibrate", folder / "index", folder / "held", "--false-rejection-rate", 0.001),
            "needs at least 999",
        ),
        (
            ("calibrate", folder / "index", folder / "held", "--vae", folder / "held"),
            "no autoencoder could be loaded",
        ),
    ):
        status, lines, err = run(capsys, *arguments)
        assert status == 2 and not lines and message in err, err
        assert err.startswith("lcmem-filter: ") and err.count("\n") == 1


def test_the_encoder_that_an_index_names_may_be_gone(folder, capsys):
    build(capsys, folder)
    (folder / "vae").rename(folder / "moved")
    calibration = ("calibrate", folder / "index", folder / "held", "--false-rejection-rate", 0.05)
    status, _, err = run(capsys, *calibration)
    assert status == 2 and "no such folder" in err and "name that (--vae)" in err
    status, (found,), _ = run(capsys, *calibration, "--vae", folder / "moved")
    assert status == exit_code(found)


def test_training_from_the_command_line(folder, capsys):
    write_pictures(folder / "people", range(12), identities=1)
    write_pictures(folder / "people", range(12, 24), identities=1)
    recipe = ("--size", "micro", "--resolution", 32, "--steps", 4, "--batch-pairs", 8, "--evaluate-every", 4)
    status, (trained,), err = run(
        capsys,
        "train",
        folder / "people",
        "--vae",
        folder / "vae",
        "--output",
        folder / "trained",
        "--space",
        "sd",
        *recipe,
    )
    assert status == 0 and trained["spaces"] == ["sd"] and "training images" in err
    assert (folder / "trained" / "README.md").exists()
