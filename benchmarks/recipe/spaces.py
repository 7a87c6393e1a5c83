"""What one head for every latent space costs: its stems beside heads that were trained in one space each.

    python benchmarks/recipe/spaces.py --cache CACHE --latents LATENTS --descriptors 800 --pairs 32 --copies 100 \
        --seeds 1 --data SETS --further sdxl=FOLDER
    python benchmarks/recipe/spaces.py --cache CACHE --latents LATENTS --descriptors 800 --pairs 32 --copies 100 \
        --seeds 1 --data SETS --further flux=FOLDER --add

A head is trained in each space from drawn weights by the recipe of ``benchmarks/recipe``. The first of them is then
taught the other spaces, its trunk frozen, as the shipped heads were (``lcmem-filter train --add-space``). Within each
space both are measured on validation images as there, by the filter's score and by the embedding alone. Finished runs
lie in ``--cache`` and are not repeated. Writes ``benchmarks/results/recipe-spaces.json``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from run import RESULTS, add_recipe_arguments, cell, measured_by, then, trained

from lcmem_filter.head import LCMemHead
from lcmem_filter.latents import load_encoder
from lcmem_filter.training import AddSpaceConfig, add_space

from arguments import add_data_arguments, add_rate_argument, run_command  # isort: skip  # `run` finds them
from data import Images  # isort: skip
from figures import Judge, recalls  # isort: skip
from keep import Keeper  # isort: skip
from protocol import Measured, Task  # isort: skip
from provenance import provenance  # isort: skip
from tasks import main_tasks, open_validation  # isort: skip


def main() -> None:
    arguments = _parse()
    before = json.loads(arguments.output.read_text()) if arguments.add else None
    splits, first, judge = open_validation(arguments)
    design = judge.design
    keepers = {arguments.space: first}
    for space, folder in arguments.further:
        encoder = load_encoder(folder, trust_remote_code=arguments.trust_remote_code)
        keepers[space] = replace(first, encoder=encoder)
    few = Images("validation", (min(splits["validation"].sources, key=len),))  # chooses nothing
    heads = _Heads(arguments, {**splits, "validation": few}, keepers)
    tasks = main_tasks(design, first)
    runs: dict[str, list[dict[str, dict[str, Measured]]]] = {space: [] for space in keepers}
    for seed in range(arguments.seeds):
        shared = heads.own(arguments.space, seed)
        for space, keeper in keepers.items():
            of_space = {"own": shared}
            if space != arguments.space:
                of_space = {"own": heads.own(space, seed), "shared": heads.taught(shared, space, seed)}
            runs[space].append(
                {name: measured_by(head, space, keeper, design, tasks) for name, head in of_space.items()}
            )
            print(f"{space}, seed {seed}", flush=True)
            results = {
                "about": f"{judge.about()}, samples and index of one latent space; a head of its own: "
                f"{arguments.steps:,} steps of {arguments.pairs} pairs{then(arguments)} in that space; the shared one: "
                f"those of {arguments.space}, then {heads.stem.steps:,} steps of {heads.stem.batch_images} images for "
                "a stem, all else frozen; the mean of the seeds, and what the shared one gains over the own one of "
                "the same seed with 95 % intervals by identity, seeds not drawn again.",
                "encoders": {name: keepers[name].encoder.described() for name, of in runs.items() if of},
                "spaces": {name: compared(judge, of, tasks) for name, of in runs.items() if of},
                **provenance(arguments, design, first),
            }
            if before is not None:
                results = with_others(before, results)
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(json.dumps(results, indent=1) + "\n")


def with_others(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """``now`` with the spaces that ``before`` has alone.

    Raises:
        SystemExit: another recipe, or other figures for a space that stands in both, as that of the trunk does.
    """
    now = json.loads(json.dumps(now))
    both = before["spaces"].keys() & now["spaces"].keys()
    if before["about"] != now["about"] or any(before["spaces"][name] != now["spaces"][name] for name in both):
        raise SystemExit(
            f"the file that spaces are added to has other figures for {' and '.join(sorted(both))}, or another recipe: "
            "images, options or code differ; measure all spaces anew"
        )
    return {**now, **{part: {**before[part], **now[part]} for part in ("encoders", "spaces")}}


@dataclass(frozen=True)
class _Heads:
    """Trained once and kept; ``keepers`` has the space of the shared trunk first."""

    arguments: argparse.Namespace
    splits: dict[str, Images]
    keepers: dict[str, Keeper]

    @property
    def stem(self) -> AddSpaceConfig:
        """The recipe of a stem."""
        return AddSpaceConfig(steps=self.arguments.stem_steps, resolution=self.arguments.resolution)

    def own(self, space: str, seed: int) -> LCMemHead:
        """A head of one space."""
        asked = argparse.Namespace(**{**vars(self.arguments), "space": space})
        output = self.arguments.cache / "recipe-spaces" / f"{space}-{seed}"
        return trained(output, {}, self.splits, self.keepers[space], seed, asked)[0]

    def taught(self, shared: LCMemHead, space: str, seed: int) -> LCMemHead:
        """``shared`` with a stem for ``space``."""
        output = self.arguments.cache / "recipe-spaces" / f"{space}-added-{seed}"
        if (output / LCMemHead.config_name).exists():
            return LCMemHead.from_pretrained(output)
        return add_space(
            shared,
            space,
            self.keepers[space].encoder,
            self.keepers[self.arguments.space].encoder,
            list(self.splits["train"].sources),
            output,
            replace(self.stem, seed=seed),
            validation=list(self.splits["validation"].sources),
            cache=self.keepers[space].latents_cache,
        )


def compared(
    judge: Judge, runs: list[dict[str, dict[str, Measured]]], tasks: list[Task]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Of one space, for each head, score and task: recall, and what is gained over the space's own head."""
    weights = judge.weights()
    of = [
        {
            (name, score, task.name): recalls(judge, measured, task, weights)
            for name, scores in run.items()
            for score, measured in scores.items()
            for task in tasks
        }
        for run in runs
    ]
    return {
        name: {
            score: {
                task.name: cell([(run[name, score, task.name], run["own", score, task.name]) for run in of])
                for task in tasks
            }
            for score in scores
        }
        for name, scores in runs[0].items()
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data_arguments(parser)
    add_rate_argument(parser)
    parser.add_argument(
        "--further",
        nargs="+",
        required=True,
        type=lambda value: value.split("=", 1),
        metavar="SPACE=FOLDER",
        help="the other spaces and their autoencoders; --space and --vae are those of the trunk",
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run custom autoencoder classes")
    add_recipe_arguments(parser)
    parser.add_argument(
        "--stem-steps", type=int, default=AddSpaceConfig().steps, help="optimiser steps of a stem"
    )
    parser.add_argument(
        "--add", action="store_true", help="keep the other spaces of --output, measured on the same terms"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "recipe-spaces.json")
    arguments = parser.parse_args()
    if arguments.add and not arguments.output.exists():
        parser.error("--add needs a results file at --output")
    return arguments


if __name__ == "__main__":
    run_command(main)
