"""Samples of one latent space in an index of another: what a head finds within and across spaces and resolutions.

    python benchmarks/spaces/run.py --cache CACHE --head lcmem-small \
        --vae sd=FOLDER sdxl=FOLDER --trust-remote-code
    python benchmarks/spaces/run.py --cache CACHE --head lcmem-small --sets nih_cxr256 pictures256 \
        --vae sd@256=FOLDER sd=FOLDER sd@512=FOLDER --output benchmarks/results/resolutions.json

Images, split, copies and figure are those of ``benchmarks/detection``: recall at 1 % false rejection of
unseen images, per domain and on average, and the area under the curve over pairs; but the index holds
validation images and half of the test identities only, so that each encoder sees a few thousand images.
Copies are made once, with the first autoencoder at its resolution, and then encoded by each. Pictures that are smaller
than a resolution are upsampled. Scores are the filter's: pictures are laid over each other where the head has
descriptors of both spaces, else compared as they lie. An encoder that shrinks pictures more than others needs larger
ones for latents that are as fine (``sana@512``). Writes ``benchmarks/results/spaces.json``; what was measured before
lies in ``--cache`` and is not measured again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "detection"))

from arguments import add_identity_argument, add_rate_argument, run_command
from data import Images, data_files, open_splits
from figures import OVERALL, Judge, interval, recalls
from keep import Keeper, grid_for
from methods import Method, open_methods
from pairs import copy_pairs, identity_pairs
from protocol import Answers, Design, Measured, Task, known_duplicates, search_tasks
from provenance import provenance
from sklearn.metrics import roc_auc_score
from tasks import SEED, main_tasks

from lcmem_filter.baselines import Searcher
from lcmem_filter.baselines.lcmem import LCMem
from lcmem_filter.head import LCMemHead
from lcmem_filter.latents import load_encoder
from lcmem_filter.verification import compare

RESULTS = Path(__file__).resolve().parents[1] / "results" / "spaces.json"


def main() -> None:
    arguments = _parse()
    files = arguments.data or data_files()
    files = [file for file in files if not arguments.sets or file.stem in arguments.sets]
    splits = open_splits(files, arguments.identity_column)
    folders = dict(arguments.vae)
    keepers, methods = {}, {}
    head = LCMemHead.from_pretrained(arguments.head)
    for name, folder in folders.items():
        space, _, side = name.partition("@")
        encoder = load_encoder(folder, trust_remote_code=arguments.trust_remote_code)
        latents = arguments.latents or arguments.cache / "latents"
        resolution = int(side or arguments.resolution)
        grid = grid_for(head, space, encoder, resolution)
        keepers[name] = Keeper(arguments.cache, latents, encoder, resolution, grid)
        (methods[name],), _ = open_methods(["lcmem"], arguments.head, space, {}, False)
    base = Images("validation", splits["validation"].sources)
    design = Design(base, splits["test"], SEED, arguments.copies)
    unseen = ~np.isin(design.strangers, list(known_duplicates(design)))
    judge = Judge(design, unseen, arguments.rate, arguments.draws, SEED)
    tasks = main_tasks(design, next(iter(keepers.values())))
    kept = {name: _Kept(methods[name], keepers[name], design, tasks) for name in keepers}
    table = []
    for query in keepers:
        for index in keepers:
            if arguments.with_first and query != index and next(iter(keepers)) not in (query, index):
                continue
            pair = [(methods[name], keepers[name]) for name in (query, index)]
            file = arguments.cache / "cells" / f"{_key(pair, design, tasks, judge)}.json"
            if not file.exists():
                row = between(query, index, kept, methods, design, judge, tasks)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(row))
            table.append({**json.loads(file.read_text()), "query": query, "index": index})
            print(query, index, json.dumps(table[-1]["mean"]), flush=True)
    arguments.space = next(iter(folders)).partition("@")[0]
    results = {
        "about": "samples of one latent space or resolution in an index of another; two halves of the test identities "
        f"take turns; an index of about {len(design.index_rows(0)):,} images; at most {arguments.copies} images of a "
        f"domain copied; recall at {100 * arguments.rate:.3g}% false rejection of "
        f"{int(unseen.sum()):,} unseen images, 95 % intervals by identity; area under the curve over pairs of one "
        "domain.",
        "encoders": {
            name: {**keeper.encoder.described(), "resolution": keeper.resolution}
            for name, keeper in keepers.items()
        },
        "sets": [file.stem for file in files],
        "table": table,
        **provenance(arguments, design, next(iter(keepers.values()))),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")


def _key(pair: list[tuple[Method, Keeper]], design: Design, tasks: list[Task], judge: Judge) -> str:
    """Changes with everything that a cell's figures depend on."""
    of = [
        [method.key, keeper.encoder.source.sha256, keeper.resolution, keeper.grid] for method, keeper in pair
    ]
    copies = [
        [task.name, task.images.fingerprint if task.images else "", task.rows.tolist()] for task in tasks
    ]
    asked = [
        design.base.fingerprint,
        design.test.fingerprint,
        design.seed,
        judge.rate,
        judge.draws,
        judge.kept.tolist(),
    ]
    return hashlib.sha256(json.dumps([of, copies, asked]).encode()).hexdigest()[:20]


