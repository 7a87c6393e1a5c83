"""What is asked for, and the plan that it becomes: every image with its seed, in batches that never change."""

from __future__ import annotations

import contextlib
import hashlib
import json
import operator
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ..errors import DataError, EmptyDataError, MissingColumnError
from ..tables import NOT_AVAILABLE, is_utf8, labels_of, lines_of

SEEDS = 2**62
"""Seeds lie in [0, SEEDS)."""
COUNTS = 2**31
"""Counts lie in [1, COUNTS)."""
EXACT = 2**53
"""Up to here every whole number is one of floating point."""
COLUMNS = ("prompt", "label", "seed", "count")
TEXT_FILES = (".txt", "")


@dataclass(frozen=True, slots=True)
class Request:
    """Images of one prompt.

    Attributes:
        prompt: Empty for an unconditional pipeline.
        label: What the images are filed under in the manifest and the report; several are separated by ``|``.
        seed: Of the first image; those after it have seeds derived from it. ``None`` derives all from the job's.
        count: How many, at least 1 and below 2**31.
    """

    prompt: str = ""
    label: str = ""
    seed: int | None = None
    count: int = 1

    def __post_init__(self) -> None:
        for name in ("prompt", "label"):
            text = getattr(self, name)
            if not isinstance(text, str) or not is_utf8(text):
                raise DataError(f"a {name} is a text in UTF-8, got {text!r}")
        self._keep_whole("count")
        if self.seed is not None:
            self._keep_whole("seed")
        if self.count < 1:
            raise DataError(f"a count is at least 1, got {self.count} for prompt {self.prompt!r}")
        if self.count >= COUNTS:
            raise DataError(f"a count is below 2**31, got {self.count} for prompt {self.prompt!r}")
        if self.seed is not None and not 0 <= self.seed < SEEDS:
            raise DataError(f"a seed lies in [0, 2**62), got {self.seed} for prompt {self.prompt!r}")

    def _keep_whole(self, name: str) -> None:
        number = as_integer(f"a {name}", getattr(self, name), f" for prompt {self.prompt!r}")
        object.__setattr__(self, name, number)


