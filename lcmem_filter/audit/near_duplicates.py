"""Near-duplicates of a picture, such as a model that memorised it may give back: mild transformations in pixels, or
what the model itself makes of it."""

from __future__ import annotations

import inspect
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from ..images import ImageRecord, ImageSource

DESCRIPTION = (
    "zoomed in by up to 6%, shifted by up to 3%, turned by up to 4 degrees, brightness and contrast changed by up to "
    "10%, half of them mirrored, a third slightly blurred, all saved as JPEG"
)
STRENGTH, STEPS = 0.3, 30
GENERATED = (
    f"drawn from it by the pipeline without a prompt (image to image, strength {STRENGTH:g}, {STEPS} steps)"
)
TURN, SHIFT = 4.0, 0.03
"""Degrees, and share of a side, at most."""


def near_duplicate(image: Image.Image, seed: int) -> Image.Image:
    """A near-duplicate of ``image`` as ``DESCRIPTION`` has it, the same for the same seed."""
    draw = np.random.default_rng(seed)
    moved = _moved(image, draw)
    if draw.random() < 0.5:
        moved = ImageOps.mirror(moved)
    if draw.random() < 1 / 3:
        moved = moved.filter(ImageFilter.GaussianBlur(0.004 * min(image.size)))
    moved = ImageEnhance.Brightness(moved).enhance(draw.uniform(0.9, 1.1))
    moved = ImageEnhance.Contrast(moved).enhance(draw.uniform(0.9, 1.1))
    buffer = io.BytesIO()
    moved.save(buffer, "JPEG", quality=int(draw.integers(60, 96)))
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def _moved(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Zoomed, shifted and turned about its centre; what comes in at the edges is mirrored, since a memorised picture
    has no black corners."""
    width, height = image.size
    zoom, turn = draw.uniform(0.94, 1.0), math.radians(draw.uniform(-TURN, TURN))
    dx, dy = draw.uniform(-SHIFT, SHIFT, 2) * (width, height)
    cos, sin = math.cos(turn) * zoom, math.sin(turn) * zoom
    # as much beyond each edge as a turn brings in, and the filter's two pixels
    left, top = (
        math.ceil(SHIFT * along + math.sin(math.radians(TURN)) * across / 2) + 2
        for along, across in ((width, height), (height, width))
    )
    pixels = np.asarray(image.convert("RGB"))
    padded = Image.fromarray(np.pad(pixels, ((top, top), (left, left), (0, 0)), "symmetric"))
    # each output pixel's place in the padded picture
    x, y = width / 2, height / 2
    matrix = (cos, -sin, x + dx + left - cos * x + sin * y, sin, cos, y + dy + top - sin * x - cos * y)
    return padded.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)


def near_duplicates_of(source: ImageSource, rows: Sequence[int], seeds: int) -> ImageSource:
    """``seeds`` near-duplicates of each of ``rows``: all of the first row, then all of the second, and so on."""
    return _made_of(source, rows, seeds, near_duplicate)


def generated_near_duplicates_of(
    source: ImageSource, rows: Sequence[int], seeds: int, image_to_image: Any, resolution: int
) -> ImageSource:
    """The same, each drawn by a model from the picture with a seed of its own, as ``GENERATED`` has it.

    Args:
        image_to_image: A diffusers pipeline that takes ``image`` and ``strength``, without a filter.
        resolution: Side in pixels that it gets pictures at, squashed.
    """
    named = inspect.signature(type(image_to_image).__call__).parameters
    prompt = {"prompt": ""} if "prompt" in named else {}

    def drawn(image: Image.Image, seed: int) -> Image.Image:
        try:
            found = image_to_image(
                **prompt,
                image=image.resize((resolution, resolution), Image.Resampling.LANCZOS),
                strength=STRENGTH,
                num_inference_steps=STEPS,
                generator=torch.Generator().manual_seed(seed),
            )
        except Exception as error:  # whatever it is, the images that were examined before must not be lost
            raise ValueError(f"the pipeline failed: {type(error).__name__}: {error}") from error
        return found.images[0]

    return _made_of(source, rows, seeds, drawn)


def _made_of(
    source: ImageSource, rows: Sequence[int], seeds: int, make: Callable[[Image.Image, int], Image.Image]
) -> ImageSource:
    def read(position: int) -> bytes:
        row, seed = rows[position // seeds], position % seeds
        buffer = io.BytesIO()
        make(source.image(row), 1000 * row + seed).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    records = [ImageRecord(f"{source.records[row].id} ({seed})") for row in rows for seed in range(seeds)]
    return ImageSource(f"near-duplicates of {source.name}", records, read, source.fingerprint)
