"""``lcmem-filter check``: finished images against a calibrated index."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ._data import (
    DATA,
    EXITS,
    add_column_arguments,
    add_device_argument,
    add_encoder_arguments,
    open_index,
    open_source,
)

NAME = "check"
HELP = "Look for copies of training images among finished images"

CLEAN, MATCHES, NOT_CHECKED = 0, 1, 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.description = f"{HELP}. {EXITS}"
    parser.add_argument("images", metavar="IMAGES", help=DATA)
    parser.add_argument("--index", required=True, help="folder of a calibrated index")
    add_encoder_arguments(parser, required=False)
    parser.add_argument("--allow-unindexed", action="store_true", help="accept an incomplete index")
    add_column_arguments(parser)
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Print one decision an image; exit with 0 (all clean), 1 (matches found) or 2 (not all could be checked, or by
    a threshold that misses most training images themselves)."""
    from ..calibration import judge_images
    from ..filter import MemorizationFilter
    from ..types import OWN_FOUND_AT_LEAST

    index, encoder = open_index(args)
    source = open_source(args, args.images)
    space = index.head.identify_space(encoder.vae).told()
    judge = MemorizationFilter(index, space=space)
    counts = {"clean": 0, "matches": 0, "not checked": 0}
    for one in judge_images(index, source, range(len(source)), encoder, space, description="checking"):
        line: dict[str, Any] = {"id": source.records[one.row].id}
        if one.scored is None:
            counts["not checked"] += 1
            line |= {"accepted": None, "reason": one.problem}
        else:
            decision = judge.decide(one.scored)
            counts["clean" if decision.accepted else "matches"] += 1
            found = decision.to_dict()
            line |= {key: found[key] for key in ("accepted", "score", "p_value", "threshold", "neighbours")}
        print(json.dumps(line))
    print("lcmem-filter: " + ", ".join(f"{count} {name}" for name, count in counts.items()), file=sys.stderr)
    if counts["matches"]:
        return MATCHES
    if doubt := judge.calibration.doubt(OWN_FOUND_AT_LEAST):
        print(
            f"lcmem-filter: that there is no match says little. {doubt} Calibrate it again.", file=sys.stderr
        )
    return NOT_CHECKED if counts["not checked"] or doubt else CLEAN
