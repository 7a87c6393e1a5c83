"""Augmented views of many pictures at once, on the device that they lie on: what ``views`` does to one with Pillow."""

from __future__ import annotations

import functools
import io
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .views import blurred, displacements, noise_on_device

FROM_RGB = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
"""To luminance and two colour differences (JFIF; ITU-T T.871, clause 7)."""

BLUR_REACH = 5
"""Pixels, at 128 a side, to which the widest blur reaches."""


@dataclass(frozen=True, slots=True)
class Change:
    """How far a picture is changed; each value is drawn uniformly, from the pair of least and most, or up to the most.

    Attributes:
        turn: Degrees to either side.
        turned: Share that is turned.
        area: Share of the picture's area that a crop keeps.
        aspect: Logarithm of the crop's aspect ratio, to either side.
        shift: Share of the side by which a crop may lie beyond the middle that it had, where it need not stay inside.
        mirrored: Share that is mirrored.
        brightness, contrast: Factors.
        blur: Standard deviation in pixels at 128 a side.
        soft: Share that is blurred.
        noise: Standard deviation, of a range of 1.
        quality: Of JPEG.
        compressed: Share that is.
        warp: Standard deviation of an elastic warp, of the side.
        window: Share of the range of intensities that is cut off at either end.
        gamma: Its logarithm, to either side.
        borders: Share of the side that black borders cover, of one picture in three.
    """

    turn: float = 0.0
    turned: float = 1.0
    area: tuple[float, float] = (1.0, 1.0)
    aspect: float = 0.0
    shift: float = 0.0
    mirrored: float = 0.0
    brightness: tuple[float, float] = (1.0, 1.0)
    contrast: tuple[float, float] = (1.0, 1.0)
    blur: tuple[float, float] = (0.0, 0.0)
    soft: float = 0.0
    noise: float = 0.0
    quality: tuple[int, int] = (95, 95)
    compressed: float = 0.0
    warp: float = 0.0
    window: float = 0.0
    gamma: float = 0.0
    borders: float = 0.0


STRONG = Change(
    turn=20,
    turned=0.8,
    area=(0.4, 1.0),
    aspect=0.29,
    mirrored=0.5,
    brightness=(0.6, 1.4),
    contrast=(0.6, 1.4),
    blur=(0.2, 2.0),
    soft=0.5,
    noise=0.05,
    quality=(10, 95),
    compressed=1.0,
)
CHANGES: dict[str, Change] = {
    "light": Change(
        turn=10,
        area=(0.7, 1.0),
        mirrored=0.3,
        brightness=(0.8, 1.2),
        contrast=(0.8, 1.25),
        blur=(0.2, 1.0),
        soft=0.4,
        noise=0.02,
        quality=(30, 95),
        compressed=0.5,
    ),
    "visit": Change(turn=6, area=(0.81, 1.0), warp=0.02, window=0.15, gamma=0.4, borders=0.12),
    "mild": Change(area=(0.85, 1.0), shift=0.04, blur=(0.1, 0.8), soft=0.5, noise=0.03),
    "strong": STRONG,
    "upside-down": STRONG,
}
"""Of each kind of ``cache.AUGMENTATIONS``, ranges after those of ``views``; light noise is given to all pictures, from
half the range, and JPEG comes last. ``"upside-down"`` turns the picture first."""


def change(pixels: torch.Tensor, kind: str, draw: np.random.Generator) -> torch.Tensor:
    """Augmented views of one kind.

    Args:
        pixels: (B, 3, R, R) in [0, 1], R a multiple of 16.
        kind: One of ``CHANGES``.
        draw: Where the changes are drawn from.

    Returns:
        (B, 3, R, R) in [0, 1], in steps of 1/255, on the device of ``pixels``.
    """
    how, b, side = CHANGES[kind], len(pixels), pixels.shape[-1]

    def drawn(least: float, most: float, share: float = 1.0, otherwise: float = 0.0) -> torch.Tensor:
        values = np.where(draw.random(b) < share, draw.uniform(least, most, b), otherwise)
        return torch.from_numpy(values).to(pixels)[:, None, None, None]

    if kind == "upside-down":
        pixels = pixels.flip(-2)
    pixels = _placed(pixels, how, draw)
    if how.window:
        low, high = drawn(0, how.window), drawn(0, how.window)
        pixels = ((pixels - low) / (1 - low - high)).clamp(0, 1) ** drawn(-how.gamma, how.gamma).exp()
    if how.borders:
        pixels = _bordered(pixels, how.borders, draw)
    pixels = (pixels * drawn(*how.brightness)).clamp(0, 1)
    luminance = torch.tensor(FROM_RGB[0]).to(pixels)[:, None, None]
    grey = (pixels * luminance).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    pixels = (grey + (pixels - grey) * drawn(*how.contrast)).clamp(0, 1)
    if how.soft:
        widths = drawn(*how.blur, how.soft, 0.01).flatten() * side / 128
        pixels = blurred(pixels, widths, math.ceil(BLUR_REACH * side / 128))
    if how.noise:
        spread = noise_on_device(tuple(pixels.shape), pixels, draw)
        pixels = (pixels + spread * drawn(0, how.noise)).clamp(0, 1)
    if how.compressed:
        chosen = torch.from_numpy(draw.random(b) < how.compressed).to(pixels.device)[:, None, None, None]
        quality = torch.from_numpy(draw.integers(how.quality[0], how.quality[1] + 1, b)).to(pixels.device)
        pixels = torch.where(chosen, through_jpeg(pixels, quality), pixels)
    return (pixels * 255).round() / 255


