"""Rows of what a pipeline returns: counting, replacing and dropping them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import FilterFailedError

LATENT_BLANK = 0.0
_ARRAYS = (np.ndarray, torch.Tensor)
_SHOWN = (*_ARRAYS, Image.Image)
"""What may show something of a sample."""


def images_of(output: Any) -> Any:
    """The images of a pipeline's output: a list, an array or a tensor.

    An output is a tuple, a diffusers output, or (Stable Cascade, with ``return_dict=False``) the images themselves.
    """
    return _fields(output)[0]


def has_names(output: Any) -> bool:
    """Whether ``output`` is a diffusers output, with attributes."""
    return hasattr(output, "__dataclass_fields__")


def count_rows(value: Any) -> int | None:
    """How many rows a field of an output has; ``None`` where it has none."""
    if isinstance(value, list):
        return len(value)
    if isinstance(value, _ARRAYS) and value.ndim:
        return int(value.shape[0])
    return None


def replace_rows(
    output: Any, rows: Sequence[int], source: Any, source_rows: Sequence[int], total: int
) -> Any:
    """``output`` with each of ``rows`` taken from ``source_rows`` of ``source``, in every field that has rows.

    Raises:
        FilterFailedError: what was drawn again has another size.
    """
    sources = _fields(source)

    def replaced(position: int, value: Any) -> Any:
        if count_rows(value) != total:
            return value
        fresh = sources[position]
        value = _copied(value)
        for row, source_row in zip(rows, source_rows, strict=True):
            if size_of(fresh[source_row]) != size_of(value[row]):
                raise FilterFailedError(
                    f"an image of size {size_of(value[row])} was drawn again as one of {size_of(fresh[source_row])}; "
                    "give height and width, or no latents; no image is returned"
                )
            value[row] = fresh[source_row]
        return value

    return _map_fields(output, replaced)


def blank_rows(output: Any, rows: Sequence[int], total: int, *, images: bool) -> Any:
    """``output`` with ``rows`` zeroed in every field of ``total`` numbers, arrays or pictures.

    Args:
        images: Whether the images are, too; decoded ones have been.

    Raises:
        FilterFailedError: it is not known where ``rows`` are in a field.
    """

    def blanked(position: int, value: Any) -> Any:
        if not position and not images:
            return value
        several = isinstance(value, list) and any(isinstance(one, _SHOWN) for one in value)
        if several or (isinstance(value, _ARRAYS) and value.ndim):
            if len(value) != total or (several and any(_may_be_batch(one, total) for one in value)):
                raise FilterFailedError(
                    f"the pipeline returns {len(value)} of something for {total} images, so what is withheld cannot be "
                    "told in it; no image is returned"
                )
            value = [*value] if several else _copied(value)
            for row in rows:
                value[row] = _blank(value[row]) if several else LATENT_BLANK
        elif _shows(value):
            raise FilterFailedError(
                f"the pipeline returns pictures or arrays in a {type(value).__name__}, so what is withheld cannot be "
                "told in it; no image is returned"
            )
        return value

    return _map_fields(output, blanked)


def keep_rows(output: Any, rows: Sequence[int], total: int) -> Any:
    """``output`` with only ``rows`` left, in every field that has ``total`` rows."""

    def kept(position: int, value: Any) -> Any:
        if count_rows(value) != total:
            return value
        return [value[row] for row in rows] if isinstance(value, list) else value[list(rows)]

    return _map_fields(output, kept)


def check_one_decision_an_image(output: Any, decisions: Sequence[Any] | None) -> None:
    """
    Raises:
        FilterFailedError: the images of ``output`` are not as many as ``decisions``.
    """
    images = count_rows(images_of(output))
    if decisions is None:
        raise FilterFailedError(
            "the pipeline returned images without calling its decoder, so they were not judged; it cannot be filtered"
        )
    if images != len(decisions):
        raise FilterFailedError(
            f"{len(decisions)} decisions for {images} images; this call cannot be filtered"
        )


def _may_be_batch(entry: Any, total: int) -> bool:
    """Whether an entry of a list may itself be something of all ``total`` images, or else shows parts of it."""
    if isinstance(entry, _ARRAYS):
        return total > 1 and (entry.ndim > 3 or (entry.ndim > 1 and entry.shape[0] == total))
    return _shows(entry)


def _shows(value: Any) -> bool:
    """Whether a picture or an array lies somewhere in ``value``, which is none itself."""
    if isinstance(value, Mapping):
        value = [*value.values()]
    elif has_names(value):
        value = _fields(value)
    return isinstance(value, list | tuple | set | frozenset) and any(
        isinstance(one, Image.Image) or (isinstance(one, _ARRAYS) and one.ndim > 0) or _shows(one)
        for one in value
    )


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value.copy()


def _blank(value: Any) -> Any:
    """A picture or an array as ``value``, with nothing on it; what is neither, as it is."""
    if isinstance(value, Image.Image):
        return Image.new(value.mode, value.size)
    if isinstance(value, torch.Tensor):
        return torch.zeros_like(value)
    return np.zeros_like(value) if isinstance(value, np.ndarray) else value


def size_of(image: Any) -> tuple[int, ...]:
    """Size of a picture, or shape of an array; nothing for what is neither."""
    return tuple(image.size if isinstance(image, Image.Image) else getattr(image, "shape", ()))


def _fields(output: Any) -> list[Any]:
    if has_names(output):
        return [getattr(output, name) for name in _names(output)]
    return list(output) if isinstance(output, tuple) else [output]


def _names(output: Any) -> list[str]:
    return list(output.__dataclass_fields__)


def _map_fields(output: Any, change: Callable[[int, Any], Any]) -> Any:
    values = [change(position, value) for position, value in enumerate(_fields(output))]
    if has_names(output):
        return type(output)(**dict(zip(_names(output), values, strict=True)))
    return tuple(values) if isinstance(output, tuple) else values[0]
