"""Tables of images: CSV, JSON lines and Parquet, as rows and columns."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import glob
import hashlib
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

from .digests import sha256
from .errors import DataError, EmptyDataError, MissingColumnError
from .folders import name_of
from .table_files import KINDS, is_empty, name_of_parts

if TYPE_CHECKING:
    import datasets

IMAGE_COLUMNS = ("image", "file_name", "path", "file")
"""Columns that are taken for the images where none is named, the first that there is."""
NOT_AVAILABLE = ("NA", "N/A", "n/a", "<NA>", "#N/A", "NaN", "nan", "NULL", "null", "None")
"""What R, pandas and spreadsheets write into CSV where an identity or label is not known."""
COPIES = "lcmem-table-"
"""How the names of folders begin that hold copies of tables while a process runs."""
EXACT = 2.0**53
"""From here on a float is not every whole number."""
CSV_READING = 4
"""Part of a CSV's fingerprint; another one for each way in which its cells were ever read."""
ROWS_AT_ONCE = 16
"""Of a table in memory, that are hashed at once."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows that hold images, or say where they are.

    Attributes:
        rows: A ``datasets.Dataset``; images that it holds are not decoded.
        told: What messages call it.
        name: What its images are called together; rows are numbered under it.
        folder: What paths are relative to.
        is_csv: Its cells are text, whatever stands in them.
        digest: SHA-256 of some bytes and of all that the table holds, in hexadecimal.
    """

    rows: Any
    told: str
    name: str
    folder: Path
    is_csv: bool
    digest: Callable[[bytes], str]


def table_of(files: Sequence[Path]) -> Table:
    """The table that one file holds, or that several are the parts of.

    Raises:
        DataError: it is no table, or a broken one.
    """
    first, rows = files[0], read_table(*files)
    is_csv = KINDS.get(first.suffix.lower()) == "csv"

    def digest(begins: bytes) -> str:
        if len(files) == 1:
            return sha256(first, begins)
        return hashlib.sha256(begins + "".join(sha256(file) for file in files).encode()).hexdigest()

    if first.suffix == ".arrow":
        told, name = str(first.parent), name_of(first.parent)
    elif len(files) == 1:
        told, name = str(first), first.stem
    else:
        told, name = f"{first} to {files[-1].name}", name_of_parts(first)
    return Table(rows, told, name, first.parent, is_csv, digest)


def table_in_memory(rows: datasets.Dataset) -> Table:
    """A table that was loaded already, called as its split; paths in it are relative to the working directory."""
    rows = _as_stored(rows)

    def digest(begins: bytes) -> str:
        import pyarrow as pa

        found = hashlib.sha256(begins)
        for some in rows.with_format("arrow").iter(ROWS_AT_ONCE):
            sink = pa.BufferOutputStream()
            # copied, since rows that lie in larger chunks would bring these along
            alone = some.combine_chunks().take(pa.array(range(len(some))))
            with pa.ipc.new_stream(sink, some.schema.remove_metadata()) as stream:
                stream.write_table(alone.replace_schema_metadata())
            found.update(sink.getvalue())
        return found.hexdigest()

    return Table(rows, "the data set", str(rows.split or "dataset"), Path(), False, digest)


