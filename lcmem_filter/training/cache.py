"""Latents of a training set, encoded once: in shards, resumable, shared among processes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ..errors import EmptyDataError, UnreadableImageError
from ..images import ImageSource, to_pixels
from ..latents import Encoder, canonical
from .views import (
    augment_as_visit,
    augment_image,
    augment_mildly,
    augment_strongly,
    augment_upside_down,
    generator_for,
)

SHARD_ROWS = 256
ENCODE_BATCH = 8
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


def encode_plans(
    plans: Sequence[CachePlan], *, rank: int = 0, processes: int = 1, progress: bool = True
) -> int:
    """Encode what is not in the cache yet, every ``processes``-th shard from ``rank``.

    Returns:
        How many shards were encoded.
    """
    work = [(plan, first) for plan in plans for first in plan.shards][rank::processes]
    todo = [(plan, first) for plan, first in work if _read_shard(plan, first) is None]
    for plan, first in tqdm(todo, desc="encoding", unit="shard", disable=not progress or not todo):
        _encode_shard(plan, first)
    return len(todo)


def read_plan(plan: CachePlan) -> tuple[torch.Tensor, torch.Tensor]:
    """A plan's canonical latents (N, C, grid, grid), float16, and which rows (N,) could be read, else zero.

    Raises:
        EmptyDataError: the source is empty, or no image could be read.
    """
    latents, readable = [], []
    for first in plan.shards:
        shard = _read_shard(plan, first)
        if shard is None:
            raise EmptyDataError(
                f"latent cache {plan.path} lacks rows from {first}; run the same command again"
            )
        latents.append(torch.from_numpy(shard[0]))
        readable.append(torch.from_numpy(shard[1]))
    if not latents or not torch.cat(readable).any():
        raise EmptyDataError(f"no image of {plan.source.name!r} could be read; give a source with images")
    channels = max(shard.shape[1] for shard in latents)  # a shard without a readable image knows no channels
    whole = [shard if shard.shape[1] == channels else shard.expand(-1, channels, -1, -1) for shard in latents]
    return torch.cat(whole), torch.cat(readable)


@torch.inference_mode()
def _encode_shard(plan: CachePlan, first: int) -> None:
    """Encode the rows from ``first``; write the array, then its receipt, each aside and then renamed.

    An image whose latent is not finite counts as one that cannot be read.
    """
    count = min(SHARD_ROWS, len(plan.source) - first)
    readable = np.zeros(count, dtype=bool)
    parts: list[tuple[list[int], torch.Tensor]] = []
    for start in range(0, count, ENCODE_BATCH):
        rows, pixels = [], []
        for row in range(start, min(start + ENCODE_BATCH, count)):
            try:
                pixels.append(_pixels(plan, first + row))
                rows.append(row)
            except UnreadableImageError:
                continue
        if rows:
            batch = torch.stack(pixels).contiguous(memory_format=torch.channels_last)
            device = next(iter(plan.encoder.vae.parameters())).device
            encoded = canonical(plan.encoder.encode(batch.to(device)), plan.grid).cpu()
            finite = encoded.isfinite().flatten(1).all(1)
            rows = [row for row, good in zip(rows, finite.tolist(), strict=True) if good]
            readable[rows] = True
            encoded = encoded[finite]
            parts.append((rows, encoded.flip(-2) if plan.kind == TURNED_BACK else encoded))
    channels = parts[0][1].shape[1] if parts else 1
    latents = np.zeros((count, channels, plan.grid, plan.grid), dtype=np.float16)
    for rows, values in parts:
        latents[rows] = values.numpy()
    _write_shard(plan, first, latents, readable)


def _pixels(plan: CachePlan, row: int) -> torch.Tensor:
    image = plan.source.image(row)
    if plan.view:
        key = plan.view if plan.kind == "light" else (plan.kind, plan.view)
        draw = generator_for(VIEWS_SEED, key, plan.source.records[row].id)
        image = AUGMENTATIONS[plan.kind](image, plan.resolution, draw)
    return to_pixels(image, plan.resolution)


def _write_shard(plan: CachePlan, first: int, latents: np.ndarray, readable: np.ndarray) -> None:
    plan.path.mkdir(parents=True, exist_ok=True)
    array, receipt = _files(plan, first)
    aside = array.with_suffix(f".{os.getpid()}.tmp")
    with aside.open("wb") as file:
        np.save(file, latents, allow_pickle=False)
    written = {"sha256": _sha256(aside), "unreadable": np.flatnonzero(~readable).tolist()}
    os.replace(aside, array)
    aside.write_text(json.dumps(written))
    os.replace(aside, receipt)


def _read_shard(plan: CachePlan, first: int) -> tuple[np.ndarray, np.ndarray] | None:
    """A shard's latents and readable rows; ``None`` where it is missing or not what its receipt says."""
    array, receipt = _files(plan, first)
    try:
        written = json.loads(receipt.read_text())
        if _sha256(array) != written["sha256"]:
            return None
        latents = np.load(array, allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    readable = np.ones(len(latents), dtype=bool)
    readable[written["unreadable"]] = False
    return latents, readable


def _files(plan: CachePlan, first: int) -> tuple[Path, Path]:
    return plan.path / f"{first:09d}.npy", plan.path / f"{first:09d}.json"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
