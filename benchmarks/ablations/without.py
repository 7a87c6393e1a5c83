"""What the filter finds beside itself without a part: asking by middles, or comparing latents as they lie.

    python benchmarks/ablations/without.py middles --cache CACHE --latents LATENTS
    python benchmarks/ablations/without.py in-place --cache CACHE --latents LATENTS

Index, copies and figure are those of ``run.py``, on validation images; test images are not touched. Writes
``benchmarks/results/ablations-middles.json`` or ``ablations-in-place.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "detection"))

from arguments import add_data_arguments, add_rate_argument, positive, run_command
from figures import deciding
from methods import open_methods
from protocol import measure
from provenance import provenance
from tasks import main_tasks, open_validation

RESULTS = Path(__file__).resolve().parents[1] / "results"
HEADS = {"lcmem-small": "", "lcmem-reid": "_lcmem_reid", "lcmem-large": "_lcmem_large"}
"""How rows of a head end, where ``lcmem-small`` is the command's own."""

PARTS = {
    "middles": ("lcmem_without_middles", ("lcmem-reid", "lcmem-large")),
    "in-place": ("lcmem_not_in_place", tuple(HEADS)),
}
"""The baseline that lacks a part, and the heads that have it."""


def main() -> None:
    arguments = _parse()
    lacking, having = PARTS[arguments.part]
    _, keeper, judge = open_validation(arguments)
    design = judge.design
    tasks = main_tasks(design, keeper)
    heads: dict[str, Any] = {}
    fingerprints = {}
    for head in arguments.heads or having:
        names = [f"lcmem{HEADS[head]}", f"{lacking}{HEADS[head]}"]
        methods, _ = open_methods(names, arguments.head, arguments.space, {}, False)
        measured = {method.row.name: measure(method, design, tasks, keeper) for method in methods}
        heads[head] = {task.name: deciding(judge, measured, task, names[:1]) for task in tasks}
        fingerprints |= {method.row.name: method.fingerprint for method in methods}
        print(f"measured {head}", flush=True)
    results = {
        "about": f"{judge.about()}; recall with and without ({arguments.part}), and what is gained, with 95 % "
        "intervals by identity.",
        "heads": heads,
        "fingerprints": fingerprints,
        **provenance(arguments, design, keeper),
    }
    output = arguments.output or RESULTS / f"ablations-{arguments.part}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=1) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    add_data_arguments(parser)
    add_rate_argument(parser)
    parser.add_argument("--heads", nargs="+", choices=HEADS, help="default: all that have the part")
    parser.add_argument(
        "--copies", type=positive, default=150, help="images of a domain that are copied, at most"
    )
    parser.add_argument("--draws", type=positive, default=500, help="draws of identities for the intervals")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
