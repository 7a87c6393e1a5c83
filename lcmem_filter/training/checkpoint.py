"""Where a run stands, on disk: written so that a kill at any moment leaves the last complete checkpoint."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError

from ..errors import ArtifactError, CorruptArtifactError
from ..shipped import folder_of

WORK = ".training"
RESULT = "training.json"
PART = "part.json"
"""In place of it, where a head was extended without the record of its own training: what was added."""
LATENTS = ".latents"
"""Where latents are cached, in the output folder, if no other place is given; dropped in the end."""


@dataclass(slots=True)
class Progress:
    """What a run needs to go on, beside weights and optimiser.

    Attributes:
        plan: Everything that the result depends on; a run goes on only under the same plan.
        images: Which images it trains and validates on (``digest_of``); a run goes on only with the same.
        step: Optimiser steps done.
        best_step: Of the best checkpoint so far; -1 before the first validation.
        best_score: ``Validation.score`` of that.
        stale: Validations since.
        seconds: Time spent training, earlier tries included.
        history: One entry a validation.
    """

    plan: dict[str, Any]
    images: str = ""
    step: int = 0
    best_step: int = -1
    best_score: float = float("-inf")
    stale: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def told(self) -> str:
        """What came of the last validation, in a line."""
        entry = self.history[-1]
        shares = [
            f"{name} {entry[key]['overall']:.3f}"
            for name, key in (
                ("mild copies", "mild_copies"),
                ("half-formed", "half_formed_copies"),
                ("transformed", "transformed_copies"),
                ("same identity", "same_identity"),
            )
            if entry[key]["overall"] is not None
        ]
        mark = ", best so far" if self.best_step == self.step else ""
        return (
            f"step {self.step} loss {entry['loss']:.4f} {' '.join(shares)} "
            f"threshold {entry['threshold']:.3f} "
            f"strangers' nearest {entry['stranger_median']:.3f} {self.seconds:.0f} s{mark}"
        )


class Checkpoints:
    """The folders ``step-N`` (state to go on from) and ``best-N`` (a head) under ``output/.training``.

    ``progress.json`` is written into ``step-N`` last, so a folder with it is complete.
    """

    def __init__(self, output: Path, defaults: Mapping[str, Any] | None = None) -> None:
        """
        Args:
            defaults: Of a plan's configuration; what a plan of before does not mention was so.
        """
        self.output, self.defaults = output, dict(defaults or {})
        self.work = output / WORK

    def state(self, step: int) -> Path:
        return self.work / f"step-{step:08d}"

    def best(self, step: int) -> Path:
        return self.work / f"best-{step:08d}"

    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return any(self.work.glob("step-*/progress.json"))

    def latest(self, plan: dict[str, Any]) -> Progress | None:
        """Progress of the newest complete checkpoint, or ``None``.

        Raises:
            ArtifactError: it belongs to another plan.
            CorruptArtifactError: it cannot be read.
        """
        progress = self._standing()
        if progress is not None:
            self._same_plan(progress.plan, plan)
        return progress

    def refuse_other_images(self, standing: Progress, images: str) -> None:
        """Let no run go on with other images than it began with: it might validate on what it trained on.

        Raises:
            ArtifactError: some can be read that could not, or the other way.
        """
        if standing.images not in ("", images):  # runs of before did not say
            raise ArtifactError(
                f"the run in {self.output} began when other images of its data could be read; make them as they were, "
                f"or remove {self.work} to start over"
            )
        standing.images = images

    def _standing(self) -> Progress | None:
        complete = sorted(self.work.glob("step-*/progress.json"))
        if not complete:
            return None
        try:
            return Progress(**json.loads(complete[-1].read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise CorruptArtifactError(
                f"checkpoint {complete[-1]} cannot be read: {error}; remove {self.work} to start over"
            ) from error

    def restore(self, accelerator: Accelerator, step: int) -> None:
        """Give what ``accelerator`` has prepared the state of a checkpoint.

        Raises:
            CorruptArtifactError: it cannot be read.
        """
        state = self.state(step)
        try:
            accelerator.load_state(str(state))
        except Exception as error:
            raise CorruptArtifactError(
                f"training checkpoint {state} cannot be read: {error}; remove it to start afresh"
            ) from error

    def refuse_other(self, plan: dict[str, Any]) -> None:
        """Let no run begin where a run of another plan is, whatever head that goes on from.

        Raises:
            ArtifactError: one is in ``output``, or what is no run.
            CorruptArtifactError: what lies there cannot be read.
        """
        self.refuse_foreign()
        found = self._finished_plan()
        if found is None and (standing := self._standing()):
            found = standing.plan
        if found is None:
            self.check_makeable()
        else:
            self._same_plan({**found, "initial": plan["initial"]}, plan)

    def check_makeable(self) -> None:
        """
        Raises:
            ArtifactError: ``output`` can surely not be made, or not be written to.
        """
        whole = self.output.absolute()
        there = next(one for one in (whole, *whole.parents) if one.exists())
        if not there.is_dir():
            raise ArtifactError(f"{self.output} cannot be made: {there} is a file; give another --output")
        if not os.access(there, os.W_OK | os.X_OK):
            raise ArtifactError(f"{there} cannot be written to; have it writable, or give another --output")

    def refuse_foreign(self, results: Sequence[str] = (RESULT,)) -> None:
        """Let no run begin in a folder that holds a head or model, but no run.

        Args:
            results: Files that say what a run came to.

        Raises:
            ArtifactError: ``output`` does, or is no folder.
        """
        if self.output.exists() and not self.output.is_dir():
            raise ArtifactError(f"{self.output} is a file; give a folder as --output")
        ours = self.begun() or any((self.output / name).exists() for name in results)
        if (self.output / "config.json").exists() and not ours:
            raise ArtifactError(f"{self.output} already holds a head or model; give another --output")
        if (self.output / "README.md").exists() and not ours:
            raise ArtifactError(
                f"{self.output} holds a README.md, in whose place the head's card would come; give another --output"
            )

    def finished(self, plan: dict[str, Any]) -> bool:
        """Whether ``output`` already holds the finished head of this plan; checkpoints that a kill left there are
        dropped then.

        Raises:
            ArtifactError: it holds something else.
        """
        self.refuse_foreign()
        written = self._finished_plan()
        if written is None:  # cut off while it put its head there, it goes on from its checkpoint
            return False
        self._same_plan(written, plan)
        self.clear()
        return True

    def _finished_plan(self) -> dict[str, Any] | None:
        result = self.output / RESULT
        if not result.exists():
            return None
        try:
            return dict(json.loads(result.read_text(encoding="utf-8"))["plan"])
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptArtifactError(
                f"{result} is no run's record ({error}); give another --output, or remove that folder"
            ) from error

    def save(self, accelerator: Accelerator, progress: Progress) -> None:
        """Write a checkpoint of what ``accelerator`` has prepared, in all processes, then drop older ones.

        Raises:
            ArtifactError: it cannot be written.
        """
        state = self.state(progress.step)
        try:
            accelerator.save_state(str(state))
        except (OSError, RuntimeError, SafetensorError) as error:  # of a full disk, torch's is a RuntimeError
            raise ArtifactError(
                f"the checkpoint cannot be written to {state}: {str(error).splitlines()[0]}; make room there, or have "
                "it writable, and do the same again"
            ) from error
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            self._seal(progress)

    def _seal(self, progress: Progress) -> None:
        """Complete the checkpoint whose state lies in ``state(progress.step)``, then drop older ones."""
        write_json(self.state(progress.step) / "progress.json", progress.to_dict())
        for folder in (*self.work.glob("step-*"), *self.work.glob("best-*")):
            if folder not in (self.state(progress.step), self.best(progress.best_step)):
                shutil.rmtree(folder, ignore_errors=True)

    def clear(self) -> None:
        """Drop all checkpoints; the head stands in ``output``."""
        shutil.rmtree(self.work, ignore_errors=True)

    def _same_plan(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        wanted = json.loads(json.dumps(wanted))
        if "config" in found:
            found = {**found, "config": {**self.defaults, **found["config"]}}
        different = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        if not different:
            return
        changes = "; ".join(_change(key, found.get(key), wanted.get(key)) for key in different)
        finished = f"; its head is finished, and --initial {self.output} goes on from it"
        raise ArtifactError(
            f"{self.output} holds another run ({changes}); give another --output, or remove that folder"
            + (
                finished
                if self.output.name in ("stage1", "stage2") and (self.output / RESULT).exists()
                else ""
            )
        )


def _change(name: str, was: Any, now: Any) -> str:
    """What is different, entry by entry where there are some."""
    if isinstance(was, dict) and isinstance(now, dict):
        keys = sorted(key for key in {*was, *now} if was.get(key) != now.get(key))
        return ", ".join(_change(key, was.get(key), now.get(key)) for key in keys)
    if name in ("sources", "validation"):
        return f"{name}: other images"
    return f"{name} was {was!r}, is {now!r}"


def training_record(head: str | os.PathLike[str]) -> dict[str, Any] | None:
    """``training.json`` of a head's folder, or of one that ships by its name, if it lies there.

    Raises:
        CorruptArtifactError: it is no record of a run.
    """
    path = folder_of(head) / RESULT
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        record["plan"]["config"], record["best"], record["step"], record["terms"]
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptArtifactError(
            f"{path} is no run's record ({type(error).__name__}: {error}); restore it, or remove it"
        ) from error
    return record


def write_json(path: Path, value: Any) -> None:
    """Write aside, then rename."""
    write_text(path, json.dumps(value, indent=1))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 aside, then rename; what no UTF-8 can say, as of a file's name, stands there as its number."""
    aside = path.with_suffix(".tmp")
    with aside.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
