"""From which likeness on training images are taken for one identity's, where an index does not name it.

    python benchmarks/ablations/identities.py --cache CACHE --latents LATENTS --heads lcmem-reid lcmem-xray
    python benchmarks/ablations/identities.py --cache CACHE --latents LATENTS --heads lcmem-reid \
        --index-share 0.1 --index-draws 3 --output benchmarks/results/ablations-identities-small.json
    python benchmarks/ablations/identities.py --cache CACHE --latents LATENTS --copies 400 \
        --data nih_cxr128.parquet nih_cxr256.parquet --heads lcmem-xray lcmem-reid lcmem-large lcmem-small \
        --likeness 0.5 0.55 0.575 0.6 0.65 0.7 0.75 --output benchmarks/results/ablations-identities-xrays.json

Further images of a candidate's identity are its runner-up and its background, and hide it, unless the index names
identities. A head may conclude them instead, from how alike the most alike candidate and others are (``same_identity``
of ``LCMemHead``). Index, copies and figure are those of ``benchmarks/ablations``, on validation images. The second
measures in smaller indexes, several drawn in turn, whose figures are averaged, the third in one of X-rays alone. Writes
``benchmarks/results/ablations-identities.json``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from run import RESULTS, SHORTLISTS, found_by, shortlists

from lcmem_filter import standing
from lcmem_filter.baselines.lcmem import LCMem
from lcmem_filter.head import LCMemHead
from lcmem_filter.matching import alike_under_warps
from lcmem_filter.standing import background_of, repeats, stand_out, taken_together, told_apart
from lcmem_filter.verification import (
    BACKGROUND_UNDER_WARPS,
    RUNNER_UP_UNDER_WARPS,
    TAKEN_TOGETHER,
)

from arguments import add_data_arguments, add_rate_argument, run_command  # isort: skip  # `run` puts their folder on the path
from figures import OVERALL, Judge, Recalls, interval, recalls  # isort: skip
from protocol import Answers, Design, Measured, Task  # isort: skip
from provenance import provenance  # isort: skip
from tasks import SEED  # isort: skip

NEVER, TOLD, HALF = "never", "identities told", "half of the identities told"


@dataclass(frozen=True)
class Found:
    """Of Q queries and their K candidates.

    Attributes:
        alike: (Q, K) as the filter finds them, in the better pose.
        repeated: (Q, K), as of ``standing.repeats``.
        right: (Q, K): candidates that are to be found.
        identity: (Q, K): numbers of the candidates' identities.
        places: (Q, M): the most alike candidates, the first one first.
        to_first: (Q, M): how alike these are to the first.
    """

    alike: torch.Tensor
    repeated: torch.Tensor
    right: torch.Tensor
    identity: torch.Tensor
    places: torch.Tensor
    to_first: torch.Tensor


def main() -> None:
    arguments = _parse()
    table: dict[str, Any] = {}
    for name in arguments.heads or [arguments.head]:
        arguments.head = name
        in_turn = partial(compared_in_turn, arguments.index_share, arguments.index_draws)
        judge, tasks, keeper, found = found_by(in_turn, arguments)
        judge = replace(judge, design=drawn(judge.design, arguments.index_share, 0))
        own = LCMemHead.from_pretrained(name).config.same_identity
        table[name] = evaluated(judge, found, tasks, arguments.likeness, own)
        times = f", {arguments.index_draws} times with other training images" * (arguments.index_draws > 1)
        results = {
            "about": f"{judge.about()}{times}; what is gained over an index in which no identity is named or "
            "concluded, with 95 % intervals by identity.",
            "sets": [source.name for source in judge.design.base.sources],
            "heads": table,
            **provenance(arguments, judge.design, keeper),
        }
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


@torch.inference_mode()
def compared(
    baseline: LCMem, every: torch.Tensor, queries: torch.Tensor, task: Task, design: Design
) -> Found:
    """Compare each query with its candidates, and the most alike of these with the first."""
    parts: dict[int, tuple[torch.Tensor, ...]] = {}
    identities = design.told
    for query, kept, chosen, right in shortlists(baseline, every, queries, task, design, SHORTLISTS):
        asked, candidates = baseline.asked(kept), baseline.candidates(every[chosen][None])
        assert asked.parts is not None and candidates.parts is not None
        laid_over = torch.cat([alike_under_warps(pose, candidates.parts) for pose in asked.parts])
        cosine = torch.einsum("pbd,bkd->pk", asked.embedding, candidates.embedding)
        alike = standing.likeness(cosine, laid_over, asked.embedding_weight).amax(0)
        repeated = repeats(candidates.embedding)[0]
        most = alike.masked_fill(repeated, -torch.inf).topk(TAKEN_TOGETHER).indices
        among = candidates.parts[0, most]
        to_first = alike_under_warps(among[:1], among[None])[0]
        identity = torch.from_numpy(identities[chosen])
        parts[query] = (alike, repeated, torch.from_numpy(right), identity, most, to_first)
    return Found(*(torch.stack(one) for one in zip(*(parts[query] for query in sorted(parts)), strict=True)))


def compared_in_turn(
    share: float,
    draws: int,
    baseline: LCMem,
    every: torch.Tensor,
    queries: torch.Tensor,
    task: Task,
    design: Design,
) -> list[Found]:
    """The same in several indexes, in each of which a share of the training identities stands."""
    return [compared(baseline, every, queries, task, drawn(design, share, draw)) for draw in range(draws)]


def drawn(design: Design, share: float, draw: int) -> Design:
    """The images of a share of the training identities stand in its indexes."""
    people, inverse = np.unique(design.base.identities.astype(str), return_inverse=True)
    chosen = np.random.default_rng((SEED, draw)).permutation(len(people)) < round(share * len(people))
    return replace(design, indexed=np.flatnonzero(chosen[inverse]))


def told(found: Found, share: float) -> torch.Tensor:
    """Numbers (Q, K) of identities, of which about that share is known."""
    known = np.random.default_rng(SEED).random(max(int(found.identity.max()), 0) + 1) < share
    unknown = -1 - torch.arange(found.alike.shape[1]).expand_as(found.identity)
    among = torch.from_numpy(known)[found.identity.clamp_min(0)] & (found.identity >= 0)
    return found.identity.where(among, unknown)


def concluded(found: Found, likeness: float, identities: torch.Tensor) -> torch.Tensor:
    """Numbers (Q, K) of ``identities``, in which candidates as alike as that to the first are taken together."""
    return taken_together(identities, found.places, found.to_first >= likeness)


def scores(found: Found, identities: torch.Tensor) -> torch.Tensor:
    """Of each candidate (Q, K)."""
    apart = told_apart(identities, BACKGROUND_UNDER_WARPS.stop)
    background = background_of(found.alike, found.repeated, BACKGROUND_UNDER_WARPS, apart)
    return stand_out(found.alike, background, found.repeated, RUNNER_UP_UNDER_WARPS, apart)


def evaluated(
    judge: Judge, found: dict[str, list[Found]], tasks: list[Task], likeness: list[float], own: float
) -> dict[str, Any]:
    """For each likeness, the head's ``own`` where half of the identities are told, and each task: recall of each
    domain, and what is gained, with its interval; means over the indexes that its queries were compared in."""
    weights = judge.weights()
    ways: dict[str, tuple[float, float | None]] = {NEVER: (0.0, None), TOLD: (1.0, None), HALF: (0.5, None)}
    ways |= {str(one): (0.0, one) for one in likeness}
    if own:
        ways[f"{HALF}, others from {own:g}"] = (0.5, own)

    def measured(share: float, least: float | None, place: int) -> Measured:
        answers = {}
        for task, ones in found.items():
            one = ones[place]
            identities = told(one, share)
            of = scores(one, identities if least is None else concluded(one, least, identities))
            answers[task] = Answers(
                of.amax(1).numpy(), of.masked_fill(~one.right, -torch.inf).amax(1).numpy()
            )
        return Measured(answers["strangers"].top, {task.name: answers[task.name] for task in tasks})

    variants = {
        name: [measured(share, least, place) for place in range(len(found["strangers"]))]
        for name, (share, least) in ways.items()
    }
    table: dict[str, Any] = {"different identities": _quantiles(found), **{name: {} for name in variants}}
    for task in tasks:
        of = {
            name: _mean([recalls(judge, one, task, weights) for one in ones])
            for name, ones in variants.items()
        }
        for name, one in of.items():
            overall = OVERALL if OVERALL in one.share else next(iter(one.share))
            table[name][task.name] = {
                "recall": {str(domain): share for domain, share in one.share.items()},
                "gained": one.share[overall] - of[NEVER].share[overall],
                "gained_interval": interval(one.drawn[overall] - of[NEVER].drawn[overall]),
            }
    return table


def _mean(ones: list[Recalls]) -> Recalls:
    """Recall of the same queries in several indexes."""
    return Recalls(
        {domain: float(np.mean([one.share[domain] for one in ones])) for domain in ones[0].share},
        {domain: float(np.mean([one.rejected[domain] for one in ones])) for domain in ones[0].rejected},
        {domain: np.mean([one.drawn[domain] for one in ones], axis=0) for domain in ones[0].drawn},
        ones[0].n,
    )


def _quantiles(found: dict[str, list[Found]]) -> dict[str, float]:
    """How alike candidates of another identity are to the first one, in the queries that set thresholds."""
    others = []
    for one in found["strangers"]:
        identity = one.identity.gather(1, one.places)
        others.append(one.to_first[identity != identity[:, :1]])
    return {str(share): float(torch.cat(others).quantile(share)) for share in (0.5, 0.95, 0.99)}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data_arguments(parser)
    add_rate_argument(parser)
    parser.add_argument("--heads", nargs="+", help="several, in place of --head")
    parser.add_argument(
        "--likeness", nargs="+", type=float, default=[0.5, 0.55, 0.6, 0.65, 0.7, 0.75], help="what is tried"
    )
    parser.add_argument(
        "--index-share",
        type=float,
        default=1.0,
        help="share of the training identities in the index (default: 1)",
    )
    parser.add_argument(
        "--index-draws", type=int, default=1, help="how often this share is drawn (default: 1)"
    )
    parser.add_argument("--copies", type=int, default=150, help="images of a domain that are copied, at most")
    parser.add_argument("--draws", type=int, default=500, help="draws of identities for the intervals")
    parser.add_argument("--output", type=Path, default=RESULTS.with_name("ablations-identities.json"))
    arguments = parser.parse_args()
    if not 0 < arguments.index_share <= 1:
        parser.error(f"--index-share must be above 0 and at most 1, got {arguments.index_share}")
    if arguments.index_draws < 1:
        parser.error(f"--index-draws must be at least 1, got {arguments.index_draws}")
    return arguments


if __name__ == "__main__":
    run_command(main)
