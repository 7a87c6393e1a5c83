"""Which images are copies: a judge in pixel space that knows nothing of heads, latents or filters.

As in Carlini et al. (2023), an image is a copy of its nearest training image where that one is much nearer than the
next ones: distance to the nearest, divided by the mean distance to the following 50 of other identities. Distances are
Euclidean, between pictures shrunk to 32 px of which every channel was brought to mean 0 and the whole to deviation 1,
so that a faded copy is a copy. The threshold is the largest that calls at most 1 in 200 unseen real images a copy.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter

SIZE, FOLLOWING, FALSE_COPIES = 32, 50, 0.005


@dataclass(frozen=True)
class Verdicts:
    """``ratio`` (n,): small where an image is a copy; ``nearest`` (n,): the row of its nearest training image."""

    ratio: np.ndarray
    nearest: np.ndarray
    copied: np.ndarray


class CopyJudge:
    """Fixed before any filter runs, on real images alone.

    Args:
        training: uint8 pixels (N, H, W, 3) that the pipeline was trained on.
        identities: the identity of each.
        unseen: uint8 pixels of real images of other identities.
    """

    def __init__(self, training: np.ndarray, identities: Sequence[str], unseen: np.ndarray) -> None:
        self._training = _picture_vectors(training)
        self._identities = np.array(identities)
        ratios = np.sort(self._measure(unseen)[0])
        self.threshold = float(ratios[int(FALSE_COPIES * len(ratios))])

    def __call__(self, images: np.ndarray) -> Verdicts:
        ratio, nearest = self._measure(images)
        return Verdicts(ratio, nearest, ratio < self.threshold)

    def _measure(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        distances = torch.cdist(_picture_vectors(images), self._training).numpy()
        nearest = distances.argmin(1)
        ratio = np.empty(len(images))
        for row, (column, values) in enumerate(zip(nearest, distances, strict=True)):
            others = values[self._identities != self._identities[column]]
            ratio[row] = values[column] / np.partition(others, FOLLOWING)[:FOLLOWING].mean()
        return ratio, nearest


def mild_copies(images: np.ndarray, seed: int) -> np.ndarray:
    """What a memorising model returns: the picture a little blurred, faded and shifted."""
    draw = random.Random(seed)
    return np.stack([_mild_copy(image, draw) for image in images])


def _mild_copy(image: np.ndarray, draw: random.Random) -> np.ndarray:
    picture = Image.fromarray(image).filter(ImageFilter.GaussianBlur(draw.uniform(0, 1.5)))
    for change, extent in (
        (ImageEnhance.Brightness, 0.15),
        (ImageEnhance.Contrast, 0.15),
        (ImageEnhance.Color, 0.2),
    ):
        picture = change(picture).enhance(draw.uniform(1 - extent, 1 + extent))
    (width, height), cut = picture.size, draw.uniform(0, 0.03)
    left, top = draw.uniform(0, cut) * width, draw.uniform(0, cut) * height
    right, bottom = (1 - draw.uniform(0, cut)) * width, (1 - draw.uniform(0, cut)) * height
    picture = picture.transform(
        picture.size, Image.Transform.EXTENT, (left, top, right, bottom), Image.Resampling.BICUBIC
    )
    return np.asarray(picture)


def _picture_vectors(images: np.ndarray) -> torch.Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    small = torch.nn.functional.interpolate(pixels, size=(SIZE, SIZE), mode="area")
    small = small - small.mean((2, 3), keepdim=True)
    vectors = small.flatten(1)
    return vectors / vectors.std(1, keepdim=True).clamp_min(0.25)
