"""An index on disk: which files there are, how they are written so that a kill loses nothing, and their checksums.

    CURRENT                       name of the manifest in force, written last
    manifest-000001.json          what the index is, with the SHA-256 of every file below
    head/                         the head that made the embeddings
    shards/00000/embeddings.npy   (n, D) float16, unit-norm
                 latents.npy      (n, C, grid, grid) float16, canonical; not with ``--no-latents``
                 records.parquet  id, identity, labels, SHA-256 of each image's bytes
                 receipt.json     written last: checksums of the three, and which images could not be read
    shards/00000.1/               the same built again, once more of its images could be read
    calibration-000001.json       scores of held-out images, for each query space
    plan.json                     what is being built, so that an interrupted build goes on only as it began
    lock                          there only while a build begins or a manifest is being put in force

Nothing in it is pickled. The manifest and what it names never change once written; a new state is a new manifest.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
import torch

from ..digests import sha256
from ..errors import ArtifactError, ArtifactNotFoundError, CorruptArtifactError, told_where
from ..head import LCMemHead
from ..types import Calibration

if sys.platform != "win32":
    import fcntl

FORMAT = 2
NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*", re.ASCII)
"""A file or folder of an index, relative to it."""
ASIDE = re.compile(r".+\.[0-9a-f]{16}\.tmp")
"""A file that is being written."""
STALE = 3600
"""Seconds after which such a file is nobody's."""
CURRENT = "CURRENT"
LOCK = "lock"
PLAN = "plan.json"
HEAD = "head"
EMBEDDINGS, LATENTS, RECORDS, RECEIPT = "embeddings.npy", "latents.npy", "records.parquet", "receipt.json"
REQUIRED = {
    "format",
    "space",
    "grid",
    "embedding_dim",
    "rows",
    "complete",
    "encoder",
    "resolution",
    "shards",
    "files",
}


def shard_folder(number: int, again: int = 0) -> str:
    """A shard's folder, relative to the index; another one for each time that it was built again."""
    return f"shards/{number:05d}" + (f".{again}" if again else "")


def write_file(path: Path, write: Callable[[BinaryIO], Any]) -> str:
    """Write aside, sync, rename, sync the folder; returns the SHA-256 of what was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")  # another machine may have the same pid
    try:
        with told_where(path):
            with aside.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            digest = sha256(aside)
            os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return digest


def write_json(path: Path, value: Any) -> str:
    """Write JSON as ``write_file`` does."""
    return write_file(path, lambda file: file.write((json.dumps(value, indent=1) + "\n").encode()))


def write_array(path: Path, array: np.ndarray) -> str:
    """Write an array as ``write_file`` does."""
    buffer = io.BytesIO()  # numpy does not say what went wrong with a file
    np.save(buffer, array, allow_pickle=False)
    return write_file(path, lambda file: file.write(buffer.getbuffer()))


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Whoever else would begin a build there, or put a manifest in force, waits; not on Windows, nor where the file
    system locks nothing.

    Raises:
        ArtifactError: nothing can be written there.
    """
    if sys.platform == "win32" or not folder.is_dir():
        yield
        return
    path = folder / LOCK
    while True:
        try:
            opened = path.open("a", encoding="utf-8")
        except OSError as error:
            raise ArtifactError(
                f"index {folder} cannot be written to: {error}; copy it, or have it writable"
            ) from error
        with opened as file:
            hold(file)
            if not _lies_at(path, file):  # whoever held it took it away
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def hold(file: TextIO, *, wait: bool = True) -> None:
    """Keep others from an open file until it is closed; not on Windows, nor where the file system locks nothing.

    Raises:
        BlockingIOError: somebody holds it, and ``wait`` is false.
    """
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system that locks nothing
        pass


