"""An index folder: what is in it, building that survives anything, and refusals."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import lcmem_filter
from lcmem_filter import MemorizationFilter, images, latents, processes
from lcmem_filter.calibration import calibrate
from lcmem_filter.digests import sha256
from lcmem_filter.errors import (
    ArtifactError,
    ArtifactNotFoundError,
    ConfigurationError,
    CorruptArtifactError,
    EmptyDataError,
    IncompleteIndexError,
    LatentSpaceError,
    LcmemFilterError,
    MissingExtraError,
)
from lcmem_filter.head import LCMemHead
from lcmem_filter.images import open_images, to_pixels
from lcmem_filter.index import MemorizationIndex
from lcmem_filter.index import build as building
from lcmem_filter.index import folder as files
from lcmem_filter.index.identities import MOST_OF_IDENTITY, numbered
from lcmem_filter.types import Calibration
from lcmem_filter.verification import score_latents

from .material import build, head, pictures, saved_encoder
from tests.tiny import RESOLUTION, picture, tiny_pipeline, tiny_vae


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(building, "SHARD_ROWS", 8)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_rows_are_the_embedded_images(tmp_path):
    index = build(tmp_path)
    source = pictures(tmp_path / "train", range(20))
    pixels = torch.stack([to_pixels(source.image(row), RESOLUTION) for row in range(20)])
    latents = saved_encoder(tmp_path).encode(pixels)
    expected = head().embed(latents, "sd")
    hits = index.search(expected, 1)
    assert hits.rows.flatten().tolist() == list(range(20))
    torch.testing.assert_close(hits.similarity, torch.ones(20, 1), rtol=0, atol=2e-3)
    torch.testing.assert_close(
        index.latents(torch.arange(20)), head().canonical(latents, "phantoms"), rtol=0, atol=2e-3
    )
    assert [record.id for record in index.records] == [f"{i:03d}.png" for i in range(20)]
    assert hashlib.sha256((tmp_path / "train" / "007.png").read_bytes()).hexdigest() in index.sha256_set


def test_save_and_load_round_trip(tmp_path):
    built = build(tmp_path)
    loaded = MemorizationIndex.load(tmp_path / "index")
    assert len(loaded) == 20 and loaded.space == "sd" and loaded.resolution == RESOLUTION
    assert loaded.latent_size == (16, 16)
    assert loaded.fingerprint == built.fingerprint and loaded.head.fingerprint == head().fingerprint
    rows = torch.tensor([[0, 19], [8, 7]])
    assert torch.equal(loaded.latents(rows), built.latents(rows)) and loaded.latents(rows).shape == (
        2,
        2,
        4,
        16,
        16,
    )
    assert loaded.calibration is None
    assert loaded.load_encoder().source.sha256 == saved_encoder(tmp_path).source.sha256


def test_identities_and_labels_are_kept(tmp_path):
    source = pictures(tmp_path / "people", range(3), identities=1)
    index = MemorizationIndex.build(
        source, saved_encoder(tmp_path), head(), tmp_path / "index", resolution=RESOLUTION, progress=False
    )
    assert [(r.id, r.identity) for r in index.records] == [(r.id, r.identity) for r in source.records]


def test_identities_are_numbers_and_classes_are_none(tmp_path):
    counts = {"few": 2, "most": MOST_OF_IDENTITY, "class": MOST_OF_IDENTITY + 1}
    for name, count in counts.items():
        pictures(tmp_path / "train" / name, range(count))
    pictures(tmp_path / "train", range(900, 903))
    index = build(tmp_path)
    numbers = index.identities.numpy()
    of = {name: numbers[[record.identity == name for record in index.records]] for name in counts}
    assert {name: len(set(found)) for name, found in of.items()} == {
        "few": 1,
        "most": 1,
        "class": counts["class"],
    }
    assert len(set(numbers)) == 2 + counts["class"] + 3
    assert (numbers < 0).sum() == counts["class"] + 3 and min(*of["few"], *of["most"]) >= 0


def test_a_column_is_believed_however_many_images_share_a_name(tmp_path):
    folder = tmp_path / "train"
    pictures(folder, range(MOST_OF_IDENTITY + 3))
    rows = [f"{path.name},{'often' if row > 1 else row}" for row, path in enumerate(sorted(folder.iterdir()))]
    (folder / "metadata.csv").write_text("\n".join(["file_name,identity", *rows]))
    built = build(tmp_path)
    again = built.reembed(head(), tmp_path / "again")
    for index in (built, again, MemorizationIndex.load(tmp_path / "index")):
        assert not index.classes and index.identities.tolist() == [0, 1] + [2] * (MOST_OF_IDENTITY + 1)


def test_an_index_that_does_not_say_who_named_its_images_knows_classes(tmp_path):
    pictures(tmp_path / "train" / "class", range(MOST_OF_IDENTITY + 1))
    manifest = {key: value for key, value in build(tmp_path)._manifest.items() if key != "named_by_folders"}
    files.put_in_force(tmp_path / "index", manifest)
    assert MemorizationIndex.load(tmp_path / "index").classes == {"class"}


def test_names_are_believed_once_a_table_gives_them(tmp_path):
    pictures(tmp_path / "train" / "often", range(MOST_OF_IDENTITY + 1))
    first = build(tmp_path)
    held = pictures(tmp_path / "held", range(100, 120))
    calibrate(first, held, false_rejection_rate=0.1, progress=False)
    rows = [f"often/{path.name},often" for path in sorted((tmp_path / "train" / "often").iterdir())]
    (tmp_path / "train" / "metadata.csv").write_text("\n".join(["file_name,identity", *rows]))
    index = build(tmp_path)
    assert first.classes == {"often"} and not index.classes and index.identities.tolist() == [0] * len(index)
    assert index.calibration is None and index.fingerprint != first.fingerprint
    assert build(tmp_path).fingerprint == index.fingerprint


@pytest.mark.parametrize(
    "name", ["../mine/shards/00000", "/mine/shards/00000", "shards/../../mine", "shards/.."]
)
@pytest.mark.parametrize("what", ["shards", "files"])
def test_an_index_names_nothing_that_lies_elsewhere(tmp_path, name, what):
    manifest = build(tmp_path, images=4)._manifest
    if what == "shards":
        manifest = {**manifest, "shards": [{**manifest["shards"][0], "folder": name}]}
    else:
        manifest = {**manifest, "files": {**manifest["files"], name: "0" * 64}}
    files.put_in_force(tmp_path / "index", manifest)
    with pytest.raises(CorruptArtifactError, match="which is no file of an index"):
        MemorizationIndex.load(tmp_path / "index")


def test_an_index_without_shards_is_damaged(tmp_path):
    manifest = {**build(tmp_path, images=4)._manifest, "shards": []}
    files.put_in_force(tmp_path / "index", manifest)
    with pytest.raises(CorruptArtifactError, match="names no shards"):
        MemorizationIndex.load(tmp_path / "index")


def test_names_that_no_two_images_share_say_nothing_of_whom_they_show():
    assert numbered(["a", "b", None, "a"]).tolist() == [0, 1, -3, 0]
    assert numbered(["a", "b", None, "c"]).tolist() == [-1, -2, -3, -4]
    assert numbered([]).tolist() == []


def test_files_that_stand_there_several_times_make_no_class(tmp_path):
    for seed in range(3):
        for copy in range(MOST_OF_IDENTITY):
            person = tmp_path / "train" / "person"
            person.mkdir(parents=True, exist_ok=True)
            picture(seed).save(person / f"{seed}-{copy}.png")
    pictures(tmp_path / "train" / "class", range(100, 101 + MOST_OF_IDENTITY))
    index = MemorizationIndex.build(
        open_images(tmp_path / "train"),
        saved_encoder(tmp_path),
        head(),
        tmp_path / "index",
        resolution=RESOLUTION,
        progress=False,
    )
    assert index.classes == {"class"} and len(set(index.identities.tolist())) == 1 + 1 + MOST_OF_IDENTITY


def test_without_latents_there_are_none(tmp_path):
    index = build(tmp_path, keep_latents=False)
    assert not index.has_latents and not list((tmp_path / "index").rglob("latents.npy"))
    with pytest.raises(LcmemFilterError, match="keeps no latents"):
        index.latents(torch.tensor([0]))


@pytest.mark.parametrize("writes", [1, 2, 5, 9, 13])
def test_killed_at_any_write_the_same_build_ends_in_the_same_bytes(tmp_path, monkeypatch, writes):
    build(tmp_path / "whole")
    real, done = files.write_file, []

    def dies(path, write):
        if len(done) == writes:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name("torn.tmp").write_bytes(b"half a fi")
            raise KeyboardInterrupt
        done.append(path)
        return real(path, write)

    monkeypatch.setattr(files, "write_file", dies)
    try:
        build(tmp_path / "cut")
        pytest.fail("the build was not cut")
    except KeyboardInterrupt:
        pass
    monkeypatch.setattr(files, "write_file", real)
    with pytest.raises(ArtifactNotFoundError, match=r"unfinished build|no index there"):
        MemorizationIndex.load(tmp_path / "cut" / "index")
    build(tmp_path / "cut")
    shards = [digests(tmp_path / side / "index" / "shards") for side in ("whole", "cut")]
    assert shards[0] == {name: value for name, value in shards[1].items() if not name.endswith(".tmp")}


def test_killed_while_the_plan_is_written_the_same_command_begins_anew(tmp_path):
    (tmp_path / "index").mkdir()
    half, thesis = (tmp_path / "index" / name for name in (f"plan.json.{'0' * 16}.tmp", "thesis.tmp"))
    half.write_text('{"source": "')
    thesis.write_text("precious")
    with pytest.raises(ArtifactError, match="not empty and holds no index"):
        build(tmp_path, images=4)
    thesis.unlink()
    index = build(tmp_path, images=4)
    (tmp_path / "again").mkdir()
    half.rename(tmp_path / "again" / half.name)
    assert len(index) == len(index.reembed(head(), tmp_path / "again")) == 4


def test_images_that_come_while_a_build_is_unfinished_are_added_once_that_is_done(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(building, "_commit", lambda given: None)
        with pytest.raises(ArtifactNotFoundError):
            build(tmp_path)
    with pytest.raises(
        ArtifactError,
        match=r"holds an unfinished index with other source, images; .*: for that, finish it with those that it began "
        r"with, then build into another folder with --reuse",
    ):
        build(tmp_path, images=22)
    for number in (20, 21):
        (tmp_path / "train" / f"{number:03d}.png").unlink()
    build(tmp_path)
    with pytest.raises(
        ArtifactError, match=r"holds an index with other .*: for that, build into another folder"
    ):
        build(tmp_path, images=22)


def test_a_harmed_shard_of_an_unfinished_build_is_made_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(building, "_commit", lambda given: None)
        with pytest.raises(ArtifactNotFoundError):
            build(tmp_path)
    array = tmp_path / "index" / files.shard_folder(1) / files.EMBEDDINGS
    array.write_bytes(array.read_bytes()[:-3])
    assert build(tmp_path).search(torch.eye(64), 1).rows.shape == (64, 1)


def test_a_finished_index_is_not_built_again_nor_overwritten(tmp_path):
    build(tmp_path)
    before = digests(tmp_path / "index")
    build(tmp_path)
    assert digests(tmp_path / "index") == before
    with pytest.raises(ArtifactError, match="holds an index with other latents; give another"):
        build(tmp_path, keep_latents=False)
    with pytest.raises(ArtifactError, match="holds an index with other source, images"):
        build(tmp_path, images=21)
    plan = tmp_path / "index" / files.PLAN
    whole = plan.read_text()
    for content, says in (("[]", "is no plan of an index"), ("{bad", "cannot be read")):
        plan.write_text(content)
        with pytest.raises(CorruptArtifactError, match=says):
            build(tmp_path)
    plan.write_text(whole)
    (tmp_path / "other" / "index").mkdir(parents=True)
    (tmp_path / "other" / "index" / "thesis.txt").write_text("precious")
    with pytest.raises(ArtifactError, match="not empty and holds no index"):
        build(tmp_path / "other")
    assert digests(tmp_path / "index") == before


def grown(folder: Path) -> images.ImageSource:
    """The training set of ``build``, without one of its pictures, with another one of the same name, and with more."""
    pictures(folder / "train", range(20))
    (folder / "train" / "003.png").unlink()
    picture(77).save(folder / "train" / "011.png")
    (folder / "train" / "002.png").rename(folder / "train" / "030.png")
    pictures(folder / "train", range(31, 33))
    return open_images(folder / "train")


@pytest.mark.parametrize("keep_latents", [True, False])
def test_what_another_index_holds_is_not_encoded_again(tmp_path, monkeypatch, keep_latents):
    before = build(tmp_path)
    source = grown(tmp_path)
    encode, encoded = building.encode_batches, []

    def counted(source, rows, *given):
        encoded.extend(source.records[row].id for row in rows)
        return encode(source, rows, *given)

    def built(name, **options):
        given = (source, saved_encoder(tmp_path), head(), tmp_path / name)
        options |= {"resolution": RESOLUTION, "progress": False, "keep_latents": keep_latents}
        return MemorizationIndex.build(*given, **options)

    monkeypatch.setattr(building, "encode_batches", counted)
    index = built("grown", reuse=before)
    assert encoded == ["011.png", "031.png", "032.png"]
    anew = built("anew")
    assert [one.id for one in index.records] == [one.id for one in source.records]
    assert index.records == anew.records and index._records.sha256 == anew._records.sha256
    assert index.latent_size == anew.latent_size and index.has_latents == keep_latents
    rows = torch.arange(len(index))
    torch.testing.assert_close(index.embeddings(rows), anew.embeddings(rows), rtol=0, atol=2e-3)
    if keep_latents:
        torch.testing.assert_close(index.latents(rows), anew.latents(rows), rtol=0, atol=2e-3)


def test_an_index_that_was_built_otherwise_is_not_reused(tmp_path):
    def built(name, encoder=None, head=head, resolution=RESOLUTION, **options):
        source = pictures(tmp_path / "train", range(4))
        given = (source, encoder or saved_encoder(tmp_path), head(), tmp_path / name)
        return MemorizationIndex.build(*given, resolution=resolution, progress=False, **options)

    def another_head():
        made = LCMemHead.create("micro", {"sd": 4})
        made.add_probes("sd", tiny_vae())
        return made

    before = built("before", keep_latents=False)
    (tmp_path / "other").mkdir()
    torch.manual_seed(5)
    other = tiny_vae()
    with torch.no_grad():
        next(other.parameters()).mul_(1.01)
    other.save_pretrained(tmp_path / "other" / "vae")
    for options, what in (
        (
            {"encoder": latents.load_encoder(tmp_path / "other" / "vae")},
            r"another encoder \(\w{12}, not \w{12}\); name",
        ),
        (
            {"head": another_head, "resolution": 48},
            rf"another resolution \({RESOLUTION}, not 48\) and another head \(\w{{12}}, not \w{{12}}\); name",
        ),
        ({}, "keeps no latents"),
    ):
        with pytest.raises(ArtifactError, match=what):
            built("after", reuse=before, **options)
    assert not (tmp_path / "after").exists()
    with pytest.raises(TypeError, match="reuse has to be of MemorizationIndex, got str"):
        built("after", reuse="before")
    assert len(built("after", reuse=before, keep_latents=False)) == 4


def harmful_files(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("plan.json", "receipt.json")
    ]


@pytest.mark.parametrize("harm", ["truncated", "changed", "gone"])
def test_every_file_is_checked(tmp_path, harm):
    build(tmp_path)
    folder = tmp_path / "index"
    assert len(harmful_files(folder)) == 3 * 3 + 4  # three shards; head's two, manifest, CURRENT
    for file in harmful_files(folder):
        content = file.read_bytes()
        if harm == "gone":
            file.unlink()
        else:
            file.write_bytes(content[:-1] if harm == "truncated" else content[:-2] + b"\x7f" + content[-1:])
        if (harm, file.name) == ("truncated", "CURRENT"):  # only its final line break
            MemorizationIndex.load(folder)
        else:
            with pytest.raises((CorruptArtifactError, ArtifactNotFoundError), match=r"index|manifest"):
                MemorizationIndex.load(folder)
        file.write_bytes(content)
    MemorizationIndex.load(folder)


def test_nothing_is_unpickled(tmp_path):
    build(tmp_path)
    evil = tmp_path / "index" / files.shard_folder(0) / files.EMBEDDINGS
    np.save(evil, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    manifest = files.read_manifest(tmp_path / "index")
    manifest["files"][f"{files.shard_folder(0)}/{files.EMBEDDINGS}"] = sha256(evil)
    files.commit(tmp_path / "index", manifest)
    with pytest.raises(CorruptArtifactError, match="cannot be read"):
        MemorizationIndex.load(tmp_path / "index")


def test_another_head_in_the_folder_is_refused(tmp_path):
    build(tmp_path)
    torch.manual_seed(1)
    LCMemHead.create("micro", {"sd": 4}).save_pretrained(tmp_path / "index" / files.HEAD)
    with pytest.raises(CorruptArtifactError, match="checksum of head/"):
        MemorizationIndex.load(tmp_path / "index")
    manifest = files.read_manifest(tmp_path / "index")
    for name in [name for name in manifest["files"] if name.startswith("head/")]:
        manifest["files"][name] = sha256(tmp_path / "index" / name)
    files.commit(tmp_path / "index", manifest)
    with pytest.raises(CorruptArtifactError, match="another head"):
        MemorizationIndex.load(tmp_path / "index")


def test_an_encoder_of_another_space_is_refused_before_anything_is_written(tmp_path):
    source = pictures(tmp_path / "train", range(4))
    from lcmem_filter.latents import Encoder

    for vae in (tiny_vae(seed=5), tiny_vae(latent_channels=8)):
        with pytest.raises(LatentSpaceError, match="agreement on probe images"):
            MemorizationIndex.build(source, Encoder(vae, "other"), head(), tmp_path / "index", progress=False)
    assert not (tmp_path / "index").exists()


def test_unreadable_images_make_an_incomplete_index(tmp_path):
    (tmp_path / "train").mkdir()
    for name in ("003x.png", "900.png"):
        (tmp_path / "train" / name).write_text("no image")
    index = build(tmp_path)
    assert len(index) == 20 and list(index.unreadable) == ["003x.png", "900.png"]
    assert "cannot be read" in index.unreadable["900.png"]
    assert [record.id for record in index.records] == [f"{i:03d}.png" for i in range(20)]
    with pytest.raises(
        IncompleteIndexError, match=r"lacks 2 training images.*003x\.png.*allow_unindexed=True"
    ):
        MemorizationIndex.load(tmp_path / "index")
    assert len(MemorizationIndex.load(tmp_path / "index", allow_unindexed=True)) == 20


def test_an_index_in_memory_that_lacks_images_has_to_be_accepted_as_its_folder_has(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "900.png").write_text("no image")
    index = build(tmp_path, images=40)
    calibrate(index, pictures(tmp_path / "held", range(100, 130)), false_rejection_rate=0.1, progress=False)
    pipe = tiny_pipeline()
    for use in (MemorizationFilter, functools.partial(lcmem_filter.attach, pipe)):
        with pytest.raises(IncompleteIndexError, match=r"lacks 1 training images.*900\.png"):
            use(index)
        use(index, allow_unindexed=True)
    accepted = MemorizationIndex.load(tmp_path / "index", allow_unindexed=True, backend="faiss")
    again = pickle.loads(pickle.dumps(MemorizationFilter(accepted)))
    assert (again.index.backend, len(again.index)) == ("faiss", 40)
    complete = build(tmp_path / "complete", images=40)
    calibrate(
        complete, pictures(tmp_path / "held", range(100, 130)), false_rejection_rate=0.1, progress=False
    )
    kept = pickle.dumps(MemorizationFilter(complete))
    shutil.rmtree(tmp_path / "complete" / "index")
    shutil.copytree(tmp_path / "index", tmp_path / "complete" / "index")
    with pytest.raises(IncompleteIndexError):
        pickle.loads(kept)


def test_the_same_build_takes_in_what_was_mended_and_nothing_else_that_changed(tmp_path, capsys):
    train = tmp_path / "train"
    pictures(train, range(20))
    (train / "012.png").write_bytes((train / "012.png").read_bytes()[:40])

    def built() -> MemorizationIndex:
        given = (open_images(train), saved_encoder(tmp_path), head(), tmp_path / "index")
        return MemorizationIndex.build(*given, resolution=RESOLUTION, progress=False)

    lacking = built()
    assert list(lacking.unreadable) == ["012.png"] and building.SHARD_ROWS == 8
    for file in train.iterdir():
        os.utime(file, (1, 1))  # as copied from elsewhere
    before = digests(tmp_path / "index")
    assert built().unreadable and {**digests(tmp_path / "index"), "plan.json": ""} == {
        **before,
        "plan.json": "",
    }
    picture(12).save(train / "012.png")
    mended = built()
    assert len(mended) == 20 and not mended.unreadable
    assert "images that could not be read before are indexed now" in capsys.readouterr().err
    names = [shard["folder"] for shard in mended._manifest["shards"]]
    assert names == ["shards/00000", "shards/00001.1", "shards/00002"]
    assert torch.equal(
        mended._keys.stored("embeddings"), build(tmp_path / "whole")._keys.stored("embeddings")
    )
    picture(99).save(train / "003.png")
    with pytest.raises(ArtifactError, match="an index with other source"):
        built()


@pytest.mark.parametrize("images", [12, 20])
def test_another_build_that_begins_in_the_same_folder_at_the_same_time_is_refused(
    tmp_path, monkeypatch, images
):
    real, theirs = building._look, tmp_path / "theirs"

    def meanwhile(given):  # both have seen that the folder is empty, and no shard is written yet
        found = real(given)
        other = replace(given, source=pictures(theirs, range(100, 100 + images)))
        files.write_json(given.output / files.PLAN, other.plan())
        return found

    monkeypatch.setattr(building, "_look", meanwhile)
    with pytest.raises(
        ArtifactError, match=r"holds an unfinished index with other source|another build began in"
    ):
        build(tmp_path)
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == [files.PLAN]


def test_processes_with_different_heads_build_no_index(tmp_path, monkeypatch):
    """As where a head is written after one of them has loaded it, and before another has."""
    monkeypatch.setattr(processes, "gather_object", lambda own: [*own, {**own[0], "head": "another"}])
    with pytest.raises(ArtifactError, match="processes of this build differ in head, as"):
        build(tmp_path)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("other", ["renamed", "fewer"])
def test_shards_of_another_copy_of_the_images_are_not_put_in_force(tmp_path, monkeypatch, other):
    """As where one of several processes sees a folder that is not yet what the others see."""
    pictures(tmp_path / "train", range(20))
    shutil.copytree(tmp_path / "train", tmp_path / "elsewhere")
    if other == "renamed":
        (tmp_path / "elsewhere" / "010.png").rename(tmp_path / "elsewhere" / "010_old.png")
    else:
        (tmp_path / "elsewhere" / "019.png").unlink()
    write = building._write_shard

    def elsewhere(given, name, first, bar):
        source = open_images(tmp_path / "elsewhere") if first else given.source
        write(replace(given, source=source), name, first, bar)

    monkeypatch.setattr(building, "_write_shard", elsewhere)
    with pytest.raises(ArtifactError, match=r"holds other images than 'train' has there.*remove"):
        build(tmp_path)
    with pytest.raises(ArtifactNotFoundError):
        MemorizationIndex.load(tmp_path / "index")


@pytest.mark.parametrize("finished", [True, False])
def test_an_image_that_takes_anothers_place_and_cannot_be_read_is_not_missed(tmp_path, monkeypatch, finished):
    train = tmp_path / "train"
    pictures(train, range(20))

    def built() -> MemorizationIndex:
        given = (open_images(train), saved_encoder(tmp_path), head(), tmp_path / "index")
        return MemorizationIndex.build(*given, resolution=RESOLUTION, progress=False)

    with monkeypatch.context() as patch:
        if not finished:
            patch.setattr(building, "_commit", lambda given: None)
        with contextlib.suppress(ArtifactNotFoundError):
            built()
    (train / "003.png").unlink()
    (train / "003b.png").symlink_to("/nowhere/003b.png")
    which = "an index" if finished else "an unfinished index"
    with pytest.raises(ArtifactError, match=f"holds {which} with other source; give another"):
        built()


def test_images_that_can_be_read_by_now_are_indexed_when_the_build_is_run_again(
    tmp_path, monkeypatch, capsys
):
    real, broken = images.decode_image, [True]

    def decode(encoded):
        if broken and hashlib.sha256(encoded).hexdigest() in unreadable:
            raise MissingExtraError("DICOM needs pydicom")
        return real(encoded)

    source = pictures(tmp_path / "train", range(20))
    unreadable = {hashlib.sha256(source.encoded(row)).hexdigest() for row in (3, 12)}
    monkeypatch.setattr(images, "decode_image", decode)
    lacking = build(tmp_path)
    assert list(lacking.unreadable) == ["003.png", "012.png"]
    calibrate(lacking, pictures(tmp_path / "held", range(100, 130)), false_rejection_rate=0.1, progress=False)
    before = digests(tmp_path / "index")
    build(tmp_path)
    assert digests(tmp_path / "index") == before and capsys.readouterr().err == ""  # nothing to mend
    broken.clear()
    with monkeypatch.context() as patch:
        patch.setattr(building, "_commit", lambda given: None)  # cut off just before the end
        assert len(build(tmp_path)) == 18
    assert MemorizationIndex.load(tmp_path / "index", allow_unindexed=True).calibration is not None
    mended = build(tmp_path)
    assert len(mended) == 20 and not mended.unreadable and mended.calibration is None
    assert "indexed now; calibrate it again" in capsys.readouterr().err
    assert torch.equal(
        mended._keys.stored("embeddings"), build(tmp_path / "whole")._keys.stored("embeddings")
    )
    rows = torch.arange(18)  # what was loaded before holds what it held
    assert torch.equal(
        lacking.latents(rows), mended.latents(torch.tensor([r for r in range(20) if r not in (3, 12)]))
    )
    with pytest.raises(ArtifactError, match="was built again since it was loaded"):
        lacking.set_calibration(Calibration((0.1,), 0.5, 0.1, "sd", 1, {}, (0.0, 1.0)))
    after = digests(tmp_path / "index")
    build(tmp_path)
    assert digests(tmp_path / "index") == after


def test_an_index_that_was_put_in_anothers_place_is_not_read_for_it(tmp_path):
    loaded = build(tmp_path)
    shutil.rmtree(tmp_path / "index")
    other = MemorizationIndex.build(
        pictures(tmp_path / "others", range(50, 70)),
        saved_encoder(tmp_path),
        head(),
        tmp_path / "index",
        resolution=RESOLUTION,
        progress=False,
    )
    assert len(other) == len(loaded)
    with pytest.raises(CorruptArtifactError, match="has changed since the index was loaded"):
        loaded.latents(torch.arange(3))
    with pytest.raises(ArtifactError, match="was built again since it was loaded"):
        loaded.set_calibration(Calibration((0.1,), 0.5, 0.1, "sd", 1, {}, (0.0, 1.0)))
    assert MemorizationIndex.load(tmp_path / "index").calibration is None


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux does")
def test_more_shards_than_files_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "SHARD_ROWS", 1)
    expected = build(tmp_path, images=40).latents(torch.arange(40))
    loading = f"""
