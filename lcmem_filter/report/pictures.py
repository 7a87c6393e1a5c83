"""Thumbnails of the samples and training images that a report shows."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image

PictureOf: TypeAlias = Callable[[str], "Image.Image | None"]

SIDE = 112
QUALITY = 80


@dataclass(frozen=True, slots=True)
class Pictures:
    """Where pictures come from; both give ``None`` for an id that they have no picture of.

    Attributes:
        sample: Id of a sample to its picture.
        training: Id of a training image to its picture; without it training images are named, not shown.
    """

    sample: PictureOf
    training: PictureOf | None = None


def thumbnails(ids: Iterable[str], picture_of: PictureOf | None, side: int = SIDE) -> dict[str, str]:
    """JPEG data URIs by id, at most ``side`` px high and wide; without those there is no picture of."""
    found = {}
    for id_ in dict.fromkeys(ids):
        image = picture_of(id_) if picture_of else None
        if image is not None:
            small = image.convert("RGB")
            small.thumbnail((side, side), Image.Resampling.LANCZOS)
            small.info = {}  # Pillow would write a file's comment, which may name a person, into the JPEG
            buffer = io.BytesIO()
            small.save(buffer, "JPEG", quality=QUALITY, optimize=True)
            found[id_] = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return found
