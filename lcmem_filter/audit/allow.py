"""The allow-list: false alarms that a person accepted, each with a reason."""

from __future__ import annotations

import csv
import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import DataError, MissingColumnError
from ..report import AllowEntry, Sample

COLUMNS = ("id", "reason", "sha256")
CHECKSUMS = ("sha", "hash", "digest", "checksum", "md5")
MORE = "cells beyond the header"


def read_allow_list(path: str | os.PathLike[str]) -> list[AllowEntry]:
    """Read a CSV or JSON lines file with columns ``id``, ``reason`` and, if the entry is to hold for one file only,
    ``sha256``, in small or capital letters; others are for those who keep it.

    Raises:
        DataError: it cannot be read, has a checksum in another column, an entry has no id, no reason or a digest that
            is none, or an id stands there twice.
        MissingColumnError: no column ``id`` or ``reason``.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = _json_lines(file) if path.suffix.lower() in (".jsonl", ".json") else _csv_rows(file)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"allow-list {path} cannot be read: {error}; give CSV with commas, or JSON lines, in UTF-8"
        ) from error
    entries: dict[str, AllowEntry] = {}
    for number, row in enumerate(rows, start=1):
        entry = _entry(path, number, row)
        if entry.id in entries:
            raise DataError(f"allow-list {path} has {entry.id!r} twice; keep one of them")
        entries[entry.id] = entry
    if not entries:
        warnings.warn(f"allow-list {path} has no entries, so no match is accepted by it", stacklevel=2)
    return list(entries.values())


def apply_allow_list(
    samples: Sequence[Sample], entries: Iterable[AllowEntry]
) -> tuple[list[Sample], list[AllowEntry]]:
    """The samples with reasons where an entry holds for them, and every entry with what came of it.

    An entry with a SHA-256 holds for that file only: under an old name, a new picture is judged anew.
    """
    by_id = {sample.id: position for position, sample in enumerate(samples)}
    found, applied = list(samples), []
    for entry in entries:
        position = by_id.get(entry.id)
        if position is None:
            effect = "no such image"
        elif found[position].accepted is None:
            effect = "not checked"
        elif entry.sha256 and entry.sha256 != found[position].sha256:
            effect = "another file"
        elif found[position].accepted is False:
            effect = "allowed"
            found[position] = replace(found[position], allowed=entry.reason)
        else:
            effect = "not needed"
        applied.append(replace(entry, effect=effect))
    return found, applied


def _csv_rows(lines: Iterable[str]) -> list[Any]:
    reader = csv.DictReader(lines, restkey=MORE)
    names = list(reader.fieldnames or ())
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"it has several columns {twice[0]!r}")
    return list(reader)


def _json_lines(lines: Iterable[str]) -> list[Any]:
    return [json.loads(line) for line in lines if line.strip()]


def _entry(path: Path, number: int, row: Any) -> AllowEntry:
    if not isinstance(row, Mapping):
        raise DataError(f"entry {number} of allow-list {path} is no object with id and reason: {row!r}")
    has = ", ".join(map(str, row))
    spelled = [str(name).strip().lower() for name in row]
    if twice := next((name for name in COLUMNS if spelled.count(name) > 1), None):
        raise DataError(
            f"entry {number} of allow-list {path} has {twice!r} twice, in {has}; keep one of them"
        )
    row = {str(name).strip().lower(): value for name, value in row.items()}
    for name in ("id", "reason"):
        if name not in row:
            raise MissingColumnError(f"entry {number} of allow-list {path} has no {name!r}; it has {has}")
    others = [name for name in row if name not in COLUMNS and (name == MORE or _tells_a_file(name))]
    if others:  # a digest that does not count would let other files of that id pass
        raise DataError(
            f"entry {number} of allow-list {path} has {others[0]}; call a column of SHA-256 {COLUMNS[2]!r}"
        )
    id_, reason, digest = ("" if row.get(name) is None else str(row[name]).strip() for name in COLUMNS)
    if not id_ or not reason:
        raise DataError(f"entry {number} of allow-list {path} lacks its id or its reason; give both")
    if digest and not re.fullmatch("[0-9a-fA-F]{64}", digest):
        raise DataError(
            f"entry {number} of allow-list {path} has {digest!r} for its sha256, which are 64 hexadecimal digits; give "
            "those of the file, or none"
        )
    return AllowEntry(id_, reason, digest.lower())


def _tells_a_file(name: str) -> bool:
    return any(word in name for word in CHECKSUMS)
