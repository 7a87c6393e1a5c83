"""``lcmem-filter index``: build one from the training set, embed one anew, show what one holds."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from ._data import (
    DATA,
    add_column_arguments,
    add_device_argument,
    add_encoder_arguments,
    device_of,
    open_encoder,
    open_source,
    tell_of_classes,
    tell_that_nobody_is_named,
    tell_where_column_may_be_of_classes,
)

if TYPE_CHECKING:
    from ..images import ImageSource
    from ..index import MemorizationIndex
    from ..types import Calibration

NAME = "index"
HELP = "Build the index of a training set, embed one anew with another head, or show what one holds"
SHARD_ROWS = 256
"""As of ``index.build``, which takes seconds to import."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sub-commands of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    about = (
        "Encode and embed every training image; an interrupted build goes on where it stopped, in steps of "
        f"{SHARD_ROWS} images"
    )
    build = actions.add_parser("build", help=about, description=about)
    build.add_argument("data", metavar="DATA", help=f"{DATA}: everything that the pipeline was trained on")
    build.add_argument("--head", required=True, help="name of a shipped head, or else a folder of one")
    build.add_argument("--output", required=True, help="folder of the index")
    add_encoder_arguments(build, required=True)
    build.add_argument(
        "--resolution",
        type=int,
        help="side in pixels that pictures are squashed to; give the size that the pipeline generates "
        "(default: what the VAE's configuration names, else 512)",
    )
    build.add_argument(
        "--no-latents",
        action="store_true",
        help="keep embeddings only: latents can be decoded into the images, but make the filter more sensitive",
    )
    build.add_argument(
        "--reuse",
        metavar="INDEX",
        help="an index by the same VAE, head and resolution, as of the training set before it grew: pictures that it "
        "holds are not encoded again",
    )
    add_column_arguments(build)
    add_device_argument(build)
    about = (
        "Embed an index's images with another head, from the latents that it keeps; calibrate it afterwards"
    )
    reembed = actions.add_parser("reembed", help=about, description=about)
    reembed.add_argument("index", metavar="INDEX", help="folder of an index that keeps latents")
    reembed.add_argument("--head", required=True, help="name of a shipped head, or else a folder of one")
    reembed.add_argument("--output", required=True, help="folder of the new index")
    add_device_argument(reembed)
    about = "Verify an index's checksums, and print what it was built with and which thresholds it has"
    show = actions.add_parser("show", help=about, description=about)
    show.add_argument("index", metavar="INDEX", help="folder of an index")


def run(args: argparse.Namespace) -> int:
    """Print what the index holds as one JSON object; 2 where a build could not read images."""
    from ..index import MemorizationIndex

    if args.action == "show":
        index = MemorizationIndex.load(args.index, allow_unindexed=True)
        print(json.dumps(_summary(args.index, index) | _made_with(index)))
        return 0
    return _make(args)


def _make(args: argparse.Namespace) -> int:
    from ..head import LCMemHead
    from ..index import MemorizationIndex
    from ..index.build import default_resolution
    from ..processes import this_process

    head = LCMemHead.from_pretrained(args.head)
    source: ImageSource | None = None
    if args.action == "reembed":
        old = MemorizationIndex.load(args.index, allow_unindexed=True)
        index = old.reembed(head.to(device_of(args)), args.output)
    else:
        source, encoder = open_source(args, args.data), open_encoder(args)
        if args.resolution is None and this_process().is_main_process:
            print(
                f"lcmem-filter: pictures are encoded at {default_resolution(encoder)} px; where the pipeline generates "
                "another size, give that (--resolution)",
                file=sys.stderr,
            )
        index = MemorizationIndex.build(
            source,
            encoder,
            head,
            args.output,
            resolution=args.resolution,
            keep_latents=not args.no_latents,
            reuse=MemorizationIndex.load(args.reuse, allow_unindexed=True) if args.reuse else None,
        )
    if not this_process().is_main_process:
        return 2 if index.unreadable else 0
    print(json.dumps(_summary(args.output, index)))
    if index.classes:
        tell_of_classes("lcmem-filter", index.classes, "pictures")
    if source is not None:
        if not source.named_by_folders:
            pictures = [index.sha256_of(one.id) for one in index.records]
            identities = [one.identity for one in index.records]
            tell_where_column_may_be_of_classes("lcmem-filter", identities, pictures)
        if args.identity_column is None and not _tell_where_headers_disagree(args.data, index):
            _tell_what_deep_folders_are_taken_for(args.data, index)
        tell_that_nobody_is_named(args.data, index.records, "more is found then")
    if not index.unreadable:
        return 0
    print(
        f"lcmem-filter: {len(index.unreadable)} images could not be read, so copies of them would pass; the index is "
        "incomplete and is used only with allow_unindexed=True, on the command line --allow-unindexed",
        file=sys.stderr,
    )
    return 2


