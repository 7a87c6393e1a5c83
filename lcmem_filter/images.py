"""Images from folders and tables: one record an image, read when it is needed."""

from __future__ import annotations

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from .decoding import decode_image
from .dicom import attribute_of
from .digests import sha256
from .errors import DataError, EmptyDataError, MissingColumnError, MissingExtraError, UnreadableImageError
from .folders import images_in, is_image, stats
from .tables import CSV_READING, NOT_AVAILABLE, is_csv, is_utf8, matching, names_of, read_table, text_of

METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
IMAGE_COLUMNS = ("image", "file_name", "path", "file")
"""Columns that are taken for the images where none is named, the first that there is."""
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
    path: str | os.PathLike[str],
    *,
    image_column: str | None = None,
    identity_column: str | None = None,
    id_column: str | None = None,
    where: Mapping[str, str] | None = None,
) -> ImageSource:
    """Open a folder of images, a folder of identities, or a table.

    In a folder, images are known by their suffix or their first bytes; those that cannot be read here, and compressed
    ones, are images that cannot be read.

    Args:
        path: An image's file. Or a folder: images in it, or in subfolders, of which each is then an identity; with a
            ``metadata`` table (CSV, JSON lines, Parquet; column ``file_name``) that table is read, which must name
            every image of the folder. Or a table's file: JSON lines and Parquet are read by ``datasets``, whose copy is
            removed when the process ends; what stands in CSV is text, so that an identity ``007`` stays that. An
            identity is the same text in each: ``7.0`` is ``7`` where all are whole numbers, and a day has no time.
        image_column: Column of images, or of paths relative to the table; ``image``, ``file_name``, ``path`` or
            ``file`` by default, in small or capital letters.
        identity_column: Column of identities; ``identity`` where there is one, else no image's is known. Of a folder
            without a table, the attribute of DICOM files that names them, such as ``PatientID``.
        id_column: Column of unique ids; paths, with ``#ROW`` where one stands there again, or row numbers by
            default.
        where: Only rows of a table whose columns have these values, compared as text.

    Raises:
        DataError: nothing lies at ``path``, or it cannot be read as a table; or a folder's table does not name some of
            its images; or all DICOM files say the same of that attribute.
        EmptyDataError: no images.
        MissingColumnError: a table without a column that was named, or a folder in which no file has that attribute.
        MissingExtraError: an attribute of DICOM files was named, and pydicom is not installed.
    """
    path = Path(path)
    table = _table_at(path)
    if table is not None:
        columns = (image_column, identity_column, id_column)
        return _open_table(table, *columns, dict(where or {}), whole_folder=table != path)
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
    """Whether ``open_images`` reads a table there: a table's file, or a folder's ``metadata``."""
    return _table_at(Path(path)) is not None


def columns_of(path: str | os.PathLike[str]) -> list[str]:
    """Columns of the table that ``open_images`` reads at ``path``; none where that is a folder without one."""
    table = _table_at(Path(path))
    return [] if table is None else list(read_table(table).column_names)


def _table_at(path: Path) -> Path | None:
    return path if path.is_file() and not is_image(path) else _metadata_of(path)


def _metadata_of(folder: Path) -> Path | None:
    return next((folder / name for name in METADATA_FILES if (folder / name).is_file()), None)


def to_pixels(image: Image.Image, resolution: int) -> torch.Tensor:
    """An RGB image squashed to a square as pixels (3, resolution, resolution) in [-1, 1], float32."""
    if image.size != (resolution, resolution):
        image = image.resize((resolution, resolution), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


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
        path.name,
        [ImageRecord(name, identity) for name, identity in zip(names, identities, strict=True)],
        lambda row: files[row],
        hashlib.sha256(repr(plan).encode()).hexdigest(),
        named_by_folders=attribute is None,
    )


