"""An index of a second folder, for the length of one audit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..calibration import calibrate, check_held_out
from ..errors import IncompleteIndexError
from ..head import LCMemHead
from ..images import ImageSource
from ..index import MemorizationIndex
from ..latents import Encoder


@contextmanager
def temporary_index(
    training: ImageSource,
    held_out: ImageSource,
    encoder: Encoder,
    head: LCMemHead,
    *,
    false_rejection_rate: float = 0.01,
    resolution: int | None = None,
    allow_unindexed: bool = False,
    progress: bool = True,
) -> Iterator[MemorizationIndex]:
    """A calibrated index of ``training`` in a temporary folder, which is removed in the end.

    Args:
        training: What images are compared with.
        held_out: Real images that are not among them, for the threshold.
        encoder: A VAE that the head knows.
        head: Makes the embeddings.
        false_rejection_rate: Share of unseen real images that may be rejected, in (0, 1).
        resolution: Side in pixels that pictures are squashed to.
        allow_unindexed: Go on where images of ``training`` cannot be read; copies of them pass.
        progress: Show progress on stderr.

    Raises:
        IncompleteIndexError: an image of ``training`` cannot be read.
        CalibrationError: too few held-out images for the rate.
    """
    check_held_out(len(held_out), false_rejection_rate)  # before the hours that indexing may take
    with tempfile.TemporaryDirectory(prefix="lcmem-audit-") as folder:
        index = MemorizationIndex.build(
            training, encoder, head, Path(folder) / "index", resolution=resolution, progress=progress
        )
        if index.unreadable and not allow_unindexed:
            first = next(iter(index.unreadable.items()))
            raise IncompleteIndexError(
                f"{len(index.unreadable)} images of {training.name!r} cannot be read (the first: {first[0]}: "
                f"{first[1]}); mend or remove them, or accept that copies of them pass: --allow-unindexed"
            )
        index.allow_unindexed = allow_unindexed
        calibrate(
            index, held_out, false_rejection_rate=false_rejection_rate, encoder=encoder, progress=progress
        )
        yield index