import os, resource, torch
from lcmem_filter.index import MemorizationIndex, shards
shards.OPEN_SHARDS = 2
most = len(os.listdir("/proc/self/fd")) + 12
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
index = MemorizationIndex.load({str(tmp_path / "index")!r})
torch.save(index.latents(torch.arange(40)), {str(tmp_path / "latents.pt")!r})
"""
    done = subprocess.run([sys.executable, "-c", loading], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert torch.equal(torch.load(tmp_path / "latents.pt"), expected)


def test_the_encoder_is_the_one_that_it_was_built_with_and_runs_no_code_unasked(tmp_path, monkeypatch):
    index = build(tmp_path)
    asked = []
    monkeypatch.setattr(latents, "_load_autoencoder", lambda *given: (asked.append(given[-1]), tiny_vae())[1])
    index.encoder_source = replace(index.encoder_source, trust_remote_code=True)
    index.load_encoder()
    index.load_encoder(trust_remote_code=True)
    assert asked == [False, True]
    other = tiny_vae()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    monkeypatch.setattr(latents, "_load_autoencoder", lambda *given: other)
    with pytest.raises(ArtifactError, match="another encoder than index"):
        index.load_encoder()


def test_two_that_calibrate_for_different_spaces_keep_each_others_threshold(tmp_path):
    build(tmp_path)
    one, other = (MemorizationIndex.load(tmp_path / "index") for _ in range(2))
    for index, space in ((one, "sdxl"), (other, "flux")):
        index.set_calibration(Calibration((0.1,), 0.5, 0.1, space, 1, {}, (0.0, 1.0), latent_size=(4, 4)))
    found = MemorizationIndex.load(tmp_path / "index")
    assert [found.calibration_for(space) is not None for space in ("sdxl", "flux", "sd")] == [
        True,
        True,
        False,
    ]
    assert found.calibration_for("flux").latent_size == (4, 4)


@pytest.mark.parametrize("resolution", [-1, 0, 1])
def test_a_resolution_at_which_nothing_is_seen_is_refused(tmp_path, resolution):
    with pytest.raises(ConfigurationError, match=f"at least 16, got {resolution}"):
        build(tmp_path, resolution=resolution)


def test_no_readable_image_at_all(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.png").write_text("no image")
    with pytest.raises(EmptyDataError, match="none of the 1 images"):
        build(tmp_path, images=0)


def test_the_manifest_names_the_encoder(tmp_path):
    build(tmp_path)
    pointer = (tmp_path / "index" / "CURRENT").read_text().split()[0]
    manifest = json.loads((tmp_path / "index" / pointer).read_text())
    assert (
        manifest["encoder"]["path"] == str(tmp_path / "vae")
        and manifest["encoder"]["class_name"] == "AutoencoderKL"
    )
    assert manifest["resize"] and manifest["complete"] is True


def test_two_processes_build_what_one_builds(tmp_path):
    import subprocess
    import sys

    build(tmp_path / "one")
    script = """
