"""What is measured of early stop: steps saved on memorised samples, innocent samples flagged."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from copies import CopyJudge
from drawing import BATCH, STEPS, Sample, call, to_uint8
from stats import mean, share

from lcmem_filter.pipeline import MemorizationWarning

Log = Callable[[str], None]


def memorised(
    pipe: Any, index: Any, early: Any, judge: CopyJudge, batches: list[list[Sample]], log: Log
) -> dict[str, Any]:
    """Draw batches of one prompt each to the end, then with early stop; report the samples that are memorised.

    Those are the ones that the filter rejects and the judge calls copies when they are drawn to the end. The batches
    keep their other samples too: they are not stopped before every sample is flagged.
    """
    pipe.with_memorization_filter(index, on_memorized="flag")
    images, finished, plain_seconds = _draw(pipe, batches, log)
    copied = judge(np.concatenate(images)).copied
    pipe.with_memorization_filter(index, on_memorized="reject", early_stop=early)
    _, decisions, seconds = _draw(pipe, batches, log)
    found = copied & np.array([decision.accepted is False for decision in finished])
    prompts = np.array([sample.prompt for batch in batches for sample in batch])[found].tolist()
    chosen = [decision for decision, is_copy in zip(decisions, found, strict=True) if is_copy]
    flagged = np.array([decision.flagged_at or np.inf for decision in chosen])
    saved = np.array([decision.steps_saved / STEPS for decision in chosen])
    alone = np.array([_saved_alone(decision.flagged_at) for decision in chosen])
    return {
        "batches": len(batches),
        "samples_in_a_batch": len(batches[0]),
        "drawn": len(found),
        "memorised": len(chosen),
        "stopped": share(saved > 0, prompts),
        "stopped_by_fraction": {
            f"{stage.fraction:g}": share(saved >= _saved_alone(stage.fraction) - 1e-9, prompts)
            for stage in early.stages
        },
        "flagged_by_fraction": {
            f"{stage.fraction:g}": share(flagged <= stage.fraction + 1e-9, prompts) for stage in early.stages
        },
        "steps_saved": mean(saved, prompts),
        "steps_saved_if_drawn_one_by_one": mean(alone, prompts),
        "processor_seconds_a_batch": {
            "to_the_end": plain_seconds / len(batches),
            "early_stop": seconds / len(batches),
        },
    }


def innocent(
    pipe: Any, index: Any, early: Any, samples: list[Sample], path: Path, log: Log
) -> Iterator[dict[str, Any]]:
    """Draw mixed batches: they are finished beside what is flagged, so that it shows which flags were wrong.

    Decisions are kept in ``path`` and not made again; yields the figures after every batch.
    """
    pipe.with_memorization_filter(index, on_memorized="reject", early_stop=early)
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if found:
        yield _lost(found, early)
    for first in range(len(found), len(samples), BATCH):
        _, decisions, _ = _draw(pipe, [samples[first : first + BATCH]], log)
        fresh = [
            {name: getattr(one, name) for name in ("accepted", "flagged_at", "stopped")} for one in decisions
        ]
        with path.open("a") as file:
            file.write("".join(json.dumps(one) + "\n" for one in fresh))
        found += fresh
        yield _lost(found, early)
        log(f"{len(found)}/{len(samples)} innocent samples")


def _lost(found: list[dict[str, Any]], early: Any) -> dict[str, Any]:
    flagged = np.array([one["flagged_at"] is not None for one in found], bool)
    accepted = np.array([one["accepted"] is True or one["stopped"] for one in found], bool)
    return {
        "drawn": len(found),
        "rejected_in_the_end": int((~accepted).sum()),
        "flagged": share(flagged),
        "accepted_lost": share(flagged[accepted]),
        "unfinished_counted_as_lost": sum(one["stopped"] for one in found),
        "accepted_lost_by_fraction": {
            f"{stage.fraction:g}": sum(
                bool(ok) and one["flagged_at"] == stage.fraction
                for one, ok in zip(found, accepted, strict=True)
            )
            for stage in early.stages
        },
    }


def _draw(pipe: Any, batches: list[list[Sample]], log: Log) -> tuple[list[np.ndarray], list[Any], float]:
    """uint8 images by batch, decisions, and processor seconds."""
    images, decisions, start = [], [], time.process_time()
    for number, batch in enumerate(batches):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MemorizationWarning)
            output, _ = call(pipe, batch)
        images.append(to_uint8(output.images))
        decisions += output.memorization
        if number % 10 == 9:
            log(f"{number + 1}/{len(batches)} batches, {time.process_time() - start:.0f} s")
    return images, decisions, time.process_time() - start


def _saved_alone(flagged_at: float | None) -> float:
    """Share of the steps that is left out where the sample alone decides."""
    return 0.0 if flagged_at is None else 1 - math.ceil(flagged_at * STEPS - 1e-9) / STEPS