def is_in_memory(data: object) -> TypeGuard[datasets.Dataset]:
    """Whether it is a ``datasets.Dataset``.

    Raises:
        DataError: several of them, or one that cannot be asked for its rows by their number.
    """
    datasets = sys.modules.get("datasets")  # who has one has imported it
    if datasets is None:
        return False
    if isinstance(data, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        raise DataError(
            f"these are several data sets; give one of them, such as dataset[{next(iter(data))!r}]"
        )
    if isinstance(data, datasets.IterableDataset):
        raise DataError(
            "rows of an IterableDataset have no numbers; load it without streaming, and give the Dataset"
        )
    return isinstance(data, datasets.Dataset)


def read_table(*files: Path) -> Any:
    """A ``datasets.Dataset`` of the rows of all files, in their order; images that they hold are not decoded.

    Raises:
        DataError: one is no table, or a broken one, or they have other columns than the first.
        EmptyDataError: none has rows.
    """
    import datasets

    if files[0].suffix == ".arrow":
        return _as_stored(_saved(files[0].parent))
    filled = [file for file in files if not is_empty(file)]  # datasets would not read it
    if not filled:
        raise EmptyDataError(f"{files[0]} has no rows")
    tables = [_as_stored(_read(file)) for file in filled]
    if len(tables) == 1:
        return tables[0]
    for file, table in zip(filled, tables, strict=True):
        if set(table.column_names) != set(tables[0].column_names):
            raise DataError(
                f"{file} has the columns {', '.join(table.column_names)}, and {filled[0]} "
                f"{', '.join(tables[0].column_names)}; parts of one table have the same"
            )
    try:
        return datasets.concatenate_datasets(tables)
    except ValueError as error:
        raise DataError(f"{files[0]} to {files[-1].name} are not parts of one table: {error}") from error


def column_names(*files: Path) -> list[str]:
    """Of what ``read_table`` reads; of Parquet, which may hold pictures, without a copy of its rows.

    Raises:
        DataError: the first with rows is no table, or a broken one; of others than Parquet, as ``read_table``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = next((file for file in files if not is_empty(file)), files[0])
    if KINDS.get(first.suffix.lower()) == "parquet":
        with contextlib.suppress(OSError, pa.ArrowInvalid):  # who reads it says what is wrong
            return list(pq.read_schema(first).names)
    return list(read_table(*files).column_names)


def _as_stored(table: Any) -> Any:
    """Whatever training makes of its rows, as a format and a transform do, and with images not decoded."""
    import datasets

    table = table.with_format(None)
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    return table


def _saved(folder: Path) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever is wrong with it
        raise DataError(
            f"{folder} cannot be read as a data set that was saved to disk: {type(error).__name__}: {error}"
        ) from error


def _read(path: Path) -> Any:
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


class Columns(NamedTuple):
    """What columns of a table are called; ``None`` where there is none, or none is asked for."""

    image: str
    identity: str | None
    id: str | None
    labels: str | None


def columns_for(
    table: Table, image: str | None, identity: str | None, id_: str | None, where: Mapping[str, str]
) -> Columns:
    """The columns that were named, or that are found by their usual names, in small or capital letters.

    Raises:
        MissingColumnError: one that was named, or that of the images, is missing.
    """
    found = list(table.rows.column_names)
    spelled = {**{name.strip().lower(): name for name in reversed(found)}, **{name: name for name in found}}
    image = image or next((spelled[name] for name in IMAGE_COLUMNS if name in spelled), None)
    identity = identity or spelled.get("identity")
    if image is None:
        raise MissingColumnError(
            f"{table.told} has no column {', '.join(IMAGE_COLUMNS[:-1])} or {IMAGE_COLUMNS[-1]}; it has "
            f"{', '.join(found)}; name the one that says where the images are (--image-column), and separate columns "
            "by commas"
        )
    for name in (image, identity, id_, *where):
        if name is not None and name not in found:
            raise MissingColumnError(f"{table.told} has no column {name!r}; it has {', '.join(found)}")
    return Columns(image, identity, id_, spelled.get("labels", spelled.get("label")))


def classes_in(table: Any, column: str) -> Any:
    """The ``datasets.ClassLabel`` of a column's cells, or of what their lists hold; ``None`` where they are of none."""
    import datasets

    feature = table.features[column]
    classes = getattr(feature, "feature", feature)
    return classes if isinstance(classes, datasets.ClassLabel) else None


def cells(table: Any, column: str) -> list[Any]:
    """A column's cells; of classes their names, not the numbers that ``datasets`` keeps for them."""
    classes, values = classes_in(table, column), list(table[column][:])

    def named(value: Any) -> Any:
        if isinstance(value, list):
            return [named(one) for one in value]
        return None if value is None or value < 0 else classes.int2str(value)

    return values if classes is None else [named(value) for value in values]


def one_by_one(table: Any, column: str) -> Callable[[int], Any]:
    """Row to a column's cell, read when it is asked for: before version 4, ``table[column]`` reads all of them."""
    alone = table.select_columns([column])
    return lambda row: alone[row][column]


def image_in(cell: Any) -> bytes | str:
    """An image's bytes, or the name of its file.

    Raises:
        ValueError: the cell holds neither; says what it does.
    """
    if isinstance(cell, dict) and cell.get("bytes") is not None:
        if not isinstance(cell["bytes"], bytes):
            raise ValueError("has text or numbers for bytes, as JSON does: write Parquet, or name files")
        return cell["bytes"]
    found = cell.get("path") if isinstance(cell, dict) else cell
    if not found:
        raise ValueError("names no image")
    if not isinstance(found, (bytes, str)):
        raise ValueError(
            f"has a {type(found).__name__} for an image: give a row for each image, with a file's bytes or its name"
        )
    return found


def labels_of(value: Any) -> str:
    """A cell of labels, which may be a list, as text with ``|`` between them."""
    several = value if isinstance(value, list) else [value]
    return "|".join(text for one in several if (text := text_of(one)) is not None)


def matching(table: Any, where: Mapping[str, str]) -> list[int]:
    """Rows whose columns have these values, compared as text; a class by its number or its name."""
    rows = list(range(len(table)))
    for name, wanted in where.items():
        classes, values = classes_in(table, name), table[name][:]
        also = str(classes.str2int(wanted)) if classes and wanted in classes.names else wanted
        rows = [row for row in rows if {wanted, also} & {str(values[row]), text_of(values[row])}]
    return rows
