"""Images from folders and tables: one record an image, read when it is needed."""

from __future__ import annotations

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from .decoding import decode_image
from .dicom import attribute_of
from .errors import DataError, EmptyDataError, MissingColumnError, MissingExtraError, UnreadableImageError
from .folders import images_in, is_image, name_of, stats
from .table_files import check_one_table, holds_pictures, parts_at
from .tables import (
    CSV_READING,
    NOT_AVAILABLE,
    Table,
    cells,
    classes_in,
    column_names,
    columns_for,
    image_in,
    is_in_memory,
    is_utf8,
    labels_of,
    matching,
    names_of,
    one_by_one,
    table_in_memory,
    table_of,
    text_of,
)

if TYPE_CHECKING:
    import datasets

METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
CANNOT_BE_READ = "cannot be read"
"""Part of what is said of an image that is missing or broken, in distinction to one that the encoder cannot take."""


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """What is known of one image.

    Attributes:
        id: Names the image in an index: its path in a folder, its row in a table, or a column's value.
        identity: Equal for images of one identity; ``None`` where it is not known.
        labels: Findings, diagnoses or classes, separated by ``|``.
    """

    id: str
    identity: str | None = None
    labels: str = ""


Reader: TypeAlias = Callable[[int], bytes | Path]


class ImageSource:
    """A sequence of images, each read when it is asked for.

    Args:
        name: What to call it in messages and cards.
        records: One for each image; their ids are unique.
        read: Row to the image's encoded bytes, or to its file.
        fingerprint: Changes when the images or their records do; of images in files, when size or time of a file does.
        named_by_folders: Identities are names of folders, which may be of classes too (``index.identities``).

    Raises:
        EmptyDataError: no images.
        DataError: two images of one id.
    """

    def __init__(
        self,
        name: str,
        records: Sequence[ImageRecord],
        read: Reader,
        fingerprint: str,
        *,
        named_by_folders: bool = False,
    ) -> None:
        if not records:
            raise EmptyDataError(f"{name!r} has no images; give a folder or a table with at least one")
        if len({record.id for record in records}) < len(records):
            twice = Counter(record.id for record in records).most_common(1)[0][0]
            raise DataError(f"{name!r} has two images of id {twice!r}; give a column of unique ids, or none")
        self.name, self.records, self.fingerprint, self._read = name, list(records), fingerprint, read
        self.named_by_folders = named_by_folders

    def __len__(self) -> int:
        return len(self.records)

    def encoded(self, row: int) -> bytes:
        """The bytes of an image as they are stored.

        Raises:
            UnreadableImageError: they cannot be read.
        """
        try:
            found = self._read(row)
            return found if isinstance(found, bytes) else found.read_bytes()
        except (OSError, TypeError, ValueError, KeyError) as error:
            raise self._unreadable(row, error) from error

    def digest(self, row: int) -> str | None:
        """SHA-256 of the bytes of an image as they are stored; ``None`` where they cannot be read."""
        try:
            return hashlib.sha256(self.encoded(row)).hexdigest()
        except UnreadableImageError:
            return None

    def image(self, row: int) -> Image.Image:
        """An image as RGB, upright; see ``decode_image`` for greyscale of more than eight bits, and for DICOM.

        Raises:
            UnreadableImageError: it cannot be read or decoded.
        """
        return self.decode(self.encoded(row), row)

    def image_of(self, id_: str, sha256: str | None = None) -> Image.Image | None:
        """The image of that id, as ``image`` gives it; ``None`` where there is none, where it cannot be read, or where
        its stored bytes have another SHA-256 than they should."""
        row = self._row_of.get(id_)
        if row is None:
            return None
        try:
            encoded = self.encoded(row)
            if sha256 is not None and hashlib.sha256(encoded).hexdigest() != sha256:
                return None
            return self.decode(encoded, row)
        except UnreadableImageError:
            return None

    @functools.cached_property
    def _row_of(self) -> dict[str, int]:
        return {record.id: row for row, record in enumerate(self.records)}

    def decode(self, encoded: bytes, row: int) -> Image.Image:
        """What ``image`` gives, from the bytes that ``encoded`` gave."""
        try:
            return decode_image(encoded)
        except Exception as error:  # of a broken file, decoders raise whatever they stumble over
            raise self._unreadable(row, error) from error

    def _unreadable(self, row: int, error: Exception) -> UnreadableImageError:
        return UnreadableImageError(
            f"image {self.records[row].id!r} of {self.name!r} {CANNOT_BE_READ}: {_why(error)}"
        )


def _why(error: Exception) -> str:
    if isinstance(error, MissingExtraError):
        return str(error)
    said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return f"{said}; {'have it readable' if isinstance(error, OSError) and error.errno else 'repair or convert it'}"


