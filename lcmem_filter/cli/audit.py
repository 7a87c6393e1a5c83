"""``lcmem-filter audit``: a finished set of images, examined, with a report that can be handed in."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ._data import (
    DATA,
    EXITS,
    add_column_arguments,
    add_device_argument,
    add_encoder_arguments,
    add_pipeline_arguments,
    add_salt_argument,
    open_encoder,
    open_index,
    open_pipeline,
    open_source,
    read_salt,
)

if TYPE_CHECKING:
    from ..images import ImageSource
    from ..index import MemorizationIndex
    from ..latents import Encoder
    from ..report import Results

NAME = "audit"
HELP = "Examine a finished set of images for copies of training images, and write a report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.description = f"{HELP}. {EXITS}"
    parser.add_argument("images", metavar="IMAGES", help=DATA)
    parser.add_argument("--index", help="folder of a calibrated index")
    parser.add_argument(
        "--training",
        metavar="DATA",
        help="the training data: with --index, the images that it was built from, to show them in the report and to "
        "measure sensitivity on near-duplicates of them; without, what is compared with, indexed on the fly",
    )
    parser.add_argument(
        "--pipeline",
        metavar="PIPELINE",
        help="with --training: diffusers folder or hub id of the pipeline, to draw the near-duplicates image to image "
        "rather than make them in pixels",
    )
    add_pipeline_arguments(parser)
    parser.add_argument(
        "--output",
        required=True,
        help="folder of report.html and report.json; those of an older report there are replaced",
    )
    parser.add_argument(
        "--unseen",
        metavar="DATA",
        help="real images that neither the model nor the calibration saw, to measure specificity",
    )
    parser.add_argument(
        "--allow",
        metavar="FILE",
        help="known false alarms: CSV or JSONL with id, reason and, to allow one file only, sha256",
    )
    parser.add_argument(
        "--false-discovery-rate",
        type=float,
        default=0.1,
        metavar="RATE",
        help="share of false alarms among the images that stand out from the whole set (default: 0.1)",
    )
    add_encoder_arguments(parser, required=False)
    parser.add_argument("--allow-unindexed", action="store_true", help="accept an incomplete index")
    _add_privacy_arguments(parser)
    _add_on_the_fly_arguments(parser)
    _add_data_arguments(parser)
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Examine, write the report, print the verdict as one JSON object."""
    from ..audit import audit_images, read_allow_list
    from ..report import check_output, write_report

    if problem := _misuse(args):
        print(f"lcmem-filter audit: {problem}", file=sys.stderr)
        return 2
    # what is wrong with these should not come to light after hours of work
    allowed = read_allow_list(args.allow) if args.allow else []
    salt = read_salt(args, pictures=not args.no_thumbnails)
    images = _open(args, args.images, args.where)
    training = _open(args, args.training, args.training_where) if args.training else None
    unseen = _open(args, args.unseen, args.unseen_where) if args.unseen else None
    image_to_image = _image_to_image(args) if args.pipeline else None
    check_output(args.output)
    with _index(args) as (index, encoder):
        audit = audit_images(
            images,
            index,
            encoder=encoder,
            training=training,
            unseen=unseen,
            allow_list=allowed,
            false_discovery_rate=args.false_discovery_rate,
            image_to_image=image_to_image,
        )
        written = write_report(
            audit.results,
            args.output,
            pictures=None if args.no_thumbnails else audit.pictures,
            salt=salt,
        )
    print(json.dumps(_summary(audit.results) | {"report": str(written.html), "numbers": str(written.json)}))
    for sentence in (audit.results.verdict, *audit.results.cautions):
        print(f"lcmem-filter: {sentence}", file=sys.stderr)
    return audit.results.exit_code


def _add_privacy_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what the report gives away")
    group.add_argument("--no-thumbnails", action="store_true", help="no pictures in the report")
    add_salt_argument(group)


def _add_on_the_fly_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("without --index (needs --vae as well)")
    group.add_argument("--head", help="name of a shipped head, or else a folder of one")
    group.add_argument("--held-out", metavar="DATA", help="real images that are not in --training")
    group.add_argument(
        "--false-rejection-rate",
        type=float,
        metavar="RATE",
        help="share of unseen real images that may be rejected (default: 0.01)",
    )
    group.add_argument("--resolution", type=int, help="side in pixels that pictures are squashed to")


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    add_column_arguments(parser)
    for name in ("training", "unseen", "held-out"):
        parser.add_argument(
            f"--{name}-where",
            action="append",
            default=[],
            metavar="COLUMN=VALUE",
            help=f"the same for --{name}",
        )


