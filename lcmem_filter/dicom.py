"""DICOM files to pictures as a viewer shows them (extra ``dicom``)."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import MissingExtraError

if TYPE_CHECKING:
    from pydicom import Dataset

DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})
PREAMBLE = 132
"""Bytes after which a DICOM file's data begin; the last four are ``DICM``."""
BARE = re.compile(
    rb"\x02\0[\0-\x02]\0[A-Z]{2}"
    rb"|\x08\0\0\0(?:UL\x04\0|\x04\0\0\0).{4}\x08\0"
    rb"|\x08\0[\x01\x05\x08\x12-\x18]\0(?:[A-Z]{2}|.\0\0\0)",
    re.DOTALL,
)
"""How DICOM begins that lacks its preamble: with an element of group 2, or one of the first of group 8."""
STRETCH = (0.5, 99.5)
"""Percentiles that become black and white where nothing says how values are to be shown."""


def is_dicom(first_bytes: bytes) -> bool:
    """Whether a file that begins with at least ``PREAMBLE`` bytes like these is DICOM."""
    return first_bytes[PREAMBLE - 4 : PREAMBLE] == b"DICM"


def lacks_preamble(first_bytes: bytes) -> bool:
    """Whether a file that begins so is DICOM without the preamble that others are known by, as older archives and
    scanners write it."""
    return BARE.match(first_bytes) is not None


def attribute_of(file: Path, keyword: str) -> str | None:
    """What a file's header says of an attribute, such as ``PatientID``; ``None`` where it says nothing, and where the
    file is no DICOM or a broken one.

    Raises:
        MissingExtraError: pydicom is not installed.
    """
    try:
        with file.open("rb") as opened:
            begins = opened.read(PREAMBLE)
    except OSError:
        return None
    if not is_dicom(begins):
        return None
    try:
        from pydicom import dcmread
    except ImportError as error:
        raise _missing(error) from error
    try:
        header = dcmread(file, stop_before_pixels=True, specific_tags=[keyword])
        return str(header.get(keyword) or "").strip() or None
    except Exception:  # of a broken file, as read_dicom; that it cannot be read is told of later
        return None


def read_dicom(encoded: bytes) -> np.ndarray:
    """A file's one picture as uint8, greyscale (H, W) or RGB (H, W, 3).

    Greyscale goes through the file's modality LUT or rescale slope and intercept, then its VOI LUT or first window;
    a file without either, or whose window shows nothing, is stretched from its 0.5th to its 99.5th percentile.
    MONOCHROME1 is inverted, so that bright is bright; YBR and palettes become RGB.

    Raises:
        MissingExtraError: pydicom is not installed.
        ValueError: several frames: taking one of them would leave copies of the others unseen.
        Exception: whatever pydicom raises for files that it cannot read.
    """
    try:
        from pydicom import dcmread
        from pydicom.pixels import pixel_array
    except ImportError as error:
        raise _missing(error) from error
    dataset = dcmread(io.BytesIO(encoded))
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ValueError(f"it holds {frames} frames; export each frame as a picture of its own")
    pixels = pixel_array(dataset, index=0)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return _palette(pixels, dataset)
    if pixels.ndim == 3:
        return scaled(pixels, 0, 2 ** int(dataset.BitsStored) - 1)
    grey = _greyscale(pixels, dataset)
    return 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def _missing(error: ImportError) -> MissingExtraError:
    return MissingExtraError(
        f"DICOM needs pydicom ({error}); install it with: pip install 'lcmem_filter[dicom]'"
    )


def scaled(values: np.ndarray, black: float, white: float) -> np.ndarray:
    """Values of any shape as uint8, linear from ``black`` (0) to ``white`` (255), clipped; 0 where these are equal."""
    if black == white:
        return np.zeros(values.shape, np.uint8)
    return (
        ((values.astype(np.float64) - black) * (255 / (white - black))).round().clip(0, 255).astype(np.uint8)
    )


def stretched(values: np.ndarray) -> np.ndarray:
    """Values of any shape as uint8, linear between their percentiles ``STRETCH``, or between least and largest where
    those are equal."""
    black, white = np.percentile(values, STRETCH)
    if black == white:
        black, white = values.min(), values.max()
    return scaled(values, float(black), float(white))


def _greyscale(pixels: np.ndarray, dataset: Dataset) -> np.ndarray:
    from pydicom.pixels import apply_modality_lut

    values = apply_modality_lut(pixels, dataset)
    shown = _windowed(values, dataset)
    # a window beside all values, or a slope of 0, would make one grey of everything
    for others in (values, pixels):
        if shown.min() == shown.max():
            shown = stretched(others)
    return shown


def _windowed(values: np.ndarray, dataset: Dataset) -> np.ndarray:
    from pydicom.pixels import apply_voi_lut

    if dataset.get("VOILUTSequence"):
        shown = apply_voi_lut(values.round().astype(np.int64), dataset)
        return scaled(shown, 0, 2 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1)
    width = dataset.get("WindowWidth")
    width = width[0] if isinstance(width, Sequence) else width
    if dataset.get("WindowCenter") is None or width is None or not float(width) > 0:
        return stretched(values)
    with np.errstate(over="ignore"):
        # what lies far below and far above the window becomes black and white
        black, white = apply_voi_lut(np.array([-1e9, 1e9]), dataset)
        return scaled(apply_voi_lut(values, dataset), float(black), float(white))


def _palette(pixels: np.ndarray, dataset: Any) -> np.ndarray:
    from pydicom.pixels import apply_color_lut

    colours = apply_color_lut(pixels, dataset)
    return scaled(colours, 0, np.iinfo(colours.dtype).max)
