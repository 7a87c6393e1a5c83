"""Shards of a build as they lie in its folder: which was built last, and which images are in it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import CorruptArtifactError
from . import folder as files

Shard: TypeAlias = tuple[str, dict[str, Any]]
"""A finished one: its folder, relative to the index, and its receipt."""


def all_newest(output: Path, number_of_shards: int, *, check: bool = True) -> list[Shard | None]:
    """Each shard as ``newest`` gives it."""
    return [newest(output, number, check=check) for number in range(number_of_shards)]


def newest(output: Path, number: int, *, check: bool = True) -> Shard | None:
    """A shard's folder and receipt, as it was built last; ``None`` where it is missing.

    Args:
        check: Pass over what is not what its receipt says.
    """
    found, again = None, 0
    while not again or (output / files.shard_folder(number, again)).exists():
        name = files.shard_folder(number, again)
        receipt = _read_receipt(output / name, check=check)
        found = found if receipt is None else (name, receipt)
        again += 1
    return found


def free_folder(output: Path, number: int) -> str:
    """Where a shard is built: what a finished one left is never written to again."""
    names = (files.shard_folder(number, again) for again in itertools.count())
    return next(name for name in names if _read_receipt(output / name) is None)


def _read_receipt(folder: Path, *, check: bool = True) -> dict[str, Any] | None:
    try:
        receipt: dict[str, Any] = json.loads((folder / files.RECEIPT).read_text(encoding="utf-8"))
        if check:
            files.check_files(folder, receipt["files"])
    except (OSError, ValueError, KeyError, TypeError, CorruptArtifactError):
        return None
    return receipt


def described(output: Path, shard: Shard) -> dict[str, tuple[str | None, str, str]]:
    """Of each image in a shard, by its id and in its order: identity, labels, and SHA-256 of the stored bytes."""
    name, receipt = shard
    if not receipt["rows"]:
        return {}
    try:
        table = pq.read_table(output / name / files.RECORDS).to_pydict()
    except (OSError, pa.ArrowException):
        return {}
    return {
        id_: (identity, labels, digest)
        for id_, identity, labels, digest in zip(
            table["id"], table["identity"], table["labels"], table["sha256"], strict=True
        )
    }


def is_of(shard: Shard, held: Sequence[str], ids: Sequence[str]) -> bool:
    """Whether a shard accounts for the images of these ids and no others: it holds each, or says that it could not be
    read.

    Args:
        held: Ids of the images in it.
    """
    unreadable = shard[1]["unreadable"]
    return unreadable.keys() <= set(ids) and list(held) == [one for one in ids if one not in unreadable]
