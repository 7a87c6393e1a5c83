"""One finished image against an index."""

from __future__ import annotations

import os
from pathlib import Path

from ..calibration import judge_images
from ..errors import UnreadableImageError
from ..filter import MemorizationFilter
from ..images import ImageRecord, ImageSource
from ..index import MemorizationIndex
from ..latents import Encoder
from ..types import OWN_FOUND_AT_LEAST
from .finding import Finding


class Examiner:
    """Judges image files, as ``lcmem-filter check`` does.

    Args:
        index: A calibrated index.
        encoder: Of the pipeline's latent space; the index's own by default.

    Raises:
        CalibrationError: the index has no threshold for the encoder's latent space.
        LatentSpaceError: the head does not know it.
    """

    def __init__(self, index: MemorizationIndex, encoder: Encoder | None = None) -> None:
        self.encoder = encoder or index.load_encoder()
        space = index.head.identify_space(self.encoder.vae).told()
        self.filter = MemorizationFilter(index, space=space)

    def examine(self, file: str | os.PathLike[str]) -> Finding:
        """What is found about one file; a file that cannot be read or judged is "not checked"."""
        path = Path(file)
        source = ImageSource("upload", [ImageRecord(path.name)], lambda _: path, path.name)
        (judged,) = judge_images(
            self.filter.index, source, [0], self.encoder, self.filter.space, progress=False
        )
        try:
            picture = source.image(0)
        except UnreadableImageError:
            picture = None
        if judged.scored is None:
            return Finding(None, picture, judged.problem)
        doubt = self.filter.calibration.doubt(OWN_FOUND_AT_LEAST)
        return Finding(self.filter.decide(judged.scored), picture, doubt=doubt)
