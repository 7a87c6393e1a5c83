"""``lcmem-filter train``: images and a VAE to a head, or images to a baseline."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ._baseline import add_baseline_arguments, train_baseline
from ._data import (
    DATA,
    add_column_arguments,
    add_encoder_arguments,
    open_source,
    open_training,
    read_ids,
    refuse,
)
from ._recipe import RECIPE

if TYPE_CHECKING:
    from ..head import LCMemHead
    from ..images import ImageSource
    from ..latents import Encoder
    from ..training import AddHalvingConfig, AddSpaceConfig, TrainingConfig

NAME = "train"
HELP = "Train a head on images, some of which share an identity"
NOT_OF_STAGE_3 = {"batch_pairs": (1, 2), "half_formed": (2,), "hard_negatives": (2,)}
"""Options in whose place stage 3 has its own."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.description = (
        f"{HELP}. It tells, at every validation, the shares of copies and of images of an identity that are found at "
        "1 % false rejection, and how alike a stranger and its nearest training image are in the median; the head of "
        "the best validation is kept."
    )
    parser.add_argument(
        "data",
        nargs="+",
        metavar="DATA",
        help=f"{DATA}; each is a set of its own, but identities of one name are one in all of them",
    )
    add_encoder_arguments(parser, required=False, default=" (needed unless --baseline is given)")
    parser.add_argument(
        "--output",
        required=True,
        help="folder of the head; an interrupted run goes on from there",
    )
    parser.add_argument(
        "--space",
        help="name of the VAE's latent space (default: the name that --initial or a shipped head knows it by, else the "
        "name of its folder)",
    )
    parser.add_argument(
        "--cache", help="folder of encoded latents, to be used by other runs too (default: in --output)"
    )
    parser.add_argument(
        "--validation", nargs="+", metavar="DATA", help="images of identities that are not trained on"
    )
    parser.add_argument(
        "--leave-out",
        metavar="FILE",
        help="ids, one a line (SET/ID where there are several sets), of validation images that show a picture of the "
        "training images, as you saw",
    )
    add_column_arguments(parser, ids=False)
    parser.add_argument(
        "--validation-where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="validate on these rows, of --validation or else of DATA",
    )
    parser.add_argument(
        "--stages",
        type=_stages,
        default=(),
        metavar="1,2,3",
        help="1: identity consistency; 2: strong augmentation of one side, which finds transformed copies; 3: what "
        "lies where, which tells a copy from images that are merely alike; or some of them (default: 1)",
    )
    parser.add_argument(
        "--initial",
        metavar="HEAD",
        help="folder or shipped name of a head to go on from; stages 1 and 2 keep of it what is of the VAE's space, "
        "unless --keep-spaces is given",
    )
    parser.add_argument(
        "--add-space",
        action="store_true",
        help="teach --initial the latent space of --vae, on unlabelled images, everything else frozen",
    )
    parser.add_argument(
        "--add-halving",
        action="store_true",
        help="teach --initial, which knows the latent space of --vae, what latents of two and more times the size "
        "show, on unlabelled images, everything else frozen",
    )
    parser.add_argument(
        "--reference-vae", metavar="VAE", help="with --add-space: an encoder of a space that the head knows"
    )
    parser.add_argument("--terms", default="", help="terms of the data, for the model card")
    add_baseline_arguments(parser)
    recipe = parser.add_argument_group("recipe")
    for name, options in RECIPE.items():
        recipe.add_argument(f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, **options)


def run(args: argparse.Namespace) -> int:
    """Train, save, and print what was reached as one JSON object."""
    from ..latents import load_encoder
    from ..processes import this_process

    if args.baseline:
        return train_baseline(args, _given(args))
    if not args.vae:
        print("lcmem-filter train: a head needs --vae VAE; a baseline needs --baseline", file=sys.stderr)
        return 2
    if args.add_space != bool(args.reference_vae) or (args.add_space and not args.initial):
        print(
            "lcmem-filter train: --add-space needs --initial HEAD and --reference-vae VAE, and they need it",
            file=sys.stderr,
        )
        return 2
    if args.add_halving and (args.add_space or not args.initial):
        print("lcmem-filter train: --add-halving needs --initial HEAD, and not --add-space", file=sys.stderr)
        return 2
    config = _config(args)
    encoder = load_encoder(args.vae, trust_remote_code=args.trust_remote_code)
    if args.add_space:
        head = _add_space(args, config, encoder)
    else:
        head = (_add_halving if args.add_halving else _train)(args, config, encoder)
    if this_process().is_main_process:
        print(json.dumps({"head": args.output, "spaces": list(head.spaces), "fingerprint": head.fingerprint}))
    return 0


