"""How near the picture that a copy was made of lies, by each key that an index is searched by.

    python benchmarks/ablations/ranks.py --cache CACHE --latents LATENTS

In indexes of one kind of images alone, on validation images; test images are not touched. Where ten times as many
training images of the kind stand, ten times as many strangers lie nearer. Writes
``benchmarks/results/ablations-ranks.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "filters"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "detection"))

import numpy as np
import torch
from arguments import add_data_arguments, add_rate_argument, positive, run_command
from methods import open_methods
from protocol import Design, Task
from provenance import provenance
from stats import wilson
from tasks import main_tasks, open_validation

from lcmem_filter.latents import outlines

RESULTS = Path(__file__).resolve().parents[1] / "results"
HEADS = ("lcmem-reid", "lcmem-large")
"""``lcmem-small`` embeds as ``lcmem-reid`` does."""
RANKS = (1, 3, 10, 30, 100, 300, 1000)


def main() -> None:
    arguments = _parse()
    _, keeper, judge = open_validation(arguments)
    design = judge.design
    tasks = [task for task in main_tasks(design, keeper) if task.images is not None]
    found: dict[str, Any] = {task.name: {} for task in tasks}
    by_outlines = [outlines(keeper.latents(images).float()) for images in (design.base, design.test)]
    for task in tasks:
        assert task.images is not None
        latents = keeper.latents(task.images).float()
        poses = torch.stack([outlines(latents), outlines(latents.flip(-1))])
        _add(found[task.name], "outlines", torch.cat(by_outlines), poses, task, design)
    for head in arguments.heads:
        (method,), _ = open_methods(["lcmem_embedding"], head, arguments.space, {}, False)
        stored = torch.cat([keeper.kept(method, design.base), keeper.kept(method, design.test)])
        for task in tasks:
            assert task.images is not None
            asking = keeper.kept(method, task.images)[None]
            _add(found[task.name], f"embeddings of {Path(head).name}", stored, asking, task, design)
    results = {
        "about": "share of copies of validation images whose picture is among so many nearest in an index of images of "
        "its kind alone, with 95 % Wilson intervals",
        "ranks": RANKS,
        "tasks": found,
        **provenance(arguments, design, keeper),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")


def _add(
    found: dict[str, Any], key: str, stored: torch.Tensor, asking: torch.Tensor, task: Task, design: Design
) -> None:
    """Put into ``found``, for each domain, the share of a task's copies within each of ``RANKS``.

    Args:
        stored: (N, D) of base and test.
        asking: (P, Q, D): of each copy in P ways, of which the nearest counts.
    """
    domains = np.concatenate([design.base.domains, design.test.domains])
    for domain in dict.fromkeys(design.test.domains[task.rows]):
        ranks, rows = [], []
        for half in (0, 1):
            index = design.index_rows(half)
            index = index[domains[index] == domain]
            rows.append(len(index))
            of = (design.half[task.rows] == half) & (design.test.domains[task.rows] == domain)
            for query in np.flatnonzero(of):
                alike = (asking[:, query] @ stored[index].T).amax(0)
                own = int(np.searchsorted(index, len(design.base) + task.rows[query]))
                ranks.append(int((alike > alike[own]).sum()))
        shares = [float(np.mean(np.array(ranks) < rank)) for rank in RANKS]
        one = found.setdefault(str(domain), {"n": len(ranks), "rows": int(np.mean(rows)), "by": {}})
        one["by"][key] = [[share, *wilson(share, len(ranks))] for share in shares]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data_arguments(parser)
    add_rate_argument(parser)
    parser.add_argument("--heads", nargs="+", default=HEADS, help="names or folders of heads")
    parser.add_argument(
        "--copies", type=positive, default=150, help="images of a domain that are copied, at most"
    )
    parser.add_argument("--draws", type=positive, default=500, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=RESULTS / "ablations-ranks.json")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
