"""Prompts to a folder of images that were all judged, a manifest and a report."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from tqdm.auto import tqdm

from ..errors import (
    ArtifactError,
    DataError,
    FilterFailedError,
    GenerationStoppedError,
    LcmemFilterError,
    MemorizationError,
    check_kind,
    first_of,
)
from ..filter import MemorizationFilter
from ..images import ImageSource
from ..index import MemorizationIndex
from ..index.folder import write_file
from ..index.training_set import check_training
from ..pipeline.attachment import attached
from ..pipeline.early_stop import EarlyStop
from ..pipeline.rungs import DEFAULT_LADDER
from ..report import Results
from ..types import Decision, OnMemorized
from .drawing import Drawn, draw_batch, prompts_of
from .folder import MANIFEST_JSONL, MANIFEST_PARQUET, METADATA, JobFolder
from .history import History
from .job import checked_options, describe
from .limits import STOP_REJECTION_RATE, Limits, Tally
from .plan import Plan, Request, as_integer, plan_of
from .report import REPORT_FILES, report_on
from .rows import Row, manifest_jsonl, manifest_parquet, metadata_jsonl

OnExhausted = Literal["drop", "raise"]
"""What a job does with an image that is still rejected when every attempt is spent."""

_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Generated:
    """A finished job.

    Attributes:
        folder: Where it lies; ``datasets.load_dataset("imagefolder", data_dir=folder)`` reads it.
        rows: One for each image that was asked for, in order.
        tally: Them, counted.
        results: What the report shows; ``None`` in processes other than the first.
    """

    folder: Path
    rows: tuple[Row, ...] = field(repr=False)
    tally: Tally
    results: Results | None = field(repr=False)


@dataclass(frozen=True)
class _Work:
    """One job in one process."""

    pipe: Any
    plan: Plan
    folder: JobFolder
    job: Mapping[str, Any]
    limits: Limits
    on_exhausted: OnExhausted
    history: History
    state: Any


def generate(
    pipeline: Any,
    prompts: Iterable[str | Request] | int,
    index: MemorizationIndex | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    batch_size: int = 8,
    on_memorized: OnMemorized = "resample",
    max_resamples: int = 4,
    rungs: Sequence[str] = DEFAULT_LADDER,
    on_exhausted: OnExhausted = "drop",
    early_stop: EarlyStop | str | os.PathLike[str] | None = None,
    stop_rejection_rate: float = STOP_REJECTION_RATE,
    disk_budget: int | None = None,
    threads: int | None = None,
    training: ImageSource | None = None,
    thumbnails: bool = True,
    salt: bytes | None = None,
    progress: bool = True,
) -> Generated:
    """Draw images into a folder, none of them memorised, with a manifest and a report beside them.

    The plan fixes every image's seed and batch. A batch is drawn in one call and is the unit of resuming and of sharing
    work among the processes of ``accelerate launch`` (on CPUs, ``torchrun``): called again after a kill, with the same
    arguments and any number of processes, the job goes on and ends with the same bytes (on one kind of device; on a CPU
    also with one number of threads). Another batch size gives images that differ by rounding.

    Args:
        pipeline: A latent image pipeline of diffusers on its device; its filter is attached here, and taken off again
            unless it had one before.
        prompts: Texts, of which each gives one image, or requests, or how many images an unconditional pipeline draws.
        index: A calibrated index of its training set, or the folder of one.
        output: A new folder, or the one of the same job.
        options: Further arguments of the pipeline's call, ready for JSON: steps, guidance, height, width.
        seed: Of the job.
        batch_size: Images in one call.
        on_memorized: As for ``attach``; ``"flag"`` delivers matches too, marked in the manifest.
        max_resamples, rungs: As for ``attach``; rungs by name.
        on_exhausted: An image that stays rejected is left out of the images but stands in the manifest (``"drop"``), or
            ends the job (``"raise"``).
        early_stop: As for ``attach``. A batch that ends early is one in which every sample is certainly a copy, so
            smaller batches save more.
        stop_rejection_rate: Stop once surely more than this share of first draws match, in (0, 1].
        disk_budget: Bytes that the delivered images may take; divided among the processes.
        threads: CPU threads of each process; by default torch's own when the job began.
        training: The images that the index was built from, with the same ids, to show them in the report.
        thumbnails: Show pictures in the report.
        salt: Key of the hashes that replace ids in the report, as for ``write_report``; manifests have them all the
            same.
        progress: Show progress on stderr.

    Raises:
        ArtifactError: ``output`` holds something else than this job, or its images lie among others in the end; or its
            processes do not see the same index, pipeline or libraries.
        DataError: nothing to draw, or options that the plan decides, that are not ready for JSON or that the pipeline
            refuses; or none of ``training`` is an image of the index, by its id.
        GenerationStoppedError: a limit was reached; what was done stays.
        MemorizationError: an image stayed rejected and ``on_exhausted`` is ``"raise"``.
        LcmemFilterError: as for ``attach``; no unjudged image is written.
    """
    from ..processes import gathered, this_process

    state = this_process()
    seed, batch_size = as_integer("seed", seed), as_integer("batch_size", batch_size)
    max_resamples = as_integer("max_resamples", max_resamples)
    threads = None if threads is None else as_integer("threads", threads)
    if threads is not None and threads < 1:
        raise DataError(f"threads is at least 1, got {threads}")
    # what only the report needs should not come to light after everything was drawn
    if training is not None:
        check_kind("training", training, ImageSource, "open_images(PATH)")
    if salt is not None:
        check_kind("salt", salt, bytes, "Path(FILE).read_bytes().strip()")
    if on_exhausted not in get_args(OnExhausted):
        raise ValueError(f"on_exhausted must be 'drop' or 'raise', got {on_exhausted!r}")
    history = History(rungs)
    policy = {"on_memorized": on_memorized, "max_resamples": max_resamples, "rungs": list(rungs)}
    settings = {"seed": seed, "options": checked_options(options), **policy}
    limits = Limits(stop_rejection_rate, disk_budget, state.num_processes)
    plan, folder = plan_of(_requests(prompts), seed=seed, batch_size=batch_size), JobFolder(output)
    prompts_of(pipeline, plan.batch(0))
    worn = {**policy, "rungs": history.rungs, "early_stop": early_stop, "on_exhausted": "blank"}
    with attached(pipeline, index, **worn) as in_use:
        judge = in_use.filter
        if training is not None:
            check_training(judge.index, training)
        if isinstance(in_use.early_stop, EarlyStop):
            settings["early_stop"] = in_use.early_stop.described()
        # machines may have other numbers of cores each
        threads = gathered(threads or folder.threads or torch.get_num_threads())[0]
        job = describe(pipeline, judge, plan, settings, threads)
        work = _Work(pipeline, plan, folder, job, limits, on_exhausted, history, state)
        with _begun(work):
            with _threads(job["fixed"]["threads"]):
                stopped = _run(work, progress)
            state.wait_for_everyone()  # where one stopped, others still draw the batch that they are at
            rows = _rows(work, complete=stopped is None)
            results = None
            if state.is_main_process and rows:
                results = _finish(work, rows, judge, training, thumbnails, salt, stopped)
    state.wait_for_everyone()
    if stopped is not None:
        raise GenerationStoppedError(f"stopped after {len(rows)} of {len(plan.items)} images: {stopped}")
    tally = Tally()
    tally.add(rows)
    return Generated(folder.path, rows, tally, results)


def _run(work: _Work, progress: bool) -> str | None:
    """Draw this process's batches that are not done, then wait for the others; why the job was stopped, if it was."""
    state, folder, plan = work.state, work.folder, work.plan
    tally, todo = _share(work)
    if todo:  # what was listed may not be there any more
        for name in (METADATA, MANIFEST_JSONL, MANIFEST_PARQUET, *REPORT_FILES):
            (folder.path / name).unlink(missing_ok=True)
    shown = progress and state.is_main_process
    with tqdm(total=len(plan.items), desc="generating", unit="image", disable=not shown) as bar:
        bar.initial = bar.n = _images_done(work)
        for number in todo:
            reason = work.limits.reason_to_stop(tally, len(plan.batch(number)))
            if reason is not None:
                folder.ask_to_stop(reason)
            if folder.stop_reason() is not None:
                break
            tally.add(_draw(work, number))
            bar.set_postfix(tally.shares(), refresh=False)
            bar.update(_images_done(work) - bar.n)
        while folder.stop_reason() is None and folder.batches_done() < plan.batches:
            time.sleep(
                _POLL_SECONDS
            )  # by looking: a collective would time out where one process is far behind
            bar.update(_images_done(work) - bar.n)
    return folder.stop_reason()