def as_integer(what: str, number: Any, where: str = "") -> int:
    """An integer of NumPy's as Python's, which JSON knows.

    Raises:
        DataError: it is none; says what of, and where.
    """
    try:
        return operator.index(number)
    except TypeError:
        raise DataError(f"{what} is an integer, got {number!r}{where}") from None


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a plan.

    Attributes:
        position: Its place in the plan, from 0.
        seed: Of its first draw; it has a generator of its own.
    """

    position: int
    prompt: str
    label: str
    seed: int


@dataclass(frozen=True)
class Plan:
    """Every image in order. A batch of them is what is drawn in one call, and what is done again after a kill."""

    items: tuple[Item, ...]
    batch_size: int

    @property
    def batches(self) -> int:
        """How many there are."""
        return -(-len(self.items) // self.batch_size)

    def batch(self, number: int) -> tuple[Item, ...]:
        """The images of one batch; the last may be smaller."""
        return self.items[number * self.batch_size : (number + 1) * self.batch_size]

    @property
    def fingerprint(self) -> str:
        """Changes when any prompt, label, seed or batch does."""
        digest = hashlib.sha256(str(self.batch_size).encode())
        for item in self.items:
            digest.update((json.dumps(asdict(item), sort_keys=True) + "\n").encode())
        return digest.hexdigest()


def plan_of(requests: Iterable[Request], *, seed: int = 0, batch_size: int = 8) -> Plan:
    """Lay out the images of ``requests``.

    An image's seed depends on the job's seed and its place in the plan, or on its request's own seed; on nothing else.

    Args:
        requests: At least one.
        seed: Of the job.
        batch_size: Images drawn in one call, at least 1.

    Raises:
        EmptyDataError: no requests.
        DataError: a batch size below 1.
    """
    if batch_size < 1:
        raise DataError(f"a batch holds at least 1 image, got a batch size of {batch_size}")
    items: list[Item] = []
    for request in requests:
        for number in range(request.count):
            position = len(items)
            if request.seed is None:
                own = derived_seed("job", seed, position)
            else:
                own = request.seed if number == 0 else derived_seed("request", request.seed, number)
            items.append(Item(position, request.prompt, request.label, own))
    if not items:
        raise EmptyDataError("nothing to generate: no prompts and no count; give at least one")
    return Plan(tuple(items), batch_size)


def derived_seed(kind: str, seed: int, number: int) -> int:
    """A seed in [0, 2**62) that depends on all three, by SHA-256."""
    digest = hashlib.sha256(f"{kind}/{seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % SEEDS


def read_requests(
    path: str | os.PathLike[str],
    *,
    prompt_column: str | None = None,
    label_column: str | None = None,
    seed_column: str | None = None,
    count_column: str | None = None,
) -> list[Request]:
    """Read prompts from a text file, one a line, or from a table (CSV, TSV, JSON lines, Parquet).

    Args:
        path: The file; empty lines of a text file are skipped.
        prompt_column, label_column, seed_column, count_column: Columns of a table; ``prompt``, ``label``, ``seed`` and
            ``count`` by default, in small or capital letters, of which only the first must be there. An empty seed is
            derived, an empty count is 1.

    Raises:
        DataError: there is no such file, it cannot be read, several of its columns have a name that is read, or a seed
            or count is no whole number.
        EmptyDataError: no prompts.
        MissingColumnError: a table without a column that was named, or without prompts.
    """
    path = Path(path)
    named = (prompt_column, label_column, seed_column, count_column)
    if path.suffix.lower() in TEXT_FILES:
        if given := next((name for name in named if name), None):
            raise MissingColumnError(
                f"{path} is a text file, one prompt a line, so it has no column {given!r}"
            )
        requests = [Request(line.strip()) for line in _lines(path) if line.strip()]
    else:
        table = _read_table(path)
        found = table.column_names
        spelled = {
            **{name.strip().lower(): name for name in reversed(found)},
            **{name: name for name in found},
        }
        columns = {use: name or spelled.get(use, use) for use, name in zip(COLUMNS, named, strict=True)}
        needed = [columns["prompt"], *(name for name in named if name)]
        if missing := next((name for name in needed if name not in found), None):
            raise MissingColumnError(f"{path} has no column {missing!r}; it has {', '.join(found) or 'none'}")
        if twice := next((name for name in columns.values() if found.count(name) > 1), None):
            raise DataError(f"{path} has several columns {twice!r}; give each another name")
        requests = _requests_of(path, table, columns)
    if not requests:
        raise EmptyDataError(f"{path} has no prompts; give a file with at least one")
    return requests


def _requests_of(path: Path, table: pa.Table, columns: dict[str, str]) -> list[Request]:
    values = {
        use: table[name].to_pylist() if name in table.column_names else [None] * len(table)
        for use, name in columns.items()
    }
    requests = []
    for row, (prompt, label, seed, count) in enumerate(zip(*values.values(), strict=True), start=1):
        if prompt is None:
            raise DataError(f"{path}: row {row} has no prompt; fill it in or remove the row")
        counted = _whole(path, row, "count", count)
        requests.append(
            Request(
                str(_plain(path, row, "prompt", prompt)),
                labels_of([_plain(path, row, "label", one) for one in _listed(label)]),
                _whole(path, row, "seed", seed),
                1 if counted is None else counted,
            )
        )
    return requests


def _lines(path: Path) -> Sequence[str]:
    try:
        return lines_of(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read: {error}; give a text file in UTF-8, one prompt a line"
        ) from error


def _read_table(path: Path) -> pa.Table:
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            return pq.read_table(path)
        if suffix in (".jsonl", ".json", ".ndjson"):
            return _from_json_lines(path)
        if suffix in (".csv", ".tsv"):
            return _from_csv(path, "\t" if suffix == ".tsv" else ",")
    except (OSError, pa.ArrowException, ValueError, OverflowError) as error:
        raise DataError(f"{path} cannot be read: {error}; mend it or give another file") from error
    raise DataError(
        f"{path} is no file of prompts that can be read; give .txt, .csv, .tsv, .jsonl or .parquet"
    )


def _from_csv(path: Path, delimiter: str) -> pa.Table:
    """Every cell as the text that it is."""
    parsing = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    with pyarrow.csv.open_csv(path, parse_options=parsing) as opened:
        names = opened.schema.names
    texts = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
    )
    return pyarrow.csv.read_csv(path, parse_options=parsing, convert_options=texts)


def _from_json_lines(path: Path) -> pa.Table:
    """What stands in the texts, where readers of tables take some for dates."""
    rows = [json.loads(line) for line in lines_of(path) if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise pa.ArrowInvalid("a line is no JSON object")
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def _column(values: list[Any]) -> pa.Array:
    """Numbers as they are written: as numbers, all would be rounded as soon as one of them has a point."""
    if all(value is None or type(value) in (int, float) for value in values):
        values = [None if value is None else json.dumps(value) for value in values]
    return pa.array(values)


def _listed(label: Any) -> list[Any]:
    return label if isinstance(label, list) else [label]


def _plain(path: Path, row: int, what: str, value: Any) -> Any:
    if isinstance(value, list | dict | bytes):
        raise DataError(f"{path}: row {row} has {value!r} for a {what}, which is no text; mend it")
    return value


def _whole(path: Path, row: int, what: str, value: Any) -> int | None:
    """``value`` as a whole number; ``None`` where there is none."""
    if value is None or value != value or value in ("", *NOT_AVAILABLE):
        return None
    whole = None if isinstance(value, bool) else _exactly(value)
    if whole is None:
        raise DataError(f"{path}: row {row} has {what} {value!r}, which is no whole number; mend it")
    return whole


def _exactly(value: Any) -> int | None:
    """A whole number none of whose digits was rounded away; a column with gaps may come with points."""
    with contextlib.suppress(ValueError):
        if isinstance(value, str | int):
            return int(value)
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        number = float(value)
        if number.is_integer() and abs(number) <= EXACT:
            return int(number)
    return None
