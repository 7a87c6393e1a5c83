"""``lcmem-filter convert``: a checkpoint of the paper's layout to a head."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

NAME = "convert"
HELP = "Convert a checkpoint of the paper's own layout to a head"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help=".pt, .pth or .safetensors file of a state dict"
    )
    parser.add_argument("--output", required=True, help="folder of the head")
    parser.add_argument(
        "--space", default="sd", help="name of the latent space it was trained in (default: sd)"
    )
    parser.add_argument(
        "--grid", type=int, default=64, help="side of the latents it was trained on (default: 64)"
    )
    parser.add_argument(
        "--vae", help="diffusers folder or hub id of a VAE of that space, so that the head knows it"
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run a custom class that lies in the VAE's folder"
    )


def run(args: argparse.Namespace) -> int:
    """Convert, save, and print what the head is as one JSON object."""
    from ..convert import convert_checkpoint
    from ..errors import ArtifactError
    from ..head import LCMemHead
    from ..latents import load_encoder
    from ..training.checkpoint import Checkpoints

    if (Path(args.output) / LCMemHead.config_name).exists():
        raise ArtifactError(f"{args.output} already holds a head or model; give another --output")
    Checkpoints(Path(args.output)).check_makeable()
    vae = load_encoder(args.vae, trust_remote_code=args.trust_remote_code).vae if args.vae else None
    head = convert_checkpoint(args.checkpoint, space=args.space, grid=args.grid, vae=vae)
    head.save_pretrained(args.output)
    if vae is None:
        print(
            "without --vae the head cannot recognise its latent space; convert it with --vae to use it",
            file=sys.stderr,
        )
    print(json.dumps({"head": args.output, "spaces": list(head.spaces), "fingerprint": head.fingerprint}))
    return 0
