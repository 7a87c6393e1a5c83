"""Single changes of a picture, each at four strengths.

To add one: a function here, and a line in ``CHANGES``.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont


@dataclass(frozen=True)
class Change:
    """A change at four strengths.

    Attributes:
        names: Of the strengths, as plots show them.
        strengths: What ``make`` is given.
        make: A square RGB picture, a strength and a random generator to the changed picture.
        domains: Whose pictures it is measured on; all where empty.
    """

    names: tuple[str, str, str, str]
    strengths: tuple[Any, Any, Any, Any]
    make: Callable[[Image.Image, Any, np.random.Generator], Image.Image]
    domains: tuple[str, ...] = ()


def turn(picture: Image.Image, degrees: float) -> Image.Image:
    """Turned, corners filled with the border's median colour."""
    pixels = np.asarray(picture)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    fill = tuple(int(v) for v in np.median(edge, axis=0))
    return picture.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=fill)


def crop(picture: Image.Image, area: float, draw: np.random.Generator, aspect: float = 1.0) -> Image.Image:
    """A random part of that area and aspect, stretched to the whole."""
    side = picture.width
    width, height = (min(side, side * math.sqrt(area * ratio)) for ratio in (aspect, 1 / aspect))
    left, top = float(draw.uniform(0, side - width)), float(draw.uniform(0, side - height))
    return picture.resize((side, side), Image.Resampling.BICUBIC, (left, top, left + width, top + height))


def noise(picture: Image.Image, level: float, draw: np.random.Generator) -> Image.Image:
    """Gaussian noise of standard deviation ``level``, pixels in [0, 1]."""
    pixels = np.asarray(picture, dtype=np.float32) / 255
    pixels = pixels + draw.standard_normal(pixels.shape, dtype=np.float32) * level
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def blur(picture: Image.Image, deviation: float, draw: np.random.Generator) -> Image.Image:
    """A Gaussian of so many pixels where the picture has 128."""
    return picture.filter(ImageFilter.GaussianBlur(deviation * picture.width / 128))


def gamma(picture: Image.Image, exponent: float, draw: np.random.Generator) -> Image.Image:
    """Intensities in [0, 1] to a power, the exponent or one by it."""
    power = exponent if draw.random() < 0.5 else 1 / exponent
    return Image.fromarray(((np.asarray(picture) / 255.0) ** power * 255).round().astype(np.uint8))


def window(picture: Image.Image, cut: float, draw: np.random.Generator) -> Image.Image:
    """Another window and level: a range of intensities, ``cut`` narrower at both ends on average, stretched to all."""
    low = float(draw.uniform(0.5, 1.5)) * cut
    values = (np.asarray(picture) / 255.0 - low) / (1 - 2 * cut)
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))


def warp(picture: Image.Image, shift: float, draw: np.random.Generator) -> Image.Image:
    """An elastic warp: places moved by up to a share of the side, smoothly, every quarter of it another way."""
    moves = torch.from_numpy(draw.uniform(-2 * shift, 2 * shift, (1, 2, 5, 5)).astype(np.float32))
    size = (picture.height, picture.width)
    where = F.affine_grid(torch.eye(2, 3)[None], [1, 1, *size], align_corners=False)
    where = where + F.interpolate(moves, size, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32)).permute(2, 0, 1)[None]
    moved = F.grid_sample(pixels, where, mode="bilinear", padding_mode="border", align_corners=False)
    return Image.fromarray(moved[0].permute(1, 2, 0).round().byte().numpy())


def marker(picture: Image.Image, size: float, draw: np.random.Generator) -> Image.Image:
    """A burnt-in letter, so large a share of the side, somewhere near a border."""
    picture, side = picture.copy(), picture.width
    height = max(round(size * side), 4)
    x, y = (float(draw.uniform(0, 0.15)) * side for _ in range(2))
    x = side - x - height if draw.random() < 0.5 else x
    font = ImageFont.load_default(height)
    ImageDraw.Draw(picture).text((x, y), str(draw.choice(["L", "R"])), fill="white", font=font)
    return picture


def collimation(picture: Image.Image, width: float, draw: np.random.Generator) -> Image.Image:
    """Black borders, each of at most so large a share of the side."""
    pixels = np.asarray(picture).copy()
    for _ in range(4):
        pixels[: round(float(draw.uniform(0.5, 1)) * width * len(pixels))] = 0
        pixels = np.rot90(pixels)
    return Image.fromarray(np.ascontiguousarray(pixels))


CHANGES = {
    "rotation": Change(
        ("5 degrees", "10", "20", "45"),
        (5, 10, 20, 45),
        lambda picture, degrees, draw: turn(picture, degrees * (1 if draw.random() < 0.5 else -1)),
    ),
    "blur": Change(("sigma 0.5 px", "1", "2", "4"), (0.5, 1, 2, 4), blur),
    "noise": Change(("0.02", "0.05", "0.1", "0.2"), (0.02, 0.05, 0.1, 0.2), noise),
    "brightness": Change(
        ("x 1.15", "1.3", "1.6", "2"),
        (1.15, 1.3, 1.6, 2.0),
        lambda picture, factor, _: ImageEnhance.Brightness(picture).enhance(factor),
    ),
    "contrast": Change(
        ("x 0.8", "0.6", "0.4", "0.25"),
        (0.8, 0.6, 0.4, 0.25),
        lambda picture, factor, _: ImageEnhance.Contrast(picture).enhance(factor),
    ),
    "JPEG": Change(
        ("quality 50", "25", "10", "5"), (50, 25, 10, 5), lambda picture, quality, _: jpeg(picture, quality)
    ),
    "crop": Change(("90 % of the area", "70", "50", "30"), (0.9, 0.7, 0.5, 0.3), crop),
    "flip": Change(
        ("left-right", "up-down", "both", "along the diagonal"),
        (
            Image.Transpose.FLIP_LEFT_RIGHT,
            Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.ROTATE_180,
            Image.Transpose.TRANSPOSE,
        ),
        lambda picture, flip, _: picture.transpose(flip),
    ),
    "gamma": Change(("1.2", "1.5", "2", "3"), (1.2, 1.5, 2.0, 3.0), gamma),
    "window and level": Change(
        ("90 % of the range", "80", "60", "40"), (0.05, 0.1, 0.2, 0.3), window, ("X-rays",)
    ),
    "elastic warp": Change(("1 % of the side", "2", "4", "6"), (0.01, 0.02, 0.04, 0.06), warp),
    "burnt-in marker": Change(
        ("6 % of the side", "12", "20", "30"), (0.06, 0.12, 0.2, 0.3), marker, ("X-rays",)
    ),
    "collimation": Change(
        ("borders to 4 %", "8", "12", "18"), (0.04, 0.08, 0.12, 0.18), collimation, ("X-rays",)
    ),
}