def _open_table(
    path: Path,
    image_column: str | None,
    identity_column: str | None,
    id_column: str | None,
    where: dict[str, str],
    *,
    whole_folder: bool,
) -> ImageSource:
    table = read_table(path)
    found = list(table.column_names)
    spelled = {**{name.strip().lower(): name for name in reversed(found)}, **{name: name for name in found}}
    image_column = image_column or next((spelled[name] for name in IMAGE_COLUMNS if name in spelled), None)
    identity_column = identity_column or spelled.get("identity")
    if image_column is None:
        raise MissingColumnError(
            f"{path} has no column {', '.join(IMAGE_COLUMNS[:-1])} or {IMAGE_COLUMNS[-1]}; it has {', '.join(found)}; "
            "name the one that says where the images are (--image-column), and separate columns by commas"
        )
    for name in (image_column, identity_column, id_column, *where):
        if name is not None and name not in found:
            raise MissingColumnError(f"{path} has no column {name!r}; it has {', '.join(found)}")
    label_column = spelled.get("labels", spelled.get("label"))
    rows = matching(table, where)
    if not rows:
        raise EmptyDataError(f"{path} has no rows{f' with {where}; it has {len(table)}' if where else ''}")
    identities, ids, labels = (
        table[name][:] if name else None for name in (identity_column, id_column, label_column)
    )
    unknown = (None, *NOT_AVAILABLE)
    try:
        names = names_of(identities or ())
    except ValueError as error:
        raise DataError(
            f"{path}: of its column {identity_column!r}, {error}; write whole numbers as text"
        ) from error
    images = table[image_column]
    first = next((image for row in rows if (image := images[row])), None)
    in_files = isinstance(first, str)
    images = images[:] if in_files else images  # pictures stay where they are
    if whole_folder and (in_files or (isinstance(first, dict) and first.get("bytes") is None)):
        _check_all_named(path, table)
    records, used = [], set()
    for row in rows:
        own = images[row] if in_files and images[row] else f"{path.stem}/{row}"
        own = f"{own}#{row}" if own in used else own  # listed again, as with a row for each finding
        used.add(own)
        id_ = own if ids is None else text_of(ids[row])
        if id_ is None:
            raise DataError(f"{path}: row {row} has no {id_column}; fill it in, or leave the column out")
        identity = names[row] if names else None
        known = _labels(labels[row]) if labels is not None else ""
        records.append(
            ImageRecord(
                id_,
                None if identity in unknown else identity,
                "" if known in unknown else known,
            )
        )

    def read(row: int) -> bytes | Path:
        value = images[rows[row]]
        if not value:
            raise ValueError(f"row {rows[row]} of {path.name} names no image")
        if isinstance(value, dict):
            return value["bytes"] if value.get("bytes") is not None else path.parent / value["path"]
        return value if isinstance(value, bytes) else path.parent / value

    if isinstance(first, dict) and first.get("bytes") is None:
        files = [stats(path.parent, [str((images[row] or {}).get("path")) for row in rows])]
    else:
        files = [stats(path.parent, [images[row] or "" for row in rows])] if in_files else []
    reading: list[Any] = [CSV_READING] if is_csv(path) else []
    # releases that knew no capitals, or nothing but labels, read none there: theirs was another source
    reading += [name for name in (label_column,) if name not in (None, "labels")]
    told = () if is_csv(path) else (*(identities or ()), *(labels or ()))  # which stood for themselves before
    reading += ["unknown"] if any(isinstance(one, str) and one in NOT_AVAILABLE for one in told) else []
    reading += ["names"] if names != [text_of(one) for one in identities or ()] else []
    plan = (image_column, identity_column, id_column, sorted(where.items()), *files, *reading)
    return ImageSource(
        path.parent.name if path.name in METADATA_FILES else path.stem,
        records,
        read,
        sha256(path, prefix=repr(plan).encode()),
    )


def _check_all_named(path: Path, table: Any) -> None:
    """
    Raises:
        DataError: images of the table's folder are in none of its columns, and copies of them would pass.
    """
    known: set[str] = set()
    for name in table.column_names:
        values = (one.get("path") if isinstance(one, dict) else one for one in table[name][:])
        known |= {os.path.normpath(path.parent / one) for one in values if isinstance(one, str) and one}
    found = [file for file in images_in(path.parent) if os.path.normpath(file) not in known]
    real = {os.path.realpath(one) for one in known} if found else set()  # which takes long
    others = [file.relative_to(path.parent) for file in found if os.path.realpath(file) not in real]
    unnamed = [file for file in others if not any(part.startswith(".") for part in file.parts)]
    if unnamed:
        raise DataError(
            f"{path} does not name {len(unnamed)} of the images in its folder (the first: {unnamed[0]}); add them to "
            "it, or move them away, or give the table's own path to use only what it names"
        )


def _labels(value: Any) -> str:
    several = value if isinstance(value, list) else [value]
    return "|".join(text for one in several if (text := text_of(one)) is not None)
