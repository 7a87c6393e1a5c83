"""What shipped heads take to judge a batch: the same latents and indexed images, in turns, in one process.

    python benchmarks/overhead/heads.py --cache CACHE/heads --device cpu

Writes ``benchmarks/results/overhead-heads.json``.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from run import RESULTS, clock_of, drawn_latents, index_of, parser_of, provenance, vae_folder, write

from lcmem_filter import MemorizationFilter, load_encoder

from overhead import in_turns, shares  # isort: skip  # `run` puts its folder on the path


def main() -> None:
    arguments = _parse()
    device = torch.device(arguments.device)
    judges = {}
    for head in arguments.heads:
        own = {**vars(arguments), "head": head, "cache": arguments.cache / Path(head).name}
        judges[head] = MemorizationFilter(index_of(argparse.Namespace(**own), device))
    index = judges[arguments.heads[0]].index
    side = load_encoder(arguments.vae).side_at(arguments.resolution)
    latents = drawn_latents(index, arguments.batch, side)

    def judging(judge: MemorizationFilter) -> Callable[[int], None]:
        def judged(number: int) -> None:
            judge.judge(latents)

        return judged

    seconds = in_turns(
        {head: judging(judge) for head, judge in judges.items()}, arguments.repeats, clock_of(device)
    )
    results = {
        "about": f"wall time to judge {arguments.batch} latents of {side}x{side} in an index of {len(index):,} images",
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
        default=["lcmem-small", "lcmem-reid", "lcmem-xray"],
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
