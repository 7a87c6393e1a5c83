"""``lcmem-filter demo``: see the filter work, offline, on a small pipeline that ships with the package."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

NAME = "demo"
HELP = (
    "See it work: a small pipeline that has memorised part of its training set, without and with the filter"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "--output",
        default="lcmem-demo",
        help="folder of the picture, the index and the images (default: lcmem-demo/)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of what is drawn; other seeds give other counts (default: 0)"
    )


def run(args: argparse.Namespace) -> int:
    """Draw, print what was caught, and write the picture."""
    # what these say is about packages that the pipeline does not use, and prompts that drawing again makes longer
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    from ..demo.run import report, run_demo
    from ..demo.story import draw_story

    output = Path(args.output)
    outcome = run_demo(output, seed=args.seed)
    picture = output / "story.png"
    draw_story(outcome, picture)
    print(report(outcome))
    print(f"\nthe picture    {picture}")
    print(f"try also       lcmem-filter check {output / 'without'} --index {output / 'index'}")
    return 0
