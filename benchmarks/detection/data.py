"""The benchmark's images: what fills the index, and whose images are unseen or enrolled.

Images of the train and validation splits always stand in the index. Identities of the test split are divided in two
halves that take turns: one is enrolled, the other stays unseen.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from lcmem_filter.errors import DataError, EmptyDataError
from lcmem_filter.images import METADATA_FILES, ImageRecord, ImageSource, columns_of, open_images
from lcmem_filter.tables import read_table
from lcmem_filter.training.names import identity_of

DOMAINS = {
    "nih_cxr128": "X-rays",
    "nih_cxr256": "X-rays",
    "lfw": "faces",
    "lfw_gray": "faces",
    "orl_faces": "faces",
    "ham10000": "skin lesions",
    "art": "paintings",
    "pictures": "pictures",
    "pictures256": "pictures",
}
SPLITS = ("train", "validation", "test")
SPELLED = {**{split: split for split in SPLITS}, "val": "validation", "valid": "validation"}
"""What may stand in the column ``split``, in small or capital letters, and the split that it means."""


@dataclass(frozen=True)
class Images:
    """Some images of several sources.

    Attributes:
        name: What the folder of what was kept of them is called.
        sources: In the order of the rows.
        kinds: The domain of each row, where the source does not say it: of copies, that of their originals.
    """

    name: str
    sources: tuple[ImageSource, ...]
    kinds: tuple[str, ...] = ()

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    @cached_property
    def records(self) -> list[ImageRecord]:
        return [record for source in self.sources for record in source.records]

    @cached_property
    def identities(self) -> np.ndarray:
        return np.array(
            [identity_of(one, record) for one in self.sources for record in one.records], dtype=object
        )

    @cached_property
    def sets(self) -> np.ndarray:
        """The name of each row's source."""
        return np.repeat([source.name for source in self.sources], [len(source) for source in self.sources])

    @cached_property
    def domains(self) -> np.ndarray:
        return np.array(self.kinds or [DOMAINS.get(name, name) for name in self.sets])

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256("".join(source.fingerprint for source in self.sources).encode()).hexdigest()[
            :16
        ]

    def place(self, row: int) -> tuple[ImageSource, int]:
        """The source of a row, and its row there."""
        for source in self.sources:
            if row < len(source):
                return source, row
            row -= len(source)
        raise IndexError(row)


def data_files() -> list[Path]:
    """The nine sets in ``LCMEM_DATA`` or ``../shared/data`` beside the checkout.

    Raises:
        SystemExit: naming what is missing.
    """
    folder = Path(os.environ.get("LCMEM_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    files = [folder / f"{name}.parquet" for name in DOMAINS]
    if missing := [file.name for file in files if not file.exists()]:
        raise SystemExit(
            f"no benchmark data: {folder} lacks {', '.join(missing)}; set LCMEM_DATA to its folder"
        )
    return files


def vae_folder() -> Path:
    """``LCMEM_VAE`` or ``../shared/vae/taesd`` beside the checkout: a diffusers autoencoder of the head's space.

    Raises:
        SystemExit: there is none.
    """
    default = Path(__file__).resolve().parents[3] / "shared" / "vae" / "taesd"
    folder = Path(os.environ.get("LCMEM_VAE", default))
    if not (folder / "config.json").exists():
        raise SystemExit(f"no benchmark autoencoder: {folder}; set LCMEM_VAE to a diffusers VAE folder")
    return folder


def open_splits(files: Sequence[Path], identity_column: str | None) -> dict[str, Images]:
    """Images of each of ``SPLITS``: by the column ``split``, or 60/20/20 of the identities where there is none.

    Args:
        identity_column: Where ``None``, ``identity`` or ``id`` of a table that has such a column; else each image is
            its own.

    Raises:
        DataError: a row is of no known split, or an identity stands in two.
        EmptyDataError: no images, or none of some split.
        MissingColumnError: a table without the column that was named.
    """
    parts: dict[str, list[ImageSource]] = {split: [] for split in SPLITS}
    for file in files:
        for split, source in _split(file, identity_column):
            parts[split].append(source)
    splits = {split: Images(split, tuple(sources)) for split, sources in parts.items()}
    if not all(parts.values()):
        sizes = ", ".join(f"{len(images)} of {split}" for split, images in splits.items())
        raise EmptyDataError(
            f"each split needs images, got {sizes}; give rows of each in a column split, or more identities without one"
        )
    _check_apart(splits, "test", ("train", "validation"))
    _check_apart(splits, "validation", ("train",))
    return splits


def _check_apart(splits: dict[str, Images], split: str, others: Sequence[str]) -> None:
    """
    Raises:
        DataError: identities of a split stand in others too.
    """
    there = {identity for other in others for identity in splits[other].identities}
    both = [identity for identity in dict.fromkeys(splits[split].identities) if identity in there]
    if both:
        raise DataError(
            f"identities of the split {split} that stand in {' or '.join(others)} too: {len(both)} (the first: "
            f"{both[0]!r}); give all images of an identity one split, and other identities another name"
        )


def _split(file: Path, identity_column: str | None) -> list[tuple[str, ImageSource]]:
    """Images of a file, and which split they are of."""
    columns = columns_of(file)
    if identity_column is None and "id" in columns and "identity" not in [name.lower() for name in columns]:
        identity_column = "id"
    if "split" in columns:
        return [
            (split, open_images(file, identity_column=identity_column, where={"split": spelling}))
            for spelling, split in _spellings(file).items()
        ]
    found = []
    whole = open_images(file, identity_column=identity_column)
    draws = np.array([_draw(identity_of(whole, record)) for record in whole.records])
    for split, low, high in (("train", 0.0, 0.6), ("validation", 0.6, 0.8), ("test", 0.8, 1.0)):
        if len(rows := np.flatnonzero((draws >= low) & (draws < high))):
            found.append((split, choose(whole, rows, split)))
    return found


def _spellings(file: Path) -> dict[str, str]:
    """What stands in a table's column ``split``, and the split that each means.

    Raises:
        DataError: it means none.
    """
    table = next(one for one in (file, *(file / name for name in METADATA_FILES)) if one.is_file())
    spellings = sorted({str(value) for value in read_table(table)["split"]})
    if unknown := [one for one in spellings if one.lower() not in SPELLED]:
        raise DataError(
            f"{file} has rows whose split is {', '.join(map(repr, unknown[:5]))}; a split is one of "
            f"{', '.join(SPELLED)}: correct or remove these rows, or rename the column"
        )
    return {one: SPELLED[one.lower()] for one in spellings}


def choose(source: ImageSource, rows: np.ndarray, tag: str) -> ImageSource:
    """Some rows of a source as a source."""
    records = [source.records[row] for row in rows]
    key = hashlib.sha256(f"{source.fingerprint} {tag} {rows.tolist()}".encode()).hexdigest()
    return ImageSource(source.name, records, lambda row: source.encoded(int(rows[row])), key)


def _draw(identity: str) -> float:
    """A number in [0, 1) for an identity."""
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:6], "big") / 2**48


def one_per_identity(images: Images, seed: int, *, in_each_set: bool) -> np.ndarray:
    """A row of each identity, of each set that it has images in where ``in_each_set``."""
    order = np.random.default_rng(seed).permutation(len(images))
    seen: set[tuple[str, str]] = set()
    rows = []
    for row in order:
        key = (images.identities[row], images.sets[row] if in_each_set else "")
        if key not in seen:
            seen.add(key)
            rows.append(row)
    return np.sort(np.array(rows))
