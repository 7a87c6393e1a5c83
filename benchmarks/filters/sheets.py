"""Contact sheets to look at before believing a figure; written outside the repository, since they show real people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from copies import Verdicts
from PIL import Image, ImageDraw


def contact_sheet(
    path: Path,
    images: np.ndarray,
    nearest: np.ndarray,
    verdicts: Verdicts,
    rows: np.ndarray,
    across: int = 12,
) -> None:
    """Pairs: a generated image, under it its nearest training image and the judge's ratio."""
    size = images.shape[1]
    down = -(-len(rows) // across)
    sheet = Image.new("RGB", (across * size, down * (2 * size + 14)), "white")
    pen = ImageDraw.Draw(sheet)
    for place, row in enumerate(rows):
        left, top = place % across * size, place // across * (2 * size + 14)
        sheet.paste(Image.fromarray(images[row]), (left, top))
        sheet.paste(Image.fromarray(nearest[row]), (left, top + size))
        verdict = "copy" if verdicts.copied[row] else "new"
        pen.text((left + 2, top + 2 * size + 1), f"{verdict} {verdicts.ratio[row]:.2f}", fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
