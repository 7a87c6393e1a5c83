"""What an index holds of each row, read from its shards."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ..errors import CorruptArtifactError
from ..images import ImageRecord
from . import folder as files

OPEN_SHARDS = 64
"""Shards of which an array is held open."""


class Shards:
    """Arrays of the same kind, one a shard, addressed as one; few are open at a time, since open files are limited.

    Attributes:
        shape: Of one row.

    Raises:
        CorruptArtifactError: a file is missing or has another shape than the manifest says.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], name: str) -> None:
        self._files = [path / shard["folder"] / name for shard in manifest["shards"]]
        self._ends = np.cumsum([shard["rows"] for shard in manifest["shards"]])
        self.shape: tuple[int, ...] = tuple(files.read_array(self._files[0]).shape[1:])
        for file, shard in zip(self._files, manifest["shards"], strict=True):
            if files.read_array(file).shape != (shard["rows"], *self.shape):
                raise CorruptArtifactError(
                    f"index {path}: {shard['folder']}/{name} has another shape than expected"
                )
        self._loaded = [_state(file) for file in self._files]
        self._open = functools.lru_cache(OPEN_SHARDS)(self._read)

    def read_all(self) -> np.ndarray:
        """In memory, shard by shard; raises as ``each``."""
        found = np.empty((self._ends[-1], *self.shape), dtype=np.float16)
        for end, array in zip(self._ends, self.each(), strict=True):
            found[end - len(array) : end] = array
        return found

    def each(self) -> Iterator[np.ndarray]:
        """Shard by shard, as they lie in their files.

        Raises:
            CorruptArtifactError: a file is missing, or has changed since it was loaded.
        """
        for shard in range(len(self._files)):
            yield self._read(shard)
            self._check_not_written_over(shard)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Those of ``rows`` (n,), in this order."""
        taken = np.empty((len(rows), *self.shape), dtype=np.float16)
        which = np.searchsorted(self._ends, rows, side="right")
        for shard in np.unique(which):
            here = which == shard
            array = self._open(int(shard))
            taken[here] = array[rows[here] - (self._ends[shard] - len(array))]
            self._check_not_written_over(int(shard))  # an open array shows what is written to its file
        return taken

    def _check_not_written_over(self, shard: int) -> None:
        """
        Raises:
            CorruptArtifactError: an open file was written to; one that was put in its place, or taken away, does not
                change what is open.
        """
        state, loaded = _state(self._files[shard]), self._loaded[shard]
        if state and loaded and state != loaded and state[0] == loaded[0]:
            raise _has_changed(self._files[shard])

    def _read(self, shard: int) -> np.ndarray:
        file = self._files[shard]
        state = _state(file)
        if state is None:
            raise CorruptArtifactError(f"{file} is missing; restore it or build the index again")
        if state != self._loaded[shard]:
            raise _has_changed(file)
        return files.read_array(file)


def _has_changed(file: Path) -> CorruptArtifactError:
    return CorruptArtifactError(f"{file} has changed since the index was loaded; load it again")


def _state(file: Path) -> tuple[int, int, int] | None:
    """What tells a file from another one that was put in its place."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


@dataclass(frozen=True, slots=True)
class Records:
    """What is known of each row: its record, and the SHA-256 of its stored bytes."""

    records: list[ImageRecord]
    sha256: list[str]


def records_of(path: Path, manifest: dict[str, Any]) -> Records:
    """
    Raises:
        CorruptArtifactError: there are more or fewer than rows.
    """
    found = Records([], [])
    for shard in manifest["shards"]:
        table = pq.read_table(path / shard["folder"] / files.RECORDS).to_pydict()
        found.records.extend(
            ImageRecord(id_, identity, labels)
            for id_, identity, labels in zip(table["id"], table["identity"], table["labels"], strict=True)
        )
        found.sha256.extend(table["sha256"])
    if len(found.records) != manifest["rows"]:
        raise CorruptArtifactError(
            f"index {path} has {len(found.records)} records for {manifest['rows']} rows"
        )
    return found