@contextmanager
def _begun(work: _Work) -> Iterator[None]:
    """Begin or go on; the job's first process keeps others from starting it until the context ends."""
    from ..processes import check_processes

    check_processes(work.job["fixed"], "job", "an index is calibrated")
    work.folder.check(work.job)
    work.state.wait_for_everyone()  # every process has looked before the first one writes
    with work.folder.started(work.job) if work.state.is_main_process else nullcontext():
        work.state.wait_for_everyone()
        yield


def _share(work: _Work) -> tuple[Tally, list[int]]:
    """What this process's share has come to, and the batches of it that are not done."""
    state, folder = work.state, work.folder
    tally, todo = Tally(), []
    for number in range(state.process_index, work.plan.batches, state.num_processes):
        rows = folder.verified_receipt(number)
        if rows is None:
            todo.append(number)
        else:
            tally.add(rows)
    state.wait_for_everyone()  # no process counts a receipt that another one is about to withdraw
    return tally, todo


def _images_done(work: _Work) -> int:
    return min(work.folder.batches_done() * work.plan.batch_size, len(work.plan.items))


def _draw(work: _Work, number: int) -> list[Row]:
    """Draw one batch, write what may be delivered, and its receipt last."""
    fixed = work.job["fixed"]
    work.history.forget()
    flag, options = fixed["on_memorized"] == "flag", fixed["options"]
    try:
        drawn = draw_batch(work.pipe, work.plan.batch(number), options, flag=flag)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        if isinstance(error, LcmemFilterError) or work.folder.batches_done():
            raise
        raise DataError(
            f"the pipeline refuses its arguments: {error}; give other options than {options}"
        ) from error
    failed = [one for one in drawn if one.status == "withheld"]
    if failed and work.on_exhausted == "raise":
        raise _that_failed(failed, [one.decision for one in drawn])
    rows = [_write(work, one) for one in drawn]
    work.folder.write_receipt(number, rows)
    return rows


