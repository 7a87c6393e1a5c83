"""Reading ahead: nothing is lost, mixed up or read by several threads, and batches are what they were."""

from __future__ import annotations

import hashlib
import io
import threading

import pytest
import torch

from lcmem_filter import encoding
from lcmem_filter.encoding import AHEAD, encode_batches, read_images
from lcmem_filter.errors import UnreadableImageError
from lcmem_filter.images import ImageRecord, ImageSource, to_pixels
from lcmem_filter.latents import Encoder

from tests.tiny import encode_images, picture, tiny_vae

BROKEN, MISSING = 5, 17
COUNT = 3 * AHEAD


def stored(row: int) -> bytes:
    buffer = io.BytesIO()
    picture(row).save(buffer, "PNG")
    return b"no picture" if row == BROKEN else buffer.getvalue()


def source(reads: list[tuple[int, int]]) -> ImageSource:
    """Images of which one is broken and one is not there; which row was read by which thread is added to ``reads``."""

    def read(row: int) -> bytes:
        reads.append((row, threading.get_ident()))
        if row == MISSING:
            raise FileNotFoundError("it is not there")
        return stored(row)

    return ImageSource("some", [ImageRecord(str(row)) for row in range(COUNT)], read, "fingerprint")


def test_images_come_in_their_order_and_are_read_by_the_callers_thread():
    reads: list[tuple[int, int]] = []
    made_by = set()

    def make(image, row):
        made_by.add(threading.get_ident())
        return image.getpixel((0, 0)), row

    rows = [*range(20, COUNT), *range(20)]
    for row, one in zip(rows, read_images(source(reads), rows, make), strict=True):
        if row in (BROKEN, MISSING):
            assert isinstance(one, UnreadableImageError) and f"image '{row}' of 'some'" in str(one)
        else:
            assert one == (stored(row), (picture(row).getpixel((0, 0)), row))
    assert reads == [(row, threading.get_ident()) for row in rows]
    assert threading.get_ident() not in made_by


def test_no_more_than_some_are_read_ahead():
    reads: list[tuple[int, int]] = []
    images = read_images(source(reads), range(COUNT), lambda image, _: image)
    for taken in range(1, 6):
        next(images)
        assert len(reads) == AHEAD + taken


def test_what_is_no_longer_asked_for_is_not_decoded(monkeypatch):
    monkeypatch.setattr(encoding, "DECODERS", 1)
    begun, closed = [], threading.Event()

    def make(image, row):
        begun.append(row)
        if row:
            closed.wait(0.5)

    before = set(threading.enumerate())
    images = read_images(source([]), range(COUNT), make)
    next(images)
    images.close()
    closed.set()
    for decoder in set(threading.enumerate()) - before:
        decoder.join(30)
    assert set(begun) <= {0, 1}


@pytest.mark.parametrize("size", [1, 7])
def test_batches_are_those_that_are_encoded_alone(size):
    encoder, some = Encoder(tiny_vae(), "tiny"), source([])
    rows = list(range(COUNT))[::-1]
    batches = list(encode_batches(some, rows, encoder, 32, size))
    assert [row for batch, _ in batches for row in batch] == rows
    for batch, found in batches:
        alone = encode_images(some, batch, encoder, 32)
        assert (found.rows, found.sha256, found.unreadable) == (alone.rows, alone.sha256, alone.unreadable)
        assert found.rows == [row for row in batch if row not in (BROKEN, MISSING)]
        assert found.sha256 == [hashlib.sha256(stored(row)).hexdigest() for row in found.rows]
        if found.rows:
            pixels = torch.stack([to_pixels(picture(row), 32) for row in found.rows])
            expected = encoder.encode(pixels.contiguous(memory_format=torch.channels_last))
            assert torch.equal(found.latents, alone.latents) and torch.equal(found.latents, expected)


def test_what_cannot_be_read_is_told_beside_the_rest(monkeypatch):
    monkeypatch.setattr(encoding, "DECODERS", 1)
    found = encode_images(source([]), range(COUNT), Encoder(tiny_vae(), "tiny"), 32)
    assert (
        sorted(found.unreadable) == [BROKEN, MISSING] and len(found.rows) == len(found.latents) == COUNT - 2
    )
