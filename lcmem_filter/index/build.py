"""Images to an index folder, shard by shard; an interrupted build goes on where it stopped."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm.auto import tqdm

from ..encoding import encode_batches
from ..errors import ArtifactError, CorruptArtifactError, EmptyDataError
from ..head import LCMemHead
from ..images import CANNOT_BE_READ, ImageSource, can_be_read
from ..latents import Encoder
from . import folder as files
from .receipts import Shard, all_newest, described, free_folder, is_of, newest
from .reuse import check_reusable, held_by

if TYPE_CHECKING:
    from .core import MemorizationIndex

SHARD_ROWS = 256
DEFAULT_RESOLUTION = 512
"""Side in pixels where the encoder's configuration names none."""
CHECKED_LATER = ("source", "images")
"""Of a plan, what every shard is compared by before it is put in force: copies of the images may be of other times."""


@dataclass(frozen=True)
class Build:
    """One build: what goes in, and where it goes.

    Attributes:
        space: Latent space of ``encoder``, as ``head`` calls it.
        reuse: An index that holds some of the pictures.
    """

    source: ImageSource
    encoder: Encoder
    head: LCMemHead
    output: Path
    space: str
    resolution: int
    keep_latents: bool
    reuse: MemorizationIndex | None = None

    @property
    def shards(self) -> range:
        """First row of each shard of the source."""
        return range(0, len(self.source), SHARD_ROWS)

    def rows_of(self, first: int) -> range:
        """Rows of the shard that begins with ``first``."""
        return range(first, min(first + SHARD_ROWS, len(self.source)))

    def ids_of(self, first: int) -> list[str]:
        """Ids of the images of the shard that begins with ``first``."""
        return [self.source.records[row].id for row in self.rows_of(first)]

    def plan(self) -> dict[str, Any]:
        """Everything that the finished index depends on, but for rounding."""
        return {
            "source": self.source.fingerprint,
            "images": len(self.source),
            "head": self.head.fingerprint,
            "encoder": self.encoder.source.sha256,
            "resolution": self.resolution,
            "latents": self.keep_latents,
            "shard_rows": SHARD_ROWS,
        }


def default_resolution(encoder: Encoder) -> int:
    """Side in pixels that the encoder was made for, as its configuration has it."""
    found = getattr(encoder.vae.config, "sample_size", None)
    return int(found) if isinstance(found, int) else DEFAULT_RESOLUTION


def build_index(build: Build, *, progress: bool = True) -> None:
    """Build what is not there yet, every process its share of the shards, and commit the index.

    Shards with images that could not be read are built again once one of these can be, as is what was damaged since.

    Raises:
        ArtifactError: ``output`` holds something else than this build, or another one writes there too; what it should
            reuse was built otherwise; or its processes were given other heads, encoders or options each.
        CorruptArtifactError: a finished index of another version of this package.
        EmptyDataError: no image could be read.
    """
    from accelerate.utils import broadcast_object_list

    from ..processes import this_process

    state = this_process()
    _check_processes(build)
    seen = _check_plan(build)
    if build.reuse is not None:
        check_reusable(build.reuse, build)
    state.wait_for_everyone()  # nobody begins before all have looked
    again = files.is_index(build.output)
    shared = [_look(build) if state.is_main_process else (False, False, [0])]
    broadcast_object_list(shared)
    whole, committed, mended = shared[0]
    if state.is_main_process and again and not _is_planned(build):
        files.write_json(build.output / files.PLAN, build.plan())
    if committed and not mended:
        return
    if state.is_main_process and not again:
        if progress:
            _tell_averaging(build)
        _start(build, seen)
    if state.is_main_process and again and not whole:
        _mend_head(build)
    state.wait_for_everyone()
    own = list(enumerate(build.shards))[state.process_index :: state.num_processes]
    todo = [
        (number, first) for number, first in own if number in mended or newest(build.output, number) is None
    ]
    show = progress and state.is_main_process
    total = sum(len(build.rows_of(first)) for _, first in todo)
    with tqdm(total=total, desc="indexing", unit="image", disable=not show) as bar:
        for number, first in todo:
            _write_shard(build, free_folder(build.output, number), first, bar)
    state.wait_for_everyone()
    if state.is_main_process:
        calibrated = _commit(build)
        if again:
            what = (
                "images that could not be read before are indexed" if mended else "names come from elsewhere"
            )
            what = what if whole else "what was damaged is whole"
            then = "" if calibrated else "; calibrate it again"
            tqdm.write(f"{build.output}: {what} now{then}", file=sys.stderr)
    state.wait_for_everyone()


def _check_processes(build: Build) -> None:
    """Every process makes the same of an image, or one shard would be of another head than the next."""
    from ..processes import check_processes

    plan = {name: one for name, one in build.plan().items() if name not in CHECKED_LATER}
    check_processes(plan, "build", "a head is written")


