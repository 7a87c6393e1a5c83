"""Tables of images: CSV, JSON lines and Parquet, as rows and columns."""

from __future__ import annotations

import atexit
import datetime
import glob
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import DataError

KINDS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
NOT_AVAILABLE = ("NA", "N/A", "n/a", "<NA>", "#N/A", "NaN", "nan", "NULL", "null", "None")
"""What R, pandas and spreadsheets write into CSV where an identity or label is not known."""
COPIES = "lcmem-table-"
"""How the names of folders begin that hold copies of tables while a process runs."""
EXACT = 2.0**53
"""From here on a float is not every whole number."""
CSV_READING = 4
"""Part of a CSV's fingerprint; another one for each way in which its cells were ever read."""


def read_table(path: Path) -> Any:
    """A ``datasets.Dataset`` of its rows; images that it holds are not decoded.

    Raises:
        DataError: it is no table, or a broken one.
    """
    import datasets

    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"{path} is no table that can be read; give one of {', '.join(KINDS)}, or a folder")
    # pictures in a table are private, and by itself datasets would keep its copy of them for good
    copied = _folder_until_exit(datasets.config.HF_DATASETS_CACHE) if kind != "csv" else None
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        table = (
            _read_csv(path)
            if copied is None
            else datasets.load_dataset(
                kind, data_files=_linked(path, copied), split="train", cache_dir=copied
            )
        )
    except Exception as error:
        cause = error.__cause__ or error  # datasets says only that something went wrong
        advice = "; save it as UTF-8" if isinstance(cause, UnicodeDecodeError) else ""
        raise DataError(
            f"{path} cannot be read as {kind}: {type(cause).__name__}: {cause}{advice}"
        ) from error
    finally:
        if shown:
            datasets.enable_progress_bars()
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    return table


def _folder_until_exit(parent: str | os.PathLike[str]) -> str:
    """A new folder, which is removed when the process ends: in ``parent``, where there is room for tables, or where
    nothing can be written there (a container without a home), where temporary files lie."""
    try:
        Path(parent).mkdir(parents=True, exist_ok=True)
        made = tempfile.mkdtemp(prefix=COPIES, dir=parent)
    except OSError:
        made = tempfile.mkdtemp(prefix=COPIES)
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def _linked(path: Path, folder: str) -> str:
    """The pattern of a file in ``folder`` that shows what ``path`` holds: by itself datasets would take a name like
    ``a[12].jsonl`` for a pattern, and read ``a1.jsonl`` in its place."""
    link = Path(folder, f"table{path.suffix.lower()}")
    try:
        link.symlink_to(path.absolute())
    except OSError:  # where links are not allowed
        shutil.copyfile(path, link)
    return glob.escape(str(link))


def _read_csv(path: Path) -> Any:
    """Every cell as the text that it is, without spaces before it: ids and identities are no numbers."""
    import datasets
    import pandas

    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    frame = pandas.read_csv(path, sep=separator, dtype=str, keep_default_na=False, skipinitialspace=True)
    # where rows end in a separator, pandas takes their first cells for names of rows
    if not isinstance(frame.index, pandas.RangeIndex):
        cells, names = frame.reset_index(), frame.columns
        if cells.iloc[:, len(names) :].fillna("").ne("").any(axis=None):
            raise ValueError(f"rows have more cells than the header's {len(names)} names")
        frame = cells.iloc[:, : len(names)].set_axis(names, axis=1)
    return datasets.Dataset.from_pandas(frame, preserve_index=False)


def lines_of(path: Path) -> list[str]:
    """Lines of a text in UTF-8, with a byte-order mark or without; what else separates lines may stand in one.

    Raises:
        OSError, UnicodeDecodeError: it cannot be read.
    """
    return path.read_text(encoding="utf-8-sig").split("\n")


def is_utf8(text: str) -> bool:
    """Whether a text can be written in UTF-8: file names and JSON may hold what cannot."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def is_csv(path: Path) -> bool:
    """Whether a table's cells are text, whatever stands in them."""
    return KINDS.get(path.suffix.lower()) == "csv"


def text_of(value: Any) -> str | None:
    """A cell as text, ``None`` where nothing is known. Whole numbers have no point: a column of them holds floats as
    soon as one is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return text.strip() or None


def names_of(values: Sequence[Any]) -> list[str | None]:
    """A column's cells as names: as ``text_of`` gives them, but the same in whichever kind of table they stand.

    Where all are whole numbers with ``.0``, as pandas writes them into CSV as soon as one is missing, that is left out;
    where all are days, their time is.

    Raises:
        ValueError: a whole number was read as a fraction that is not exact, and may be another one.
    """
    known = [one for one in values if text_of(one) not in (None, *NOT_AVAILABLE)]
    for value in known:
        if isinstance(value, float) and math.isfinite(value) and abs(value) >= EXACT:
            raise ValueError(f"{value:.0f} was read as a fraction, which is not exact beyond 2**53")
    if all(isinstance(one, datetime.datetime) and one.timetz() == datetime.time.min for one in known):
        values = [one.date() if isinstance(one, datetime.datetime) else one for one in values]
    texts = [text_of(one) for one in values]
    if all(isinstance(one, str) and re.fullmatch(r"\s*-?\d+\.0\s*", one) for one in known):
        texts = [None if one is None else one.removesuffix(".0") for one in texts]
    return texts


def matching(table: Any, where: Mapping[str, str]) -> list[int]:
    """Rows whose columns have these values, compared as text."""
    rows = list(range(len(table)))
    for name, wanted in where.items():
        values = table[name][:]
        rows = [row for row in rows if wanted in (str(values[row]), text_of(values[row]))]
    return rows
