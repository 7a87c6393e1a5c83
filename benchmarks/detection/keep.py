"""What each method keeps of each image, computed once and kept outside the repository."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from data import Images
from methods import Method

from lcmem_filter.head import LCMemHead
from lcmem_filter.images import ImageSource, to_pixels
from lcmem_filter.latents import Encoder
from lcmem_filter.training.cache import CachePlan, encode_plans, read_plan

BATCH = 64


@dataclass(frozen=True)
class Keeper:
    """Reads or computes latents and what methods keep.

    Attributes:
        cache: A folder outside the repository.
        latents_cache: Where the training keeps its latents; the same ones are read.
        resolution: Side in pixels of every picture.
        grid: Of the canonical latents.
    """

    cache: Path
    latents_cache: Path
    encoder: Encoder
    resolution: int
    grid: int

    def latents(self, images: Images) -> torch.Tensor:
        """Canonical latents (N, C, grid, grid), float16."""
        plans = [
            CachePlan(self.latents_cache, source, self.encoder, self.resolution, self.grid)
            for source in images.sources
        ]
        encode_plans(plans)
        read = [read_plan(plan) for plan in plans]
        for one, source in zip(read, images.sources, strict=True):
            if not one.readable.all():
                raise SystemExit(
                    f"{source.name}: {int((~one.readable).sum())} images cannot be read; mend or remove them"
                )
        return torch.cat([one.latents for one in read])

    def kept(self, method: Method, images: Images) -> torch.Tensor:
        """What ``method`` keeps of ``images`` (N, D); zeros for domains that it is not measured on."""
        where = self.cache / f"{self.encoder.source.sha256[:8]}-{self.resolution}" / "kept"
        where = where / f"{method.kept_key}-{self.grid}"
        parts, first = [], 0
        for source in images.sources:
            domains = images.domains[first : first + len(source)]
            first += len(source)
            path = where / f"{images.name}-{source.fingerprint[:16]}.npy"
            if not path.exists():
                wanted = (
                    np.isin(domains, method.row.domains) if method.row.domains else np.ones(len(source), bool)
                )
                _save(path, self._embed(method, source, wanted))
            parts.append(torch.from_numpy(np.load(path, allow_pickle=False)))
        width = max(part.shape[1] for part in parts)
        return torch.cat(
            [part if part.shape[1] == width else part.new_zeros(len(part), width) for part in parts]
        )

    def _pictures(self, source: ImageSource) -> np.ndarray:
        """Every picture at the benchmark's resolution, uint8 (N, side, side, 3), decoded once."""
        path = self.cache / "decoded" / f"{source.name}-{source.fingerprint[:16]}-{self.resolution}.npy"
        if not path.exists():
            squares = [to_pixels(source.image(row), self.resolution) for row in range(len(source))]
            _save(path, ((torch.stack(squares) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
        return np.load(path, mmap_mode="r", allow_pickle=False)

    def _embed(self, method: Method, source: ImageSource, wanted: np.ndarray) -> np.ndarray:
        rows = np.flatnonzero(wanted)
        batch: Callable[[np.ndarray], torch.Tensor]
        if method.baseline.sees == "pixel":
            pictures = self._pictures(source)

            def batch(some: np.ndarray) -> torch.Tensor:
                return torch.from_numpy(pictures[some]).permute(0, 3, 1, 2).float() / 127.5 - 1
        else:
            latents = self.latents(Images(source.name, (source,)))

            def batch(some: np.ndarray) -> torch.Tensor:
                return latents[some].float()

        parts = [
            method.baseline.embed(batch(rows[i : i + BATCH])).numpy() for i in range(0, len(rows), BATCH)
        ]
        kept = np.zeros((len(source), parts[0].shape[1] if parts else 1), dtype=np.float32)
        if parts:
            kept[rows] = np.concatenate(parts)
        return kept


def grid_for(head: LCMemHead, space: str, encoder: Encoder, resolution: int) -> int:
    """Side of the latents that are kept: the head's grid, or the encoder's where the head halves what is larger."""
    side = encoder.side_at(resolution) if space in head.halvings else 0
    return side if side >= 2 * head.grid else head.grid


def _save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    with aside.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    os.replace(aside, path)
