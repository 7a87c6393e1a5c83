"""Drawn pictures, a random head and encoder of one latent space, and sets with copies planted in them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from PIL import Image

from lcmem_filter.calibration import calibrate
from lcmem_filter.head import LCMemHead
from lcmem_filter.images import ImageSource, open_images
from lcmem_filter.index import MemorizationIndex
from lcmem_filter.latents import Encoder, load_encoder

from ..tiny import RESOLUTION, picture, tiny_vae, write_pictures

TRAINING, HELD_OUT, FRESH, UNSEEN = range(40), range(1000, 1119), range(2000, 2030), range(3000, 3040)
"""Seeds of the pictures."""


@cache
def head() -> LCMemHead:
    """Random, and knows the latent space of the tiny autoencoder."""
    torch.manual_seed(0)
    made = LCMemHead.create("micro", {"sd": 4})
    made.add_probes("sd", tiny_vae())
    return made


def material(folder: Path) -> None:
    """Training, held-out and unseen pictures, an encoder, a head, and a calibrated index of the first."""
    for name, seeds in (("train", TRAINING), ("held-out", HELD_OUT), ("unseen", UNSEEN)):
        write_pictures(folder / name, seeds)
    tiny_vae().save_pretrained(folder / "vae")
    head().save_pretrained(folder / "head")
    index = MemorizationIndex.build(
        open_images(folder / "train"),
        encoder(folder),
        head(),
        folder / "index",
        resolution=RESOLUTION,
        progress=False,
    )
    found = calibrate(
        index,
        open_images(folder / "held-out"),
        false_rejection_rate=0.01,
        encoder=encoder(folder),
        progress=False,
    )
    index.set_calibration(replace(found, own_found=None))  # by a head that nobody trained it says nothing


def encoder(folder: Path) -> Encoder:
    """The tiny autoencoder that lies there."""
    return load_encoder(folder / "vae")


def jpeg(image: Image.Image, quality: int = 60) -> Image.Image:
    """Compressed, and read again."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def cropped(image: Image.Image) -> Image.Image:
    """The middle, enlarged."""
    width, height = image.size
    return image.resize(
        (width, height), Image.Resampling.BICUBIC, (0.02 * width, 0.03 * height, 0.97 * width, height)
    )


def rotated(image: Image.Image) -> Image.Image:
    """Turned a little, corners cut off."""
    width, height = image.size
    turned = image.resize((4 * width, 4 * height)).rotate(3, Image.Resampling.BICUBIC)
    box = (0.12 * width, 0.12 * height, 3.88 * width, 3.88 * height)
    return turned.resize((width, height), Image.Resampling.LANCZOS, box)


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "exact": lambda image: image,
    "cropped": cropped,
    "rotated": rotated,
    "jpeg": jpeg,
}


def planted(folder: Path, copies: int = 3) -> dict[str, str]:
    """Write fresh pictures, ``copies`` copies of each kind with labels in a table; returns the copied ids by id."""
    folder.mkdir(parents=True)
    rows, sources = ["file_name,labels"], {}
    for seed in FRESH:
        picture(seed).save(folder / f"fresh{seed}.png")
        rows.append(f"fresh{seed}.png,fresh")
    seeds = iter(TRAINING)
    for kind, changed in COPIES.items():
        for _ in range(copies):
            seed = next(seeds)
            name = f"{kind}{seed:03d}.png"
            changed(picture(seed)).save(folder / name)
            rows.append(f"{name},copied|{kind}")
            sources[name] = f"{seed:03d}.png"
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return sources


def opened(folder: Path) -> ImageSource:
    """The images there."""
    return open_images(folder)
