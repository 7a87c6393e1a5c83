"""An index folder that is written by two at once, moved away from, or damaged."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lcmem_filter import images
from lcmem_filter.errors import ArtifactError, ArtifactNotFoundError, CorruptArtifactError, MissingExtraError
from lcmem_filter.head import LCMemHead
from lcmem_filter.index import MemorizationIndex
from lcmem_filter.index import build as building
from lcmem_filter.index import folder as files
from lcmem_filter.types import Calibration

from .material import build, pictures


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(building, "SHARD_ROWS", 8)


def calibration(space: str = "sd") -> Calibration:
    return Calibration((0.1,), 0.5, 0.1, space, 1, {}, (0.0, 1.0))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def test_two_that_calibrate_at_once_keep_each_others_threshold(tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    build(tmp_path, images=4)
    loaded = [MemorizationIndex.load(tmp_path / "index") for _ in range(2)]
    real, both = files.next_calibration, threading.Barrier(2)

    def meets(folder: Path) -> str:
        name = real(folder)
        with suppress(threading.BrokenBarrierError):  # who waits for the lock does not come
            both.wait(1)
        return name

    monkeypatch.setattr(files, "next_calibration", meets)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda index, space: index.set_calibration(calibration(space)), loaded, ("sd", "sdxl")))
    found = MemorizationIndex.load(tmp_path / "index")
    assert all(found.calibration_for(space) for space in ("sd", "sdxl"))
    assert not (tmp_path / "index" / files.LOCK).exists()


def test_the_same_calibration_once_more_is_the_same_index(tmp_path):
    index = build(tmp_path, images=4)
    found = []
    for threshold in (0.1, 0.1, 0.2, 0.1):
        index.set_calibration(replace(calibration(), threshold=threshold))
        found.append(MemorizationIndex.load(index.path).fingerprint)
        assert index.fingerprint == found[-1]
    assert found[0] == found[1] == found[3] != found[2]


def test_copies_that_synchronising_leaves_are_passed_over(tmp_path):
    index = build(tmp_path, images=4)
    current = (index.path / files.CURRENT).read_text().split()[0]
    copied = f"{current.removesuffix('.json')} (conflicted copy).json"
    (index.path / copied).write_bytes((index.path / current).read_bytes())
    index.set_calibration(calibration("sd"))
    assert MemorizationIndex.load(index.path).calibration == index.calibration
    assert (index.path / files.CURRENT).read_text().split()[0] not in (current, copied)


def test_who_waits_for_a_lock_that_is_taken_away_locks_anew(tmp_path):
    pytest.importorskip("fcntl")
    inside, most = [], []

    def enter(number: int) -> None:
        for _ in range(10):
            with files.locked(tmp_path):
                inside.append(number)
                time.sleep(0.002)
                most.append(len(inside))
                inside.remove(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enter, range(4)))
    assert max(most) == 1 and not list(tmp_path.iterdir())


def test_a_folder_that_is_gone_is_not_calibrated(tmp_path):
    index = build(tmp_path, images=4)
    (tmp_path / "index").rename(tmp_path / "away")
    with pytest.raises(ArtifactNotFoundError, match="no such folder"):
        index.set_calibration(calibration())


def test_an_index_of_a_relative_path_is_read_from_another_working_directory(tmp_path, monkeypatch):
    rows = torch.arange(4)
    expected = build(tmp_path, images=4).latents(rows)
    monkeypatch.chdir(tmp_path)
    index = MemorizationIndex.load("index")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert torch.equal(index.latents(rows), expected)
    index.set_calibration(calibration())
    assert MemorizationIndex.load(tmp_path / "index").calibration is not None


def test_latents_that_are_gone_are_missing(tmp_path):
    index = build(tmp_path, images=4)
    (tmp_path / "index" / files.shard_folder(0) / files.LATENTS).unlink()
    with pytest.raises(CorruptArtifactError, match=r"latents\.npy is missing; restore it"):
        index.latents(torch.arange(4))


def test_latents_that_are_written_over_while_they_are_open_are_not_read(tmp_path):
    build(tmp_path, images=4)
    file, rows = tmp_path / "index" / files.shard_folder(0) / files.LATENTS, torch.arange(4)
    os.utime(file, ns=(0, 0))  # a coarse clock could give what is written next the time of what was
    index = MemorizationIndex.load(tmp_path / "index")
    expected = index.latents(rows)
    with file.open("r+b") as opened:  # as cp does from another index
        opened.seek(-100, os.SEEK_END)
        opened.write(bytes(100))
    with pytest.raises(CorruptArtifactError, match="has changed since the index was loaded; load it again"):
        index.latents(rows)
    file.unlink()
    build(tmp_path, images=4)
    index = MemorizationIndex.load(tmp_path / "index")
    assert torch.equal(index.latents(rows), expected)
    aside = file.with_name("other.npy")
    aside.write_bytes(file.read_bytes()[:-100] + bytes(100))
    os.replace(aside, file)
    assert torch.equal(index.latents(rows), expected)  # what is open stays what it was
    file.unlink()
    assert torch.equal(index.latents(rows), expected)


@pytest.mark.parametrize("harm", [cut, Path.unlink])
def test_the_same_build_mends_a_damaged_index(tmp_path, capsys, harm: Callable[[Path], None]):
    index, folder = build(tmp_path), tmp_path / "index"
    shard = f"{files.shard_folder(1)}/"
    of_shard = [shard + name for name in (files.EMBEDDINGS, files.LATENTS, files.RECORDS, files.RECEIPT)]
    of_head = [name for name in files.head_checksums(folder) if name.endswith(".safetensors")]
    for name in (*of_shard, *of_head, "manifest", "calibration"):
        index.set_calibration(calibration())
        current = files.read_manifest(folder)
        kept = name not in ("manifest", "calibration")
        harm(folder / name if kept else max(folder.glob(f"{name}-*.json")))
        if not name.endswith(files.RECEIPT):
            with pytest.raises(CorruptArtifactError, match="restore it or build"):
                MemorizationIndex.load(folder)
        capsys.readouterr()
        index = build(tmp_path)
        assert files.built(files.read_manifest(folder)) == files.built(current), name
        assert (index.calibration is not None) == kept, name
        told = capsys.readouterr().err
        assert "what was damaged is whole now" in told and ("calibrate it again" in told) != kept, name
        assert torch.equal(
            MemorizationIndex.load(folder).latents(torch.arange(20)), index.latents(torch.arange(20))
        )


def test_the_same_reembedding_mends_a_damaged_index(tmp_path):
    old, folder = build(tmp_path), tmp_path / "new"
    torch.manual_seed(1)
    other = LCMemHead.create("micro", {"sd": 4})
    with pytest.raises(ArtifactError, match="is the index that is read; give another"):
        old.reembed(other, old.path / ".." / old.path.name)
    new = old.reembed(other, folder)
    new.set_calibration(calibration())
    cut(folder / files.shard_folder(1) / files.EMBEDDINGS)
    with pytest.raises(CorruptArtifactError, match="restore it or build"):
        MemorizationIndex.load(folder)
    mended, rows = old.reembed(other, folder), torch.arange(20)
    assert torch.equal(mended.embeddings(rows), new.embeddings(rows)) and mended.calibration == calibration()
    (folder / files.PLAN).write_text("{bad")
    with pytest.raises(CorruptArtifactError, match="cannot be read"):
        old.reembed(other, folder)


def test_a_damaged_shard_is_not_replaced_by_an_older_one_that_lacks_images(tmp_path, monkeypatch):
    real, broken = images.decode_image, [True]
    third = hashlib.sha256(pictures(tmp_path / "train", range(20)).encoded(3)).hexdigest()

    def decode(encoded):
        if broken and hashlib.sha256(encoded).hexdigest() == third:
            raise MissingExtraError("DICOM needs pydicom")
        return real(encoded)

    monkeypatch.setattr(images, "decode_image", decode)
    assert len(build(tmp_path)) == 19
    broken.clear()
    assert len(build(tmp_path)) == 20
    cut(tmp_path / "index" / files.shard_folder(0, 1) / files.LATENTS)
    assert len(build(tmp_path)) == 20 and len(MemorizationIndex.load(tmp_path / "index")) == 20


def test_building_what_is_whole_reads_each_file_once(tmp_path, monkeypatch):
    build(tmp_path)
    real, read = files.sha256, Counter()
    monkeypatch.setattr(files, "sha256", lambda path: (read.update([path]), real(path))[1])
    monkeypatch.setattr(MemorizationIndex, "_open", lambda *given: None)
    build(tmp_path)
    expected = files.read_manifest(tmp_path / "index")["files"]
    assert read == {tmp_path / "index" / name: 1 for name in expected}


def test_a_full_disk_is_told_with_the_file_and_leaves_nothing_half_written(tmp_path):
    def full(file):
        file.write(b"half a fi")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "index" / "x.json"
    for write in (full, lambda file: 1 / 0):
        with pytest.raises((OSError, ZeroDivisionError)) as error:
            files.write_file(path, write)
        assert not list(path.parent.iterdir())
        if write is full:
            assert error.value.errno == errno.ENOSPC and str(path) in str(error.value)


def test_an_array_that_finds_no_room_says_what_went_wrong(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(OSError) as error:
            files.write_array(tmp_path / "x.npy", np.zeros((100, 100), np.float16))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.errno == errno.EFBIG and str(tmp_path / "x.npy") in str(error.value)


def test_what_a_killed_build_was_writing_is_removed_once_it_is_nobodys(tmp_path):
    build(tmp_path, images=4)
    old, new, other = (
        tmp_path / "index" / "shards" / "00000" / name
        for name in (f"latents.npy.{'0' * 16}.tmp", f"latents.npy.{'1' * 16}.tmp", "thesis.tmp")
    )
    for file in (old, new, other):
        file.write_bytes(b"half a fi")
    for file in (old, other):
        os.utime(file, (1, 1))
    files.commit(tmp_path / "index", {**files.read_manifest(tmp_path / "index"), "calibration": None})
    assert not old.exists() and new.exists() and other.exists()


def test_what_a_file_browser_leaves_beside_the_head_is_not_part_of_an_index(tmp_path, monkeypatch):
    real = building._commit

    def litter(given):
        head = given.output / files.HEAD
        for name in (".DS_Store", "._config.json", ".nfs0001", "Thumbs.db", "config (copy).json"):
            (head / name).write_bytes(b"x")
        (head / "sub").mkdir(exist_ok=True)
        return real(given)

    monkeypatch.setattr(building, "_commit", litter)
    index = build(tmp_path, images=4)
    of_head = sorted(name for name in files.read_manifest(index.path)["files"] if name.startswith("head/"))
    assert of_head == ["head/config.json", "head/diffusion_pytorch_model.safetensors"]
    (index.path / files.HEAD / ".DS_Store").unlink()
    assert len(MemorizationIndex.load(index.path)) == 4


def test_an_index_of_another_version_is_not_built_over(tmp_path, monkeypatch):
    build(tmp_path, images=4)
    monkeypatch.setattr(files, "FORMAT", files.FORMAT + 1)
    with pytest.raises(CorruptArtifactError, match="its format is"):
        build(tmp_path, images=4)
