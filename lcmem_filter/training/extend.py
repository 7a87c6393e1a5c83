"""Teaching a trained head something more, all else frozen: one part of it is trained, and may be interrupted."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from ..errors import ArtifactError, CorruptArtifactError, check_kind
from ..head import LCMemHead
from ..images import ImageSource
from ..latents import Encoder
from ..processes import this_process
from .card import write_card
from .checkpoint import LATENTS, PART, RESULT, Checkpoints, Progress, training_record, write_json
from .checks import Sources, check_terms, listed
from .losses import check_finite

CHECKPOINT_EVERY = 250
"""Steps, which take a minute or so."""


def given_to_extend(
    initial: LCMemHead, sources: Sources, validation: Sources, **encoders: Encoder
) -> tuple[list[ImageSource], list[ImageSource]]:
    """``sources`` and ``validation`` as lists.

    Raises:
        TypeError: one of them, the head or an encoder is none.
    """
    check_kind("initial", initial, LCMemHead, "LCMemHead.from_pretrained(NAME)")
    for name, encoder in encoders.items():
        check_kind(name, encoder, Encoder, "load_encoder(PATH)")
    return listed(sources), listed(validation)


def part_is_finished(output: Path, kind: str, space: str, plan: dict[str, Any], terms: str) -> bool:
    """Whether ``output`` holds the head with the part that ``plan`` trains; its card then states the terms of today.

    Else ``output`` is free for it, or holds its beginning.

    Args:
        kind: Part of the head's record that the trained part belongs to, by ``space``.

    Raises:
        ArtifactError: another head, a README.md, or the beginning of something else lies there, or it cannot be made.
        CorruptArtifactError: a checkpoint cannot be read.
        ConfigurationError: terms that no card can state.
    """
    check_terms(terms)
    checkpoints = Checkpoints(output)
    checkpoints.refuse_foreign(results := (RESULT, PART))
    # cut off while it put its head there, it goes on from its checkpoint
    if any((output / name).exists() for name in results) and not checkpoints.begun():
        record: Mapping[str, Any] = {}
        with contextlib.suppress(CorruptArtifactError):  # of a baseline, or of somebody else's
            record = training_record(output) or _bare_record(output)
        added = record.get(kind, {}).get(space, {})
        if added.get("plan") != json.loads(json.dumps(plan)):
            raise ArtifactError(f"{output} already holds a head or model; give another --output")
        if this_process().is_main_process:
            print(f"{output} is finished already", file=sys.stderr)
            checkpoints.clear()  # what a kill left of them
            if terms not in ("", added["terms"]) and (output / RESULT).exists():
                _write(
                    output, LCMemHead.from_pretrained(output), kind, space, {**added, "terms": terms}, record
                )
        return True
    checkpoints.check_makeable()
    checkpoints.latest(plan)
    return False


def plan_of_part(
    initial: LCMemHead,
    part: str,
    encoders: Mapping[str, Encoder],
    sources: Sequence[ImageSource],
    validation: Sequence[ImageSource],
    config: Mapping[str, Any],
    leave_out: Collection[str],
) -> dict[str, Any]:
    """Everything that the trained part depends on, by name; see ``Progress.plan``."""
    return {
        "part": part,
        "config": dict(config),
        "sources": [source.fingerprint for source in sources],
        "validation": [source.fingerprint for source in validation],
        "encoders": {name: encoder.source.sha256 for name, encoder in encoders.items()},
        "initial": initial.fingerprint,
        "left_out": sorted(leave_out),
    }


def train_part(
    part: nn.Module,
    loss_of: Callable[[int], torch.Tensor],
    output: Path,
    plan: dict[str, Any],
    images: str,
    accelerator: Accelerator,
    *,
    weight_decay: float,
    progress: bool,
) -> Progress:
    """Train ``part`` in place, on what each step costs, as ``plan["config"]`` says; ``save_extended`` ends it.

    Interrupted, the same call goes on from the last checkpoint in ``output`` and, on a CPU, ends in the same weights.

    Args:
        part: What is trained: all of it that wants a gradient.
        loss_of: Of a step's number, from 0, a scalar; it depends on the number and ``part`` alone.
        images: Which images are trained and validated on (``digest_of``).

    Returns:
        What was done, with the mean loss between checkpoints.

    Raises:
        ArtifactError: ``output`` holds the beginning of something else, or with other images.
        CorruptArtifactError: a checkpoint cannot be read.
        TrainingFailedError: the loss is no longer finite.
    """
    steps, checkpoints = plan["config"]["steps"], Checkpoints(output)
    trained = [parameter for parameter in part.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=plan["config"]["learning_rate"], weight_decay=weight_decay)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    accelerator.register_for_checkpointing(part, optimizer, schedule)
    standing = checkpoints.latest(plan) or Progress(plan)
    checkpoints.refuse_other_images(standing, images)
    if standing.step:
        checkpoints.restore(accelerator, standing.step)
        if progress:
            tqdm.write(f"going on from step {standing.step}", file=sys.stderr)
    since, losses = time.monotonic(), []
    remaining = range(standing.step, steps)
    for step in tqdm(
        remaining, plan["part"], total=steps, initial=standing.step, unit="step", disable=not progress
    ):
        loss = loss_of(step)
        losses.append(loss.item())
        check_finite(losses[-1], step + 1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        standing.step = step + 1
        if standing.step % CHECKPOINT_EVERY == 0 or standing.step == steps:
            standing.seconds += time.monotonic() - since
            loss_between = sum(losses) / len(losses)
            standing.history.append(
                {"step": standing.step, "loss": loss_between, "seconds": standing.seconds}
            )
            checkpoints.save(accelerator, standing)
            since, losses = time.monotonic(), []
    accelerator.wait_for_everyone()  # every process has read the last checkpoint before it is dropped
    return standing


def save_extended(
    head: LCMemHead,
    output: Path,
    kind: str,
    space: str,
    plan: Mapping[str, Any],
    added: Mapping[str, Any],
    record: Mapping[str, Any] | None,
) -> None:
    """Save a head, with its card where its own record is known, and drop the checkpoints and what was encoded inside
    ``output``: pictures can be had from latents, and whoever gets the head gets that folder.

    Args:
        kind: Part of the record that ``added`` belongs to, by ``space``.
        record: ``training.json`` of the head that was extended.
    """
    head.save_pretrained(output)
    if record is None:
        print(
            f"{output}: no record of the head's own training was given, so no card is written",
            file=sys.stderr,
        )
        write_json(output / PART, {kind: {space: {**added, "plan": plan}}})
    else:
        _write(output, head, kind, space, {**added, "plan": plan}, record)
    shutil.rmtree(output / LATENTS, ignore_errors=True)
    Checkpoints(output).clear()


def _bare_record(output: Path) -> dict[str, Any]:
    """What is known of a head that was extended without the record of its own training."""
    try:
        return dict(json.loads((output / PART).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _write(
    output: Path,
    head: LCMemHead,
    kind: str,
    space: str,
    added: Mapping[str, Any],
    record: Mapping[str, Any],
) -> None:
    whole = {**record, kind: {**record.get(kind, {}), space: added}}
    write_card(output, head, whole)
    write_json(output / RESULT, whole)
