"""What shipped heads take to judge a batch: the same pictures and indexed images, in turns, in one process; where
nothing of the index was compared before, and where the pictures' neighbours were.

    python benchmarks/overhead/heads.py --cache CACHE/heads --device cpu

Writes ``benchmarks/results/overhead-heads.json``.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from run import RESULTS, clock_of, index_of, parser_of, provenance, split_of, vae_folder, write

from lcmem_filter import MemorizationFilter, load_encoder
from lcmem_filter.encoding import encode_batches
from lcmem_filter.index.recent import Recent

from overhead import in_turns, shares  # isort: skip  # `run` puts its folder on the path


def main() -> None:
    arguments = _parse()
    device = torch.device(arguments.device)
    judges = {}
    for head in arguments.heads:
        own = {**vars(arguments), "head": head, "cache": arguments.cache / Path(head).name}
        judges[head] = MemorizationFilter(index_of(argparse.Namespace(**own), device))
    index = judges[arguments.heads[0]].index
    held_out = split_of(arguments, "validation")
    encoder = load_encoder(arguments.vae).to(device)
    rows = range(arguments.batch)
    _, encoded = next(encode_batches(held_out, rows, encoder, arguments.resolution, len(rows)))
    latents = encoded.latents
    clock = clock_of(device)

    def first(judge: MemorizationFilter) -> Callable[[int], float]:
        def judged(number: int) -> float:
            judge.index.recent = Recent()
            since = clock()
            judge.judge(latents)
            return since

        return judged

    def again(judge: MemorizationFilter) -> Callable[[int], None]:
        def judged(number: int) -> None:
            judge.judge(latents)

        return judged

    ways: dict[str, Callable[[int], float | None]] = {}
    for head, judge in judges.items():
        ways |= {head: first(judge), f"{head}, their neighbours compared before": again(judge)}
    seconds = in_turns(ways, arguments.repeats, clock)
    results = {
        "about": f"wall time to judge {arguments.batch} pictures in an index of {len(index):,} images",
        **provenance(device),
        "seconds": {head: round(statistics.median(values), 5) for head, values in seconds.items()},
        "extra": shares(seconds),
    }
    write(arguments.output, results)


def _parse() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument(
        "--heads",
        nargs="+",
        default=["lcmem-small", "lcmem-reid", "lcmem-large", "lcmem-xray"],
        help="names or folders; the others are compared with the first",
    )
    parser.add_argument("--batch", type=int, default=4, help="latents at once (default: 4)")
    parser.add_argument("--repeats", type=int, default=40, help="rounds (default: 40)")
    parser.add_argument("--output", type=Path, default=RESULTS.with_name("overhead-heads.json"))
    arguments = parser.parse_args()
    arguments.vae = arguments.vae or vae_folder()
    return arguments


if __name__ == "__main__":
    main()