def open_images(
    path: str | os.PathLike[str] | datasets.Dataset,
    *,
    image_column: str | None = None,
    identity_column: str | None = None,
    id_column: str | None = None,
    where: Mapping[str, str] | None = None,
) -> ImageSource:
    """Open a folder of images, a folder of identities, a table, or a ``datasets.Dataset``.

    In a folder, images are known by their suffix or their first bytes; those that cannot be read here, and compressed
    ones, are images that cannot be read.

    Args:
        path: An image's file. Or a folder: images in it, or in subfolders, of which each is then an identity; with a
            ``metadata`` table (CSV, JSON lines, Parquet; column ``file_name``) that table is read, which must name
            every image of the folder. Or a table's file: JSON lines and Parquet are read by ``datasets``, whose copy is
            removed when the process ends; what stands in CSV is text, so that an identity ``007`` stays that. An
            identity is the same text in each: ``7.0`` is ``7`` where all are whole numbers, and a day has no time.
            Or the parts of one table, which ``datasets`` writes: a folder of Parquet files without images, a pattern
            that names some of them, or the folder of ``Dataset.save_to_disk``; or such a data set itself.
        image_column: Column of images, or of paths relative to the table; ``image``, ``file_name``, ``path`` or
            ``file`` by default, in small or capital letters.
        identity_column: Column of identities; ``identity`` where there is one, else no image's is known. Of a folder
            without a table, the attribute of DICOM files that names them, such as ``PatientID``.
        id_column: Column of unique ids; paths, with ``#ROW`` where one stands there again, or row numbers by
            default.
        where: Only rows of a table whose columns have these values, compared as text.

    Raises:
        DataError: nothing lies at ``path``, or it cannot be read as a table, or as one, or parts of it are missing; or
            a folder's table does not name some of its images, or others lie in tables beside them; or all DICOM files
            say the same of that attribute.
        EmptyDataError: no images.
        MissingColumnError: a table without a column that was named, or a folder in which no file has that attribute.
        MissingExtraError: an attribute of DICOM files was named, and pydicom is not installed.
    """
    asked = (image_column, identity_column, id_column, dict(where or {}))
    if is_in_memory(path):
        return _open_table(table_in_memory(path), *asked)
    path = Path(path)
    if files := _files_of_table(path):
        metadata = path if files[0].name in METADATA_FILES and path.is_dir() else None
        return _open_table(table_of(files), *asked, folder=metadata)
    alone = path.is_file()
    if not alone and not path.is_dir():
        raise DataError(f"no images at {path}: no such folder or table; give one that exists")
    named = [name for name in (image_column, id_column, *(where or {})) if name]
    if named:
        what = "an image" if alone else "a folder of images"
        raise MissingColumnError(
            f"{path} is {what} without a table, so it has no column {named[0]!r}; "
            f"add a {METADATA_FILES[0]} with a column file_name, or leave the option out"
        )
    return _open_files(*(path.parent, [path]) if alone else (path, images_in(path)), identity_column)


def can_be_read(source: ImageSource, row: int) -> bool:
    """Whether ``source.image`` gives a picture."""
    try:
        source.image(row)
    except UnreadableImageError:
        return False
    return True


def is_table(path: str | os.PathLike[str]) -> bool:
    """Whether ``open_images`` reads a table there: a table's file, a folder's ``metadata``, or parts of a table."""
    return bool(_files_of_table(Path(path)))


def columns_of(path: str | os.PathLike[str]) -> list[str]:
    """Columns of the table that ``open_images`` reads at ``path``; none where that is a folder without one."""
    files = _files_of_table(Path(path))
    return column_names(*files) if files else []


def _files_of_table(path: Path) -> list[Path]:
    if path.is_file():
        return [] if is_image(path) else [path]
    if metadata := [path / name for name in METADATA_FILES if (path / name).is_file()]:
        return metadata[:1]
    parts = parts_at(path)
    if parts and path.is_dir() and (images := images_in(path)):
        if holding := next(filter(holds_pictures, parts), None):
            raise DataError(
                f"{path} has images ({images[0].relative_to(path)}) and tables that hold images "
                f"({holding.relative_to(path)}); give the folder, table or pattern in quotes of one or the other"
            )
        return []
    check_one_table(path, parts)
    return parts


def to_pixels(image: Image.Image, resolution: int) -> torch.Tensor:
    """An RGB image squashed to a square as pixels (3, resolution, resolution) in [-1, 1], float32."""
    if image.size != (resolution, resolution):
        image = image.resize((resolution, resolution), Image.Resampling.LANCZOS)
    # in NumPy, which takes no threads of its own for it: pictures are made so by several at once
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)


