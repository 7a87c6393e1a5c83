"""``lcmem-filter app``: a small web page for trying one image, or one prompt."""

from __future__ import annotations

import argparse
import sys

from ._data import (
    DATA,
    add_column_arguments,
    add_device_argument,
    add_encoder_arguments,
    add_pipeline_arguments,
    open_index,
    open_pipeline,
    open_source,
)

NAME = "app"
HELP = "Try one image, or one prompt, against an index, on a small web page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.description = f"{HELP}. Needs the extra `app`. Ends with an interrupt."
    parser.add_argument("index", metavar="INDEX", help="folder of a calibrated index")
    parser.add_argument(
        "--pipeline", metavar="PIPELINE", help="diffusers folder or hub id, to draw prompts from, filtered"
    )
    parser.add_argument("--training", metavar="DATA", help=f"the indexed images, to show them: {DATA}")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at; whoever reaches another than the default sees training images (default: 127.0.0.1)",
    )
    parser.add_argument("--port", type=int, help="port to listen at (default: a free one from 7860 on)")
    parser.add_argument("--allow-unindexed", action="store_true", help="accept an incomplete index")
    add_pipeline_arguments(parser)
    add_encoder_arguments(parser, required=False)
    add_column_arguments(parser)
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted."""
    from ..app import Drawer, Examiner, build_app, check_gradio, serve
    from ..errors import ConfigurationError

    check_gradio()  # before anything is loaded
    if args.port is not None and not 0 < args.port < 65536:
        raise ConfigurationError(f"--port is between 1 and 65535, got {args.port}")
    training = open_source(args, args.training) if args.training else None
    index, encoder = open_index(args)
    page = build_app(
        Examiner(index, encoder),
        drawer=Drawer(open_pipeline(args), index) if args.pipeline else None,
        training=training,
    )
    address = serve(page, host=args.host, port=args.port, block=False)
    print(f"lcmem-filter: the page is at {address}; interrupt to end", file=sys.stderr)
    page.block_thread()
    return 0
