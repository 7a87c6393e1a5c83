"""``lcmem-filter generate``: a job, from prompts to a folder of judged images with manifest and report."""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import TYPE_CHECKING, Any

from ._data import (
    add_column_arguments,
    add_device_argument,
    add_pipeline_arguments,
    add_salt_argument,
    open_pipeline,
    open_source,
    read_salt,
    refuse,
)

if TYPE_CHECKING:
    from ..generation import Request

NAME = "generate"
HELP = "Generate a set of images, none of them memorised, with a manifest and a report"

COLUMNS = ("image_column", "identity_column", "id_column", "where")
"""Options that say how training images are read."""

UNITS = ("", "K", "M", "G", "T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.description = (
        f"{HELP}. Interrupted, the same command goes on and ends with the same bytes; `accelerate launch -m "
        "lcmem_filter generate ...`, on CPUs `torchrun --nproc-per-node 2 -m lcmem_filter generate ...`, shares the "
        "work. Exits with 0 (done), 1 (done, and --on-memorized flag delivered "
        "matches) or 2 (error, stopped, nothing delivered, not all could be judged, or the threshold misses most "
        "training images themselves); launchers end with 1 in place of 2."
    )
    parser.add_argument("pipeline", metavar="PIPELINE", help="diffusers folder or hub id")
    parser.add_argument("--index", required=True, help="folder of a calibrated index of its training set")
    parser.add_argument("--output", required=True, help="folder of the images, the manifest and the report")
    _add_prompts(parser)
    _add_call(parser)
    _add_policy(parser)
    _add_limits(parser)
    _add_report(parser)
    add_pipeline_arguments(parser)
    parser.add_argument("--threads", type=int, help="CPU threads of each process")
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run custom classes that lie in the pipeline's folder",
    )
    parser.add_argument("--allow-unindexed", action="store_true", help="accept an incomplete index")
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Generate, and print what came of it as one JSON object."""
    from ..generation import generate
    from ..index import MemorizationIndex
    from ..processes import this_process

    # what is wrong with these should not come to light after the weights are loaded
    if not args.training:
        refuse(
            [name for name in COLUMNS if getattr(args, name)], "without --training DATA no images are read"
        )
    requests = _requests(args)
    budget = _bytes(args.disk_budget) if args.disk_budget else None
    rungs, options, salt = _rungs(args), _options(args), read_salt(args, pictures=args.thumbnails)
    training = open_source(args, args.training) if args.training else None
    index = MemorizationIndex.load(args.index, allow_unindexed=args.allow_unindexed)
    pipeline = open_pipeline(args)
    _check_prompts(args, pipeline)
    done = generate(
        pipeline,
        requests,
        index,
        args.output,
        options=options,
        seed=args.seed,
        batch_size=args.batch_size,
        on_memorized=args.on_memorized,
        max_resamples=args.max_resamples,
        **rungs,
        on_exhausted=args.on_exhausted,
        early_stop=args.early_stop,
        stop_rejection_rate=args.stop_rejection_rate,
        disk_budget=budget,
        threads=args.threads,
        training=training,
        thumbnails=args.thumbnails,
        salt=salt,
    )
    if done.results is None or not this_process().is_main_process:
        return 0
    tally = done.tally
    summary = {
        "output": str(done.folder),
        "asked_for": tally.drawn,
        "delivered": tally.drawn - tally.withheld,
        "withheld": tally.withheld,
        "matched_at_first": tally.hit,
        "drawn_again": tally.redrawn,
        "verdict": done.results.verdict,
        "report": str(done.folder / "report" / "report.html"),
    }
    print(json.dumps(summary))
    for sentence in (done.results.verdict, *done.results.cautions):
        print(f"lcmem-filter: {sentence}", file=sys.stderr)
    return done.results.exit_code


def _add_prompts(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is drawn")
    group.add_argument(
        "--prompts",
        metavar="FILE",
        help="text file, one prompt a line, or a CSV, TSV, JSONL or Parquet table",
    )
    group.add_argument(
        "--count",
        type=int,
        help="images of each prompt, times its own count in a table; without --prompts, of an unconditional pipeline",
    )
    for name, default in (("prompt", "prompt"), ("label", "label"), ("seed", "seed"), ("count", "count")):
        group.add_argument(
            f"--{name}-column", metavar="COLUMN", help=f"column of a table (default: {default})"
        )
    group.add_argument("--seed", type=int, default=0, help="of the whole job (default: 0)")
    group.add_argument("--batch-size", type=int, default=8, help="images drawn in one call (default: 8)")


def _add_call(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the pipeline's call (default: the pipeline's own)")
    group.add_argument("--steps", type=int, help="denoising steps")
    group.add_argument("--guidance-scale", type=float)
    group.add_argument("--negative-prompt")
    group.add_argument("--height", type=int, help="in pixels")
    group.add_argument("--width", type=int, help="in pixels")


def _add_policy(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("memorised images")
    group.add_argument(
        "--on-memorized",
        choices=["resample", "reject", "flag"],
        default="resample",
        help="draw again, withhold, or deliver and mark (default: resample)",
    )
    group.add_argument(
        "--max-resamples", type=int, default=4, metavar="N", help="how often to draw again (default: 4)"
    )
    group.add_argument(
        "--rungs", metavar="NAMES", help="ways of drawing again, in order, separated by commas"
    )
    group.add_argument(
        "--on-exhausted",
        choices=["drop", "raise"],
        default="drop",
        help="when every attempt was memorised: leave the image out, or end the job (default: drop)",
    )
    group.add_argument(
        "--early-stop",
        metavar="FILE",
        help="stop denoising batches that are certainly copies, by thresholds that EarlyStop.fit(...).save wrote",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("when to stop")
    group.add_argument(
        "--stop-rejection-rate",
        type=float,
        default=0.5,
        metavar="RATE",
        help="stop once surely more than this share of first draws match; 1 never stops (default: 0.5)",
    )
    group.add_argument("--disk-budget", metavar="SIZE", help="what the images may take, such as 20GB")


def _add_report(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the report")
    group.add_argument("--training", metavar="DATA", help="the indexed images, to show them beside matches")
    group.add_argument(
        "--thumbnails",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="show pictures (default: yes)",
    )
    add_salt_argument(group)
    add_column_arguments(group)


def _requests(args: argparse.Namespace) -> list[Request]:
    from dataclasses import replace

    from ..errors import DataError
    from ..generation import Request, read_requests

    columns = {
        f"{name}_column": getattr(args, f"{name}_column") for name in ("prompt", "label", "seed", "count")
    }
    if args.prompts is None:
        if args.count is None:
            raise DataError(
                "nothing to generate: give --prompts FILE, or --count N for an unconditional pipeline"
            )
        if given := [name for name, value in columns.items() if value]:
            raise DataError(f"--{given[0].replace('_', '-')} needs --prompts FILE")
        return [Request(count=args.count)]
    requests = read_requests(args.prompts, **columns)
    if args.count is None:
        return requests
    return [replace(request, count=request.count * args.count) for request in requests]


def _check_prompts(args: argparse.Namespace, pipeline: Any) -> None:
    from ..errors import DataError
    from ..generation.drawing import takes_prompts

    if args.prompts is None and takes_prompts(pipeline):
        raise DataError(
            f"{args.pipeline} draws from prompts, got none; give --prompts FILE (in a table an empty prompt will do)"
        )


def _rungs(args: argparse.Namespace) -> dict[str, Any]:
    from ..errors import DataError
    from ..pipeline.rungs import RUNGS

    if args.on_memorized == "resample" and args.max_resamples < 1:
        raise DataError(
            f"--max-resamples is at least 1, got {args.max_resamples}; to draw nothing again: --on-memorized reject"
        )
    if args.early_stop and args.on_memorized == "flag":
        raise DataError(
            "--early-stop needs --on-memorized reject or resample: what is stopped cannot be delivered"
        )
    if args.rungs is None:
        return {}
    names = args.rungs.split(",")
    if unknown := [name for name in names if name not in RUNGS]:
        raise DataError(f"no rung {unknown[0]!r}; there are {', '.join(RUNGS)}")
    return {"rungs": names}


def _options(args: argparse.Namespace) -> dict[str, Any]:
    from ..errors import DataError

    for name in ("steps", "height", "width"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise DataError(f"--{name} is at least 1, got {value}")
    given = {
        "num_inference_steps": args.steps,
        "guidance_scale": args.guidance_scale,
        "negative_prompt": args.negative_prompt,
        "height": args.height,
        "width": args.width,
    }
    return {name: value for name, value in given.items() if value is not None}


def _bytes(text: str) -> int:
    from ..errors import DataError

    found = re.fullmatch(r"([\d.]+)\s*(?:([KMGT])(i?)B?|B)", text.strip(), re.IGNORECASE)
    try:
        if found:
            return int(
                float(found[1]) * (1024 if found[3] else 1000) ** UNITS.index((found[2] or "").upper())
            )
    except ValueError:
        pass
    raise DataError(f"a disk budget is a number with a unit, got {text!r}; for example --disk-budget 20GB")
