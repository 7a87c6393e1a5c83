"""What sets, images and identities are called where several sets are used together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Sequence

from ..errors import DataError, first_of
from ..images import ImageRecord, ImageSource
from ..index.identities import classes_of


def identity_of(source: ImageSource, record: ImageRecord, classes: Collection[Hashable] = ()) -> str:
    """What identities are told apart by: names that were given are the same in every set; where none is known, each
    image is its own.

    Args:
        classes: Names of folders that are of a class in another set, and so in this one.
    """
    own = is_own_identity(source, record, classes)
    return f"{source.name}/{record.id}" if own else str(record.identity)


def identities_of(
    sources: Sequence[ImageSource], part: str = "", beside: Sequence[ImageSource] = ()
) -> list[str]:
    """The identity of every image; see ``identity_of``.

    Args:
        part: Goes before the name of an identity that is an image of its own, for sets that are given twice.
        beside: Sets that are used with these: what is a class in one is one in all.
    """
    classes = classes_in([*sources, *beside])
    return [
        part * is_own_identity(source, record, classes) + identity_of(source, record, classes)
        for source in sources
        for record in source.records
    ]


def classes_in(sources: Iterable[ImageSource]) -> frozenset[Hashable]:
    """Names of folders that are of a class in one of ``sources``, however few images they have in another."""
    return frozenset[Hashable]().union(*map(classes_of, sources))


def told_of_classes(sources: Sequence[ImageSource]) -> list[str]:
    """For each set with folders that are of a class in another one alone, a line that says so."""
    classes, told = classes_in(sources), []
    for source in sources:
        named = {record.identity for record in source.records} if source.named_by_folders else set()
        if names := sorted(map(str, (named & classes) - classes_of(source))):
            told.append(
                f"{source.name}: folders taken for classes, not for identities, as in another set: {first_of(names)}"
            )
    return told


def is_own_identity(source: ImageSource, record: ImageRecord, classes: Collection[Hashable] = ()) -> bool:
    """Whether nobody is named: no name, or that of a folder which is of a class (``index.identities``)."""
    named_so = source.named_by_folders and record.identity in classes
    return record.identity is None or named_so or record.identity in classes_of(source)


def check_names(sources: Sequence[ImageSource]) -> None:
    """Sets are told apart by their names.

    Raises:
        DataError: two of one name.
    """
    name, count = Counter(source.name for source in sources).most_common(1)[0] if sources else ("", 0)
    if count > 1:
        raise DataError(
            f"{count} data sets are called {name!r}; rename folders or tables so that no two are alike"
        )


def names_of_images(sources: Sequence[ImageSource]) -> list[str]:
    """The id of every image, ``SET/ID`` where there are several sources."""
    several = len(sources) > 1
    return [
        f"{source.name}/{record.id}" if several else record.id
        for source in sources
        for record in source.records
    ]
