"""Show the unseen images that are most like an indexed one, so that a person can tell which show the same picture.

    python benchmarks/detection/look.py --cache CACHE --output sheets/ --methods lcmem efficientnet_lite0 ncc

Data sets repeat pictures, and people, under other names. An "unseen" image whose picture or person stands in the index
is rightly found, so it must set no threshold; but no filter may decide which ones those are. Each method proposes its
``--most`` nearest pairs; whoever looks at ``sheets/*.png`` copies those of one picture or person from
``sheets/pairs.csv`` to ``near_duplicates.csv`` and fills in which of the two is the same, ``picture`` or ``person``.
``run.py`` then leaves them out for every method alike.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import torch
from arguments import add_data_arguments, open_data, run_command
from data import Images
from keep import Keeper
from methods import Method, open_methods
from PIL import Image, ImageDraw
from protocol import PAIR, Design, known_duplicates
from tasks import SEED

from lcmem_filter.baselines import Searcher

SIDE, COLUMNS, ROWS = 150, 4, 6


def main() -> None:
    arguments = _parse()
    splits, keeper = open_data(arguments)
    methods, _ = open_methods(arguments.methods, arguments.head, arguments.space, {}, False)
    indexed = splits["train"].sources
    if arguments.split == "test":
        indexed += splits["validation"].sources
    design = Design(Images("base", indexed), splits[arguments.split], SEED, 1000)
    proposed: dict[tuple[int, int], list[str]] = {}
    for method in methods:
        for pair in nearest_pairs(method, design, keeper, arguments.most):
            proposed.setdefault(pair, []).append(method.row.name)
        print(f"{method.row.label}: {len(proposed)} pairs", flush=True)
    known = known_duplicates(design)
    pairs = [pair for pair in proposed if pair[0] not in known]
    arguments.output.mkdir(parents=True, exist_ok=True)
    with (arguments.output / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["number", *PAIR, "proposed_by"])
        for number, pair in enumerate(pairs):
            writer.writerow([number, *named(design, *pair), "", " ".join(proposed[pair])])
    for page, first in enumerate(range(0, len(pairs), COLUMNS * ROWS)):
        sheet(design, pairs[first : first + COLUMNS * ROWS], first).save(arguments.output / f"{page:02d}.png")


def nearest_pairs(method: Method, design: Design, keeper: Keeper, most: int) -> Iterator[tuple[int, int]]:
    """(test row, row of base and test) of the strangers that a method finds most like an indexed image."""
    test = keeper.kept(method, design.test)
    every = torch.cat([keeper.kept(method, design.base), test])
    found: list[tuple[float, int, int]] = []
    for half in (0, 1):
        rows = design.index_rows(half)
        unseen = design.strangers[design.half[design.strangers] != half]
        nearest = Searcher(method.baseline, every[rows]).search(
            test[unseen], max(1, method.baseline.shortlist // 2)
        )
        for row, similarity, place in zip(unseen, nearest.similarity[:, 0], nearest.rows[:, 0], strict=True):
            found.append((float(similarity), int(row), int(rows[place])))
    for _, row, indexed in sorted(found, reverse=True)[:most]:
        yield row, indexed


def named(design: Design, row: int, indexed: int) -> tuple[str, str, str, str]:
    """Set and id of an unseen image, and of an indexed one."""
    images, at = placed(design, indexed)
    return (
        str(design.test.sets[row]),
        design.test.records[row].id,
        str(images.sets[at]),
        images.records[at].id,
    )


def placed(design: Design, row: int) -> tuple[Images, int]:
    """Where a row of base and test together lies."""
    return (design.base, row) if row < len(design.base) else (design.test, row - len(design.base))


def sheet(design: Design, pairs: list[tuple[int, int]], first: int) -> Image.Image:
    """Pairs side by side, each with its number."""
    page = Image.new("RGB", (COLUMNS * (2 * SIDE + 12), ROWS * (SIDE + 16)), "white")
    draw = ImageDraw.Draw(page)
    for place, (row, indexed) in enumerate(pairs):
        x, y = place % COLUMNS * (2 * SIDE + 12), place // COLUMNS * (SIDE + 16)
        for side, (images, at) in enumerate(((design.test, row), placed(design, indexed))):
            source, where = images.place(at)
            page.paste(source.image(where).convert("RGB").resize((SIDE, SIDE)), (x + side * SIDE, y))
        draw.text((x + 2, y + SIDE + 2), f"{first + place}  {design.test.sets[row]}", fill="black")
    return page


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data_arguments(parser)
    parser.add_argument(
        "--split", choices=["validation", "test"], default="test", help="whose images are unseen"
    )
    parser.add_argument(
        "--methods", nargs="+", default=["lcmem", "efficientnet_lite0", "ncc", "aligned_latents"]
    )
    parser.add_argument("--most", type=int, default=60, help="pairs that each method proposes")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
