"""Drawn pictures, a random head and encoder that speak one space, and an index of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from lcmem_filter.head import LCMemHead
from lcmem_filter.images import ImageSource, open_images
from lcmem_filter.index import MemorizationIndex
from lcmem_filter.latents import Encoder, load_encoder

from tests.tiny import RESOLUTION, tiny_vae, write_pictures


@cache
def head() -> LCMemHead:
    torch.manual_seed(0)
    made = LCMemHead.create("micro", {"sd": 4})
    made.add_probes("sd", tiny_vae())
    return made


def saved_encoder(folder: Path) -> Encoder:
    """The tiny autoencoder, from a folder that an index can name."""
    if not (folder / "vae").exists():
        tiny_vae().save_pretrained(folder / "vae")
    return load_encoder(folder / "vae")


def pictures(folder: Path, seeds: range, identities: int = 0) -> ImageSource:
    """Pictures in ``folder``, written once: a source is recognised by its files' times too."""
    if not list(folder.rglob(f"{max(seeds, default=-1):03d}.png")):
        write_pictures(folder, seeds, identities)
    return open_images(folder)


def build(folder: Path, images: int = 20, **options: object) -> MemorizationIndex:
    """An index of ``images`` pictures of seeds 0, 1, ... in ``folder/index``."""
    source = pictures(folder / "train", range(images))
    encoder = saved_encoder(folder)
    given = {"resolution": RESOLUTION, "progress": False, **options}
    return MemorizationIndex.build(source, encoder, head(), folder / "index", **given)  # type: ignore[arg-type]