def _that_failed(failed: Sequence[Drawn], decisions: Sequence[Decision]) -> LcmemFilterError:
    """An error about the first image that was memorised, or else about the first that could not be judged."""
    one = next((one for one in failed if one.decision.accepted is False), failed[0])
    image = f"image {one.item.position} (prompt {one.item.prompt!r})"
    do = "leave it out with on_exhausted='drop' (--on-exhausted drop) and run again"
    if one.decision.accepted is None:
        return FilterFailedError(f"{image} was not judged: {one.decision.reason}; {do}")
    return MemorizationError(
        f"{image} was memorised in each of {one.decision.attempts} attempts; {do}", decisions
    )


def _write(work: _Work, drawn: Drawn) -> Row:
    folder, position = work.folder, drawn.item.position
    rungs = work.history.of(drawn.decision.attempts)
    if drawn.image is None:
        folder.remove_image(position)
        return Row.of(drawn.item, drawn.decision, drawn.status, rungs, None)
    digest, size = folder.write_image(position, drawn.image)
    return Row.of(drawn.item, drawn.decision, drawn.status, rungs, folder.file_name(position), digest, size)


def _rows(work: _Work, *, complete: bool) -> tuple[Row, ...]:
    found = [work.folder.read_receipt(number) for number in range(work.plan.batches)]
    if complete and None in found:
        raise DataError(f"a receipt of {work.folder.path} was lost while generating; run the same job again")
    rows = tuple(row for rows in found if rows is not None for row in rows)
    if complete and (others := work.folder.images_beside(rows)):
        raise ArtifactError(
            f"{work.folder.path} holds {first_of(others)}, which this job did not draw and nobody judged; move "
            "them away and run the same job again"
        )
    return rows


def _finish(
    work: _Work,
    rows: tuple[Row, ...],
    judge: MemorizationFilter,
    training: ImageSource | None,
    thumbnails: bool,
    salt: bytes | None,
    stopped: str | None,
) -> Results:
    """Report first, then the manifest, then what ``datasets`` reads; a stopped job gets the report only."""
    folder, job = work.folder, work.job
    results = report_on(
        folder, job, rows, judge, training=training, thumbnails=thumbnails, salt=salt, stopped=stopped
    )
    if stopped is None:
        for name, content in (
            (MANIFEST_PARQUET, manifest_parquet(rows, job)),
            (MANIFEST_JSONL, manifest_jsonl(rows, job)),
            (METADATA, metadata_jsonl(rows)),
        ):
            _write_bytes(folder.path / name, content)
    return results


def _write_bytes(path: Path, content: bytes) -> None:
    write_file(path, lambda file: file.write(content))


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _requests(prompts: Iterable[str | Request] | int) -> list[Request]:
    if isinstance(prompts, int | Integral):
        return [Request(count=int(prompts))]
    if isinstance(prompts, str | os.PathLike):  # else each of its letters would be one
        if isinstance(prompts, os.PathLike) or (Path(prompts).suffix and Path(prompts).is_file()):
            raise DataError(
                f"{os.fspath(prompts)!r} is a file, not a prompt; give what lcmem_filter.read_requests reads in it"
            )
        return [Request(prompts)]
    if isinstance(prompts, Mapping) or hasattr(prompts, "columns"):  # else each name of a column would be one
        raise DataError(
            f"prompts are texts or Requests, got a {type(prompts).__name__}; give its column of prompts"
        )
    return [one if isinstance(one, Request) else Request(one) for one in prompts]
