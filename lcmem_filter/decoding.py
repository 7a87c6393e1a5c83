"""Encoded bytes to an RGB picture: what Pillow reads, greyscale of more than eight bits, and DICOM."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .dicom import is_dicom, read_dicom, scaled, stretched

DEPTHS = (8, 10, 12, 14, 16)
"""Bits that cameras, scanners and detectors give; files of 16 bits often hold fewer."""

SUBFILE_TYPE, REDUCED = 254, 1
"""TIFF's tag NewSubfileType, and its bit of a reduced copy of another page."""


def decode_image(encoded: bytes) -> Image.Image:
    """A file's picture as RGB, upright.

    Greyscale that Pillow keeps in more than eight bits is scaled as ``eight_bits`` says; DICOM as ``read_dicom`` says.

    Raises:
        MissingExtraError: DICOM, and pydicom is not installed.
        ValueError: several pages or frames, of which one alone would be looked at (of MPO that one alone is).
        Exception: whatever decoders raise for files that they cannot read; there is no end of it.
    """
    if is_dicom(encoded):
        return Image.fromarray(read_dicom(encoded)).convert("RGB")
    with Image.open(io.BytesIO(encoded)) as opened:
        _seek_only_picture(opened)
        upright = ImageOps.exif_transpose(opened)
        if upright.mode.startswith(("I", "F")):
            upright = Image.fromarray(eight_bits(np.asarray(upright)))
        return upright.convert("RGB")


def _seek_only_picture(opened: Any) -> None:
    """Go to the only picture of a file; neither layers, nor previews beside a camera's photo, nor reduced copies of a
    page count.

    Raises:
        ValueError: it holds several, or none but reduced ones.
    """
    pages = range(int(getattr(opened, "n_frames", 1)))
    if opened.format in ("MPO", "PSD") or len(pages) == 1:
        return
    whole = [page for page in pages if opened.format != "TIFF" or not _is_reduced(opened, page)]
    if len(whole) != 1:
        raise ValueError(f"it holds {len(whole) or len(pages)} pictures; export them one by one")
    opened.seek(whole[0])


def _is_reduced(opened: Any, page: int) -> bool:
    opened.seek(page)
    return bool(int(opened.tag_v2.get(SUBFILE_TYPE, 0)) & REDUCED)


def eight_bits(values: np.ndarray) -> np.ndarray:
    """Greyscale values (H, W) of any number type as uint8, black at 0.

    White is the largest value of the fewest bits, of 8, 10, 12, 14 and 16, that hold every value of the picture, and
    1 for fractions up to 1. Values that no such range holds (negative, or beyond 16 bits) are stretched from their
    0.5th to their 99.5th percentile. A latent's normalisation cancels most of what is left of the choice.

    Raises:
        ValueError: a value is not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 2 ** DEPTHS[-1] - 1:
        return stretched(values)
    if values.dtype.kind == "f" and high <= 1:
        return scaled(values, 0, 1)
    return scaled(values, 0, next(2**depth - 1 for depth in DEPTHS if high <= 2**depth - 1))
