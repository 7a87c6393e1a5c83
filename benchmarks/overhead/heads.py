"""What shipped heads take to judge a batch: the same latents and indexed images, in turns, in one process.

    python benchmarks/overhead/heads.py --cache CACHE/heads --device cpu

Writes ``benchmarks/results/overhead-heads.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from run import RESULTS, SEED, clock_of, index_of, provenance, vae_folder

from lcmem_filter import MemorizationFilter, load_encoder

from overhead import share  # isort: skip  # `run` puts its folder on the path


def main() -> None:
    arguments = _parse()
    device = torch.device(arguments.device)
    judges = {}
    for head in arguments.heads:
        own = {**vars(arguments), "head": head, "cache": arguments.cache / Path(head).name}
        judges[head] = MemorizationFilter(index_of(argparse.Namespace(**own), device))
    index = judges[arguments.heads[0]].index
    side = load_encoder(arguments.vae).side_at(arguments.resolution)
    draw = torch.Generator().manual_seed(SEED)
    shape = (arguments.batch, index.head.config.spaces[index.space], side, side)
    seconds: dict[str, list[float]] = {head: [] for head in judges}
    clock = clock_of(device)
    for number in range(-1, arguments.repeats):  # the first round warms up
        latents = torch.randn(shape, generator=draw).to(device)
        for head in sorted(judges, key=lambda head: (number + arguments.heads.index(head)) % len(judges)):
            since = clock()
            judges[head].judge(latents)
            if number >= 0:
                seconds[head].append(clock() - since)
    results = {
        "about": f"wall time to judge {arguments.batch} latents of {side}x{side} in an index of {len(index):,} images",
        **provenance(device),
        "seconds": {head: round(statistics.median(values), 5) for head, values in seconds.items()},
        "extra": {
            head: share(values, seconds[arguments.heads[0]])
            for head, values in seconds.items()
            if head != arguments.heads[0]
        },
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vae", type=Path, help="autoencoder of Stable Diffusion's space; default LCMEM_VAE")
    parser.add_argument(
        "--data", type=Path, help="table of the indexes' images; default skin lesions of LCMEM_DATA"
    )
    parser.add_argument(
        "--cache", type=Path, required=True, help="folder of the indexes, outside the repository"
    )
    parser.add_argument(
        "--heads", nargs="+", default=["lcmem-small", "lcmem-reid"], help="names or folders, the first is 1"
    )
    parser.add_argument(
        "--resolution", type=int, default=128, help="that images are indexed at (default: 128)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=4, help="latents at once (default: 4)")
    parser.add_argument("--repeats", type=int, default=40, help="rounds (default: 40)")
    parser.add_argument("--output", type=Path, default=RESULTS.with_name("overhead-heads.json"))
    arguments = parser.parse_args()
    arguments.vae = arguments.vae or vae_folder()
    return arguments


if __name__ == "__main__":
    main()