class _Kept:
    """What the head keeps of every image and copy in one space."""

    def __init__(self, method: Method, keeper: Keeper, design: Design, tasks: list[Task]) -> None:
        self.base, self.test = keeper.kept(method, design.base), keeper.kept(method, design.test)
        self.copies = {
            task.name: keeper.kept(method, task.images) for task in tasks if task.images is not None
        }


def between(
    query: str,
    index: str,
    kept: dict[str, _Kept],
    methods: dict[str, Method],
    design: Design,
    judge: Judge,
    tasks: list[Task],
) -> dict[str, Any]:
    """Recall and pair figures for samples of ``query`` in an index of ``index``."""
    asked, stored = kept[query], kept[index]
    plan = [Task("strangers", design.strangers), *tasks]
    head = methods[query].baseline.head
    baseline = LCMem(head, query.partition("@")[0], index.partition("@")[0])
    found = search_tasks(
        lambda rows: Searcher(baseline, torch.cat([stored.base, stored.test])[rows]),
        design,
        plan,
        lambda task: asked.test[task.rows] if task.images is None else asked.copies[task.name],
    )
    measured = Measured(found["strangers"][0], {task.name: Answers(*found[task.name]) for task in tasks})
    weights = judge.weights()
    row = {"query": query, "index": index, "by": baseline.kind, "recall": {}, "auc": {}, "mean": {}}
    for task in tasks:
        one = recalls(judge, measured, task, weights)
        row["recall"][task.name] = {
            str(domain): [share, *interval(one.drawn[domain])] for domain, share in one.share.items()
        }
        row["auc"][task.name] = _auc(task, asked, stored, baseline, design)
        shares = [share for domain, share in one.share.items() if domain != OVERALL]
        row["mean"][task.name] = float(np.mean(shares)), row["auc"][task.name]
    return row


@torch.inference_mode()
def _auc(task: Task, queried: _Kept, stored: _Kept, baseline: LCMem, design: Design) -> float:
    if task.images is None:
        pairs, queries = identity_pairs(design.test, SEED), queried.test
    else:
        pairs, queries = copy_pairs(task.images, task.rows, design.test, SEED), queried.copies[task.name]
    every, where = np.unique(pairs.a, return_inverse=True)  # each stands in several pairs
    asked, scores = baseline.asked(queries[every]), []
    for first in range(0, len(pairs.a), 256):
        some = slice(first, first + 256)
        candidates = baseline.candidates(stored.test[pairs.b[some]][:, None])
        scores.append(compare(asked.of_rows(torch.from_numpy(where[some])), candidates).score[:, 0].cpu())
    per_domain = [
        roc_auc_score(pairs.same[of], torch.cat(scores).numpy()[of])
        for domain in dict.fromkeys(pairs.domains)
        if (of := pairs.domains == domain).any() and 0 < pairs.same[of].sum() < of.sum()
    ]
    return float(np.mean(per_domain))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, required=True, help="a folder outside the repository")
    parser.add_argument("--latents", type=Path, help="cache of a training, whose latents are read")
    parser.add_argument("--head", default="lcmem-small", help="shipped name or folder of the head")
    parser.add_argument(
        "--vae",
        nargs="+",
        required=True,
        type=lambda v: v.split("=", 1),
        metavar="SPACE[@PIXELS]=FOLDER",
        help="the encoder of each space, as the head calls it, and the side that pictures are encoded at",
    )
    parser.add_argument(
        "--with-first",
        action="store_true",
        help="of two different ones, only pairs with the first, which is what an index for all would be built with",
    )
    parser.add_argument(
        "--data", type=Path, nargs="+", help="folders or tables; default the nine sets of LCMEM_DATA"
    )
    add_identity_argument(parser)
    parser.add_argument("--sets", nargs="+", help="data sets that are used; all by default")
    parser.add_argument("--trust-remote-code", action="store_true", help="run custom autoencoder classes")
    parser.add_argument("--resolution", type=int, default=128, help="side of every picture in pixels")
    add_rate_argument(parser)
    parser.add_argument("--draws", type=int, default=500, help="draws of identities for the intervals")
    parser.add_argument("--copies", type=int, default=200, help="test images of a domain that are copied")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
