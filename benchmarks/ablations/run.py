"""What each part of the filter's score is worth: one thing is changed at a time, on validation images.

    python benchmarks/ablations/run.py --cache CACHE --latents LATENTS
    python benchmarks/ablations/run.py --cache CACHE --latents LATENTS --head lcmem-reid --output FILE

The index holds training images and half of the validation identities, the other half are unseen; copies and figure are
those of ``benchmarks/detection``, whose test images are not touched. The filter here does not compare latents as they
lie (``without.py``). Every candidate is compared once in every way, and each variant combines what was found otherwise.
Defaults of the score are chosen here. Writes ``benchmarks/results/ablations.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "detection"))

from arguments import add_data_arguments, add_rate_argument, run_command
from figures import OVERALL, Judge, interval, recalls
from keep import Keeper
from methods import open_methods
from protocol import Answers, Design, Measured, Task
from provenance import provenance
from tasks import main_tasks, open_validation

from lcmem_filter.baselines.lcmem import LCMem
from lcmem_filter.described import Query
from lcmem_filter.head import LCMemHead
from lcmem_filter.index.backends import make_backend
from lcmem_filter.matching import alike_under_warps
from lcmem_filter.shortlist import MARGINS, SHORTLIST, candidates_of_each, middles
from lcmem_filter.standing import (
    BACKGROUND,
    EMBEDDING_WEIGHT,
    RUNNER_UP_WEIGHT,
    SAME_IMAGE,
    background_of,
    local_similarity,
    stand_out,
    told_apart,
)
from lcmem_filter.verification import BACKGROUND_UNDER_WARPS, RUNNER_UP_UNDER_WARPS

F = TypeVar("F")
RESULTS = Path(__file__).resolve().parents[1] / "results" / "ablations.json"
SHORTLIST_WITH_MIDDLES = candidates_of_each(2 + len(MARGINS))
SHORTLISTS = (SHORTLIST, SHORTLIST, *(0 for _ in MARGINS))
"""What a sample proposes as it is, upside down, and by its middles, with a head that does not ask by these."""

DEPTHS = (2 * SHORTLIST, 2 * SHORTLIST, *(SHORTLIST_WITH_MIDDLES for _ in MARGINS))
"""Candidates that are compared, of each way in which a sample asks: for variants with a longer shortlist too."""


@dataclass(frozen=True)
class Variant:
    """A score.

    Attributes:
        weights: Of the embeddings' cosine, tokens as they lie, descriptors under warps, and the same deformed too
            (within the filter's own shortlist; elsewhere they count as they are); ``None``: as the filter has them.
        background: Ranks of the neighbours that are the background, without the second; ``None``: there is none.
        runner_up: Weight of how far a candidate stands out from the next best one.
        shortlist: Candidates of each way in which a sample asks: as it is, upside down, by its middles.
        upside_down: Whether the sample is compared upside down too.
        told: Whether the index names identities.
    """

    weights: tuple[float, float, float, float] | None = None
    background: tuple[int, int] | None = (BACKGROUND_UNDER_WARPS.start, BACKGROUND_UNDER_WARPS.stop)
    runner_up: float = RUNNER_UP_UNDER_WARPS
    shortlist: tuple[int, ...] = SHORTLISTS
    upside_down: bool = True
    told: bool = False


FILTER = Variant()
AS_THEY_LIE = (BACKGROUND.start, BACKGROUND.stop)
MIXED = (EMBEDDING_WEIGHT, 1 - EMBEDDING_WEIGHT, 0.0, 0.0)
DEFORMED = (0.0, 0.0, 0.0, 1.0)
VARIANTS = {
    "the filter": FILTER,
    "descriptors alone": replace(FILTER, weights=(0.0, 0.0, 1.0, 0.0)),
    "descriptors as part of the likeness, embeddings a tenth": replace(FILTER, weights=(0.1, 0.0, 0.9, 0.0)),
    "descriptors as part of the likeness, embeddings a fifth": replace(FILTER, weights=(0.2, 0.0, 0.8, 0.0)),
    "descriptors as part of the likeness, embeddings a third": replace(
        FILTER, weights=(1 / 3, 0.0, 2 / 3, 0.0)
    ),
    "descriptors as part of the likeness, embeddings half": replace(FILTER, weights=(0.5, 0.0, 0.5, 0.0)),
    "descriptors as part of the likeness, tokens a fifth": replace(FILTER, weights=(0.0, 0.2, 0.8, 0.0)),
    "embeddings and tokens as they lie": replace(
        FILTER, weights=MIXED, background=AS_THEY_LIE, runner_up=RUNNER_UP_WEIGHT
    ),
    "tokens as they lie": replace(FILTER, weights=(0.0, 1.0, 0.0, 0.0), background=AS_THEY_LIE),
    "embeddings alone": replace(FILTER, weights=(1.0, 0.0, 0.0, 0.0), background=AS_THEY_LIE),
    "likeness itself: no background, no runner-up": replace(FILTER, background=None, runner_up=0.0),
    "no background": replace(FILTER, background=None),
    "background of ranks 2 to 6": replace(FILTER, background=(1, 6)),
    "background of ranks 3 to 10": replace(FILTER, background=(2, 10)),
    "background of ranks 6 to 20": replace(FILTER, background=(5, 20)),
    "no runner-up": replace(FILTER, runner_up=0.0),
    "runner-up weighs 0.15": replace(FILTER, runner_up=0.15),
    "runner-up weighs 0.3": replace(FILTER, runner_up=0.3),
    "runner-up weighs 0.7": replace(FILTER, runner_up=0.7),
    "shortlist of 5": replace(FILTER, shortlist=(5, 5, 0, 0)),
    "shortlist of 10": replace(FILTER, shortlist=(10, 10, 0, 0)),
    "shortlist of 50": replace(FILTER, shortlist=(50, 50, 0, 0)),
    "by its middles too, shortlist of 15": replace(FILTER, shortlist=(SHORTLIST_WITH_MIDDLES,) * len(DEPTHS)),
    "not upside down": replace(FILTER, shortlist=(SHORTLIST, 0, 0, 0), upside_down=False),
    "descriptors deformed": replace(FILTER, weights=DEFORMED),
    "descriptors deformed and not, in equal parts": replace(FILTER, weights=(0.0, 0.0, 0.5, 0.5)),
    "identities told": replace(FILTER, told=True),
    "identities told, embeddings a tenth": replace(FILTER, told=True, weights=(0.1, 0.0, 0.9, 0.0)),
    "identities told, descriptors deformed": replace(FILTER, told=True, weights=DEFORMED),
}


@dataclass(frozen=True)
class Found:
    """What Q queries and their K candidates have in common, in the order of ``DEPTHS``.

    Attributes:
        alike: (4, Q, 2, K): what ``Variant.weights`` are of, in both poses.
        same: (Q, K, K): candidates that repeat each other.
        right: (Q, K): candidates that are to be found.
        identity: (Q, K): numbers of the candidates' identities.
    """

    alike: torch.Tensor
    same: torch.Tensor
    right: torch.Tensor
    identity: torch.Tensor


def main() -> None:
    arguments = _parse()
    judge, tasks, keeper, found = found_by(compared, arguments)
    results = {
        "about": f"{judge.about()}; what a variant gains over the filter with 95 % intervals by identity.",
        "variants": evaluated(judge, found, tasks, variants_of(LCMemHead.from_pretrained(arguments.head))),
        **provenance(arguments, judge.design, keeper),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")


def variants_of(head: LCMemHead) -> dict[str, Variant]:
    """``VARIANTS``, less those that weigh tokens where ``head`` has none, weighted as the filter does for it."""
    share = float(head.config.embedding_weight)
    usual = (share, 0.0, 1 - share, 0.0)
    every = {name: replace(one, weights=one.weights or usual) for name, one in VARIANTS.items()}
    return {name: one for name, one in every.items() if head.has_tokens or not one.weights[1]}


def found_by(
    compared: Callable[[LCMem, torch.Tensor, torch.Tensor, Task, Design], F], arguments: argparse.Namespace
) -> tuple[Judge, list[Task], Keeper, dict[str, F]]:
    """Who decides, what is asked of validation images, what read them, and what ``compared`` finds for each task."""
    _, keeper, judge = open_validation(arguments)
    design = judge.design
    (method,), _ = open_methods(["lcmem_not_in_place"], arguments.head, arguments.space, {}, False)
    if not method.baseline.head.has_descriptors(arguments.space):
        raise SystemExit(
            f"{arguments.head} has no descriptors of {arguments.space}; train it with --stages 1,2,3"
        )
    if method.baseline.kind != "descriptors":
        raise SystemExit(
            f"{arguments.head} compares {method.baseline.kind}; variants are of one that compares descriptors"
        )
    tasks = main_tasks(design, keeper)
    test = keeper.kept(method, design.test)
    every = torch.cat([keeper.kept(method, design.base), test])
    found = {}
    for task in (Task("strangers", design.strangers), *tasks):
        queries = test[task.rows] if task.images is None else keeper.kept(method, task.images)
        found[task.name] = compared(method.baseline, every, queries, task, design)
        print(f"{arguments.head}, {task.name}: {len(queries)} queries", flush=True)
    return judge, tasks, keeper, found


def shortlists(
    baseline: LCMem,
    every: torch.Tensor,
    queries: torch.Tensor,
    task: Task,
    design: Design,
    depths: Sequence[int],
) -> Iterator[tuple[int, torch.Tensor, np.ndarray, np.ndarray]]:
    """Each query's place, what is kept of it (1, D), rows of its candidates, ``depths`` of each way of asking, and
    which of these are right."""
    for half in (0, 1):
        rows = design.index_rows(half)
        side = half if task.name != "strangers" else 1 - half
        backend = make_backend("exact", baseline.key(every[rows]))
        for query in np.flatnonzero(design.half[task.rows] == side):
            kept = queries[query : query + 1]
            own = len(design.base) + task.rows[query]
            places = []
            for way, depth in zip(_asking(baseline, kept), depths, strict=True):
                if not depth:
                    continue
                most = min(depth + task.itself, len(rows))
                found = rows[backend.propose(way, most)[0].numpy()]
                places.append(found[found != own][: most - 1] if task.itself else found)
            chosen = np.concatenate(places)
            right = design.identity[chosen] == design.identity[own] if task.itself else chosen == own
            yield int(query), kept, chosen, right


@torch.inference_mode()
def _asking(baseline: LCMem, kept: torch.Tensor) -> torch.Tensor:
    """What is kept of a query (1, D) to the embeddings that it asks by, (W, 1, E), its middles' too with any head."""
    canonical = baseline.parts(kept, baseline.space, "latents")
    within = [baseline.head.embed(one, baseline.space) for one in middles(canonical)]
    return torch.stack([*baseline.asked(kept).embedding, *within]).cpu()


@torch.inference_mode()
def compared(
    baseline: LCMem, every: torch.Tensor, queries: torch.Tensor, task: Task, design: Design
) -> Found:
    """Compare each query with its candidates in every way."""
    identities = design.told
    parts = {
        query: _one(baseline, kept, every[chosen], right, identities[chosen])
        for query, kept, chosen, right in shortlists(baseline, every, queries, task, design, DEPTHS)
    }
    ordered = [parts[query] for query in sorted(parts)]
    return Found(
        torch.stack([one.alike for one in ordered], 1),
        torch.stack([one.same for one in ordered]),
        torch.stack([one.right for one in ordered]),
        torch.stack([one.identity for one in ordered]),
    )


def _one(
    baseline: LCMem, kept: torch.Tensor, stored: torch.Tensor, right: np.ndarray, identities: np.ndarray
) -> Found:
    """A query (1, D) and its candidates (K, D)."""
    asked, candidates = baseline.asked(kept), baseline.candidates(stored[None])
    assert asked.parts is not None and candidates.parts is not None
    usual = _shortlisted(SHORTLISTS)  # of them the filter moves the nearest few closer
    alike = torch.empty(2, len(stored))
    for some in (usual, ~usual):
        if some.any():
            alike[:, some] = torch.cat(
                [alike_under_warps(pose, candidates.parts[:, some]) for pose in asked.parts]
            )
    deformed = alike.clone()
    deformed[:, usual] = torch.cat(
        [alike_under_warps(pose, candidates.parts[:, usual], deformed=True) for pose in asked.parts]
    )
    ways = (
        torch.einsum("pbd,bkd->pk", asked.embedding, candidates.embedding),
        _tokens_alike(baseline, kept, stored),
        alike,
        deformed,
    )
    same = candidates.embedding[0] @ candidates.embedding[0].T >= SAME_IMAGE
    return Found(torch.stack(ways), same, torch.from_numpy(right), torch.from_numpy(identities))


def _tokens_alike(baseline: LCMem, kept: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    """How well tokens of a query find those of its candidates, in both poses (2, K); 0 where the head has none."""
    if not baseline.head.has_tokens:
        return torch.zeros(2, len(stored))
    space = baseline.space
    tokens = Query.of(baseline.head, baseline.parts(kept, space, "latents"), space, "tokens").parts
    assert tokens is not None
    indexed = baseline.parts(stored[None], space, "tokens")
    return torch.cat([local_similarity(pose, indexed) for pose in tokens])


def _shortlisted(shortlist: Sequence[int]) -> torch.Tensor:
    """Which candidates are among the first of their way of asking."""
    return torch.cat([torch.arange(depth) < most for depth, most in zip(DEPTHS, shortlist, strict=True)])


def scores(found: Found, variant: Variant) -> torch.Tensor:
    """Of each candidate (Q, K), ``-inf`` where the variant does not have it on its shortlist."""
    kept = _shortlisted(variant.shortlist)
    assert variant.weights is not None  # as ``variants_of`` gives them
    weights = torch.tensor(variant.weights)
    alike = (found.alike * (weights / weights.sum())[:, None, None, None]).sum(0)
    alike = (alike.amax(1) if variant.upside_down else alike[:, 0])[:, kept].clamp_max(1)
    repeated = found.same[:, kept][:, :, kept].tril(-1).any(2)
    identities = None
    if variant.told:
        assert variant.background is not None
        identities = told_apart(found.identity[:, kept], variant.background[1])
    background = torch.zeros(len(alike), 1)
    if variant.background is not None:
        background = background_of(alike, repeated, slice(*variant.background), identities)
    standing = stand_out(alike, background, repeated, variant.runner_up, identities)
    result = torch.full(found.right.shape, -torch.inf)
    result[:, kept] = standing
    return result


def evaluated(
    judge: Judge, found: dict[str, Found], tasks: list[Task], variants: dict[str, Variant]
) -> dict[str, Any]:
    """For each variant and task: recall of each domain, and what is gained over the filter, with its interval."""
    weights = judge.weights()
    measured = {name: _measured(found, tasks, variant) for name, variant in variants.items()}
    table: dict[str, Any] = {name: {} for name in variants}
    for task in tasks:
        of = {name: recalls(judge, one, task, weights) for name, one in measured.items()}
        reference = of["the filter"]
        for name, one in of.items():
            overall = OVERALL if OVERALL in one.share else next(iter(one.share))
            gained = one.drawn[overall] - reference.drawn[overall]
            table[name][task.name] = {
                "recall": {str(domain): share for domain, share in one.share.items()},
                "gained": one.share[overall] - reference.share[overall],
                "gained_interval": interval(gained),
            }
    return table


def _measured(found: dict[str, Found], tasks: list[Task], variant: Variant) -> Measured:
    answers = {}
    for name, one in found.items():
        of = scores(one, variant)
        own = of.masked_fill(~one.right, -torch.inf).amax(1)
        answers[name] = Answers(of.amax(1).numpy(), own.numpy())
    return Measured(answers["strangers"].top, {task.name: answers[task.name] for task in tasks})


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data_arguments(parser)
    add_rate_argument(parser)
    parser.add_argument("--copies", type=int, default=150, help="images of a domain that are copied, at most")
    parser.add_argument("--draws", type=int, default=500, help="draws of identities for the intervals")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