def through_jpeg(pixels: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
    """What baseline JPEG leaves of pictures: colours at half the resolution, cosines of 8x8 blocks rounded.

    Args:
        pixels: (B, 3, R, R) in [0, 1], R a multiple of 16.
        quality: (B,) integers, 1 to 100, as Pillow takes them.

    Returns:
        (B, 3, R, R) in [0, 1].
    """
    codec = _codec(pixels.device)
    basis, steps = codec.cosines, codec.steps[quality.long()]
    planes = torch.einsum("ij,bjhw->bihw", codec.from_rgb, (pixels * 255).round())

    def rounded(plane: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        b, c, h, w = plane.shape
        blocks = plane.view(b, c, h // 8, 8, w // 8, 8)
        frequencies = torch.einsum("ij,bcyjxk,lk->bcyxil", basis, blocks, basis)
        kept = (frequencies / steps).round() * steps
        return torch.einsum("ij,bcyxil,lk->bcyjxk", basis, kept, basis).reshape(b, c, h, w)

    light = rounded(planes[:, :1] - 128, steps[:, 0, None, None, None]) + 128
    colours = rounded(F.avg_pool2d(planes[:, 1:], 2), steps[:, 1, None, None, None])
    colours = F.interpolate(colours, scale_factor=2, mode="bilinear", align_corners=False)
    back = torch.einsum("ij,bjhw->bihw", codec.to_rgb, torch.cat([light, colours], 1))
    return back.clamp(0, 255) / 255


def _placed(pixels: torch.Tensor, how: Change, draw: np.random.Generator) -> torch.Tensor:
    """Turned, cropped, mirrored and warped; what lies beyond is of the border's colour, or reflected where no more than
    a shift leads there."""
    b = len(pixels)
    turn = np.deg2rad(draw.uniform(-how.turn, how.turn, b)) * (draw.random(b) < how.turned)
    area, ratio = draw.uniform(*how.area, b), np.exp(draw.uniform(-how.aspect, how.aspect, b))
    width, height = (np.minimum(np.sqrt(area * of), 1.0) for of in (ratio, 1 / ratio))
    if how.shift:
        x, y = draw.uniform(-2 * how.shift, 2 * how.shift, (2, b))  # the picture is 2 wide
    else:
        x, y = draw.uniform(-1, 1, (2, b)) * (1 - np.stack([width, height]))
    mirror = np.where(draw.random(b) < how.mirrored, -1.0, 1.0)
    cos, sin = np.cos(turn), np.sin(turn)
    rows = [
        np.stack([cos * width * mirror, -sin * height, cos * x - sin * y], -1),
        np.stack([sin * width * mirror, cos * height, sin * x + cos * y], -1),
    ]
    where = F.affine_grid(
        torch.from_numpy(np.stack(rows, 1)).to(pixels), list(pixels.shape), align_corners=False
    )
    if how.warp:
        size = draw.uniform(0, how.warp, b) * 2
        where = where + displacements(size, pixels.shape[-1], draw, pixels)
    edge = torch.cat([pixels[:, :, [0, -1]].flatten(2), pixels[..., [0, -1]].flatten(2)], 2)
    border = edge.median(2).values[:, :, None, None]
    padding: Literal["reflection", "zeros"] = "reflection" if how.shift or how.warp else "zeros"
    if padding == "reflection":
        border = torch.zeros_like(border)
    moved = F.grid_sample(pixels - border, where, mode="bicubic", padding_mode=padding, align_corners=False)
    return (moved + border).clamp(0, 1)


def _bordered(pixels: torch.Tensor, most: float, draw: np.random.Generator) -> torch.Tensor:
    """One in three with black borders, each of a width of its own."""
    b, side = len(pixels), pixels.shape[-1]
    widths = (draw.uniform(0, most, (b, 4)) * side).round() * (draw.random(b) < 1 / 3)[:, None]
    left, right, top, bottom = torch.from_numpy(widths).to(pixels).T[..., None]
    place = torch.arange(side, device=pixels.device)
    across = (place >= left) & (place < side - right)
    down = (place >= top) & (place < side - bottom)
    return pixels * (down[:, None, :, None] & across[:, None, None, :])


@dataclass(frozen=True, slots=True)
class _Codec:
    """What JPEG is made of, on one device.

    Attributes:
        from_rgb, to_rgb: (3, 3), to luminance and two colour differences and back.
        cosines: (8, 8), the orthonormal cosine transform of 8 values.
        steps: (101, 2, 8, 8), of every quality, how luminance and colours are quantised.
    """

    from_rgb: torch.Tensor
    to_rgb: torch.Tensor
    cosines: torch.Tensor
    steps: torch.Tensor


@functools.cache
@torch.inference_mode(False)
def _codec(device: torch.device) -> _Codec:
    k, n = torch.arange(8.0)[:, None], torch.arange(8.0)[None]
    cosines = torch.cos((2 * n + 1) * k * math.pi / 16) / 2
    cosines[0] /= math.sqrt(2)
    steps = torch.ones(101, 2, 8, 8)
    for quality in range(1, 101):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, "JPEG", quality=quality)
        tables: Any = Image.open(buffer)
        steps[quality] = torch.tensor([tables.quantization[i] for i in (0, 1)]).view(2, 8, 8)
    to_rgb = torch.linalg.inv(torch.tensor(FROM_RGB, dtype=torch.float64)).float()
    return _Codec(*(one.to(device) for one in (torch.tensor(FROM_RGB), to_rgb, cosines, steps)))