def _config(args: argparse.Namespace) -> Any:
    """The recipe that the options say, in which those that do not apply, to a stem or to a head, are refused."""
    from ..training import AddHalvingConfig, AddSpaceConfig, TrainingConfig
    from ..training.config import OF_STAGES

    given = _given(args)
    if "further_resolutions" in given:
        given["further_resolutions"] = tuple(given["further_resolutions"])
    recipe: Any = TrainingConfig
    why, others = "there is no reference without --add-space", []
    if args.add_space:
        recipe, why, others = AddSpaceConfig, "--add-space trains a stem alone", ["stages"]
    elif args.add_halving:
        recipe, why = AddHalvingConfig, "--add-halving trains a halving network alone"
        others = ["stages", "space"]
    foreign = sorted(set(given) - {field.name for field in fields(recipe)})
    refuse(foreign + [name for name in others if getattr(args, name)], why)
    refuse(["workers"] if args.workers else [], "there are no workers without --baseline")
    stages = args.stages or (1,)
    for stage in (1, 2, 3) if recipe is TrainingConfig else ():
        of_stage = [name for name in given if name.startswith(f"stage{stage}_")]
        of_stage += [name for name in ("steps", "learning_rate") if stage == 1 and name in given]
        refuse(of_stage if stage not in stages else [], f"stage {stage} is not asked for (--stages)")
    if recipe is TrainingConfig:
        users_of = {**OF_STAGES, **NOT_OF_STAGE_3}
        unused = [name for name, users in users_of.items() if name in given and not {*users} & {*stages}]
        refuse(unused, f"stage {' and '.join(map(str, stages))} does not go by all of them (--stages)")
    return recipe(**given)


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The options of the recipe that were given."""
    return {name: getattr(args, name) for name in RECIPE if hasattr(args, name)}


def _train(args: argparse.Namespace, config: TrainingConfig, encoder: Encoder) -> LCMemHead:
    from ..head import LCMemHead
    from ..training import train_head, training_record

    initial = LCMemHead.from_pretrained(args.initial) if args.initial else None
    return train_head(
        _open(args, args.data, args.where),
        {args.space or _name_of_space(encoder, initial): encoder},
        args.output,
        config,
        stages=args.stages or (1,),
        initial=initial,
        validation=_validation(args),
        cache=args.cache,
        terms=args.terms,
        record=training_record(args.initial) if args.initial else None,
        leave_out=read_ids(args.leave_out) if args.leave_out else (),
    )


def _add_space(args: argparse.Namespace, config: AddSpaceConfig, encoder: Encoder) -> LCMemHead:
    from ..head import LCMemHead
    from ..latents import load_encoder
    from ..training import add_space

    initial = LCMemHead.from_pretrained(args.initial)
    known = _name_of_space(encoder, None)
    return add_space(
        initial,
        args.space or (_named_after_folder(encoder) if known in initial.spaces else known),
        encoder,
        load_encoder(args.reference_vae, trust_remote_code=args.trust_remote_code),
        _open(args, args.data, args.where),
        args.output,
        config,
        **_beside(args),
    )


def _add_halving(args: argparse.Namespace, config: AddHalvingConfig, encoder: Encoder) -> LCMemHead:
    from ..head import LCMemHead
    from ..training import add_halving

    return add_halving(
        LCMemHead.from_pretrained(args.initial),
        encoder,
        _open(args, args.data, args.where),
        args.output,
        config,
        **_beside(args),
    )


def _beside(args: argparse.Namespace) -> dict[str, Any]:
    """What ``add_space`` and ``add_halving`` are told beside data and recipe."""
    from ..training import training_record

    return {
        "validation": _validation(args) or (),
        "cache": args.cache,
        "terms": args.terms,
        "record": training_record(args.initial),
        "leave_out": read_ids(args.leave_out) if args.leave_out else (),
    }


def _validation(args: argparse.Namespace) -> list[ImageSource] | None:
    if not (args.validation or args.validation_where):
        return None
    return _open(args, args.validation or args.data, args.validation_where)


def _stages(text: str) -> tuple[int, ...]:
    chosen = text.split(",")
    if not set(chosen) <= {"1", "2", "3"} or chosen != sorted(set(chosen)):
        raise argparse.ArgumentTypeError(
            f"stages are 1, 2 and 3, or some of them in that order, got {text!r}"
        )
    return tuple(int(one) for one in chosen)


def _open(args: argparse.Namespace, data: list[str], where: list[str]) -> list[ImageSource]:
    if args.add_space or args.add_halving:
        return [open_source(args, one, where) for one in data]
    return open_training(args, data, where)


def _name_of_space(encoder: Encoder, initial: LCMemHead | None) -> str:
    """The latent space's name in the head to go on from or in a shipped one, or one made of the name of the VAE's
    folder."""
    from ..errors import LatentSpaceError
    from ..head import LCMemHead
    from ..shipped import shipped_heads

    for known in (initial, *shipped_heads()):
        if known is None:
            continue
        try:
            head = known if isinstance(known, LCMemHead) else LCMemHead.from_pretrained(known)
            return head.identify_space(encoder.vae).space
        except LatentSpaceError:
            continue
    return _named_after_folder(encoder)


def _named_after_folder(encoder: Encoder) -> str:
    from pathlib import Path

    return "".join(c if c.isalnum() else "_" for c in Path(encoder.source.path).name) or "latents"
