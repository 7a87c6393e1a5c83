"""Which files a table lies in: one, or the parts that ``datasets`` divides it into."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Sequence
from pathlib import Path

from .errors import DataError
from .folders import files_in, name_of

KINDS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
PART = re.compile(r"[-_.]?\d+(-of-\d+(-[0-9a-f]{16})?)?$")
"""How names of the parts of a table end, before their suffix."""
NUMBERED = re.compile(r"(.*?)(\d{5,})-of-(\d{5,})(-[0-9a-f]{16})?")
"""How parts are called whose names say how many there are."""
SAVED, SAVED_WITH, SEVERAL_SAVED = "state.json", "dataset_info.json", "dataset_dict.json"
"""What ``datasets`` leaves where it saved a table to disk, and where several."""


def parts_at(path: Path) -> list[Path]:
    """The files that a table may be divided into: of a folder, those that ``Dataset.save_to_disk`` left there, or else
    all Parquet files in it and below; of a pattern, the tables that it names. None where there are none.

    Raises:
        DataError: several data sets were saved to disk there, what was saved is broken, or a folder cannot be listed;
            or one lies further below, or a pattern names something else too.
    """
    if not path.is_dir():
        named = [] if path.exists() else sorted(map(Path, glob.glob(str(path))))
        tables = [one for one in named if one.suffix.lower() in KINDS]
        if tables and len(tables) < len(named):
            other = next(one for one in named if one not in tables)
            raise DataError(
                f"{path} names what is no table too ({other}); give a pattern that names tables alone"
            )
        return tables
    if (path / SEVERAL_SAVED).is_file():
        saved = sorted(one.parent.name for one in path.glob(f"*/{SAVED}"))
        raise DataError(f"{path} holds several data sets ({', '.join(saved)}); give the folder of one")
    if (path / SAVED).is_file() and (path / SAVED_WITH).is_file():
        return _saved_in(path)
    below = (
        (one, one.relative_to(path)) for one in files_in(path) if one.suffix.lower() in (".arrow", ".parquet")
    )
    found = {one: name for one, name in below if not any(part.startswith(".") for part in name.parts)}
    if arrow := next((name for one, name in found.items() if one.suffix.lower() == ".arrow"), None):
        raise DataError(
            f"{path} holds a data set that datasets keeps ({arrow}), but is not the folder of one; give the folder "
            "that save_to_disk wrote, or else load it in Python and give the Dataset; or move it away from the rest"
        )
    return list(found)


def _saved_in(folder: Path) -> list[Path]:
    """Without those that ``datasets`` keeps beside them of what was made of the data set."""
    try:
        state = json.loads((folder / SAVED).read_text(encoding="utf-8"))
        return [folder / one["filename"] for one in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder / SAVED} does not say which files a saved data set lies in: {type(error).__name__}: {error}; "
            "save it again"
        ) from error


def check_one_table(path: Path, parts: Sequence[Path]) -> None:
    """
    Raises:
        DataError: what lies in the folder ``path`` are several tables, as of several splits; or what the pattern names
            lies in several folders, or is of several kinds; or parts are missing.
    """
    if not path.is_dir() and len({(one.parent, one.suffix.lower()) for one in parts}) > 1:
        raise DataError(f"{path} names tables of several folders or kinds; give those of one")
    tables = sorted({str(one.parent / name_of_parts(one)) for one in parts if one.suffix != ".arrow"})
    if path.is_dir() and len(tables) > 1:
        first = parts[0].parent / PART.sub("", parts[0].stem)
        raise DataError(
            f"{path} holds several tables ({', '.join(tables)}); give one of them, its parts as a pattern in quotes: "
            f"'{first}*.parquet'"
        )
    _check_all_there(parts)


def _check_all_there(parts: Sequence[Path]) -> None:
    """
    Raises:
        DataError: parts that others tell of do not lie beside them, as after a download that did not end.
    """
    told = {(one.parent, found[1], found[3]) for one in parts if (found := NUMBERED.fullmatch(one.stem))}
    for folder, name, number in sorted(told):
        beside = [NUMBERED.fullmatch(one.stem) for one in folder.iterdir()]
        there = {one[2] for one in beside if one and one.group(1, 3) == (name, number)}
        if len(there) < int(number):
            raise DataError(
                f"{folder} has {len(there)} of the {int(number)} parts {name}*-of-{number}; get the others, or where "
                "some alone are meant, load them in Python and give the Dataset"
            )


def holds_pictures(part: Path) -> bool:
    """Whether images lie in a part of a table, and not only where they are.

    Raises:
        DataError: it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if part.suffix == ".arrow":
        return True
    try:
        schema = pq.read_metadata(part).schema
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{part} lies in a folder of images and cannot be read as parquet, so it may hold others: {error}; repair "
            "it, or move it away"
        ) from error
    leaves = [schema.column(number) for number in range(len(schema))]  # however deep they lie
    return any(leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type == "NONE" for leaf in leaves)


def is_empty(file: Path) -> bool:
    """Whether it is Parquet without rows, as some parts of what was filtered are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if KINDS.get(file.suffix.lower()) != "parquet":
        return False
    try:
        return bool(pq.read_metadata(file).num_rows == 0)
    except (OSError, pa.ArrowInvalid):  # who reads it says what is wrong
        return False


def name_of_parts(part: Path) -> str:
    """What a table is called that a file is a part of."""
    return PART.sub("", part.stem) or name_of(part.parent)
