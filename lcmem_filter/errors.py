"""Everything that this package raises on purpose.

    LcmemFilterError
    |- DataError                  images or tables that cannot be used
    |  |- UnreadableImageError
    |  |- EmptyDataError
    |  `- MissingColumnError
    |- ArtifactError              an index or a head on disk that cannot be used
    |  |- ArtifactNotFoundError
    |  |- CorruptArtifactError
    |  `- IncompleteIndexError
    |- AllowedIdsError            ids that samples may resemble, which the index lacks
    |- LatentSpaceError           a latent space that the head has no stem for
    |- ConfigurationError         a recipe that cannot be followed
    |- TrainingFailedError        a training run that came to nothing
    |- CalibrationError           no threshold can be had
    |- MissingExtraError          an optional dependency is not installed
    |- UnsupportedPipelineError   a pipeline that cannot be filtered
    |- FilterFailedError          samples could not be judged, so none is returned
    |- GenerationStoppedError     a job reached one of its limits
    `- MemorizationError          every attempt at a sample was memorised

Each message says what was wrong, what was found, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .types import Decision


class LcmemFilterError(Exception):
    """Base of every error of this package."""


class DataError(LcmemFilterError):
    """Images or tables that cannot be used."""


class UnreadableImageError(DataError):
    """A file that no image can be read from."""


class EmptyDataError(DataError):
    """A data source without images."""


class MissingColumnError(DataError):
    """A table without a column that was asked for."""


class ArtifactError(LcmemFilterError):
    """An index or a head on disk that cannot be used."""


class ArtifactNotFoundError(ArtifactError):
    """A path that holds no index or no head."""


class CorruptArtifactError(ArtifactError):
    """A file whose contents are not what its manifest promises."""


class IncompleteIndexError(ArtifactError):
    """An index that lacks some of the training images."""


class AllowedIdsError(LcmemFilterError, ValueError):
    """``allowed_ids`` that the index does not hold, or that do not go with the images of the call."""


class LatentSpaceError(LcmemFilterError):
    """A latent space that the head has no stem for."""


class ConfigurationError(LcmemFilterError, ValueError):
    """A recipe, or a way of training, that cannot be followed."""


class TrainingFailedError(LcmemFilterError):
    """A training run whose loss or weights are no longer finite."""


class CalibrationError(LcmemFilterError):
    """No threshold can be had: not calibrated, or too few held-out images."""


class MissingExtraError(LcmemFilterError, ImportError):
    """An optional dependency is not installed."""


class UnsupportedPipelineError(LcmemFilterError):
    """A pipeline, or a way of calling it, that cannot be filtered."""


class FilterFailedError(LcmemFilterError):
    """Samples could not be judged, so none of them is returned."""


class GenerationStoppedError(LcmemFilterError):
    """A generation job reached one of its limits; what it had done stays, and it can go on."""


class MemorizationError(LcmemFilterError):
    """Every attempt at one or more samples was memorised.

    Attributes:
        decisions: One decision for each sample of the call, in its order.
    """

    def __init__(self, message: str, decisions: Sequence[Decision] = ()) -> None:
        super().__init__(message)
        self.decisions = tuple(decisions)


def check_kind(name: str, value: object, kind: type, make: str) -> None:
    """Whether an argument is what it has to be.

    Raises:
        TypeError: it is not; says what makes one.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} has to be of {kind.__name__}, got {type(value).__name__}; {make} gives one")


@contextmanager
def told_where(path: Path) -> Iterator[None]:
    """An ``OSError`` while ``path`` is written names it: a full disk says nothing of where it is."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def first_of(names: Sequence[str], most: int = 4) -> str:
    """The first names of some, and how many more there are, for a message."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return (", ".join(names[:most]) + more) or "nothing"
