"""What every benchmark on these images is told on its command line, and what it opens by that."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from data import Images, data_files, open_splits, vae_folder
from keep import Keeper, grid_for

from lcmem_filter.errors import LatentSpaceError, LcmemFilterError
from lcmem_filter.head import LCMemHead
from lcmem_filter.latents import Encoder, load_encoder


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Images, head and encoder, and where what is computed is kept."""
    parser.add_argument("--cache", type=Path, required=True, help="a folder outside the repository")
    parser.add_argument(
        "--latents", type=Path, help="cache of a training, whose latents are read; default CACHE/latents"
    )
    parser.add_argument("--head", default="lcmem-small", help="shipped name or folder of the head")
    parser.add_argument("--space", default="sd", help="latent space of the autoencoder, as the head calls it")
    parser.add_argument("--vae", type=Path, help="autoencoder; default LCMEM_VAE")
    parser.add_argument(
        "--data", type=Path, nargs="+", help="folders or tables; default the nine sets of LCMEM_DATA"
    )
    add_identity_argument(parser)
    parser.add_argument("--resolution", type=positive, default=128, help="side of every picture in pixels")


def add_identity_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--identity-column",
        help="column of identities; default identity or id of tables that have one, else each image is its own",
    )


def add_rate_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rate", type=fraction, default=0.01, help="share of unseen images that may be rejected"
    )


def open_data(arguments: argparse.Namespace) -> tuple[dict[str, Images], Keeper]:
    """Images of each split, and what reads or computes their latents."""
    splits = open_splits(arguments.data or data_files(), arguments.identity_column)
    encoder = load_encoder(arguments.vae or vae_folder())
    latents = arguments.latents or arguments.cache / "latents"
    head = LCMemHead.from_pretrained(arguments.head)
    check_space(head, arguments.space, encoder)
    grid = grid_for(head, arguments.space, encoder, arguments.resolution)
    return splits, Keeper(arguments.cache, latents, encoder, arguments.resolution, grid)


def check_space(head: LCMemHead, space: str, encoder: Encoder) -> None:
    """Whether an encoder is of the latent space that the head calls so.

    Raises:
        LatentSpaceError: it is of another, or of none.
    """
    if (found := head.identify_space(encoder.vae).space) != space:
        raise LatentSpaceError(
            f"{encoder.source.path} encodes into {found!r}, not into {space!r}; give --space {found}"
        )


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def fraction(text: str) -> float:
    """A number between 0 and 1, for argparse."""
    if not 0 < (value := float(text)) < 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, got {text}")
    return value


def name_and_path(text: str) -> tuple[str, str]:
    """``NAME=PATH``, for argparse."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"is NAME=PATH, got {text!r}")
    return name, path


def run_command(main: Callable[[], None]) -> None:
    """Run a benchmark; what the package refuses ends it with one line and the status of ``lcmem-filter``."""
    try:
        main()
    except LcmemFilterError as error:
        print(f"{Path(sys.argv[0]).name}: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
