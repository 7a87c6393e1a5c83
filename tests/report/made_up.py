"""Results of an audit that never was, with names that no page should trust."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

from PIL import Image

from lcmem_filter.calibration import fit
from lcmem_filter.report import (
    AllowEntry,
    Certificate,
    DuplicateGroup,
    Measured,
    Pictures,
    Results,
    Run,
    RungRow,
    Sample,
    rate_of,
    results_of,
)
from lcmem_filter.types import Calibration, Neighbour

from ..tiny import picture

HOSTILE = '<script>document.title="owned"</script>'
LABEL = "<i>rare</i>"
QUOTED = '"><img src=x onerror=alert(1)>.png'


@cache
def calibration(n: int = 999, rate: float = 0.01) -> Calibration:
    """Scores of ``n`` unseen images around 0.5."""
    draw = random.Random(0)
    return fit([draw.gauss(0.5, 0.06) for _ in range(n)], rate, "sd", n)


def sample(position: int, score: float, **changes: Any) -> Sample:
    """A sample of that score, judged by ``calibration()``."""
    judge = calibration()
    labels = (("nodule", "effusion", "no finding")[position % 3],)
    return Sample(
        **{
            "id": f"batch_{position // 100}/{position:05d}.png",
            "accepted": score <= judge.threshold,
            "score": score,
            "p_value": judge.p_value(score),
            "neighbours": (Neighbour(f"patient{position % 7:03d}/visit1.png", score, score, score),),
            "labels": labels,
            **changes,
        }
    )


def audit(images: int = 300, copies: int = 12, **changes: Any) -> Results:
    """An audit with ``copies`` planted, one of them on the allow-list, and file names that are markup."""
    draw = random.Random(1)
    samples = [sample(i, min(draw.gauss(0.5, 0.06), 0.6)) for i in range(images - copies)]
    samples += [sample(i, 0.9 + 0.08 * draw.random()) for i in range(images - copies, images)]
    if copies >= 3:
        samples[-1] = sample(3, 0.97, id=HOSTILE, labels=(LABEL,))
        samples[-2] = sample(2, 0.95, id=QUOTED, prompt=HOSTILE, seed=7)
        samples[-3] = sample(5, 0.93, id="known.png", allowed="a test chart <b>of ours</b>")
    run = Run(
        kind="audit",
        date="2026-01-31T12:00:00+00:00",
        images=HOSTILE,
        training="index",
        training_images=15_393,
        resolution=128,
        space="sd",
        versions={"lcmem_filter": "0.1.0"},
        fingerprints={"index": "ab" * 32},
    )
    certificate = Certificate(
        sensitivity=Measured(rate_of(148, 150), "Near-duplicates made by mild transformations."),
        specificity=Measured(
            rate_of(296, 300),
            "Unseen real images.",
            p_values=tuple((1 + draw.randrange(1000)) / 1000 for _ in range(300)),
        ),
        consistency=Measured(None, "Give --training DATA to have it measured."),
    )
    return results_of(
        run,
        samples,
        calibration(),
        **{
            "certificate": certificate,
            "duplicates": [
                DuplicateGroup((HOSTILE, "b.png"), True),
                DuplicateGroup(("c", "d", "e"), False, 0.91),
            ],
            "rungs": [RungRow("new seed", 20, 11), RungRow("delayed guidance", 9, 8)],
            "allow_list": [AllowEntry("known.png", "a test chart <b>of ours</b>", "", "allowed")],
            **changes,
        },
    )


def pictures(training: bool = True) -> Pictures:
    """A picture for every id."""

    def of(id_: str) -> Image.Image:
        return picture(sum(map(ord, id_)), 64)

    found: Callable[[str], Image.Image] | None = of if training else None
    return Pictures(of, found)
