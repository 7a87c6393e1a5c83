"""``lcmem-filter train --baseline``: the siamese baselines, which the head is compared with."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

from ._data import open_source, open_training, refuse

if TYPE_CHECKING:
    from ..baselines.siamese import Method

NAMES = ("packhaeuser", "dar", "dar-unsupervised")

_FOR_HEADS = (
    "vae",
    "trust_remote_code",
    "space",
    "cache",
    "validation",
    "validation_where",
    "initial",
    "add_space",
    "add_halving",
    "reference_vae",
    "leave_out",
)


def add_baseline_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that choose a baseline in place of a head."""
    group = parser.add_argument_group("baselines")
    group.add_argument(
        "--baseline",
        choices=NAMES,
        help="train this siamese network on pictures instead of a head: no VAE, no validation, the last "
        "weights; benchmarks/detection compares it with heads",
    )
    group.add_argument(
        "--workers", type=int, default=0, help="with --baseline: processes that make pictures (default: 0)"
    )


def train_baseline(args: argparse.Namespace, recipe: dict[str, Any]) -> int:
    """Train, save, and print what came of it as one JSON object."""
    from ..baselines.siamese_training import SiameseConfig, train_siamese
    from ..latents import weights_sha256

    known = {field.name for field in fields(SiameseConfig)}
    foreign = [name for name in _FOR_HEADS if getattr(args, name)] + sorted(set(recipe) - known)
    if args.stages:
        foreign.append("stages")
    refuse(foreign, "--baseline trains no head")
    if args.baseline == "packhaeuser":
        refuse(["temperature"] if "temperature" in recipe else [], "packhaeuser's loss has none")
    config = SiameseConfig(cast("Method", args.baseline.replace("-", "_")), **recipe)
    if args.baseline == "dar-unsupervised":  # asks for no identities
        sources = [open_source(args, one, args.where) for one in args.data]
    else:
        sources = open_training(args, args.data, args.where)
    network = train_siamese(sources, args.output, config, terms=args.terms, workers=args.workers)
    print(
        json.dumps(
            {"baseline": args.output, "method": network.method, "fingerprint": weights_sha256(network)}
        )
    )
    return 0
