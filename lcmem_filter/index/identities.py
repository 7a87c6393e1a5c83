"""Which images of an index show one identity, and what is no identity but a class of images."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..images import ImageSource

MOST_OF_IDENTITY = 20
"""Pictures in an identity's folder, at most: one with more is taken for a class of images, which is no identity."""


def classes_among(
    identities: Iterable[Hashable], pictures: Iterable[Hashable] | None = None
) -> set[Hashable]:
    """Those that have more than ``MOST_OF_IDENTITY`` pictures, as the classes of a folder with one subfolder for each.

    Args:
        identities: Of each image; ``None`` where it is not known.
        pictures: What tells pictures apart, where an image may stand there several times; else each is another.
    """
    if pictures is not None:
        identities = [identity for identity, _ in set(zip(identities, pictures, strict=True))]
    counts = Counter(identities)
    return {one for one, count in counts.items() if one is not None and count > MOST_OF_IDENTITY}


@functools.lru_cache(maxsize=16)
def classes_of(source: ImageSource) -> frozenset[Hashable]:
    """Folders of ``source`` that are of classes; what else names identities is believed."""
    named = (record.identity for record in source.records) if source.named_by_folders else ()
    return frozenset(classes_among(named))


def numbered(identities: Sequence[Hashable], classes: Collection[Hashable] = ()) -> np.ndarray:
    """A number for the identity of each image, (N,) int64: equal for images of one identity.

    An image whose identity is not known (``None``) has a negative number of its own. So have images of ``classes``, and
    all images where no two are of one: a folder for each file, or a column of numbers, says nothing of whom they show.
    """
    unknown = {None, *classes}
    counts = Counter(one for one in identities if one not in unknown)
    if max(counts.values(), default=0) < 2:
        unknown |= set(counts)
    seen: dict[Hashable, int] = {}
    numbers = np.array([seen.setdefault(one, len(seen)) for one in identities], dtype=np.int64)
    known = np.array([one not in unknown for one in identities], dtype=bool)
    return np.where(known, numbers, -1 - np.arange(len(numbers)))
