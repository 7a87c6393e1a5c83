"""Whether images are those that an index was built from."""

from __future__ import annotations

from ..errors import DataError
from ..images import ImageSource
from .core import MemorizationIndex


def check_training(index: MemorizationIndex, training: ImageSource) -> None:
    """
    Raises:
        DataError: no image of ``training`` has an id that the index knows.
    """
    if not any(record.id in index._row_of for record in training.records):
        raise DataError(
            f"none of the {len(training)} images of {training.name!r} is a training image of index {index.path} by its "
            f"id: they are like {training.records[0].id!r}, the index's like {index.records[0].id!r}; name the data "
            "that it was built from, as they were named then"
        )
