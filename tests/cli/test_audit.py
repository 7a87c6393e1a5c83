"""``lcmem-filter audit``: exit codes, what is printed, what is written, and combinations that are refused."""

from __future__ import annotations

import argparse
import json

import pytest

from lcmem_filter.cli import audit as command
from lcmem_filter.cli.main import main
from lcmem_filter.errors import MissingColumnError
from lcmem_filter.index import MemorizationIndex
from lcmem_filter.report import salted_id

from ..audit.material import material, planted
from ..tiny import RESOLUTION, write_pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("audit")
    material(made)
    planted(made / "set", copies=1)
    write_pictures(made / "fresh", [2001, 2002, 2004])
    return made


@pytest.fixture
def audit(folder, capsys, monkeypatch):
    """Runs the command in the folder; gives its exit status, what it printed as an object, and stderr."""
    monkeypatch.chdir(folder)

    def run(*arguments: str):
        status = main(["audit", *arguments])
        out, err = capsys.readouterr()
        return status, json.loads(out) if out else None, err

    return run


def read(folder):
    return (folder / "report.html").read_text(), json.loads((folder / "report.json").read_text())


def test_matches_end_with_1_and_a_report(audit, tmp_path):
    status, printed, err = audit("set", "--index", "index", "--output", str(tmp_path / "new" / "report"))
    page, numbers = read(tmp_path / "new" / "report")
    assert status == printed["exit_code"] == numbers["exit_code"] == 1
    assert (
        printed["verdict"] == numbers["verdict"] and printed["verdict"] in page and printed["verdict"] in err
    )
    assert numbers["counts"]["match"] >= 4
    assert printed["report"] == str(tmp_path / "new" / "report" / "report.html")
    named = [one["neighbours"][0]["id"] for one in numbers["samples"] if one["id"].startswith("exact")]
    assert named == ["000.png"] and "data:image/jpeg" in page


def test_no_match_ends_with_0_and_an_unreadable_image_with_2(audit, folder, tmp_path):
    status, printed, _ = audit("fresh", "--index", "index", "--output", str(tmp_path))
    assert (status, printed["counts"]) == (0, {"accepted": 3})
    write_pictures(tmp_path / "more", [2001])
    (tmp_path / "more" / "broken.png").write_bytes(b"no picture")
    status, printed, _ = audit(str(tmp_path / "more"), "--index", "index", "--output", str(tmp_path))
    assert (status, printed["counts"]) == (2, {"accepted": 1, "not checked": 1})
    assert "broken.png" in read(tmp_path)[0]


def test_patients_are_neither_shown_nor_named(audit, tmp_path):
    options = ["--no-thumbnails", "--salt-file", str(tmp_path / "salt"), "--output", str(tmp_path / "out")]
    _, printed, _ = audit("set", "--index", "index", "--training", "train", *options)
    page, numbers = read(tmp_path / "out")
    for content in (page, json.dumps(numbers), json.dumps(printed)):
        assert "exact000" not in content and "000.png" not in content and "image/jpeg" not in content
    salt = (tmp_path / "salt").read_text()
    assert salted_id("exact000.png", salt.encode()) in {one["id"] for one in numbers["samples"]}
    assert len(salt) == 64 and (tmp_path / "salt").stat().st_mode & 0o77 == 0
    _, _, err = audit("set", "--index", "index", *options[1:])
    assert "shows pictures, without their names; leave them out with --no-thumbnails" in err
    assert "image/jpeg" in read(tmp_path / "out")[0]
    _, _, err = audit("set", "--index", "index", *options)
    assert "shows pictures" not in err
    again = read(tmp_path / "out")[1]
    assert (tmp_path / "salt").read_text() == salt
    assert [one["id"] for one in again["samples"]] == [one["id"] for one in numbers["samples"]]
    inside = ["--salt-file", str(tmp_path / "out" / "salt"), "--output", str(tmp_path / "out")]
    status, _, err = audit("set", "--index", "index", *inside)
    assert status == 2 and "keep the key apart" in err and not (tmp_path / "out" / "salt").exists()
    (tmp_path / "salt").write_text("short")
    assert audit("set", "--index", "index", *options)[0] == 2


def test_known_false_alarms_are_allowed(audit, tmp_path):
    _, printed, _ = audit("set", "--index", "index", "--output", str(tmp_path))
    found = [one for one in read(tmp_path)[1]["samples"] if one["status"] == "match"]
    lines = [json.dumps({"id": one["id"], "reason": "ours", "sha256": one["sha256"]}) for one in found]
    (tmp_path / "allow.jsonl").write_text("\n".join(lines))
    allow = ["--allow", str(tmp_path / "allow.jsonl")]
    status, printed, _ = audit("set", "--index", "index", "--output", str(tmp_path), *allow)
    assert (status, printed["counts"]["allowed"], printed["rate"]["count"]) == (0, len(found), len(found))
    assert "Allow-list" in read(tmp_path)[0]
    (tmp_path / "allow.jsonl").write_text("[]")
    assert audit("set", "--index", "index", "--output", str(tmp_path), *allow)[0] == 2


