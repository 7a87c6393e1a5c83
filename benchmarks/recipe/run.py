"""What each part of the training recipe is worth: one thing is changed at a time, measured on validation images.

    python benchmarks/recipe/run.py --cache CACHE --latents LATENTS

Every head is trained from drawn weights by stage 2 alone, on copies changed as pictures, so that one run trains both
what identities and what copies need. Figure, index and copies are those of ``benchmarks/ablations``, by the filter's
score without descriptors and by the embedding alone. With ``--descriptors`` stage 3 follows, and the filter's score is
the one with them. Finished runs lie in ``--cache`` and are not repeated, an interrupted one goes on. Writes
``benchmarks/results/recipe.json``, and with ``--descriptors`` ``recipe-descriptors.json`` beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "detection"))

from arguments import add_data_arguments, add_rate_argument, run_command
from data import Images
from figures import OVERALL, Judge, Recalls, interval, recalls
from keep import Keeper
from protocol import Answers, Design, Measured, Task, search_tasks
from provenance import provenance
from tasks import main_tasks, open_validation

from lcmem_filter.baselines import Baseline, Searcher
from lcmem_filter.baselines.lcmem import LCMem, LCMemEmbedding
from lcmem_filter.head import SIZES, LCMemHead
from lcmem_filter.training import TrainingConfig, train_head, training_record
from lcmem_filter.training.config import Stage

RESULTS = Path(__file__).resolve().parents[1] / "results"
RECIPE = "the recipe"
VARIANTS: dict[str, dict[str, Any]] = {
    RECIPE: {},
    "no spread term": {"spread": 0.0},
    "the paper's loss": {"loss": "verification"},
    "a margin of 0.2": {"margin": 0.2},
    "a margin of 0.35": {"margin": 0.35},
    "no mined negatives": {"hard_negatives": 0.0},
    "a head of 0.2 million parameters": {"size": "micro"},
    "latents are not augmented": {"augment": False},
    "elastic warps": {"elastic": 0.5},
    "views as of another visit": {"visit_views": 1},
    "moved against the head": {"adversarial": 0.05},
    "moved far against the head": {"adversarial": 0.2},
    "GeM pooling": {"pooling": "gem"},
    "attention pooling": {"pooling": "attention"},
    "latents of 32x32, at 256 px": {"size": "small32", "resolution": 256},
    "one strong view": {"strong_views": 1},
    "no half-formed copies": {"half_formed": 0.0},
    "half the pairs of two images": {"stage2_same_image": 0.85},
    "twice the pairs of two images": {"stage2_same_image": 0.4},
    "groups with labels in common": {"same_labels": 0.5},
    "half of the identities": {"identity_share": 0.5},
    "a quarter of the identities": {"identity_share": 0.25},
    "an eighth of the identities": {"identity_share": 0.125},
}
SCORES: dict[str, Callable[..., Baseline]] = {"filter": LCMem, "embedding": LCMemEmbedding}


def main() -> None:
    arguments = _parse()
    splits, keeper, judge = open_validation(arguments)
    design = judge.design
    measured: dict[str, dict[int, dict[str, Any]]] = {}
    for seed in range(arguments.seeds):
        for name in arguments.variants:
            output = arguments.cache / "recipe" / f"{name.replace(' ', '-')}-{seed}"
            own = _keeper_for(VARIANTS[name], keeper)
            head, output = trained(output, VARIANTS[name], splits, own, seed, arguments)
            tasks = main_tasks(design, own)
            found = measured_by(head, arguments.space, own, design, tasks)
            measured.setdefault(name, {})[seed] = {"found": found, "record": training_record(output)}
            print(f"{name}, seed {seed}", flush=True)
            results = {
                "about": f"{judge.about()}; "
                f"{arguments.steps:,} steps of {arguments.pairs} pairs{then(arguments)}; strongly changed views of "
                f"each image: {arguments.strong_views}; the mean of the seeds, and what is gained over the recipe of "
                "the same seeds with 95 % intervals by identity, seeds not drawn again.",
                "variants": evaluated(judge, measured, tasks),
                **provenance(arguments, design, keeper),
            }
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(json.dumps(results, indent=1) + "\n")


def _keeper_for(changes: dict[str, Any], usual: Keeper) -> Keeper:
    """Latents as a variant sees them."""
    grid = SIZES[changes["size"]]["grid"] if "size" in changes else usual.grid
    return replace(usual, resolution=changes.get("resolution", usual.resolution), grid=grid)


def trained(
    output: Path,
    changes: dict[str, Any],
    splits: dict[str, Images],
    keeper: Keeper,
    seed: int,
    arguments: argparse.Namespace,
) -> tuple[LCMemHead, Path]:
    """The head that a variant ends with, with descriptors where they are asked for, and its folder."""
    usual = {
        "resolution": keeper.resolution,
        "image_views": 0,
        "strong_views": arguments.strong_views,
        "batch_pairs": arguments.pairs,
        "stage2_steps": arguments.steps,
        "stage2_learning_rate": 1e-3,
        "evaluate_every": arguments.steps,  # once, at the end: validation images choose nothing
        "seed": seed,
    }

    def run(folder: Path, stage: Stage, own: dict[str, Any], initial: LCMemHead | None = None) -> LCMemHead:
        return train_head(
            list(splits["train"].sources),
            {arguments.space: keeper.encoder},
            folder,
            TrainingConfig(**{**usual, **own, **changes}),
            stages=(stage,),
            initial=initial,
            validation=list(splits["validation"].sources),
            cache=keeper.latents_cache,
        )

    head = run(output, 2, {})
    if steps := arguments.descriptors:
        output = output.with_name(f"{output.name}-descriptors")
        own = {"stage3_steps": steps, "upside_down_views": 0, "evaluate_every": steps}
        head = run(output, 3, own, head)
    return head, output


def then(arguments: argparse.Namespace) -> str:
    """What follows stage 2."""
    steps = arguments.descriptors
    return f", then {steps:,} steps of stage 3 without upside-down views" if steps else ""


def measured_by(
    head: LCMemHead, space: str, keeper: Keeper, design: Design, tasks: list[Task]
) -> dict[str, Measured]:
    """What ``head`` finds within ``space``, by each score."""
    return {score: _measured(make(head, space), keeper, design, tasks) for score, make in SCORES.items()}


def _measured(baseline: Baseline, keeper: Keeper, design: Design, tasks: list[Task]) -> Measured:
    def kept(images: Images) -> torch.Tensor:
        return torch.cat([baseline.embed(some.float()) for some in keeper.latents(images).split(256)])

    test = kept(design.test)
    every = torch.cat([kept(design.base), test])
    found = search_tasks(
        lambda rows: Searcher(baseline, every[rows]),
        design,
        [Task("strangers", design.strangers), *tasks],
        lambda task: test[task.rows] if task.images is None else kept(task.images),
    )
    return Measured(found["strangers"][0], {task.name: Answers(*found[task.name]) for task in tasks})


def evaluated(
    judge: Judge, measured: dict[str, dict[int, dict[str, Any]]], tasks: list[Task]
) -> dict[str, Any]:
    """For each variant, score and task: recall, and what is gained over the recipe, by the seeds that both have."""
    weights = judge.weights()
    of = {
        (name, seed, score, task.name): recalls(judge, found, task, weights)
        for name, seeds in measured.items()
        for seed, one in seeds.items()
        for score, found in one["found"].items()
        for task in tasks
    }
    table: dict[str, Any] = {}
    for name, seeds in measured.items():
        runs = {seed: one["record"] for seed, one in seeds.items()}
        table[name] = {
            "changes": VARIANTS[name],
            "seeds": list(seeds),
            "seconds": {seed: record["seconds"] for seed, record in runs.items()},
            "loss": {
                seed: [[e["step"], e["loss"]] for e in record["history"]] for seed, record in runs.items()
            },
            **{
                score: {
                    task.name: cell(
                        [(of[name, s, score, task.name], of[RECIPE, s, score, task.name]) for s in seeds]
                    )
                    for task in tasks
                }
                for score in SCORES
            },
        }
    return table


def cell(runs: list[tuple[Recalls, Recalls]]) -> dict[str, Any]:
    """Of one variant's runs, each beside the recipe's of the same seed."""
    domains = list(runs[0][0].share)
    overall = OVERALL if OVERALL in domains else domains[0]
    gained = np.mean([own.drawn[overall] - usual.drawn[overall] for own, usual in runs], axis=0)
    return {
        "recall": {str(d): float(np.mean([own.share[d] for own, _ in runs])) for d in domains},
        "of_seeds": [own.share[overall] for own, _ in runs],
        "gained": float(np.mean([own.share[overall] - usual.share[overall] for own, usual in runs])),
        "gained_interval": interval(gained),
    }


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """How heads are trained, and on how much they are measured."""
    parser.add_argument("--steps", type=int, default=2000, help="optimiser steps of each head")
    parser.add_argument("--pairs", type=int, default=64, help="pairs of a step")
    parser.add_argument(
        "--strong-views", type=int, default=2, help="strongly changed views of each image that are encoded"
    )
    parser.add_argument(
        "--descriptors",
        type=int,
        default=0,
        metavar="STEPS",
        help="train descriptors too, by so many steps of stage 3",
    )
    parser.add_argument("--seeds", type=int, default=2, help="heads of each kind, by seeds 0, 1, ...")
    parser.add_argument("--copies", type=int, default=150, help="images of a domain that are copied, at most")
    parser.add_argument("--draws", type=int, default=500, help="draws of identities for the intervals")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data_arguments(parser)
    add_rate_argument(parser)
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="with the recipe itself first"
    )
    add_recipe_arguments(parser)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if not arguments.output:
        arguments.output = RESULTS / ("recipe-descriptors.json" if arguments.descriptors else "recipe.json")
    if arguments.variants[0] != RECIPE:
        arguments.variants.insert(0, RECIPE)
    return arguments


if __name__ == "__main__":
    run_command(main)
