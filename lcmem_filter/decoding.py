"""Encoded bytes to an RGB picture: what Pillow reads, greyscale of more than eight bits, and DICOM."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .dicom import is_dicom, lacks_preamble, read_dicom, scaled, stretched

DEPTHS = (8, 10, 12, 14, 16)
"""Bits that cameras, scanners and detectors give; files of 16 bits often hold fewer."""
FRACTIONS = (-0.1, 0.5, 1.1)
"""What fractions from 0 to 1 reach down to at most, and up to at least and at most."""
FEW_LEVELS = 32
"""Fewer levels of grey than this may be left of a picture that has more."""

SUBFILE_TYPE, REDUCED = 254, 1
"""TIFF's tag NewSubfileType, and its bit of a reduced copy of another page."""


def decode_image(encoded: bytes) -> Image.Image:
    """A file's picture as RGB, upright.

    Greyscale that Pillow keeps in more than eight bits is scaled as ``eight_bits`` says; DICOM as ``read_dicom`` says.

    Raises:
        MissingExtraError: DICOM, and pydicom is not installed.
        ValueError: nothing, or nothing that Pillow knows; DICOM without its preamble; several pages or frames, of which
            one alone would be looked at (of MPO that one alone is); a picture that shows in its transparency alone; or
            EPS, which is a program.
        Exception: whatever decoders raise for files that they cannot read; there is no end of it.
    """
    if is_dicom(encoded):
        return Image.fromarray(read_dicom(encoded)).convert("RGB")
    if lacks_preamble(encoded):
        raise ValueError("it is DICOM without the preamble that files begin with; write it anew, with one")
    with _opened(encoded) as opened:
        if opened.format == "EPS":  # Pillow would have Ghostscript run it
            raise ValueError("it is EPS, a program that draws a picture; export it as PNG")
        _seek_only_picture(opened)
        upright = ImageOps.exif_transpose(opened)
        if upright.mode.startswith(("I", "F")):
            upright = Image.fromarray(eight_bits(np.asarray(upright)))
        elif upright.has_transparency_data:
            upright = upright.convert("RGBA")
            _check_shows_without_alpha(upright)
        return upright.convert("RGB")


def _opened(encoded: bytes) -> Image.Image:
    if not encoded:
        raise ValueError("it is empty")
    try:
        return Image.open(io.BytesIO(encoded))
    except UnidentifiedImageError as error:  # it names the bytes by their address
        raise ValueError(
            "it is no picture that Pillow knows: damaged, or of a format such as HEIC"
        ) from error


def _check_shows_without_alpha(picture: Image.Image) -> None:
    """
    Raises:
        ValueError: all that can be seen of a picture (RGBA) has one colour, and its transparency alone varies, which is
            dropped.
    """
    alpha = picture.getchannel("A")
    least, most = alpha.getextrema()
    seen = np.reshape(picture.convert("RGB").histogram(alpha), (3, 256))  # of what is not wholly transparent
    if least != most and (np.count_nonzero(seen, axis=1) == 1).all():
        raise ValueError(
            "its content is in its transparency; flatten it onto the colour that it is shown on, and export it anew"
        )


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

    White is the largest value of the fewest bits, of 8, 10, 12, 14 and 16, that hold every value of the picture. It is
    1 for fractions that reach from about 0 to 0.5 or more and not far beyond 1, as resampling leaves them, which are
    clipped. Values that no such range holds (negative, beyond 16 bits, or other fractions) are stretched from their
    0.5th to their 99.5th percentile. So are those of which a range leaves hardly any levels, as beside a hot pixel,
    where that leaves more. A latent's normalisation cancels most of what is left of the choice.

    Raises:
        ValueError: a value is not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    white = _white(values)
    if white is None:
        return stretched(values)
    shown = scaled(values, 0, white)
    if _levels(shown) < FEW_LEVELS and _levels(others := stretched(values)) > _levels(shown):
        return others
    return shown


def _white(values: np.ndarray) -> int | None:
    """The value that is white, of values that fill a range which is known."""
    low, high = float(values.min()), float(values.max())
    whole = values.dtype.kind != "f" or bool((values % 1 == 0).all())
    if not whole:
        return 1 if FRACTIONS[0] <= low and FRACTIONS[1] <= high <= FRACTIONS[2] else None
    if values.dtype.kind == "f" and low >= 0 and high == 1:
        return 1
    depths = (2**depth - 1 for depth in DEPTHS if high <= 2**depth - 1)
    return next(depths, None) if low >= 0 else None


def _levels(shown: np.ndarray) -> int:
    return int(np.count_nonzero(np.bincount(shown.ravel(), minlength=256)))