def _open_files(path: Path, files: list[Path], attribute: str | None) -> ImageSource:
    """Images below a folder without a table; ``attribute`` of DICOM files names identities, else subfolders do."""
    if not files:
        raise EmptyDataError(f"{path} has no images; give a folder with at least one")
    names = [file.relative_to(path).as_posix() for file in files]
    for name in names:
        if not is_utf8(name):
            raise DataError(f"the file name {name!r} in {path} is no text in UTF-8; give it another name")
    plan: list[Any] = stats(path, names)
    identities = [name.split("/")[0] if "/" in name else None for name in names]
    if attribute is not None:
        identities = [attribute_of(file, attribute) for file in files]
        if not any(identities):
            raise MissingColumnError(
                f"{path} is a folder of images without a table, so it has no column {attribute!r}, and none of them is "
                f"DICOM that states it; add a {METADATA_FILES[0]} with a column file_name, or leave the option out"
            )
        stated = [one for one in identities if one]
        if len(stated) > 1 and len(set(stated)) == 1:
            raise DataError(
                f"all {len(stated)} files in {path} that state a {attribute} state the same, as anonymised ones do; "
                f"add a {METADATA_FILES[0]} that says whose they are, or leave the option out"
            )
        plan = [*plan, attribute]
    return ImageSource(
        name_of(path),
        [ImageRecord(name, identity) for name, identity in zip(names, identities, strict=True)],
        lambda row: files[row],
        hashlib.sha256(repr(plan).encode()).hexdigest(),
        named_by_folders=attribute is None,
    )


def _open_table(
    table: Table,
    image_column: str | None,
    identity_column: str | None,
    id_column: str | None,
    where: dict[str, str],
    *,
    folder: Path | None = None,
) -> ImageSource:
    """Images of a table, which has to name every one of ``folder``."""
    columns = columns_for(table, image_column, identity_column, id_column, where)
    rows = matching(table.rows, where)
    if not rows:
        lacks = f" with {where}; it has {len(table.rows)}" if where else ""
        raise EmptyDataError(f"{table.told} has no rows{lacks}")
    identities, ids, labels = (
        cells(table.rows, name) if name else None for name in (columns.identity, columns.id, columns.labels)
    )
    unknown = (None, *NOT_AVAILABLE)
    try:
        names = names_of(identities or ())
    except ValueError as error:
        raise DataError(
            f"{table.told}: of its column {columns.identity!r}, {error}; write whole numbers as text"
        ) from error
    images = one_by_one(table.rows, columns.image)  # pictures stay where they are
    first = next((image for row in rows if (image := images(row))), None)
    in_files = isinstance(first, str)
    images = table.rows[columns.image][:].__getitem__ if in_files else images
    if folder is not None and (in_files or (isinstance(first, dict) and first.get("bytes") is None)):
        _check_all_named(folder, table)
    records, used = [], set()
    for row in rows:
        own = images(row) if in_files and images(row) else f"{table.name}/{row}"
        own = f"{own}#{row}" if own in used else own  # listed again, as with a row for each finding
        used.add(own)
        id_ = own if ids is None else text_of(ids[row])
        if id_ is None:
            raise DataError(
                f"{table.told}: row {row} has no {id_column}; fill it in, or leave the column out"
            )
        identity = names[row] if names else None
        known = labels_of(labels[row]) if labels is not None else ""
        records.append(
            ImageRecord(
                id_,
                None if identity in unknown else identity,
                "" if known in unknown else known,
            )
        )

    def read(row: int) -> bytes | Path:
        try:
            found = image_in(images(rows[row]))
        except ValueError as error:
            raise ValueError(f"row {rows[row]} of the table {error}") from error
        return found if isinstance(found, bytes) else table.folder / found

    if isinstance(first, dict) and first.get("bytes") is None:
        files = [stats(table.folder, [str((images(row) or {}).get("path")) for row in rows])]
    else:
        files = [stats(table.folder, [images(row) or "" for row in rows])] if in_files else []
    reading: list[Any] = [CSV_READING] if table.is_csv else []
    # releases that knew no capitals, or nothing but labels, read none there: theirs was another source
    reading += [name for name in (columns.labels,) if name not in (None, "labels")]
    told = () if table.is_csv else (*(identities or ()), *(labels or ()))  # which stood for themselves before
    reading += ["unknown"] if any(isinstance(one, str) and one in NOT_AVAILABLE for one in told) else []
    # whose numbers were read before
    reading += [f"classes in {name}" for name in columns[1:] if name and classes_in(table.rows, name)]
    reading += ["names"] if names != [text_of(one) for one in identities or ()] else []
    plan = (columns.image, columns.identity, columns.id, sorted(where.items()), *files, *reading)
    return ImageSource(
        table.name if folder is None else name_of(folder), records, read, table.digest(repr(plan).encode())
    )


def _check_all_named(folder: Path, table: Table) -> None:
    """
    Raises:
        DataError: images of the table's folder are in none of its columns, and copies of them would pass.
    """
    known: set[str] = set()
    for name in table.rows.column_names:
        values = (one.get("path") if isinstance(one, dict) else one for one in table.rows[name][:])
        known |= {os.path.normpath(folder / one) for one in values if isinstance(one, str) and one}
    found = [file for file in images_in(folder) if os.path.normpath(file) not in known]
    real = {os.path.realpath(one) for one in known} if found else set()  # which takes long
    others = [file.relative_to(folder) for file in found if os.path.realpath(file) not in real]
    unnamed = [file for file in others if not any(part.startswith(".") for part in file.parts)]
    if unnamed:
        raise DataError(
            f"{table.told} does not name {len(unnamed)} of the images in its folder (the first: {unnamed[0]}); add "
            "them to it, or move them away, or give the table's own path to use only what it names"
        )
