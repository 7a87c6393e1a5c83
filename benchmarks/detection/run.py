"""Compare LCMem with other filters: copies and other images of an identity, found in an index of all domains.

    python benchmarks/detection/run.py --cache CACHE --head lcmem-small
    python benchmarks/detection/run.py --cache CACHE --data mine.csv --identity-column patient --output mine.json
    python benchmarks/detection/run.py --cache CACHE --data nih_cxr128.parquet nih_cxr256.parquet --skip-pairs \
        --robustness-images 0 --output benchmarks/results/detection-xrays.json

The second measures a user's own images: a column ``split`` (train, validation, test) divides them, else identities are
divided 60/20/20. The third measures X-rays alone; so were skin lesions and faces, all three by fewer rows. ``--weights
clip=FOLDER`` adds a network whose weights are at hand, and ``--weights packhaeuser=FOLDER dar=FOLDER
dar_unsupervised=FOLDER`` what ``lcmem-filter train --baseline`` trained on the training split (here with
``--where split=train --identity-column id --resolution 64 --mixed-precision bf16``, and ``--steps 6000`` for dar, 1500
for the others);
``pip install 'lcmem-filter[bench]'`` brings the packages that some rows need. Writes
``benchmarks/results/detection.json`` and plots beside it. What was computed lies in ``--cache``, outside the
repository, and is not computed again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import plots
from arguments import (
    add_data_arguments,
    add_rate_argument,
    name_and_path,
    open_data,
    positive,
    run_command,
)
from changes import CHANGES, Change
from data import Images, one_per_identity
from figures import FEW, Judge, average_precision, curve, deciding
from keep import Keeper
from merge import merged, reference_of
from methods import REFERENCES, Method, open_methods
from pairs import Pairs, copy_pairs, identity_pairs, pair_figures, score_pairs
from PIL import Image
from protocol import (
    LISTED,
    Design,
    Measured,
    Task,
    is_near_duplicate,
    known_duplicates,
    measure,
    near_duplicates,
)
from provenance import provenance
from tasks import SEED, copies_of, main_tasks
from views import View

from lcmem_filter.errors import CalibrationError

RESULTS = Path(__file__).resolve().parents[1] / "results"
RATES = np.geomspace(0.002, 0.1, 18)
HELD_COPIES = 100


def main() -> None:
    arguments = _parse()
    splits, keeper = open_data(arguments)
    methods, absent = open_methods(
        arguments.methods, arguments.head, arguments.space, dict(arguments.weights), arguments.download
    )
    design, judge, near, known = open_test(arguments, splits, keeper)
    methods = measurable(methods, judge, absent)
    tasks = main_tasks(design, keeper)
    results = {
        "about": about(design, judge),
        "labels": {method.row.name: method.row.label for method in methods},
        "notes": {method.row.label: method.row.note for method in methods if method.row.note},
        "fingerprints": {method.row.name: method.fingerprint for method in methods if method.fingerprint},
        **({} if arguments.skip_recall else recall(methods, design, judge, tasks, keeper)),
        "near_duplicates": describe_near(design, near, known),
        "not_run": absent,
        **provenance(arguments, design, keeper),
    }
    if not arguments.skip_recall:
        write(arguments, results)
    if not arguments.skip_pairs:
        pairwise = [method for method in methods if not method.row.told]  # two images have no shortlist
        results["pairs"] = all_pairs(pairwise, design, splits["validation"], tasks, keeper)
        write(arguments, results)
    if arguments.robustness_images:
        results["robustness"] = robustness(methods, design, judge, keeper, arguments.robustness_images)
        write(arguments, results)


def open_test(
    arguments: argparse.Namespace, splits: dict[str, Images], keeper: Keeper
) -> tuple[Design, Judge, dict[int, tuple[float, int]], dict[int, tuple[int, str]]]:
    """Which images are asked for in which index, who decides, how alike each unseen image and an indexed one are, and
    which of them show the same to somebody who looked."""
    (embedding,), _ = open_methods(["lcmem_embedding"], arguments.head, arguments.space, {}, False)
    base = Images("base", splits["train"].sources + splits["validation"].sources)
    design = Design(base, splits["test"], SEED, arguments.copies)
    known = known_duplicates(design, arguments.near_duplicates)
    unseen = ~np.isin(design.strangers, list(known))
    judge = Judge(design, unseen, arguments.rate, arguments.draws, SEED)
    near = near_duplicates(design, embedding, keeper)
    alike = np.array([is_near_duplicate(near[row][0]) for row in design.strangers.tolist()])
    return design, replace(judge, kept=unseen & ~alike), near, known


def recall(
    methods: Sequence[Method], design: Design, judge: Judge, tasks: Sequence[Task], keeper: Keeper
) -> dict[str, Any]:
    """Index-level figures: the one that decides, and others for the same scores."""
    measured: dict[str, Measured] = {}
    for method in methods:
        measured[method.row.name] = measure(method, design, tasks, keeper)
        log(f"measured {method.row.label}")
    return {
        "deciding": {task.name: deciding(judge, measured, task, REFERENCES) for task in tasks},
        "unseen_rejected": {name: judge.rejected_strangers(one) for name, one in measured.items()},
        "index_level": {
            task.name: {name: average_precision(judge, one, task) for name, one in measured.items()}
            for task in tasks
        },
        "curves": {
            "rates": RATES.tolist(),
            **{
                task.name: {name: curve(judge, one, task, RATES) for name, one in measured.items()}
                for task in tasks
            },
        },
    }


def measurable(methods: Sequence[Method], judge: Judge, absent: dict[str, str]) -> list[Method]:
    """The methods whose domains have enough strangers; ``absent`` is told why the others are not."""
    found = []
    for method in methods:
        try:
            judge.check_number(method.row.domains)
            found.append(method)
        except CalibrationError as error:
            absent[method.row.label] = f"of {' and '.join(method.row.domains)} alone: {error}"
    return found


def write(arguments: argparse.Namespace, results: dict[str, Any]) -> None:
    path, before = arguments.output, arguments.before
    path.parent.mkdir(parents=True, exist_ok=True)
    results = _rounded(results) if before is None else merged(before, _rounded(results))
    path.write_text(json.dumps(results, indent=1) + "\n")
    plots.draw(results, path.with_suffix(""), arguments.rate)
    log(f"wrote {path}")


def all_pairs(
    methods: Sequence[Method], design: Design, validation: Images, tasks: Sequence[Task], keeper: Keeper
) -> dict[str, Any]:
    """Pair-level figures; the threshold of accuracy is fixed on validation images. There are none of identities where
    those of the test images or of validation have no two images."""
    held_rows = one_per_identity(validation, SEED, in_each_set=True)
    held_rows = np.sort(np.random.default_rng(SEED).permutation(held_rows)[:HELD_COPIES])
    copies = copies_of(validation, held_rows, keeper, "held_")
    result: dict[str, Any] = {"held_copies": len(held_rows)}
    for task in tasks:
        if task.images is None:
            test, held = identity_pairs(design.test, SEED), identity_pairs(validation, SEED)
        else:
            test = copy_pairs(task.images, task.rows, design.test, SEED)
            held = copy_pairs(copies[task.name].open(keeper.cache), held_rows, validation, SEED)
        if len(test.a) and len(held.a):
            result[task.name] = {m.row.name: _pairs_of(m, test, held, keeper) for m in methods}
        log(f"pairs of {task.name}")
    test, held = (identity_pairs(images, SEED, same_labels=True) for images in (design.test, validation))
    if len(held.a) and test.same.any() and not test.same.all():
        result["same_identity_same_labels"] = {m.row.name: _pairs_of(m, test, held, keeper) for m in methods}
    return result


def _pairs_of(method: Method, test: Pairs, held: Pairs, keeper: Keeper) -> dict[str, Any]:
    return pair_figures(test, score_pairs(method, test, keeper), held, score_pairs(method, held, keeper))


def robustness(
    methods: Sequence[Method], design: Design, judge: Judge, keeper: Keeper, images: int
) -> dict[str, Any]:
    """Recall at the same threshold for each change at four strengths, on a sample of the test images that it is for."""
    tasks: dict[tuple[str, int], Task] = {}
    for kind, change in CHANGES.items():
        of = np.isin(design.test.domains[design.copied], change.domains) | (not change.domains)
        rows = np.sort(np.random.default_rng(SEED).permutation(design.copied[of])[:images])
        for place in range(len(change.strengths)) if len(rows) else ():
            view = View(
                f"{kind}-{place}",
                design.test,
                rows,
                partial(_changed, change, place),
                keeper.resolution,
                SEED,
            )
            tasks[kind, place] = Task(f"{kind}/{place}", rows, view.open(keeper.cache))
    kinds = list(dict.fromkeys(kind for kind, _ in tasks))
    result: dict[str, Any] = {
        "images": {kind: len(tasks[kind, 0].rows) for kind in kinds},
        "strengths": {kind: CHANGES[kind].names for kind in kinds},
        "recall": {},
    }
    for method in methods:
        # too slow for what they would add
        if method.row.domains or method.row.told or method.row.name == "ssim":
            continue
        found = measure(method, design, list(tasks.values()), keeper)
        limits = judge.thresholds(found)
        recall: dict[str, list[float]] = {kind: [] for kind in kinds}
        for (kind, _), task in tasks.items():
            recall[kind].append(float((found.tasks[task.name].own > limits[design.half[task.rows]]).mean()))
        result["recall"][method.row.name] = recall
        log(f"robustness of {method.row.label}")
    return result


def _changed(change: Change, place: int, picture: Image.Image, draw: np.random.Generator) -> Image.Image:
    return change.make(picture, change.strengths[place], draw)


def describe_near(
    design: Design, near: dict[int, tuple[float, int]], known: dict[int, tuple[int, str]]
) -> dict[str, Any]:
    """Unseen images by how alike the most alike image of the index is; those of 0.98 and more, and those that somebody
    saw to be no strangers, set no threshold."""
    domains = design.test.domains[design.strangers]
    alike = np.array([near[int(row)][0] for row in design.strangers])
    every = [*design.base.records, *design.test.records]
    counts = {
        str(domain): {
            "unseen": int((domains == domain).sum()),
            "dropped_0.98": int(((domains == domain) & (alike >= 0.98)).sum()),
            "kept_0.95_to_0.98": int(((domains == domain) & (alike >= 0.95) & (alike < 0.98)).sum()),
            "kept_0.90_to_0.95": int(((domains == domain) & (alike >= 0.9) & (alike < 0.95)).sum()),
        }
        for domain in dict.fromkeys(domains)
    }
    listed = [
        [
            design.test.records[int(design.strangers[i])].id,
            every[near[int(design.strangers[i])][1]].id,
            float(alike[i]),
        ]
        for i in np.argsort(-alike)
        if alike[i] >= 0.95
    ]
    return {
        "statistic": "aligned correlation of canonical latents with the most alike image of the index",
        "by_domain": counts,
        "pairs_from_0.95": listed[:100],
        "seen_by_eye": [
            [design.test.records[row].id, every[at].id, what] for row, (at, what) in known.items()
        ],
    }


def about(design: Design, judge: Judge) -> str:
    size = [len(design.index_rows(half)) for half in (0, 1)]
    few = (
        f" Fewer than {FEW} of a half's scores may lie above the threshold here; it is drawn beyond the largest too, "
        "as far as an exponential tail reaches."
        if judge.few()
        else ""
    )
    unseen, domains = int(judge.kept.sum()), set(design.test.domains)
    which = " of all domains" if len(domains) > 1 else f", {domains.pop()} alone"
    return (
        f"two indexes of {size[0]:,} and {size[1]:,} images{which} (train, validation, and one half of the "
        f"test identities each); thresholds reject {100 * judge.rate:.3g}% of {unseen:,} unseen images, one an "
        f"identity, of the other half; 95 % intervals by identity from {judge.draws:,} draws, thresholds drawn again "
        "with them. Where all are found, so they are in every draw: of n of n, each of another identity, an exact "
        f"interval would begin at 0.025^(1/n), at 98.6% of 268.{few}"
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return round(value, 5) if isinstance(value, float) else value


def log(line: str) -> None:
    print(line, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data_arguments(parser)
    parser.add_argument(
        "--near-duplicates",
        type=Path,
        default=LISTED,
        help="unseen images whose picture stands in the index under another name (look.py)",
    )
    add_rate_argument(parser)
    parser.add_argument("--draws", type=positive, default=1000, help="draws of identities for the intervals")
    parser.add_argument(
        "--add",
        action="store_true",
        help="add the rows of --methods to those of --output, which were measured on the same terms, or put them in "
        "place of theirs: LCMem's figures, or where it is not there those of the first row, which are measured again, "
        "have to be the same",
    )
    parser.add_argument("--methods", nargs="*", default=[], help="rows to measure; default all")
    parser.add_argument("--weights", nargs="*", default=[], type=name_and_path, metavar="NAME=PATH")
    parser.add_argument(
        "--download", action="store_true", help="ask the hub for weights that are not at hand"
    )
    parser.add_argument(
        "--copies", type=positive, default=1000, help="test images of a domain that are copied, at most"
    )
    parser.add_argument("--robustness-images", type=int, default=300, help="0 leaves robustness out")
    parser.add_argument(
        "--skip-recall",
        action="store_true",
        help="leave index-level figures out, to --add others to rows that have them",
    )
    parser.add_argument("--skip-pairs", action="store_true", help="leave pair-level figures out")
    parser.add_argument("--output", type=Path, default=RESULTS / "detection.json")
    arguments = parser.parse_args()
    arguments.before = None
    if arguments.add:
        if not arguments.output.exists():
            parser.error("--add needs a results file at --output")
        arguments.before = json.loads(arguments.output.read_text())
        reference = reference_of(arguments.before)
        if reference not in arguments.methods:
            parser.error(f"--add needs {reference} among --methods, whose figures have to be the same")
    if arguments.skip_recall and not arguments.add:
        parser.error("--skip-recall needs --add: without recall there are no rows to add figures to")
    return arguments


if __name__ == "__main__":
    run_command(main)