def test_a_second_folder_is_indexed_on_the_fly(audit, tmp_path):
    options = ["--training", "train", "--vae", "vae", "--head", "head", "--held-out", "held-out"]
    options += ["--resolution", str(RESOLUTION), "--output"]
    status, _, _ = audit("set", *options, str(tmp_path / "fly"))
    audit("set", "--index", "index", "--output", str(tmp_path / "index"))
    assert status == 1
    one, other = (read(tmp_path / name)[1]["samples"] for name in ("fly", "index"))
    assert [(s["id"], s["status"]) for s in one] == [(s["id"], s["status"]) for s in other]
    sensitivity = read(tmp_path / "fly")[1]["certificate"]["sensitivity"]["rate"]
    assert sensitivity["of"] == 3 * 40


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--index INDEX, or --training DATA"),
        (["--training", "train"], "--vae, --head, --held-out must be given"),
        (["--training", "train", "--vae", "vae", "--held-out", "held-out"], "--head must be given"),
        (["--index", "index", "--held-out", "held-out"], "--held-out cannot be given with --index"),
        (["--index", "index", "--false-discovery-rate", "2"], "between 0 and 1"),
        (["--index", "index", "--unseen", "nowhere"], "nowhere"),
        (["--index", "index", "--unseen-where", "a=b"], "--unseen-where needs --unseen DATA"),
        (["--index", "nowhere"], "no index at nowhere"),
        (["--index", "index", "--pipeline", "pipe"], "needs --training"),
        (["--index", "index", "--training", "train", "--pipeline", "pipe"], "no pipeline could be loaded"),
    ],
)
def test_what_cannot_be_is_refused_with_2(audit, tmp_path, arguments, says):
    status, printed, err = audit("set", "--output", str(tmp_path / "report"), *arguments)
    assert status == 2 and printed is None and says in err
    assert not list(tmp_path.rglob("report.*"))


def test_too_few_held_out_images_are_told_before_the_training_images_are_indexed(
    audit, tmp_path, monkeypatch
):
    monkeypatch.setattr(MemorizationIndex, "build", lambda *given, **options: pytest.fail("indexed first"))
    given = ["--training", "train", "--vae", "vae", "--head", "head", "--held-out", "set"]
    status, _, err = audit("set", "--output", str(tmp_path), *given)
    assert status == 2 and "needs at least 99 held-out images" in err


def test_a_folder_that_cannot_be_made_is_told_before_the_work(audit, tmp_path, monkeypatch):
    from lcmem_filter import audit as package

    monkeypatch.setattr(package, "audit_images", lambda *given, **options: pytest.fail("examined first"))
    (tmp_path / "taken").write_text("a file")
    status, _, err = audit("set", "--index", "index", "--output", str(tmp_path / "taken"))
    assert status == 2 and "taken" in err
    (tmp_path / "report" / "report.html").mkdir(parents=True)
    status, _, err = audit("set", "--index", "index", "--output", str(tmp_path / "report"))
    assert status == 2 and "report.html" in err

    def full(*given, **options):
        raise PermissionError(13, "Permission denied", options["dir"])

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    status, _, err = audit("set", "--index", "index", "--output", str(tmp_path / "locked"))
    assert status == 2 and "Permission denied" in err and "locked" in err


def test_a_table_beside_folders_has_its_columns_alone(audit, folder, tmp_path):
    rows = "".join(f"{folder / 'train' / f'{i:03d}.png'},{i:03d}.png\n" for i in range(40))
    (tmp_path / "train.csv").write_text("picture,scan\n" + rows)
    options = ["--training", str(tmp_path / "train.csv"), "--image-column", "picture", "--id-column", "scan"]
    status, _, err = audit("set", "--index", "index", "--output", str(tmp_path), *options)
    assert status == 1, err
    assert read(tmp_path)[1]["certificate"]["sensitivity"]["rate"]["of"] == 3 * 40
    status, _, err = audit("set", "--index", "index", "--output", str(tmp_path), "--image-column", "picture")
    assert status == 2 and "has no column 'picture'" in err
    (tmp_path / "unseen.csv").write_text(
        "Picture\n000.png\n"
    )  # of real images a column is never left out silently
    options += ["--unseen", str(tmp_path / "unseen.csv")]
    status, _, err = audit("set", "--index", "index", "--output", str(tmp_path), *options)
    assert status == 2 and "unseen.csv has no column 'picture'" in err


def test_an_attribute_of_dicom_files_is_that_of_the_training_images(tmp_path):
    pytest.importorskip("pydicom")
    from ..test_dicom import write

    (tmp_path / "train").mkdir()
    write(tmp_path / "train" / "a.dcm", PatientID="p7")
    for name in ("set", "unseen"):
        write_pictures(tmp_path / name, [0])
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    options = ["--training", str(tmp_path / "train"), "--identity-column", "PatientID", "--output", "report"]
    options += ["--unseen", str(tmp_path / "unseen")]
    args = parser.parse_args([str(tmp_path / "set"), *options])
    known = [
        [record.identity for record in command._open(args, path, []).records]
        for path in (args.images, args.unseen, args.training)
    ]
    assert known == [[None], [None], ["p7"]]


def test_tables_of_examined_and_unseen_images_need_not_say_whose_they_are(tmp_path):
    for name in ("set", "unseen", "train"):
        write_pictures(tmp_path / name, [0])
    (tmp_path / "set" / "metadata.csv").write_text("file_name,prompt\n000.png,a face\n")
    (tmp_path / "unseen.csv").write_text("file\nunseen/000.png\n")
    (tmp_path / "train.csv").write_text("file,patient\ntrain/000.png,p7\n")
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    images, unseen = str(tmp_path / "set"), str(tmp_path / "unseen.csv")
    for training in ("train.csv", "train"):  # of a folder, the column would be an attribute of its files
        options = ["--training", str(tmp_path / training), "--unseen", unseen, "--identity-column", "patient"]
        args = parser.parse_args([images, *options, "--output", "report"])
        for path in (images, unseen):
            assert [record.identity for record in command._open(args, path, []).records] == [None]
    with pytest.raises(MissingColumnError, match="has no column 'patient'"):
        command._open(args, args.training, [])
    args.training = str(tmp_path / "train.csv")
    assert [record.identity for record in command._open(args, args.training, []).records] == ["p7"]
