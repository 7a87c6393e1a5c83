"""A new head for an index: embeddings made anew from the latents that it keeps, everything else copied."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ArtifactError, CorruptArtifactError, LatentSpaceError, LcmemFilterError
from ..head import LCMemHead
from ..latents import weights_sha256
from . import folder as files

BATCH = 256


def reembed_index(
    source: Path, manifest: dict[str, Any], before: LCMemHead, head: LCMemHead, output: Path
) -> None:
    """Write the index at ``source``, whose head is ``before``, into ``output`` with embeddings of ``head``; see
    ``MemorizationIndex.reembed``."""
    if output.exists() and output.samefile(source):
        raise ArtifactError(f"{output} is the index that is read; give another --output")
    _check_head(source, manifest, before, head)
    plan = {"reembedded": manifest["files"], "head": head.fingerprint}
    if _is_done(output, plan):
        return
    files.write_json(output / files.PLAN, plan)
    head.save_pretrained(output / files.HEAD)
    checksums: dict[str, str] = {}
    for shard in manifest["shards"]:
        name = shard["folder"]
        for file in (files.LATENTS, files.RECORDS):
            with (source / name / file).open("rb") as opened:
                copy = functools.partial(shutil.copyfileobj, opened)
                checksums[f"{name}/{file}"] = files.write_file(output / name / file, copy)
        embeddings = _embed(files.read_array(output / name / files.LATENTS), head, manifest["space"])
        checksums[f"{name}/{files.EMBEDDINGS}"] = files.write_array(
            output / name / files.EMBEDDINGS, embeddings
        )
    checksums |= files.head_checksums(output)
    changed = {"embedding_dim": head.embedding_dim, "head_fingerprint": head.fingerprint, "calibration": None}
    files.commit(output, {**manifest, **changed, "files": checksums})


def _check_head(source: Path, manifest: dict[str, Any], before: LCMemHead, head: LCMemHead) -> None:
    if not manifest["latents"]:
        raise LcmemFilterError(f"index {source} keeps no latents to embed anew; build it from its images")
    if manifest["space"] not in head.spaces or manifest["grid"] != head.grid:
        raise LatentSpaceError(
            f"index {source} keeps latents of space {manifest['space']!r} on a grid of {manifest['grid']}; the head "
            f"has {', '.join(head.spaces)} on a grid of {head.grid}: build the index from its images"
        )
    ways = {_halving(one, manifest["space"]) for one in (before, head)}
    if min(manifest["latent_size"]) >= 2 * head.grid and len(ways) > 1:
        raise ArtifactError(
            f"index {source} keeps latents that were {'x'.join(map(str, manifest['latent_size']))} and came to the "
            f"grid of {head.grid} by another way than this head's; build the index from its images"
        )


def _halving(head: LCMemHead, space: str) -> str | None:
    """By what larger latents come to the grid: a fingerprint of the network, if there is one."""
    return weights_sha256(head.halvings[space]) if space in head.halvings else None


def _is_done(output: Path, plan: dict[str, Any]) -> bool:
    if files.is_free(output):
        return False
    plan_file = output / files.PLAN
    try:
        found = json.loads(plan_file.read_text(encoding="utf-8")) if plan_file.exists() else None
    except ValueError as error:
        raise CorruptArtifactError(f"{plan_file} cannot be read: {error}; remove {output}") from error
    if found != plan:
        raise ArtifactError(f"{output} holds something else; give another --output")
    return files.is_index(output) and files.is_whole(output)


@torch.inference_mode()
def _embed(latents: np.ndarray, head: LCMemHead, space: str) -> np.ndarray:
    parts = []
    for start in range(0, len(latents), BATCH):
        part = torch.from_numpy(latents[start : start + BATCH].astype(np.float32)).to(head.device)
        parts.append(head.embed(part, space).cpu().half().numpy())
    return np.concatenate(parts)
