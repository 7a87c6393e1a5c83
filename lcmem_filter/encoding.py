"""Images of a source to latents: read in turn, decoded several at a time, encoded together."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import torch
from PIL import Image

from .errors import UnreadableImageError
from .images import ImageSource, to_pixels
from .latents import Encoder

Made = TypeVar("Made")
Read: TypeAlias = tuple[bytes, Made] | UnreadableImageError

ENCODE_BATCH = 8
"""Pictures that are encoded together."""
DECODERS = 4
"""Threads that decode: decoders let other threads run, and a GPU encodes photos faster than one of them decodes. Each
may hold a whole photo, half a gigabyte of 48 megapixels."""
AHEAD = 16
"""Pictures that are decoded, and squashed, before they are asked for."""


@dataclass(frozen=True, slots=True)
class EncodedImages:
    """Some rows of a source, encoded.

    Attributes:
        rows: Rows that could be read, n of them.
        latents: (n, C, h, w), float32, on the CPU, unscaled; ``None`` where no row could be read.
        sha256: Of each image's stored bytes, n of them.
        unreadable: The other rows, with what was wrong: they cannot be read, or their latents are not finite.
    """

    rows: list[int]
    latents: torch.Tensor | None
    sha256: list[str]
    unreadable: dict[int, str]


def encode_batches(
    source: ImageSource, rows: Sequence[int], encoder: Encoder, resolution: int, size: int = ENCODE_BATCH
) -> Iterator[tuple[Sequence[int], EncodedImages]]:
    """Encode ``rows`` of ``source``, each squashed to ``resolution`` px, on the encoder's device: ``size`` of them at a
    time and in their order, beside what they were encoded to. Pictures of the next ones are decoded meanwhile."""
    read = read_images(source, rows, lambda image, _: to_pixels(image, resolution))
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        yield batch, _encoded(source, batch, itertools.islice(read, len(batch)), encoder)


@torch.inference_mode()
def _encoded(
    source: ImageSource, rows: Sequence[int], found: Iterable[Read[torch.Tensor]], encoder: Encoder
) -> EncodedImages:
    read, pixels, digests, unreadable = [], [], [], {}
    for row, one in zip(rows, found, strict=True):
        if isinstance(one, UnreadableImageError):
            unreadable[row] = str(one)
            continue
        stored, picture = one
        read.append(row)
        pixels.append(picture)
        digests.append(hashlib.sha256(stored).hexdigest())
    if not read:
        return EncodedImages([], None, [], unreadable)
    batch = torch.stack(pixels).contiguous(memory_format=torch.channels_last)  # the faster layout on CPUs
    latents = encoder.encode(batch)
    finite = torch.isfinite(latents).flatten(1).all(1).tolist()
    if all(finite):
        return EncodedImages(read, latents, digests, unreadable)
    unreadable |= {
        row: f"image {source.records[row].id!r} of {source.name!r} cannot be used: the encoder gave NaN or infinity "
        "for it; look for an overflow in half precision"
        for row, good in zip(read, finite, strict=True)
        if not good
    }
    kept = [position for position, good in enumerate(finite) if good]
    left = latents[kept] if kept else None
    return EncodedImages([read[i] for i in kept], left, [digests[i] for i in kept], unreadable)


def read_images(
    source: ImageSource, rows: Sequence[int], make: Callable[[Image.Image, int], Made]
) -> Iterator[Read[Made]]:
    """Of each of ``rows``, in their order, its stored bytes and what ``make`` gives of its image and its row, or why it
    cannot be read.

    Bytes are read by the caller's thread, one image after the other: what a source reads from may not be for several.

    Args:
        make: What becomes of an image; called by several threads.
    """

    def made(row: int, stored: bytes | UnreadableImageError) -> Read[Made]:
        if isinstance(stored, UnreadableImageError):
            return stored
        try:
            return stored, make(source.decode(stored, row), row)
        except UnreadableImageError as error:
            return error

    pool = ThreadPoolExecutor(min(DECODERS, os.cpu_count() or 1))
    waiting: deque[Future[Read[Made]]] = deque()
    try:
        for row in rows:
            waiting.append(pool.submit(made, row, _stored(source, row)))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # nobody waits for what is no longer asked for; a collected generator may be closed by a thread of its own pool
        pool.shutdown(wait=False, cancel_futures=True)


def _stored(source: ImageSource, row: int) -> bytes | UnreadableImageError:
    try:
        return source.encoded(row)
    except UnreadableImageError as error:
        return error
