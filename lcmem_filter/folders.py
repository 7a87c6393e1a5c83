"""Which files in a folder are images, whether they can be read here or not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from .dicom import DICOM_SUFFIXES, PREAMBLE, is_dicom, lacks_preamble
from .errors import DataError

IMAGE_SUFFIXES = frozenset(Image.registered_extensions()) - {".pdf", ".ps", ".mpg", ".mpeg", ".h5"}
OTHER_SUFFIXES = frozenset(
    {
        *(".avif", ".bpg", ".exr", ".flif", ".hdr", ".heic", ".heif", ".hif", ".jxl", ".jxr", ".wdp"),
        *(".svg", ".svgz", ".xcf"),
        *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw", ".x3f"),
        *(".ima", ".img", ".mgh", ".mgz", ".mha", ".mhd", ".mnc", ".nii", ".nrrd"),
    }
)
"""Of images that Pillow may know only with a plug-in, of cameras, of DICOM as scanners write it, and of volumes."""
PACKED_SUFFIXES = frozenset({".bz2", ".fz", ".gz", ".xz", ".z", ".zst"})
SIGNATURES = (
    *(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"8BPS", b"qoif", b"DDS "),
    *(b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"),  # TIFF
    *(b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),  # JPEG 2000
    *(b"\x00\x00\x00\x0cJXL \r\n\x87\n", b"\xff\x0a"),  # JPEG XL
    *(b"v/1\x01", b"#?RADIANCE", b"#?RGBE", b"II\xbc\x01"),  # OpenEXR, Radiance, JPEG XR
    *(b"FUJIFILMCCD", b"FOVb", b"IIU\x00", b"IIRO", b"IIRS", b"MMOR"),  # of cameras
    *(b"BPG\xfb", b"FLIF", b"gimp xcf ", b"SIMPLE  ="),  # FITS
)
"""How images begin."""
BRANDS = (b"avif", b"avis", b"crx ", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""What AVIF, HEIC and CR3 name after ``ftyp``, where films name others."""
NO_PICTURES = frozenset({"EPS", "HDF5", "MPEG"})
"""Formats of Pillow that are documents, data or films."""


def name_of(folder: Path) -> str:
    """What a folder is called, whatever leads there: ``.`` and ``..`` have no name of their own."""
    return os.path.basename(os.path.abspath(folder))


def images_in(folder: Path) -> list[Path]:
    """Images in a folder and all below it, as ``files_in`` finds them. A link that leads nowhere, as to storage that is
    not there today, is an image that cannot be read.

    Raises:
        DataError: a folder cannot be listed, and what is in it would be missed.
    """
    return [file for file in files_in(folder) if is_image(file)]


def files_in(folder: Path) -> list[Path]:
    """Files in a folder and all below it, behind links too, in order; a folder that is reached twice counts once.

    Raises:
        DataError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be listed: {error.strerror}; mend or remove it") from error

    found: list[Path] = []
    seen: set[str] = set()
    for where, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        found += (Path(where, name) for name in names)
    return sorted(found)


def stats(folder: Path, names: Sequence[str]) -> list[tuple[str, int, int]]:
    """Name, size and time of each file; -1 where there is none."""
    found = []
    for name in names:
        try:
            stat = (folder / name).stat()
            found.append((name, stat.st_size, stat.st_mtime_ns))
        except (OSError, ValueError):  # ValueError: of a name that no file can have
            found.append((name, -1, -1))
    return found


def is_image(file: Path) -> bool:
    """Whether its suffix or its first bytes say so, be it one that cannot be read here: what is passed over in silence
    would be missed. Of a hidden file, which systems name as the image beside it, its first bytes alone."""
    hidden = file.name.startswith(".")
    try:
        if file.is_symlink() and not file.exists():
            return not hidden
        if not file.is_file():
            return False
    except OSError:  # what it leads to may not be looked at
        return True
    if hidden:
        return _begins_so(file)
    packed = file.suffix.lower() in PACKED_SUFFIXES
    suffix = (file.with_suffix("") if packed else file).suffix.lower()
    if suffix in IMAGE_SUFFIXES or suffix in DICOM_SUFFIXES or suffix in OTHER_SUFFIXES:
        return True
    # archives name DICOM files IM000001, or by their UID, whose last part looks like a suffix
    if file.name.upper() == "DICOMDIR":  # a disc's contents, which some systems show in small letters
        return False
    return _begins_so(file) or (not file.suffix and _opens(file))


def _begins_so(file: Path) -> bool:
    """Whether its first bytes are those of an image, or cannot be read."""
    try:
        with file.open("rb") as opened:
            begins = opened.read(PREAMBLE)
    except OSError:
        return True
    return (
        is_dicom(begins)
        or lacks_preamble(begins)
        or begins.startswith(SIGNATURES)
        or begins[:4] + begins[8:12] == b"RIFFWEBP"
        or begins[:2] + begins[6:10] == b"BM\0\0\0\0"
        or (begins[4:8] == b"ftyp" and begins[8:12] in BRANDS)
    )


def _opens(file: Path) -> bool:
    """Whether Pillow takes a file without a suffix for an image; some formats begin with nothing that tells."""
    try:
        with Image.open(file) as image:
            return image.format not in NO_PICTURES
    except UnidentifiedImageError:
        return False
    except Exception:  # an image, with something wrong about it
        return True