def _summary(folder: str, index: MemorizationIndex) -> dict[str, Any]:
    return {
        "index": folder,
        "images": len(index),
        "identities": index.identities[index.identities >= 0].unique().numel(),
        "unreadable": index.unreadable,
        "space": index.space,
        "resolution": index.resolution,
        "latents": index.has_latents,
    }


def _made_with(index: MemorizationIndex) -> dict[str, Any]:
    from dataclasses import asdict

    from ..head import LCMemHead
    from ..shipped import shipped_heads

    shipped = {LCMemHead.from_pretrained(name).fingerprint: name for name in shipped_heads()}
    return {
        "head": shipped.get(index.head.fingerprint),
        "head_fingerprint": index.head.fingerprint,
        "encoder": asdict(index.encoder_source),
        "fingerprint": index.fingerprint,
        "example_id": index.records[0].id,
        "calibrations": {space: _threshold(one) for space, one in index.calibrations.items()},
    }


def _threshold(found: Calibration) -> dict[str, Any]:
    """As ``calibrate`` prints it, without images; not ``usable`` where another version's score set it, or where it
    misses most training images themselves."""
    from ..types import OWN_FOUND_AT_LEAST
    from ..verification import STATISTIC

    left_out = ("scores", "highest", "statistic")
    told = {key: value for key, value in found.to_dict().items() if key not in left_out}
    usable = found.statistic == STATISTIC and not found.doubt(OWN_FOUND_AT_LEAST)
    return {"n": found.n, **told, "usable": usable}


def _tell_where_headers_disagree(data: str, index: MemorizationIndex) -> bool:
    """Whether DICOM files of a folder say otherwise whose they are than its subfolders do, and then what to do."""
    from collections import defaultdict
    from pathlib import Path

    from ..dicom import DICOM_SUFFIXES, attribute_of
    from ..images import is_table

    if is_table(data) or not any(record.identity for record in index.records):
        return False
    patients, folders = defaultdict(set), defaultdict(set)
    for row, record in enumerate(index.records):
        if Path(record.id).suffix.lower() not in (*DICOM_SUFFIXES, ""):
            continue
        if stated := attribute_of(Path(data, record.id), "PatientID"):
            known = record.identity is not None and record.identity not in index.classes
            folder = record.identity if known else row
            patients[stated].add(folder)
            folders[folder].add(stated)
    several = sum(len(those) > 1 for those in folders.values())
    apart = sum(len(those) > 1 for those in patients.values())
    if len(patients) < 2 or not several + apart:  # one patient everywhere: anonymised
        return False
    print(
        f"lcmem-filter: DICOM files of {data} say otherwise whose they are than its subfolders: {several} subfolders "
        f"hold images of several patients, and images of {apart} patients are told apart by subfolders; where the "
        "files are right, build the index with --identity-column PatientID",
        file=sys.stderr,
    )
    return True


def _tell_what_deep_folders_are_taken_for(data: str, index: MemorizationIndex) -> None:
    """In a folder of identities the first folder names them, however deep pictures lie."""
    from ..images import is_table

    if is_table(data):
        return
    numbers = index.identities.tolist()
    known = (record for record, number in zip(index.records, numbers, strict=True) if number >= 0)
    if deep := [record.identity for record in known if record.id.count("/") > 1]:
        print(
            f"lcmem-filter: {len(deep)} images of {data} lie in folders within folders; their first folder, as "
            f"{deep[0]!r}, is taken for the identity. Where it is not, give a table with a column identity, or name "
            "the attribute of DICOM files that says it (--identity-column PatientID)",
            file=sys.stderr,
        )