import sys
from pathlib import Path
from lcmem_filter.index import build as building
building.SHARD_ROWS = 8
from tests.index.material import build
from lcmem_filter.processes import this_process
encode, mine = building.encode_batches, []
building.encode_batches = lambda source, rows, *given: mine.extend(rows) or encode(source, rows, *given)
build(Path(sys.argv[1]))
sys.stdout.write(f"{this_process().num_processes} {mine}\\n")  # at once: the other writes there too
"""
    (tmp_path / "two").mkdir()
    saved_encoder(tmp_path / "two")
    pictures(tmp_path / "two" / "train", range(20))
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    root = Path(__file__).resolve().parents[2]
    import os

    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [*command, str(tmp_path / "script.py"), str(tmp_path / "two")],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    shares = [f"2 {[*range(8), *range(16, 20)]}", f"2 {[*range(8, 16)]}"]
    assert sorted(done.stdout.splitlines()) == shares
    one, two = (MemorizationIndex.load(tmp_path / side / "index") for side in ("one", "two"))
    assert [r.id for r in one.records] == [r.id for r in two.records]
    torch.testing.assert_close(
        one.latents(torch.arange(20)), two.latents(torch.arange(20)), rtol=0, atol=1e-3
    )


def test_another_head_embeds_the_kept_latents_as_building_anew_would(tmp_path):
    old = build(tmp_path)
    torch.manual_seed(3)
    other = LCMemHead.create("micro", {"sd": 4}, embedding_dim=32)
    other.add_probes("sd", tiny_vae())
    source = pictures(tmp_path / "train", range(20))
    fresh = MemorizationIndex.build(
        source, saved_encoder(tmp_path), other, tmp_path / "fresh", resolution=RESOLUTION, progress=False
    )
    new = old.reembed(other, tmp_path / "new")
    queries = other.embed(fresh.latents(torch.arange(20)), "sd")
    for index in (new, old.reembed(other, tmp_path / "new")):  # the second time it is there already
        torch.testing.assert_close(
            index.search(queries, 20).similarity, fresh.search(queries, 20).similarity, rtol=0, atol=2e-3
        )
        assert index.records == fresh.records and index.calibration is None
        assert torch.equal(index.latents(torch.arange(20)), fresh.latents(torch.arange(20)))
    assert new.head.fingerprint == other.fingerprint and old.head.fingerprint == head().fingerprint
    with pytest.raises(ArtifactError, match="something else"):
        old.reembed(head(), tmp_path / "new")
    with pytest.raises(LatentSpaceError, match="grid of 32"):
        old.reembed(LCMemHead.create("micro", {"sd": 4}, grid=32), tmp_path / "grid")
    bare = build(tmp_path / "bare", keep_latents=False)
    with pytest.raises(LcmemFilterError, match="keeps no latents to embed anew"):
        bare.reembed(other, tmp_path / "none")


def halving_head() -> LCMemHead:
    made = LCMemHead.create("micro", {"sd": 4}, halved_spaces=["sd"])
    made.load_state_dict(head().state_dict(), strict=False)
    torch.nn.init.normal_(
        made.halvings["sd"].last.weight, std=0.1, generator=torch.Generator().manual_seed(0)
    )
    return made


def test_an_index_halves_larger_latents_as_the_filter_does(tmp_path):
    source, encoder = pictures(tmp_path / "train", range(12)), saved_encoder(tmp_path)
    pixels = torch.stack([to_pixels(source.image(row), 64) for row in range(12)])
    found = {}
    for name, made in (("halved", halving_head()), ("averaged", head())):
        index = MemorizationIndex.build(source, encoder, made, tmp_path / name, resolution=64, progress=False)
        assert index.latent_size == (32, 32)
        nearest = [one.neighbours[0] for one in score_latents(index, encoder.encode(pixels), "sd")]
        assert [one.id for one in nearest] == [record.id for record in index.records]
        assert min(one.embedding_similarity for one in nearest) > 0.999
        found[name] = index.latents(torch.arange(12))
    assert (found["halved"] - found["averaged"]).abs().mean() > 0.02


def test_who_averages_larger_latents_is_told(tmp_path, capsys):
    source, encoder = pictures(tmp_path / "train", range(3)), saved_encoder(tmp_path)
    told = "latents of 32x32 are averaged to the head's 16x16"
    for name, made, side, expected in (
        ("a", head(), 64, True),
        ("b", halving_head(), 64, False),
        ("c", head(), 32, False),
    ):
        MemorizationIndex.build(source, encoder, made, tmp_path / name, resolution=side)
        assert (told in capsys.readouterr().err) == expected, name


def test_larger_latents_are_not_embedded_anew_by_a_head_that_halves_them_otherwise(tmp_path):
    small = build(tmp_path / "small").reembed(
        halving_head(), tmp_path / "fine"
    )  # of the grid's size: none was halved
    assert list(small.head.halvings) == ["sd"]
    large = build(tmp_path / "large", resolution=64)
    with pytest.raises(ArtifactError, match="32x32 and came to the grid of 16 by another way"):
        large.reembed(halving_head(), tmp_path / "no")
    assert not (tmp_path / "no").exists()
    large.reembed(head(), tmp_path / "same")
