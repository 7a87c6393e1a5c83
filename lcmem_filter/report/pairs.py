"""The held-out images that set a threshold, each beside its nearest training image, on a page to look at."""

from __future__ import annotations

import os
from pathlib import Path

from ..types import Calibration
from .pages import environment, replace_file, style_and_script
from .pictures import Pictures, thumbnails

SIDE = 256


def write_pairs(calibration: Calibration, path: str | os.PathLike[str], pictures: Pictures) -> Path:
    """Write one self-contained HTML page with the pairs of ``calibration.highest``, the largest scores first.

    Whoever looks ticks the held-out images that show the same picture or person as the training image beside them; the
    page lists their ids, one a line, for ``calibrate(..., leave_out=...)``. It needs no network and no other file.

    Args:
        calibration: Of an index.
        path: The page's file; one that is there is replaced.
        pictures: ``sample`` gives those of held-out images. What there is no picture of is named alone.

    Raises:
        OSError: the page cannot be written.
    """
    templates = environment()
    page = templates.get_template("pairs.html.jinja").render(
        pairs=calibration.highest,
        calibration=calibration,
        above=sum(score >= calibration.threshold for _, _, score in calibration.highest),
        held_out=thumbnails((one for one, _, _ in calibration.highest), pictures.sample, SIDE),
        training=thumbnails((near for _, near, _ in calibration.highest), pictures.training, SIDE),
        **style_and_script(templates, "pairs.js"),
    )
    replace_file(Path(path), page)
    return Path(path)