def _lies_at(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def is_free(folder: Path) -> bool:
    """Whether nothing lies there but what a start that came to nothing leaves: the lock, or half of a plan."""
    return not folder.exists() or all(
        path.name == LOCK or (path.name.startswith(f"{PLAN}.") and ASIDE.fullmatch(path.name))
        for path in folder.iterdir()
    )


def commit(folder: Path, manifest: dict[str, Any]) -> bool:
    """Put the manifest of what was built in force, with the calibration of the one before where that still holds;
    returns whether there is one."""
    with locked(folder):
        manifest = _with_calibration(folder, manifest)
        put_in_force(folder, manifest)
        _remove_asides(folder)
    return manifest["calibration"] is not None


def _remove_asides(folder: Path) -> None:
    """Remove what who was killed while writing left; nobody writes one file for as long as ``STALE``."""
    for path in folder.rglob("*.tmp"):
        with contextlib.suppress(OSError):
            if ASIDE.fullmatch(path.name) and time.time() - path.stat().st_mtime > STALE:
                path.unlink()


def put_in_force(folder: Path, manifest: dict[str, Any]) -> None:
    """Put a manifest in force, for who has ``locked`` the folder since it read what that is made from."""
    name = f"manifest-{_newest(folder, 'manifest') + 1:06d}.json"
    digest = write_json(folder / name, manifest)
    write_file(folder / CURRENT, lambda file: file.write(f"{name} {digest}\n".encode()))


def next_calibration(folder: Path) -> str:
    """Name of the next calibration file, for who has ``locked`` the folder."""
    return _calibration(_newest(folder, "calibration") + 1)


def calibrations_of(folder: Path, manifest: dict[str, Any]) -> dict[str, Calibration]:
    """The threshold for queries of each latent space that there is one for."""
    if manifest["calibration"] is None:
        return {}
    stored = json.loads((folder / manifest["calibration"]).read_text(encoding="utf-8"))
    return {space: Calibration.from_dict(one) for space, one in stored.items()}


def is_index(folder: Path) -> bool:
    """Whether a finished index lies there."""
    return (folder / CURRENT).is_file()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest in force.

    Raises:
        ArtifactNotFoundError: no index lies at ``folder``, or one whose build did not finish.
        CorruptArtifactError: its pointer or manifest is not what was written.
    """
    if not is_index(folder):
        state = (
            "an unfinished build; run the same `lcmem-filter index build` again"
            if (folder / PLAN).exists()
            else f"no {'index in this' if folder.exists() else 'such'} folder; build one with: lcmem-filter index build"
        )
        raise ArtifactNotFoundError(f"no index at {folder}: {state}")
    try:
        manifest: dict[str, Any] = json.loads(_written_manifest(folder))
        if manifest.get("format") != FORMAT:
            raise ValueError(f"its format is {manifest.get('format')!r}, this version reads {FORMAT}")
        if missing := REQUIRED - manifest.keys():
            raise ValueError(f"its manifest lacks {', '.join(sorted(missing))}")
        if not manifest["shards"]:
            raise ValueError("its manifest names no shards")
        # whoever made the index may not have this program read, or write to another index, what lies elsewhere
        for name in (*manifest["files"], *(shard["folder"] for shard in manifest["shards"])):
            if not NAME.fullmatch(name):
                raise ValueError(f"its manifest names {name!r}, which is no file of an index")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptArtifactError(
            f"index {folder} cannot be used: {error}; restore it or build it again"
        ) from error
    return manifest


def _written_manifest(folder: Path) -> bytes:
    name, digest = (folder / CURRENT).read_text(encoding="utf-8").split()
    content = (folder / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"the checksum of {name} is wrong")
    return content


def is_whole(folder: Path) -> bool:
    """Whether a finished index still has every file as it was written.

    Raises:
        CorruptArtifactError: it has, but another version of this package wrote it.
    """
    try:
        _written_manifest(folder)
    except (OSError, ValueError):
        return False
    manifest = read_manifest(folder)
    try:
        check_files(folder, manifest["files"])
    except CorruptArtifactError:
        return False
    return True


def by_folders(manifest: dict[str, Any]) -> bool:
    """Whether identities are names of folders, among which may be classes; indexes of before do not say so."""
    return bool(manifest.get("named_by_folders", True))


def built(manifest: dict[str, Any]) -> dict[str, str]:
    """Checksums of what was built: all but the calibration."""
    return {name: digest for name, digest in manifest["files"].items() if name != manifest["calibration"]}


def _with_calibration(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest without calibration, with the one in force if that is of the same files and still whole."""
    try:
        current = read_manifest(folder)
        name = current["calibration"]
        if name is None or built(current) != manifest["files"] or by_folders(current) != by_folders(manifest):
            return manifest
        kept = {name: current["files"][name]}
        check_files(folder, kept)
    except ArtifactError:  # none was built before, or it is damaged
        return manifest
    return {**manifest, "calibration": name, "files": {**manifest["files"], **kept}}


def counted_once(manifest: dict[str, Any]) -> dict[str, str]:
    """Checksums of a manifest's files, the calibration's by the name of the first, however often there was one."""
    in_force, first = manifest["calibration"], _calibration(1)
    return {first if name == in_force else name: digest for name, digest in manifest["files"].items()}


def _calibration(number: int) -> str:
    return f"calibration-{number:06d}.json"


def head_checksums(folder: Path) -> dict[str, str]:
    """Checksums of the head's files, by their names relative to the index; what else was left there, as by the system's
    file browser, is none of it."""
    found = sorted(path for path in (folder / HEAD).iterdir() if path.suffix in (".json", ".safetensors"))
    return {
        f"{HEAD}/{path.name}": sha256(path) for path in found if NAME.fullmatch(path.name) and path.is_file()
    }


def check_files(folder: Path, files: dict[str, str]) -> None:
    """
    Raises:
        CorruptArtifactError: a file is missing or not what the manifest says.
    """
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise CorruptArtifactError(f"index {folder} lacks {name}; restore it or build the index again")
        if sha256(path) != expected:
            raise CorruptArtifactError(
                f"index {folder}: the checksum of {name} is wrong (truncated or changed); "
                "restore it or build the index again"
            )


def read_array(path: Path) -> np.ndarray:
    """A memory-mapped array; never unpickles."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise CorruptArtifactError(
            f"{path} cannot be read: {error}; restore it or build the index again"
        ) from error


def _newest(folder: Path, kind: str) -> int:
    """Number of the last file of a kind; other files, as synchronising programs leave them, are passed over."""
    found = (re.fullmatch(rf"{kind}-(\d+)\.json", path.name) for path in folder.iterdir())
    return max((int(one[1]) for one in found if one), default=0)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@torch.inference_mode(False)
def head_of(path: Path, manifest: dict[str, Any]) -> LCMemHead:
    """The head that an index lies beside.

    Raises:
        CorruptArtifactError: another than the manifest says.
    """
    head = LCMemHead.from_pretrained(path / HEAD)
    if head.fingerprint != manifest["head_fingerprint"] or manifest["space"] not in head.spaces:
        raise CorruptArtifactError(f"index {path} lies beside another head than the one it was built with")
    return head.requires_grad_(False)
