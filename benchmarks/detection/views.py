"""Copies of pictures: as a memorising model emits them, and heavily transformed; ``changes`` has single changes.

Pictures are made once, at the benchmark's resolution, and kept as shards of plain arrays outside the repository.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from changes import crop, jpeg, noise, turn
from data import Images
from PIL import Image, ImageEnhance, ImageFilter

from lcmem_filter.images import ImageRecord, ImageSource, to_pixels
from lcmem_filter.latents import NORMALISED_STD, Encoder
from lcmem_filter.training.views import generator_for
from lcmem_filter.training.views import half_formed as outlines

VERSION = 1
SHARD = 32
Make = Callable[[Image.Image, np.random.Generator], Image.Image]


@dataclass(frozen=True)
class View:
    """A way of making copies of some rows.

    Attributes:
        name: Names the pictures with everything else that they depend on.
        rows: Of the images that are copied.
        make: A square RGB picture and a random generator to the copy.
        by: What else it depends on.
    """

    name: str
    images: Images
    rows: np.ndarray
    make: Make
    resolution: int
    seed: int = 0
    by: str = ""

    def open(self, cache: Path) -> Images:
        """The copies as images of one source, made where they are not there yet."""
        key = f"{self.name} {self.images.fingerprint} {self.rows.tolist()} {self.resolution} {self.seed} {VERSION}"
        key += f" {self.by}" if self.by else ""
        fingerprint = hashlib.sha256(key.encode()).hexdigest()
        folder = cache / "pictures" / f"{self.name}-{fingerprint[:12]}"
        shards = [self._shard(folder, first) for first in range(0, len(self.rows), SHARD)]

        def read(row: int) -> bytes:
            buffer = io.BytesIO()
            Image.fromarray(shards[row // SHARD][row % SHARD]).save(buffer, "BMP")
            return buffer.getvalue()

        identities = self.images.identities[self.rows]
        records = [
            ImageRecord(
                f"{self.name} of {self.images.records[row].id}", identity, self.images.records[row].labels
            )
            for row, identity in zip(self.rows, identities, strict=True)
        ]
        source = ImageSource(self.name, records, read, fingerprint)
        return Images(self.name, (source,), tuple(self.images.domains[self.rows].tolist()))

    def _shard(self, folder: Path, first: int) -> np.ndarray:
        path = folder / f"{first:06d}.npy"
        if not path.exists():
            made = np.stack([self._copy(row) for row in self.rows[first : first + SHARD]])
            folder.mkdir(parents=True, exist_ok=True)
            aside = path.with_suffix(f".{os.getpid()}.tmp")
            with aside.open("wb") as file:
                np.save(file, made, allow_pickle=False)
            os.replace(aside, path)
        return np.load(path, mmap_mode="r", allow_pickle=False)

    def _copy(self, row: int) -> np.ndarray:
        source, place = self.images.place(int(row))
        size = (self.resolution, self.resolution)
        picture = source.image(place).resize(size, Image.Resampling.LANCZOS)
        draw = generator_for(self.seed, self.name, source.records[place].id)
        return np.asarray(self.make(picture, draw).convert("RGB").resize(size))


def mild(encoder: Encoder) -> Make:
    """What a memorising model emits: zoom to 6 %, shift to 3 %, noise on the latent, decoded by the VAE."""

    @torch.inference_mode()
    def make(picture: Image.Image, draw: np.random.Generator) -> Image.Image:
        latents = encoder.encode(to_pixels(_zoom_and_shift(picture, draw), picture.width)[None])
        noise = torch.from_numpy(draw.standard_normal(latents.shape, dtype=np.float32))
        level = float(draw.uniform(0, 0.2)) * latents.std((2, 3), keepdim=True)  # to 0.1 where canonical
        return _decoded(encoder, latents + noise * level)

    return make


def half_formed(encoder: Encoder) -> Make:
    """What a model returns that got no further than the outlines (``training.views.half_formed``), decoded by the VAE;
    nothing of another picture is mixed in."""

    @torch.inference_mode()
    def make(picture: Image.Image, draw: np.random.Generator) -> Image.Image:
        latents = encoder.encode(to_pixels(picture, picture.width)[None])
        mean, scale = latents.mean((2, 3), keepdim=True), latents.std((2, 3), keepdim=True) / NORMALISED_STD
        return _decoded(encoder, outlines((latents - mean) / scale, draw) * scale + mean)

    return make


def _decoded(encoder: Encoder, latents: torch.Tensor) -> Image.Image:
    decoded = encoder.vae.decode(latents).sample[0]
    pixels = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.numpy())


def heavy(picture: Image.Image, draw: np.random.Generator) -> Image.Image:
    """All at once: turn to 20 degrees, crop to half the area, flips, blur, light, noise to 0.05, JPEG 10 to 95."""
    picture = turn(picture, float(draw.uniform(-20, 20)))
    picture = crop(picture, float(draw.uniform(0.5, 1)), draw, aspect=float(draw.uniform(0.75, 4 / 3)))
    if draw.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if draw.random() < 0.2:
        picture = picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    picture = ImageEnhance.Brightness(picture).enhance(float(draw.uniform(0.7, 1.3)))
    picture = ImageEnhance.Contrast(picture).enhance(float(draw.uniform(0.7, 1.3)))
    if draw.random() < 0.5:
        picture = picture.filter(
            ImageFilter.GaussianBlur(float(draw.uniform(0.2, 1.5)) * picture.width / 128)
        )
    picture = noise(picture, float(draw.uniform(0, 0.05)), draw)
    return jpeg(picture, int(draw.integers(10, 96)))


def _zoom_and_shift(picture: Image.Image, draw: np.random.Generator) -> Image.Image:
    side = picture.width
    margin = math.ceil(side * 0.03)
    wide = np.pad(np.asarray(picture), ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    zoomed = side * (1 - float(draw.uniform(0, 0.06)))
    left, top = (margin + (side - zoomed) / 2 + float(draw.uniform(-0.03, 0.03)) * side for _ in range(2))
    box = (left, top, left + zoomed, top + zoomed)
    return Image.fromarray(wide).resize((side, side), Image.Resampling.BICUBIC, box)
