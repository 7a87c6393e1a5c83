"""Who is trained on and who is validated on: no identity, and no picture, on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from ..errors import DataError
from .data import LatentSet


def split_by_identity(data: LatentSet, fraction: float, seed: int) -> tuple[LatentSet, LatentSet]:
    """Training and validation images that share no identity; sides depend on identities and ``seed`` only.

    Raises:
        DataError: fewer than two identities would be left to train on, or to validate on.
    """
    names = _drawn_order(data, seed)
    held = np.isin(data.identities, names[: count_to_hold_out(len(names), fraction)])
    return data.take(~held), data.take(held)


def count_to_hold_out(identities: int, fraction: float) -> int:
    """How many identities are validated on.

    Raises:
        DataError: fewer than two would be left to train on, or to validate on.
    """
    count = max(2, round(fraction * identities))
    if identities - count < 2:
        raise DataError(
            f"training needs two identities and two to validate on, got {identities}, of which {count} are held out "
            f"(a share of {fraction:g}, at least two); give images of more, or hold out fewer"
        )
    return count


def check_held_out(identities: Sequence[str]) -> None:
    """Whether there is something to validate on.

    Args:
        identities: Of each image that is validated on.

    Raises:
        DataError: fewer than two.
    """
    if not len(identities):
        raise DataError(
            "every validation image is left out, or of an identity, or a picture, that is trained on; give others"
        )
    if len(set(identities)) < 2:
        raise DataError(
            f"validation needs two identities that are not trained on, got {identities[0]!r} alone; give images of more"
        )


def some_identities(data: LatentSet, share: float, seed: int) -> LatentSet:
    """The images of a share of the identities, at least two; a smaller share is part of a larger one."""
    names = _drawn_order(data, seed)
    return data.take(np.isin(data.identities, names[: max(2, round(share * len(names)))]))


def _drawn_order(data: LatentSet, seed: int) -> list[str]:
    """The identities in an order that depends on their names and ``seed`` only."""
    return sorted(set(data.identities), key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())


def without_identities(data: LatentSet, identities: Collection[str]) -> LatentSet:
    """``data`` less the images of these identities."""
    return data.take(~np.isin(data.identities, list(identities)))


def each_picture_once(data: LatentSet, others: LatentSet | None = None) -> LatentSet:
    """``data`` less what has the bytes of another image in it, or in ``others``; the one whose identity has most images
    stays.

    A picture that is stored twice, as two identities, would be a negative of itself, and as a stranger to an index that
    holds it would set a threshold that nothing exceeds.
    """
    if data.pictures is None:
        return data
    _, number, sizes = np.unique(data.identities.astype(str), return_inverse=True, return_counts=True)
    taken = set() if others is None or others.pictures is None else set(others.pictures)
    once = np.ones(len(data), dtype=bool)
    for row in np.argsort(-sizes[number], kind="stable"):
        picture = data.pictures[row]
        once[row] = not picture or picture not in taken
        taken.add(picture)
    return data if once.all() else with_labels_together(data).take(once)


def with_labels_together(data: LatentSet) -> LatentSet:
    """``data`` whose images of one picture and identity have all labels of each other, as where a table has a row for
    each finding."""
    if data.labels is None or data.pictures is None:
        return data
    together: dict[tuple[str, str], dict[str, None]] = {}
    keys = list(zip(data.pictures, data.identities, strict=True))
    for key, labels in zip(keys, data.labels, strict=True):
        together.setdefault(key, {}).update(dict.fromkeys(filter(None, labels.split("|"))))
    joined = ["|".join(together[key]) if key[0] else own for key, own in zip(keys, data.labels, strict=True)]
    return replace(data, labels=np.array(joined, dtype=object))


def without_images(data: LatentSet, ids: Collection[str]) -> LatentSet:
    """``data`` less the images of those ids."""
    return data.take(~np.isin(data.ids, list(ids))) if ids and data.ids is not None else data