def _check_plan(build: Build) -> dict[str, Any] | None:
    """Whether ``output`` is empty, or holds what this build left; returns the plan that lies there."""
    plan_file = build.output / files.PLAN
    if not plan_file.exists():
        if not files.is_free(build.output):
            raise ArtifactError(f"{build.output} is not empty and holds no index; give another --output")
        return None
    try:
        found = json.loads(plan_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptArtifactError(f"{plan_file} cannot be read: {error}; remove {build.output}") from error
    if not isinstance(found, dict):
        raise CorruptArtifactError(f"{plan_file} is no plan of an index; remove {build.output}")
    wanted = build.plan()
    changed = [key for key in wanted if found.get(key) != wanted[key]]
    if changed and not (changed == ["source"] and _shows_the_same(build)):
        finished = files.is_index(build.output)
        raise ArtifactError(
            f"{build.output} holds an {'' if finished else 'unfinished '}index with other {', '.join(changed)}; give "
            "another --output (images that could not be read can be mended where they are, but none added or taken "
            f"out: for that, {'' if finished else 'finish it with those that it began with, then '}build into another "
            f"folder with --reuse {build.output})"
        )
    return found


def _is_planned(build: Build) -> bool:
    return bool(json.loads((build.output / files.PLAN).read_text(encoding="utf-8")) == build.plan())


def _shows_the_same(build: Build) -> bool:
    """Whether all that an earlier run could read is in ``build.source`` as it was, to the byte: what it could not read
    may have been mended since, and files may be newer."""
    found = all_newest(build.output, len(build.shards), check=False)
    for first, shard in zip(build.shards, found, strict=True):
        if shard is None:
            continue
        known = described(build.output, shard)
        if not is_of(shard, list(known), build.ids_of(first)):
            return False
        rows = [row for row in build.rows_of(first) if build.source.records[row].id in known]
        if any(known[build.source.records[row].id] != _described(build.source, row) for row in rows):
            return False
    return True


def _described(source: ImageSource, row: int) -> tuple[str | None, str, str] | None:
    """Identity, labels, and SHA-256 of the stored bytes; ``None`` where these cannot be read."""
    digest = source.digest(row)
    return None if digest is None else (source.records[row].identity, source.records[row].labels, digest)


def _look(build: Build) -> tuple[bool, bool, list[int]]:
    """What there is: whether a finished index is whole, whether it has every shard as it was built last, and which of
    these have to be mended."""
    shards = all_newest(build.output, len(build.shards), check=False)
    whole = files.is_index(build.output) and files.is_whole(build.output) and None not in shards
    if whole and _is_committed(build, shards):
        return True, True, _mended(build, shards)
    if files.is_index(build.output):
        shards = all_newest(build.output, len(build.shards))
    return whole, whole and _is_committed(build, shards), _mended(build, shards)


def _is_committed(build: Build, shards: Sequence[Shard | None]) -> bool:
    """Whether the manifest has every shard as it was built last, and says where its names come from."""
    manifest = files.read_manifest(build.output)
    names = [shard["folder"] for shard in manifest["shards"]]
    same = files.by_folders(manifest) == build.source.named_by_folders
    return same and names == [one[0] for one in shards if one is not None and one[1]["rows"]]


def _mended(build: Build, shards: Sequence[Shard | None]) -> list[int]:
    """Shards of an earlier run that lack an image which can be read by now."""
    found = []
    for number, (first, shard) in enumerate(zip(build.shards, shards, strict=True)):
        lacking = shard[1]["unreadable"] if shard else {}
        rows = build.rows_of(first) if lacking else ()
        broken = [row for row in rows if CANNOT_BE_READ in lacking.get(build.source.records[row].id, "")]
        if any(can_be_read(build.source, row) for row in broken):
            found.append(number)
    return found


def _tell_averaging(build: Build) -> None:
    """On stderr, where larger latents lose what a network for them would keep."""
    side, grid = build.encoder.side_at(build.resolution), build.head.grid
    if side >= 2 * grid and build.space not in build.head.halvings:
        tqdm.write(
            f"latents of {side}x{side} are averaged to the head's {grid}x{grid}, by which it finds less: it has no "
            f"network that halves those of {build.space!r} (lcmem-filter train --add-halving makes one)",
            file=sys.stderr,
        )


def _start(build: Build, seen: dict[str, Any] | None) -> None:
    """Write the plan, unless another one lies there by now than ``seen``."""
    build.output.mkdir(parents=True, exist_ok=True)
    with files.locked(build.output):
        if _check_plan(build) not in (seen, build.plan()):
            raise ArtifactError(
                f"another build began in {build.output} at the same time; give another --output, or wait and remove it"
            )
        # first: from then on the folder is known to be this build's
        files.write_json(build.output / files.PLAN, build.plan())
    build.head.save_pretrained(build.output / files.HEAD)


def _mend_head(build: Build) -> None:
    try:
        checksums = files.read_manifest(build.output)["files"]
        ours = {name: one for name, one in checksums.items() if name.startswith(f"{files.HEAD}/")}
        files.check_files(build.output, ours)
    except CorruptArtifactError:
        build.head.save_pretrained(build.output / files.HEAD)


def _write_shard(build: Build, name: str, first: int, bar: Any) -> None:
    rows = build.rows_of(first)
    done, digests, size = list[int](), list[str](), None
    arrays: dict[str, list[Any]] = {files.EMBEDDINGS: [], files.LATENTS: []}
    unreadable: dict[str, str] = {}
    reuse, wanted = build.reuse, build.keep_latents
    if reuse is not None and (held := held_by(reuse, build.source, rows, latents=wanted)):
        done, digests, size = held.rows, held.sha256, list(reuse.latent_size)
        arrays = {files.EMBEDDINGS: [held.embeddings], files.LATENTS: [held.latents]}
        bar.update(len(done))
    left = sorted(set(rows) - set(done))
    device = next(iter(build.encoder.vae.parameters())).device
    head = build.head.to(device)
    for batch, part in encode_batches(build.source, left, build.encoder, build.resolution):
        unreadable |= {build.source.records[row].id: why for row, why in part.unreadable.items()}
        if part.latents is not None:
            size = list(part.latents.shape[-2:])
            with torch.inference_mode():
                canonical = head.canonical(part.latents.to(device), build.space)
                embeddings = head.embed(canonical, build.space)
            arrays[files.EMBEDDINGS].append(embeddings.cpu().half().numpy())
            arrays[files.LATENTS].append(canonical.cpu().half().numpy())
            done, digests = done + part.rows, digests + part.sha256
        bar.update(len(batch))
    folder = build.output / name
    written: dict[str, str] = {}
    order = np.argsort(done)
    records = [(build.source.records[done[i]], digests[i]) for i in order]
    if records:
        for file in (files.EMBEDDINGS, *([files.LATENTS] if build.keep_latents else [])):
            written[file] = files.write_array(folder / file, np.concatenate(arrays[file])[order])
        written[files.RECORDS] = _write_records(folder / files.RECORDS, records)
    receipt = {"rows": len(records), "files": written, "unreadable": unreadable, "latent_size": size}
    files.write_json(folder / files.RECEIPT, receipt)


def _write_records(path: Path, records: list[tuple[Any, str]]) -> str:
    table = pa.table(
        {
            "id": [record.id for record, _ in records],
            "identity": pa.array([record.identity for record, _ in records], pa.string()),
            "labels": [record.labels for record, _ in records],
            "sha256": [digest for _, digest in records],
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return files.write_file(path, lambda file: file.write(buffer.getvalue()))


def _commit(build: Build) -> bool:
    """Put the index in force; returns whether the calibration of an earlier run still holds."""
    shards, size = [], None
    checksums: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    for number, first in enumerate(build.shards):
        shard = newest(build.output, number)
        if shard is None:
            raise CorruptArtifactError(
                f"shard {number} of {build.output} was lost while building; run the same command again"
            )
        name, receipt = shard
        if not is_of(shard, list(described(build.output, shard)), build.ids_of(first)):
            raise ArtifactError(
                f"{name} of {build.output} holds other images than {build.source.name!r} has there (from "
                f"{build.source.records[first].id!r} on): another build wrote into the folder, or one of several "
                f"processes sees another copy of the images; remove {build.output}, and build it again by one build "
                "whose processes all see the same images"
            )
        unreadable |= receipt["unreadable"]
        if receipt["rows"]:
            size = receipt["latent_size"]
            shards.append({"folder": name, "rows": receipt["rows"]})
            checksums |= {f"{name}/{file}": digest for file, digest in receipt["files"].items()}
    if not shards:
        why = next(iter(unreadable.values()))
        raise EmptyDataError(
            f"none of the {len(build.source)} images of {build.source.name!r} could be read; the first: {why}"
        )
    checksums |= files.head_checksums(build.output)
    manifest = {
        "format": files.FORMAT,
        "space": build.space,
        "grid": build.head.grid,
        "embedding_dim": build.head.embedding_dim,
        "head_fingerprint": build.head.fingerprint,
        "rows": sum(shard["rows"] for shard in shards),
        "latents": build.keep_latents,
        "complete": not unreadable,
        "unreadable": unreadable,
        "encoder": asdict(build.encoder.source),
        "resolution": build.resolution,
        "resize": "whole picture squashed to a square",
        "latent_size": size,
        "named_by_folders": build.source.named_by_folders,
        "shards": shards,
        "files": checksums,
        "calibration": None,
    }
    return files.commit(build.output, manifest)