def _misuse(args: argparse.Namespace) -> str:
    """What is wrong with the combination of options; empty where nothing is."""
    fly = {"--head": args.head, "--held-out": args.held_out, "--resolution": args.resolution}
    fly["--false-rejection-rate"] = args.false_rejection_rate
    if args.pipeline and not args.training:
        return "--pipeline draws near-duplicates of training images, so it needs --training DATA"
    if args.dtype != "float32" and not args.pipeline:
        return "--dtype is the pipeline's, so it needs --pipeline PIPELINE"
    for name in ("training", "unseen", "held_out"):
        if getattr(args, f"{name}_where") and not getattr(args, name):
            option = name.replace("_", "-")
            return f"--{option}-where needs --{option} DATA"
    rates = {
        "--false-discovery-rate": args.false_discovery_rate,
        "--false-rejection-rate": args.false_rejection_rate,
    }
    for name, rate in rates.items():
        if rate is not None and not 0 < rate < 1:
            return f"{name} lies between 0 and 1, got {rate:g}"
    if args.index:
        if given := [name for name, value in fly.items() if value is not None]:
            return f"{', '.join(given)} cannot be given with --index, which has its own; leave it out"
        return ""
    if not args.training:
        return "give --index INDEX, or --training DATA to have that indexed on the fly"
    needed = {"--vae": args.vae, "--head": args.head, "--held-out": args.held_out}
    if missing := [name for name, value in needed.items() if value is None]:
        return f"without --index, {', '.join(missing)} must be given too"
    return ""


def _open(args: argparse.Namespace, path: str, where: list[str]) -> ImageSource:
    """The images at ``path``. A column that is named is that of the training data and other real images that are
    tables: folders have none but an attribute of DICOM files, and the examined images need not have it. Nor need the
    unseen ones say whose they are, which does not matter."""
    from ..images import columns_of, is_table

    others = [data for data in (args.training, args.unseen, args.held_out) if data and data != path]
    named = {name: getattr(args, name) for name in ("image_column", "identity_column", "id_column")}
    free = others and path not in (args.training, args.held_out)
    if free and args.identity_column and args.identity_column not in columns_of(path):
        named["identity_column"] = None  # a column, or an attribute, of the training and held-out images
    tables = [data for data in others if is_table(data)]
    if any(named.values()) and tables:
        if not is_table(path):
            whose = named["identity_column"]
            of_table = any(whose in columns_of(data) for data in tables)
            named = {**dict.fromkeys(named), "identity_column": None if of_table else whose}
        elif path == args.images:
            own = columns_of(path)
            named = {name: column if column in own else None for name, column in named.items()}
    return open_source(argparse.Namespace(**{**vars(args), **named}), path, where)


@contextmanager
def _index(args: argparse.Namespace) -> Iterator[tuple[MemorizationIndex, Encoder]]:
    """The index that was named, or one made for the occasion; and the encoder that leads to it."""
    from ..audit import temporary_index
    from ..head import LCMemHead

    if args.index:
        yield open_index(args)
        return
    encoder = open_encoder(args)
    rate = 0.01 if args.false_rejection_rate is None else args.false_rejection_rate
    with temporary_index(
        _open(args, args.training, args.training_where),
        _open(args, args.held_out, args.held_out_where),
        encoder,
        LCMemHead.from_pretrained(args.head),
        false_rejection_rate=rate,
        resolution=args.resolution,
        allow_unindexed=args.allow_unindexed,
    ) as index:
        yield index, encoder


def _image_to_image(args: argparse.Namespace) -> Any:
    """The pipeline that was named, as one that draws from pictures."""
    from diffusers import AutoPipelineForImage2Image

    from ..errors import UnsupportedPipelineError

    pipe = open_pipeline(args)
    try:
        drawing = AutoPipelineForImage2Image.from_pipe(pipe)
    except ValueError as error:
        raise UnsupportedPipelineError(
            f"no pipeline of diffusers draws from pictures with the parts of {type(pipe).__name__}: {error}; "
            "leave out --pipeline"
        ) from error
    drawing.set_progress_bar_config(disable=True)
    return drawing


def _summary(results: Results) -> dict[str, object]:
    found = results.to_dict()
    discovered = results.false_discovery
    return {
        "verdict": results.verdict,
        "cautions": results.cautions,
        "exit_code": results.exit_code,
        "counts": found["counts"],
        "rate": found["rate"],
        "chance": found["chance"],
        "false_discovery": discovered and discovered.conclusion,
        "discoveries": len(discovered.discoveries) if discovered else 0,
        "duplicate_groups": len(results.duplicates or ()),
    }
