"""The filters that are compared, behind one protocol, each calibrated for the same rate on the same unseen images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

import lcmem_filter
from lcmem_filter.baselines import make_baseline

RATE = 0.01
PIXEL_SIZE = 64
BATCH = 64


class Filter(Protocol):
    """Judges what a pipeline has drawn.

    ``latents`` (n, C, h, w) are a batch in VAE space, ``images`` uint8 (n, H, W, 3) what they decode to.
    """

    label: str
    threshold: float

    def scores(self, latents: torch.Tensor, images: np.ndarray) -> np.ndarray:
        """How much each sample resembles some row of the index, (n,); rejected where above ``threshold``."""
        ...


class Nothing:
    """Lets everything pass."""

    label = "none"
    threshold = float("inf")

    def scores(self, latents: torch.Tensor, images: np.ndarray) -> np.ndarray:
        return np.zeros(len(latents))


class LCMem:
    """The package's filter as it ships: embedding, shortlist, verification, its own stored calibration.

    ``head`` is what its rows are called, and ``held_out`` the images that calibrate it.
    """

    def __init__(self, head: str, index: lcmem_filter.MemorizationIndex, held_out: object) -> None:
        self.label = head
        self.calibration = lcmem_filter.calibrate(index, held_out, false_rejection_rate=RATE)
        self.filter = lcmem_filter.MemorizationFilter(index)
        self.threshold = self.filter.calibration.threshold

    def scores(self, latents: torch.Tensor, images: np.ndarray) -> np.ndarray:
        return np.array([decision.score for decision in self.filter.judge(latents)])


class LCMemEmbedding:
    """The head alone: cosine with the nearest embedding of the index, no verification."""

    def __init__(self, head: str, index: lcmem_filter.MemorizationIndex) -> None:
        self.label = f"{head}, embedding only"
        self.index = index
        self.threshold = float("nan")

    @torch.no_grad()
    def scores(self, latents: torch.Tensor, images: np.ndarray) -> np.ndarray:
        embeddings = self.index.head.embed(latents, self.index.space)
        return np.asarray(self.index.search(embeddings, 1).similarity[:, 0].cpu().numpy())


class RawLatents:
    """No training: cosine of normalised latents with the nearest of the index."""

    label = "raw normalised latents"

    def __init__(self, index: lcmem_filter.MemorizationIndex) -> None:
        self.index = index
        self.rows = _unit(index.latents(torch.arange(len(index))))
        self.threshold = float("nan")

    def scores(self, latents: torch.Tensor, images: np.ndarray) -> np.ndarray:
        canonical = self.index.head.canonical(latents, self.index.space)
        return np.asarray((_unit(canonical) @ self.rows.T).amax(1).numpy())


class Pixels:
    """Decodes first: negative Euclidean distance to the nearest picture of the index, at 64 px."""

    label = "pixel nearest neighbour"

    def __init__(self, pictures: np.ndarray) -> None:
        self.rows = torch.cat([_small(pictures[i : i + 256]) for i in range(0, len(pictures), 256)])
        self.threshold = float("nan")

    def scores(self, latents: torch.Tensor, images: np.ndarray) -> np.ndarray:
        return np.asarray(-torch.cdist(_small(images), self.rows).amin(1).numpy())


class EfficientNetLite0:
    """Decodes first: cosine of EfficientNet-Lite0's features with the nearest picture of the index.

    Args:
        pictures: uint8 (N, H, W, 3), the index's.
        keys: What each of them is called, so that features kept for others are not taken for theirs.
        kept: The file that the index's features are kept in.

    Raises:
        lcmem_filter.errors.MissingExtraError: the packages of the network are not installed.
    """

    label = "EfficientNet-Lite0 nearest neighbour"

    def __init__(self, pictures: np.ndarray, keys: Sequence[str], kept: Path) -> None:
        self.baseline = make_baseline("efficientnet_lite0")
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"keys": list(keys), "features": self._embed(pictures)}, kept)
        stored: dict[str, Any] = torch.load(kept, weights_only=True)
        if stored["keys"] != list(keys):
            raise SystemExit(f"{kept} holds the features of other images; remove it, or give another --cache")
        self.rows: torch.Tensor = stored["features"]
        self.threshold = float("nan")

    def scores(self, latents: torch.Tensor, images: np.ndarray) -> np.ndarray:
        return np.asarray((self._embed(images) @ self.rows.T).amax(1).numpy())

    def _embed(self, images: np.ndarray) -> torch.Tensor:
        batches = [_channels_first(images[i : i + BATCH]) / 127.5 - 1 for i in range(0, len(images), BATCH)]
        return torch.cat([self.baseline.embed(batch) for batch in batches])


def fit_threshold(candidate: Filter, latents: torch.Tensor, images: np.ndarray) -> None:
    """Set the threshold that rejects at most ``RATE`` of images like these, by the rule of the package."""
    candidate.threshold = threshold_of(candidate.scores(latents, images))


def threshold_of(scores: np.ndarray) -> float:
    """The threshold that at most ``RATE`` of what is exchangeable with these ``scores`` (n,) exceeds."""
    above = int(RATE * (len(scores) + 1))
    if above < 1:
        raise SystemExit(f"{len(scores)} scores to calibrate with are too few for a rate of {RATE}")
    return float(np.sort(scores)[::-1][above - 1])


def _unit(latents: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(latents.flatten(1).float(), dim=1)


def _small(images: np.ndarray) -> torch.Tensor:
    pixels = _channels_first(images) / 255
    return torch.nn.functional.interpolate(pixels, size=(PIXEL_SIZE, PIXEL_SIZE), mode="area").flatten(1)


def _channels_first(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
