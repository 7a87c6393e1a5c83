"""Latents of a training set, encoded once: in shards, resumable, shared among processes."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from ..digests import sha256
from ..encoding import ENCODE_BATCH, read_images
from ..errors import EmptyDataError, MissingExtraError, UnreadableImageError
from ..images import CANNOT_BE_READ, ImageSource, can_be_read, to_pixels
from ..latents import Encoder, canonical
from .views import (
    augment_as_visit,
    augment_image,
    augment_mildly,
    augment_strongly,
    augment_upside_down,
    generator_for,
)

NOT_FINITE = "has a latent that is not finite"
SHARD_ROWS = 256
AUGMENTATIONS = {
    "light": augment_image,
    "visit": augment_as_visit,
    "mild": augment_mildly,
    "strong": augment_strongly,
    "upside-down": augment_upside_down,
}
TURNED_BACK = "upside-down"
"""The kind whose latents are kept upside down, so that the picture lies in them as it is."""
RESIZED_BY = "area"
"""How latents come to the grid (``latents.to_grid``); those that came there otherwise are not used."""
VIEWS_SEED = 0
"""Of what views are drawn from: runs of all seeds share them."""
VIEWS_VERSION = 1
"""Raise it when one of them changes: cached views of another version are not used."""


@dataclass(frozen=True, slots=True)
class CachePlan:
    """One view of one source through one encoder, as a folder of shards.

    Attributes:
        folder: Where caches lie; each plan has a folder of its own there, named by all that it depends on.
        resolution: Side in pixels of the encoded squares.
        grid: Side of the canonical latents that are kept.
        view: 0 for the clean picture, else the number of an augmented view.
        kind: How it is augmented: one of ``AUGMENTATIONS``.
    """

    folder: Path
    source: ImageSource
    encoder: Encoder
    resolution: int
    grid: int
    view: int = 0
    kind: str = "light"
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        key = [
            self.source.fingerprint,
            len(self.source),
            self.encoder.source.sha256,
            self.resolution,
            self.grid,
        ]
        kind = "view" if self.kind == "light" else f"{self.kind} view"
        view = f"{kind} {self.view} seed {VIEWS_SEED} version {VIEWS_VERSION}" if self.view else "clean"
        key += [SHARD_ROWS, view, RESIZED_BY]
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]
        object.__setattr__(self, "path", Path(self.folder) / name)

    @property
    def shards(self) -> range:
        """First row of each shard."""
        return range(0, len(self.source), SHARD_ROWS)


class Shard(NamedTuple):
    """Rows of a plan, as they lie in its folder.

    Attributes:
        latents: (R, C, grid, grid), float16; zero where the image could not be read.
        unreadable: Why, by row in the shard; one that the encoder could not take is among them.
        pictures: Of the clean view, the start of the SHA-256 of each image's stored bytes.
    """

    latents: np.ndarray
    unreadable: dict[int, str]
    pictures: list[str]

    @property
    def readable(self) -> np.ndarray:
        """Which rows (R,) could be read."""
        return ~np.isin(np.arange(len(self.latents)), list(self.unreadable))


class Encoded(NamedTuple):
    """A plan's canonical latents (N, C, grid, grid), float16, which rows (N,) could be read, else zero, why others
    could not, and what tells stored pictures apart (N,), empty where unknown."""

    latents: torch.Tensor
    readable: torch.Tensor
    unreadable: dict[int, str]
    pictures: np.ndarray


def encode_plans(
    plans: Sequence[CachePlan], *, rank: int = 0, processes: int = 1, progress: bool = True
) -> int:
    """Encode what is not in the cache yet, every ``processes``-th shard from ``rank``; again, where an image that could
    not be read can be by now.

    Returns:
        How many shards were encoded.

    Raises:
        MissingExtraError: images are of a kind that needs one.
    """
    work = [(plan, first) for plan in plans for first in plan.shards][rank::processes]
    todo = [(plan, first) for plan, first in work if _lacks(plan, first)]
    for plan, first in tqdm(todo, desc="encoding", unit="shard", disable=not progress or not todo):
        _encode_shard(plan, first)
    return len(todo)


def _lacks(plan: CachePlan, first: int) -> bool:
    """Whether a shard is missing, or an image that it lacks can be read by now."""
    shard = _read_shard(plan, first)
    if shard is None:
        return True
    broken = [row for row, why in shard.unreadable.items() if not why or CANNOT_BE_READ in why]
    return any(can_be_read(plan.source, first + row) for row in broken)


def read_plan(plan: CachePlan) -> Encoded:
    """What was encoded.

    Raises:
        EmptyDataError: the source is empty, or no image could be read.
    """
    shards = []
    for first in plan.shards:
        shard = _read_shard(plan, first)
        if shard is None:
            raise EmptyDataError(
                f"latent cache {plan.path} lacks rows from {first}; run the same command again"
            )
        shards.append(shard)
    readable = [torch.from_numpy(shard.readable) for shard in shards]
    unreadable = {
        first + row: why or f"image {plan.source.records[first + row].id!r} {CANNOT_BE_READ}"
        for first, shard in zip(plan.shards, shards, strict=True)
        for row, why in shard.unreadable.items()
    }
    if all(NOT_FINITE in why for why in unreadable.values()) and len(unreadable) == len(plan.source):
        raise EmptyDataError(
            f"the encoder gives NaN or infinity for every image of {plan.source.name!r}; it is broken, or overflows in "
            "half precision: give another --vae"
        )
    if not torch.cat(readable).any():
        raise EmptyDataError(f"no image of {plan.source.name!r} could be read; the first: {unreadable[0]}")
    channels = max(shard.latents.shape[1] for shard in shards)  # one without a readable image knows none
    latents = [torch.from_numpy(shard.latents) for shard in shards]
    whole = [one if one.shape[1] == channels else one.expand(-1, channels, -1, -1) for one in latents]
    pictures = np.array([one for shard in shards for one in shard.pictures], dtype=object)
    return Encoded(torch.cat(whole), torch.cat(readable), unreadable, pictures)


def pictures_of(plan: CachePlan, encoded: Encoded) -> np.ndarray:
    """What tells stored pictures apart (N,), also where a cache of before does not say; empty for what cannot be
    read."""
    pictures = encoded.pictures.copy()
    for row in np.flatnonzero(encoded.readable.numpy() & (pictures == "")):
        try:
            pictures[row] = _picture(plan.source.encoded(int(row)))
        except UnreadableImageError:
            continue
    return pictures


@torch.inference_mode()
def _encode_shard(plan: CachePlan, first: int) -> None:
    """Encode the rows from ``first``; write the array, then its receipt, each aside and then renamed."""
    count = min(SHARD_ROWS, len(plan.source) - first)
    unreadable: dict[int, str] = {}
    pictures = [""] * count
    parts: list[tuple[list[int], torch.Tensor]] = []
    found = read_images(plan.source, range(first, first + count), functools.partial(_pixels, plan))
    for start in range(0, count, ENCODE_BATCH):
        rows, pixels = [], []
        batch = range(start, min(start + ENCODE_BATCH, count))
        for row, one in zip(batch, itertools.islice(found, len(batch)), strict=True):
            if isinstance(one, UnreadableImageError):
                if isinstance(one.__cause__, MissingExtraError):
                    raise one.__cause__ from one
                unreadable[row] = str(one)
                continue
            stored, picture = one
            rows.append(row)
            pixels.append(picture)
            pictures[row] = _picture(stored)
        if rows:
            seen = torch.stack(pixels).contiguous(memory_format=torch.channels_last)
            device = next(iter(plan.encoder.vae.parameters())).device
            encoded = canonical(plan.encoder.encode(seen.to(device)), plan.grid).cpu()
            finite = encoded.isfinite().flatten(1).all(1)
            for row in (row for row, good in zip(rows, finite.tolist(), strict=True) if not good):
                name = plan.source.records[first + row].id
                unreadable[row] = f"image {name!r} of {plan.source.name!r} {NOT_FINITE}; remove it"
            rows, encoded = [row for row in rows if row not in unreadable], encoded[finite]
            parts.append((rows, encoded.flip(-2) if plan.kind == TURNED_BACK else encoded))
    channels = parts[0][1].shape[1] if parts else 1
    latents = np.zeros((count, channels, plan.grid, plan.grid), dtype=np.float16)
    for rows, values in parts:
        latents[rows] = values.numpy()
    _write_shard(plan, first, Shard(latents, unreadable, pictures))


def _picture(stored: bytes) -> str:
    return hashlib.sha256(stored).hexdigest()[:20]


def _pixels(plan: CachePlan, image: Image.Image, row: int) -> torch.Tensor:
    if plan.view:
        key = plan.view if plan.kind == "light" else (plan.kind, plan.view)
        draw = generator_for(VIEWS_SEED, key, plan.source.records[row].id)
        image = AUGMENTATIONS[plan.kind](image, plan.resolution, draw)
    return to_pixels(image, plan.resolution)


def _write_shard(plan: CachePlan, first: int, shard: Shard) -> None:
    plan.path.mkdir(parents=True, exist_ok=True)
    array, receipt = _files(plan, first)
    aside = array.with_suffix(f".{os.getpid()}.tmp")
    with aside.open("wb") as file:
        np.save(file, shard.latents, allow_pickle=False)
    rows = list(shard.unreadable)
    told = {"unreadable": rows, "why": shard.unreadable, "pictures": shard.pictures}
    written = {"sha256": sha256(aside), **told}
    os.replace(aside, array)
    aside.write_text(json.dumps(written), encoding="utf-8")
    os.replace(aside, receipt)


def _read_shard(plan: CachePlan, first: int) -> Shard | None:
    """What lies there; ``None`` where it is missing or not what its receipt says."""
    array, receipt = _files(plan, first)
    try:
        written = json.loads(receipt.read_text(encoding="utf-8"))
        if sha256(array) != written["sha256"]:
            return None
        latents = np.load(array, allow_pickle=False)
        why = written.get("why", {})  # receipts of before had neither reasons nor pictures
        unreadable = {row: str(why.get(str(row), "")) for row in written["unreadable"]}
        return Shard(latents, unreadable, written.get("pictures") or [""] * len(latents))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _files(plan: CachePlan, first: int) -> tuple[Path, Path]:
    return plan.path / f"{first:09d}.npy", plan.path / f"{first:09d}.json"
