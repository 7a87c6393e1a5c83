"""Who is trained on and who is validated on: no identity, and no picture, on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..errors import DataError
from .data import LatentSet


def split_by_identity(
    data: LatentSet, fraction: float, seed: int, groups: Mapping[str, str] | None = None
) -> tuple[LatentSet, LatentSet]:
    """Training and validation images that share no identity; sides depend on identities, ``groups`` and ``seed`` only.

    Args:
        groups: Of each identity, which are held out together (``grouped_by_pictures``); each alone by default.

    Raises:
        DataError: fewer than two identities would be left to train on, or to validate on.
    """
    names, held = _drawn_order(data, seed), set[str]()
    count = count_to_hold_out(len(names), fraction)
    members: dict[str, set[str]] = {}
    for name in names:
        members.setdefault((groups or {}).get(name, name), set()).add(name)
    for name in names:
        group = members[(groups or {}).get(name, name)]
        if len(held) < count and len(held | group) <= len(names) - 2:
            held |= group
    if len(held) < 2:
        raise DataError(
            f"of {len(names)} identities so many share pictures with each other, and are one to training, that no two "
            "can be held out; give one name to those who are one, leave out pictures of nobody, or give validation data"
        )
    rows = np.isin(data.identities, list(held))
    return data.take(~rows), data.take(rows)


def grouped_by_pictures(*sets: LatentSet) -> dict[str, str]:
    """For each identity, one that stands for all that it shares a picture with, or that those do, and so on: a picture
    that is stored under two names shows that they may be one."""
    group: dict[str, str] = {}

    def of(name: str) -> str:
        while group.setdefault(name, name) != name:
            group[name] = group[group[name]]
            name = group[name]
        return name

    first: dict[str, str] = {}
    for data in sets:
        pictures = [""] * len(data) if data.pictures is None else data.pictures
        for name, picture in zip(data.identities, pictures, strict=True):
            group[of(first.setdefault(picture, name) if picture else name)] = of(name)
    return {name: of(name) for name in list(group)}


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
