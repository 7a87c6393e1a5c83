"""``lcmem-filter calibrate``: unseen real images to the threshold of an index."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ._data import (
    DATA,
    add_column_arguments,
    add_device_argument,
    add_encoder_arguments,
    open_index,
    open_source,
    read_ids,
    tell_that_nobody_is_named,
)

if TYPE_CHECKING:
    from ..images import ImageSource
    from ..index import MemorizationIndex

NAME = "calibrate"
HELP = "Set an index's threshold on real images that the pipeline never saw"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.description = (
        f"{HELP}. Exits with 0, with 1 where the threshold misses most of some training images, mirrored and shifted, "
        "or with 2 (error)."
    )
    parser.add_argument("index", metavar="INDEX", help="folder of the index")
    parser.add_argument(
        "held_out", metavar="HELD_OUT", help=f"{DATA}: real images that the pipeline never saw"
    )
    parser.add_argument(
        "--false-rejection-rate",
        type=float,
        default=0.01,
        metavar="RATE",
        help="share of unseen real images that may be rejected (default: 0.01)",
    )
    parser.add_argument(
        "--leave-out",
        metavar="FILE",
        help="ids, one a line, of held-out images that show the same picture or person as one of the index, as you saw",
    )
    parser.add_argument(
        "--pairs",
        metavar="FILE",
        help="write a page (HTML) with the held-out images that are most like training images, to look at and to tick "
        "those that --leave-out is to name",
    )
    parser.add_argument(
        "--training",
        metavar="DATA",
        help="with --pairs: the images that the index was built from, to show them there; read as HELD_OUT is, but for "
        "--where",
    )
    add_encoder_arguments(parser, required=False)
    parser.add_argument("--allow-unindexed", action="store_true", help="accept an incomplete index")
    add_column_arguments(parser)
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Calibrate, and print what came of it as one JSON object; 1 where the threshold misses training images."""
    from ..calibration import LOOKED_AT, calibrate
    from ..errors import ConfigurationError
    from ..types import OWN_FOUND_AT_LEAST, WHY_MISSED

    if args.training and not args.pairs:
        raise ConfigurationError("--training is shown on a page; name it with --pairs FILE")
    index, encoder = open_index(args)
    held_out = open_source(args, args.held_out)
    training = _open_page(args, index) if args.pairs else None
    found = calibrate(
        index,
        held_out,
        false_rejection_rate=args.false_rejection_rate,
        encoder=encoder,
        leave_out=read_ids(args.leave_out) if args.leave_out else (),
    )
    if index.identities.ge(0).any():
        tell_that_nobody_is_named(
            args.held_out, held_out.records, "images of people who are in the index are left out then"
        )
    low, high = found.realised_rate
    left_out = "".join(f"; {count} left out: {why}" for why, count in found.dropped.items())
    print(
        f"lcmem-filter: the threshold rests on {found.n} of {found.given} images{left_out}; "
        f"with so many, a rate of {found.false_rejection_rate:g} comes out between {low:.2%} and {high:.2%}",
        file=sys.stderr,
    )
    if found.own_found and (of := found.own_found[1]):
        above = found.own_found[0]
        print(
            f"lcmem-filter: of {of} training images, mirrored and shifted by a cell of their latents, the threshold "
            f"finds {above}" + (f": {WHY_MISSED}" if found.doubt() else ""),
            file=sys.stderr,
        )
    if found.query_space != index.space:
        print(
            f"lcmem-filter: this is the threshold for latents of {found.query_space}; the index is of {index.space}, "
            "and whether the threshold finds training images, mirrored and shifted, is not tried across spaces",
            file=sys.stderr,
        )
    further = len(found.highest) - LOOKED_AT
    print(
        f"lcmem-filter: these are most like training images, and those from {found.threshold:.3f} on set it; name "
        "those that show the same picture or person as the training image beside them, mirrored or retouched too, in "
        "--leave-out FILE, and calibrate again until there are none:",
        *(f"  {score:.3f}  {image}  {nearest}" for image, nearest, score in found.highest[:LOOKED_AT]),
        *([f"  and {further} more, in `highest` of what is printed"] if further > 0 else []),
        sep="\n",
        file=sys.stderr,
    )
    if args.pairs:
        from ..report import Pictures, write_pairs

        shown = Pictures(held_out.image_of, index.pictures_in(training) if training else None)
        print(f"lcmem-filter: to look at: {write_pairs(found, args.pairs, shown)}", file=sys.stderr)
    summary = {key: value for key, value in found.to_dict().items() if key not in ("scores", "statistic")}
    print(json.dumps({"index": args.index, "n": found.n, **summary}))
    return 1 if found.doubt(OWN_FOUND_AT_LEAST) else 0


def _open_page(args: argparse.Namespace, index: MemorizationIndex) -> ImageSource | None:
    """The images that a page is to show beside held-out ones, if they are named; the page can be written."""
    from ..index.training_set import check_training
    from ..report.pages import check_file

    training = open_source(args, args.training, []) if args.training else None
    if training is not None:
        check_training(index, training)
    check_file(Path(args.pairs))
    return training
