"""What asking the index by a sample's middles too is worth, on validation images, with the heads that do.

    python benchmarks/ablations/middles.py --cache CACHE --latents LATENTS

Index, copies and figure are those of ``run.py``, whose test images are not touched; the filter with a head is compared
with the same without middles, each as it stands in ``benchmarks/detection``. Writes
``benchmarks/results/ablations-middles.json``.
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

RESULTS = Path(__file__).resolve().parents[1] / "results" / "ablations-middles.json"
HEADS = {"lcmem-reid": "lcmem_reid", "lcmem-large": "lcmem_large"}


def main() -> None:
    arguments = _parse()
    _, keeper, judge = open_validation(arguments)
    tasks = main_tasks(judge.design, keeper)
    heads: dict[str, Any] = {}
    fingerprints = {}
    for head in arguments.heads:
        names = [f"lcmem_{HEADS[head]}", f"lcmem_without_middles_{HEADS[head]}"]
        methods, _ = open_methods(names, arguments.head, arguments.space, {}, False)
        measured = {method.row.name: measure(method, judge.design, tasks, keeper) for method in methods}
        heads[head] = {task.name: deciding(judge, measured, task, names[:1]) for task in tasks}
        fingerprints |= {method.row.name: method.fingerprint for method in methods}
        print(f"measured {head}", flush=True)
    results = {
        "about": f"{judge.about()}; recall with and without middles, and what middles gain, with 95 % intervals by "
        "identity.",
        "heads": heads,
        "fingerprints": fingerprints,
        **provenance(arguments, judge.design, keeper),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data_arguments(parser)
    add_rate_argument(parser)
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument(
        "--copies", type=positive, default=150, help="images of a domain that are copied, at most"
    )
    parser.add_argument("--draws", type=positive, default=500, help="draws of identities for the intervals")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
