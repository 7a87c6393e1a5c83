"""Is another image of an identity another photo, or the same one zoomed? What is found of either.

    python benchmarks/detection/same_photo.py --cache CACHE --data ham10000.parquet \\
        --methods lcmem lcmem_lcmem_reid lcmem_lcmem_large --output benchmarks/results/detection-lesions-photos.json

No filter decides: two images are one photo where one of them, shrunk to ``ZOOMS`` of its side, lies somewhere in the
other with a correlation of ``ALIKE`` and more. The queries are those of ``run.py`` for other images of an identity,
divided by whether such a photo of theirs stands in the index.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from arguments import add_data_arguments, add_rate_argument, open_data, positive, run_command
from data import Images
from figures import interval, recalls
from methods import open_methods
from PIL import Image
from protocol import LISTED, Task, measure
from provenance import provenance
from run import open_test
from tasks import SEED

SIDE, STRANGERS, ALIKE = 64, 400, 0.95
ZOOMS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4)
KINDS = {True: "the same photo zoomed", False: "another photo"}


def main() -> None:
    arguments = _parse()
    splits, keeper = open_data(arguments)
    methods, _ = open_methods(arguments.methods, arguments.head, arguments.space, {}, False)
    design, judge, _, _ = open_test(arguments, splits, keeper)
    task = Task("same_identity", design.with_others, itself=True)
    pictures = grey(design.test)
    pairs = pairs_of_identities(design.test)
    alike = {pair: correlation(pictures[pair[0]], pictures[pair[1]]) for pair in pairs}
    zoomed = {row for pair, value in alike.items() if value >= ALIKE for row in pair}
    kinds = np.array([KINDS[row in zoomed] for row in task.rows.tolist()])
    weights = judge.weights()
    found = {
        method.row.name: recalls(judge, measure(method, design, [task], keeper), task, weights, kinds)
        for method in methods
    }
    apart = [correlation(pictures[a], pictures[b]) for a, b in strangers(design.test)]
    results = {
        "about": f"other images of an identity, by whether one of those in the index is the same photo zoomed: shrunk "
        f"to {ZOOMS[-1]} to {ZOOMS[0]} of its side it lies in the other with a correlation of {ALIKE} and more at "
        f"{SIDE} px; index, thresholds and intervals as of run.py",
        "pairs": {
            "of an identity": len(pairs),
            "the same photo": sum(value >= ALIKE for value in alike.values()),
            "of strangers": len(apart),
            "of strangers, taken for the same photo": sum(value >= ALIKE for value in apart),
            "of strangers, largest correlation": max(apart),
        },
        "recall": {
            kind: {
                "n": next(iter(found.values())).n[kind][0],
                **{
                    name: {"recall": one.share[kind], "interval": interval(one.drawn[kind])}
                    for name, one in found.items()
                },
            }
            for kind in sorted(set(kinds))
        },
        "labels": {method.row.name: method.row.label for method in methods},
        "fingerprints": {method.row.name: method.fingerprint for method in methods if method.fingerprint},
        **provenance(arguments, design, keeper),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")


def grey(images: Images) -> list[torch.Tensor]:
    """Each picture in grey at ``SIDE`` px, float64."""
    found = []
    for row in range(len(images)):
        source, place = images.place(row)
        small = source.image(place).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
        found.append(torch.tensor(np.asarray(small), dtype=torch.float64))
    return found


def pairs_of_identities(images: Images) -> list[tuple[int, int]]:
    """Rows of two images of one identity, each pair once."""
    rows: dict[str, list[int]] = {}
    for row, identity in enumerate(images.identities):
        rows.setdefault(str(identity), []).append(row)
    return [pair for several in rows.values() for pair in combinations(several, 2)]


def strangers(images: Images) -> list[tuple[int, int]]:
    """Rows of ``STRANGERS`` pairs of images of two identities."""
    draw, found = np.random.default_rng(SEED), []
    while len(found) < STRANGERS:
        a, b = draw.integers(len(images), size=2).tolist()
        if images.identities[a] != images.identities[b]:
            found.append((a, b))
    return found


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest correlation of one picture (SIDE, SIDE), shrunk by any of ``ZOOMS``, with a window of the other."""
    return max(max(_within(a, b, zoom), _within(b, a, zoom)) for zoom in ZOOMS)


def _within(picture: torch.Tensor, other: torch.Tensor, zoom: float) -> float:
    """Of ``other``, shrunk, with the window of ``picture`` that is most like it."""
    size = round(SIDE * zoom)
    small = F.interpolate(
        other[None, None], size=(size, size), mode="bilinear", antialias=True, align_corners=False
    )
    small = small - small.mean()
    windows, ones = picture[None, None], torch.ones_like(small)
    spread = F.conv2d(windows**2, ones) - F.conv2d(windows, ones) ** 2 / size**2
    scale = (spread.clamp_min(1e-6) * small.square().sum().clamp_min(1e-6)).sqrt()
    return float((F.conv2d(windows, small) / scale).max())


def _parse(given: Sequence[str] | None = None) -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data_arguments(parser)
    add_rate_argument(parser)
    parser.add_argument("--near-duplicates", type=Path, default=LISTED, help="as of run.py")
    parser.add_argument("--draws", type=positive, default=1000, help="draws of identities for the intervals")
    parser.add_argument("--copies", type=positive, default=1000, help="as of run.py, whose index this is")
    parser.add_argument("--methods", nargs="+", default=["lcmem"], help="rows of run.py")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args(given)


if __name__ == "__main__":
    run_command(main)
