"""The filters that are compared, behind one protocol, each calibrated for the same rate on the same unseen images."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

import lcmem_filter
from lcmem_filter.latents import canonical

RATE = 0.01
PIXEL_SIZE = 64


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
    """The package's filter as it ships: embedding, shortlist, verification, its own stored calibration."""

    label = "LCMem"

    def __init__(self, index: lcmem_filter.MemorizationIndex, held_out: object) -> None:
        self.calibration = lcmem_filter.calibrate(index, held_out, false_rejection_rate=RATE)
        self.filter = lcmem_filter.MemorizationFilter(index)
        self.threshold = self.filter.calibration.threshold

    def scores(self, latents: torch.Tensor, images: np.ndarray) -> np.ndarray:
        return np.array([decision.score for decision in self.filter.judge(latents)])


class LCMemEmbedding:
    """The head alone: cosine with the nearest embedding of the index, no verification."""

    label = "LCMem, embedding only"

    def __init__(self, index: lcmem_filter.MemorizationIndex) -> None:
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
        self.grid = index.head.grid
        self.rows = _unit(index.latents(torch.arange(len(index))))
        self.threshold = float("nan")

    def scores(self, latents: torch.Tensor, images: np.ndarray) -> np.ndarray:
        return np.asarray((_unit(canonical(latents, self.grid)) @ self.rows.T).amax(1).numpy())


class Pixels:
    """Decodes first: negative Euclidean distance to the nearest picture of the index, at 64 px."""

    label = "pixel nearest neighbour"

    def __init__(self, pictures: np.ndarray) -> None:
        self.rows = torch.cat([_small(pictures[i : i + 256]) for i in range(0, len(pictures), 256)])
        self.threshold = float("nan")

    def scores(self, latents: torch.Tensor, images: np.ndarray) -> np.ndarray:
        return np.asarray(-torch.cdist(_small(images), self.rows).amin(1).numpy())


def fit_threshold(candidate: Filter, latents: torch.Tensor, images: np.ndarray) -> None:
    """Set the threshold that rejects at most ``RATE`` of images like these, by the rule of the package."""
    scores = np.sort(candidate.scores(latents, images))[::-1]
    above = int(RATE * (len(scores) + 1))
    if above < 1:
        raise SystemExit(f"{len(scores)} calibration images are too few for a rate of {RATE}")
    candidate.threshold = float(scores[above - 1])


def _unit(latents: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(latents.flatten(1).float(), dim=1)


def _small(images: np.ndarray) -> torch.Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    return torch.nn.functional.interpolate(pixels, size=(PIXEL_SIZE, PIXEL_SIZE), mode="area").flatten(1)
