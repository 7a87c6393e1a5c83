"""Augmented views: of pictures, before they are encoded, and of latents, while training goes."""

from __future__ import annotations

import hashlib
import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageFilter

MOST_ZOOM = 0.75
MOST_TURN = 14.0
MOST_NOISE = 0.1
MOST_SOFTNESS = 1.6
MOST_OTHER = 0.35


def generator_for(*key: object) -> np.random.Generator:
    """A random generator that depends on ``key`` alone, not on what was drawn before."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def augment_image(image: Image.Image, resolution: int, draw: np.random.Generator) -> Image.Image:
    """A light change of a picture that keeps who is in it: turn, crop, flip, light, blur, JPEG, noise.

    Args:
        image: RGB, any size.
        resolution: Side of the result, which is square.
        draw: Where the change is drawn from.
    """
    image = image.resize((resolution, resolution), Image.Resampling.LANCZOS)
    image = image.rotate(
        float(draw.uniform(-10, 10)), Image.Resampling.BICUBIC, fillcolor=_border_colour(image)
    )
    side = resolution * math.sqrt(float(draw.uniform(0.7, 1.0)))
    left, top = (float(v) for v in draw.uniform(0, resolution - side, 2))
    image = image.resize(
        (resolution, resolution), Image.Resampling.BICUBIC, (left, top, left + side, top + side)
    )
    if draw.random() < 0.3:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = ImageEnhance.Brightness(image).enhance(float(draw.uniform(0.8, 1.2)))
    image = ImageEnhance.Contrast(image).enhance(float(draw.uniform(0.8, 1.25)))
    if draw.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(float(draw.uniform(0.2, 1.0)) * resolution / 128))
    if draw.random() < 0.5:
        image = _through_jpeg(image, int(draw.integers(30, 96)))
    if draw.random() < 0.4:
        image = _with_noise(image, 0.04, draw)
    return image


def augment_mildly(image: Image.Image, resolution: int, draw: np.random.Generator) -> Image.Image:
    """A picture as a memorising model returns it: zoom to 8 %, shift to 4 %, a little soft, a little noisy.

    Done to the picture and not to its latents: an encoder's cells span 8 pixels and more, so a shift by part of a cell
    changes latents in ways that no shift of the latents does.

    Args:
        image: RGB, any size.
        resolution: Side of the result, which is square.
        draw: Where the change is drawn from.
    """
    image = image.resize((resolution, resolution), Image.Resampling.LANCZOS)
    margin = math.ceil(resolution * 0.04)
    wide = np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    side = resolution * (1 - float(draw.uniform(0, 0.08)))
    middle = margin + (resolution - side) / 2
    left, top = middle + draw.uniform(-0.04, 0.04, 2) * resolution
    box = (float(left), float(top), float(left) + side, float(top) + side)
    image = Image.fromarray(wide).resize((resolution, resolution), Image.Resampling.BICUBIC, box)
    if draw.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(float(draw.uniform(0.1, 0.8)) * resolution / 128))
    return _with_noise(image, 0.03, draw)


def augment_strongly(image: Image.Image, resolution: int, draw: np.random.Generator) -> Image.Image:
    """A heavy change of a picture, as somebody might publish a copy of it: stage 2's augmentation.

    Rotation to 20 degrees, a crop of 40 to 100 % of its area resized, mirroring, brightness and contrast from 0.6
    to 1.4, blur, JPEG of quality 10 to 95, noise of standard deviation to 0.05 of the range (LCMem, arXiv
    2512.14421, section 3).

    Args:
        image: RGB, any size.
        resolution: Side of the result, which is square.
        draw: Where the change is drawn from.
    """
    image = image.resize((resolution, resolution), Image.Resampling.LANCZOS)
    if draw.random() < 0.8:
        turn = float(draw.uniform(-20, 20))
        image = image.rotate(turn, Image.Resampling.BICUBIC, fillcolor=_border_colour(image))
    area, aspect = float(draw.uniform(0.4, 1.0)), math.exp(float(draw.uniform(-0.29, 0.29)))
    width, height = (min(math.sqrt(area * ratio), 1.0) * resolution for ratio in (aspect, 1 / aspect))
    left, top = float(draw.uniform(0, resolution - width)), float(draw.uniform(0, resolution - height))
    box = (left, top, left + width, top + height)
    image = image.resize((resolution, resolution), Image.Resampling.BICUBIC, box)
    if draw.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = ImageEnhance.Brightness(image).enhance(float(draw.uniform(0.6, 1.4)))
    image = ImageEnhance.Contrast(image).enhance(float(draw.uniform(0.6, 1.4)))
    if draw.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(float(draw.uniform(0.2, 2.0)) * resolution / 128))
    image = _with_noise(image, 0.05, draw)
    return _through_jpeg(image, int(draw.integers(10, 96)))


def augment_upside_down(image: Image.Image, resolution: int, draw: np.random.Generator) -> Image.Image:
    """``augment_strongly`` of the picture upside down. Encoders do not see it as they see the picture upright, so what
    the filter makes of it, its latents turned back, has to be learned."""
    return augment_strongly(image.transpose(Image.Transpose.FLIP_TOP_BOTTOM), resolution, draw)


def augment_as_visit(image: Image.Image, resolution: int, draw: np.random.Generator) -> Image.Image:
    """A picture as another visit might have given it: another window and level, tissue moved, collimated otherwise.

    The window keeps 70 to 100 % of the range of intensities, gamma is from 0.67 to 1.5, places move by some 1 % of the
    side (an elastic warp), the whole turns to 6 degrees and is zoomed to 90 to 100 % of the side; one in three has
    black borders of up to 12 % of the side.

    Args:
        image: RGB, any size.
        resolution: Side of the result, which is square.
        draw: Where the change is drawn from.
    """
    image = image.resize((resolution, resolution), Image.Resampling.LANCZOS)
    turn = float(draw.uniform(-6, 6))
    image = image.rotate(turn, Image.Resampling.BICUBIC, fillcolor=_border_colour(image))
    side = resolution * float(draw.uniform(0.9, 1.0))
    left, top = (float(v) for v in draw.uniform(0, resolution - side, 2))
    box = (left, top, left + side, top + side)
    image = image.resize((resolution, resolution), Image.Resampling.BICUBIC, box)
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)[None]
    pixels = warp_elastically(pixels, draw, most=0.02 * resolution)[0].permute(1, 2, 0)
    low, high = (float(v) for v in draw.uniform(0, 0.15, 2))
    values = ((pixels.numpy() - low) / (1 - low - high)).clip(0, 1) ** math.exp(
        float(draw.uniform(-0.4, 0.4))
    )
    if draw.random() < 1 / 3:
        for border in draw.uniform(0, 0.12, 4):
            values[: round(float(border) * resolution)] = 0
            values = np.rot90(values)
    return Image.fromarray(np.ascontiguousarray(values * 255).round().astype(np.uint8))


def augment_latents(latents: torch.Tensor, draw: np.random.Generator, *, clean: float = 0.0) -> torch.Tensor:
    """Zoom (to 0.75), shift, turn (to 14 degrees), flip, soften and noise (to 0.1) each latent.

    Args:
        latents: (B, C, g, g), canonical.
        draw: Where the changes are drawn from.
        clean: Share of the rows that stay as they are.

    Returns:
        (B, C, g, g), on the device of ``latents``; no longer normalised.
    """
    b = len(latents)
    untouched = torch.from_numpy(draw.random(b) < clean).to(latents.device)[:, None, None, None]
    theta = torch.from_numpy(_affine(b, draw)).to(latents)
    where = F.affine_grid(theta, list(latents.shape), align_corners=False)
    moved = F.grid_sample(latents, where, mode="bilinear", padding_mode="reflection", align_corners=False)
    soft = F.avg_pool2d(F.pad(moved, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    softness = torch.from_numpy(np.where(draw.random(b) < 0.3, draw.uniform(0, 0.8, b), 0)).to(latents)[
        :, None, None, None
    ]
    noise = torch.from_numpy(draw.standard_normal(latents.shape, dtype=np.float32)).to(latents)
    level = torch.from_numpy(draw.uniform(0, MOST_NOISE, b)).to(latents)[:, None, None, None]
    return torch.where(untouched, latents, moved.lerp(soft, softness) + noise * level)


def warp_elastically(
    latents: torch.Tensor, draw: np.random.Generator, *, most: float = 1.2, share: float = 1.0
) -> torch.Tensor:
    """Move what lies in latents smoothly, here this way and there that, as soft tissue moves from visit to visit.

    Displacements are drawn on a grid of 4 x 4 and smoothly interpolated (after Simard et al., 2003).

    Args:
        latents: (B, C, g, g), canonical.
        draw: Where the displacements are drawn from.
        most: Standard deviation of the displacements, in cells, is drawn up to this.
        share: Share of the rows that are warped.

    Returns:
        (B, C, g, g), on the device of ``latents``.
    """
    b, side = len(latents), latents.shape[-1]
    size = draw.uniform(0, most, b) * (draw.random(b) < share) * 2 / side
    moved = displacements(size, side, draw, latents)
    still = F.affine_grid(
        torch.eye(2, 3).expand(b, 2, 3).to(latents), list(latents.shape), align_corners=False
    )
    warped = F.grid_sample(
        latents,
        still + moved,
        mode="bilinear",
        padding_mode="reflection",
        align_corners=False,
    )
    return torch.where(torch.from_numpy(size > 0).to(latents.device)[:, None, None, None], warped, latents)


def displacements(size: np.ndarray, side: int, draw: np.random.Generator, like: torch.Tensor) -> torch.Tensor:
    """Smooth displacements (B, side, side, 2), as ``grid_sample`` takes them, of standard deviations ``size`` (B,); of
    the type and device of ``like``."""
    coarse = draw.standard_normal((len(size), 2, 4, 4)) * size[:, None, None, None]
    moved = F.interpolate(torch.from_numpy(coarse).to(like), (side, side), mode="bicubic", align_corners=True)
    return moved.permute(0, 2, 3, 1)


def mirror_some(latents: torch.Tensor, draw: np.random.Generator) -> torch.Tensor:
    """Latents (B, C, g, g), half of them left to right."""
    some = torch.from_numpy(draw.random(len(latents)) < 0.5).to(latents.device)
    return torch.where(some[:, None, None, None], latents.flip(-1), latents)


def turn_groups(latents: torch.Tensor, group: int, draw: np.random.Generator) -> torch.Tensor:
    """Latents (B, C, g, g) of which half of the groups of ``group`` consecutive ones are upside down."""
    turned = np.repeat(draw.random(-(-len(latents) // group)) < 0.5, group)[: len(latents)]
    return torch.where(
        torch.from_numpy(turned).to(latents.device)[:, None, None, None], latents.flip(-2), latents
    )


def half_formed(latents: torch.Tensor, draw: np.random.Generator, *, share: float = 1.0) -> torch.Tensor:
    """A copy as a model returns it that got no further than its outlines: washed out, detail and colours not its own.

    Predictions of half-denoised samples are means over what could still become of them. So each latent is blurred (a
    Gaussian to 1.6 cells), mixed with another of the batch (to 0.35), and given noise, fine (to 0.2) and coarse (to
    0.35).

    Args:
        latents: (B, C, g, g), canonical.
        draw: Where the changes are drawn from.
        share: Share of the rows that are changed.

    Returns:
        (B, C, g, g), on the device of ``latents``; no longer normalised.
    """
    b = len(latents)

    def level(most: float, least: float = 0.0) -> torch.Tensor:
        return torch.from_numpy(draw.uniform(least, most, b)).to(latents)[:, None, None, None]

    def noise(side: int) -> torch.Tensor:
        shape = (*latents.shape[:2], side, side)
        if latents.device.type == "cpu":
            return torch.from_numpy(draw.standard_normal(shape, dtype=np.float32)).to(latents)
        return noise_on_device(shape, latents, draw)

    widths = torch.from_numpy(draw.uniform(0.4, MOST_SOFTNESS, b)).to(latents)
    soft = blurred(latents, widths, math.ceil(2 * MOST_SOFTNESS))
    other = soft[torch.from_numpy(draw.permutation(b)).to(latents.device)]
    side = latents.shape[-1]
    coarse = F.interpolate(noise(max(side // 4, 2)), (side, side), mode="bicubic")
    formed = latents.lerp(soft, level(1.0, 0.4)).lerp(other, level(MOST_OTHER))
    formed = formed + noise(side) * level(0.2) + coarse * level(0.35)
    changed = torch.from_numpy(draw.random(b) < share).to(latents.device)[:, None, None, None]
    return torch.where(changed, formed, latents)


def noise_on_device(shape: tuple[int, ...], like: torch.Tensor, draw: np.random.Generator) -> torch.Tensor:
    """Standard normal numbers of ``shape``, drawn on the device of ``like`` and of its type, seeded by ``draw``."""
    there = torch.Generator(like.device).manual_seed(int(draw.integers(2**62)))
    return torch.randn(shape, generator=there, device=like.device, dtype=like.dtype)


def blurred(latents: torch.Tensor, deviations: torch.Tensor, radius: int) -> torch.Tensor:
    """Each of (B, C, g, g) by a Gaussian of its own standard deviation (B,), in cells, cut off at ``radius``."""
    b, c, side, _ = latents.shape
    reach = torch.arange(-radius, radius + 1, device=latents.device)
    kernel = torch.softmax(-0.5 * (reach / deviations[:, None]) ** 2, 1)
    rows = F.pad(latents.reshape(1, b * c, side, side), (radius,) * 4, mode="replicate")
    kernel = kernel.repeat_interleave(c, 0)[:, None]
    rows = F.conv2d(F.conv2d(rows, kernel[:, :, None], groups=b * c), kernel[..., None], groups=b * c)
    return rows.view(b, c, side, side)


def _affine(rows: int, draw: np.random.Generator) -> np.ndarray:
    """Sampling matrices (rows, 2, 3): half mild (zoom to 0.94, no turn), the others up to the full range."""
    mild = draw.random(rows) < 0.5
    zoom = draw.uniform(np.where(mild, 0.94, MOST_ZOOM), 1.0)
    turn = np.deg2rad(draw.uniform(-MOST_TURN, MOST_TURN, rows)) * ~mild
    flip = np.where((draw.random(rows) < 0.4) & ~mild, -1.0, 1.0)
    room = (1 - zoom) + 0.06
    shift = draw.uniform(-room, room, (2, rows))
    cos, sin = np.cos(turn) * zoom, np.sin(turn) * zoom
    return np.stack(
        [np.stack([cos * flip, -sin, shift[0]], -1), np.stack([sin * flip, cos, shift[1]], -1)], 1
    )


def _border_colour(image: Image.Image) -> tuple[int, ...]:
    pixels = np.asarray(image)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return tuple(int(v) for v in np.median(edge, axis=0))


def _with_noise(image: Image.Image, most: float, draw: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float32) / 255
    pixels = pixels + draw.standard_normal(pixels.shape, dtype=np.float32) * float(draw.uniform(0, most))
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))


def _through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")
