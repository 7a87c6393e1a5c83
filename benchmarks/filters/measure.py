"""What is measured of each filter, and how."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "generation"))

from copies import FALSE_COPIES, CopyJudge, Verdicts
from drawing import BATCH, Drawn, Sample, call, draw, watched_decoder
from filters import RATE, Filter, LCMem, Nothing
from overhead import in_turns, shares
from stats import realised_range, share

Real = dict[str, tuple[torch.Tensor, np.ndarray]]


@dataclass(frozen=True)
class Judged:
    """What the pipeline drew for ``samples`` without a filter, and what the judge says of it."""

    samples: list[Sample]
    drawn: Drawn
    verdicts: Verdicts


@runtime_checkable
class Attaches(Protocol):
    """What is timed at a place of its own in the pipeline."""

    label: str

    def attached(self, pipe: Any) -> AbstractContextManager[Any]:
        """The pipeline's calls inside go through it; afterwards the pipeline is as before."""
        ...


def offline(candidate: Filter, real: Real, generated: Judged, named: Judged) -> dict[str, Any]:
    """Rates of one filter on real images and on what was drawn without a filter."""
    of_generated, of_named = (
        rejections(candidate, one.drawn.latents, one.drawn.images) for one in (generated, named)
    )
    return {
        "label": candidate.label,
        "threshold": candidate.threshold if np.isfinite(candidate.threshold) else None,
        **on_samples(of_generated, generated),
        "held_out_rejected": share(rejections(candidate, *real["held_out"])),
        "mild_copies_of_training_images_missed": share(~rejections(candidate, *real["copies"])),
        "named_prompts": on_samples(of_named, named),
    }


def on_samples(rejected: np.ndarray, judged: Judged) -> dict[str, Any]:
    """Shares of samples, ``rejected`` (n,) or not: copies that pass, and others that do not."""
    prompts, copied = np.array([sample.prompt for sample in judged.samples]), judged.verdicts.copied
    return {
        "memorised_returned": share(~rejected[copied], list(prompts[copied])),
        "other_generations_rejected": share(rejected[~copied], list(prompts[~copied])),
    }


def rejections(candidate: Filter, latents: torch.Tensor, images: np.ndarray) -> np.ndarray:
    scores = [candidate.scores(latents[i : i + 64], images[i : i + 64]) for i in range(0, len(latents), 64)]
    return np.concatenate(scores) > candidate.threshold


def through_the_pipeline(
    pipe: Any,
    index: Any,
    mode: str,
    generated: Judged,
    judge: CopyJudge,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Draw every sample again with the filter attached, and judge what comes back."""
    samples, plain = generated.samples, generated.drawn
    pipe.with_memorization_filter(index, on_memorized=mode, max_resamples=4, on_exhausted="blank")
    try:
        drawn = draw(pipe, samples, log)
    finally:
        pipe.without_memorization_filter()
    returned = np.array([decision.accepted is True for decision in drawn.decisions])
    first = np.array([decision.attempts == 1 for decision in drawn.decisions]) & returned
    if not np.array_equal(drawn.images[first], plain.images[first]):
        raise SystemExit("accepted images differ from those of the unfiltered run")
    if drawn.images[~returned].any():
        raise SystemExit("withheld images are not blank")
    before, after = generated.verdicts.copied, judge(drawn.images).copied & returned
    prompts = [sample.prompt for sample in samples]
    return {
        "on_memorized": mode,
        "memorised_without_filter": share(before, prompts),
        "memorised_with_filter": share(after, prompts),
        "memorised_returned_of_those_without": after.sum() / max(1, before.sum()),
        "samples_withheld_to_the_end": share(~returned, prompts),
        "mean_attempts": float(np.mean([decision.attempts for decision in drawn.decisions])),
        "seconds_an_image": drawn.seconds / len(samples),
    }


def seconds_an_image(
    pipe: Any, filters: Sequence[Filter | Attaches], samples: list[Sample], repeats: int
) -> dict[str, dict[str, Any]]:
    """CPU seconds an image, and their ratio to those of no filter, which is the first, in turns on the same batches.

    Of the ratio the median and what holds the true one, as ``in_turns`` and ``shares`` say.
    """
    ways = {candidate.label: _drawing(pipe, candidate, samples) for candidate in filters}
    seconds = in_turns(ways, repeats, time.process_time)
    found: dict[str, dict[str, Any]] = {
        label: {"processor_seconds_an_image": statistics.median(values) / BATCH, "time_ratio": 1.0}
        for label, values in seconds.items()
    }
    for label, extra in shares(seconds).items():
        found[label] |= {
            "time_ratio": 1 + extra["median"],
            "time_ratio_interval": [1 + end for end in extra["interval"]],
            "rounds": extra["n"],
        }
    return found


def describe_judge(
    judge: CopyJudge, held_out: np.ndarray, copied: np.ndarray, generated: Judged
) -> dict[str, Any]:
    """What the judge was fixed on, and what it says of images that it was not fixed on."""
    verdicts = generated.verdicts
    own = np.array([sample.own for sample in generated.samples])
    prompts = np.array([sample.prompt for sample in generated.samples])
    return {
        "statistic": "distance to the nearest training image / mean distance to the next 50 of other identities, "
        "channel-centred 32 px pictures",
        "threshold": judge.threshold,
        "rule": f"at most {FALSE_COPIES:.1%} of the calibration images are called copies",
        "unseen_real_images_called_copies": share(judge(held_out).copied),
        "mild_copies_of_training_images_recognised": share(judge(copied).copied),
        "own_prompt_samples_that_are_copies": share(verdicts.copied[own], list(prompts[own])),
        "generic_prompt_samples_that_are_copies": share(verdicts.copied[~own], list(prompts[~own])),
    }


def describe_calibration(lcmem: LCMem, given: int, tested: int) -> dict[str, Any]:
    n = lcmem.calibration.n
    return {
        "false_rejection_rate": RATE,
        "images_given": given,
        "images_used_by_lcmem": n,
        "tested_on": tested,
        "rejections_expected_in_95_percent": list(realised_range(n, RATE, tested)),
    }


def _drawing(pipe: Any, candidate: Filter | Attaches, samples: list[Sample]) -> Callable[[int], float]:
    """Draws the batch of a number through ``candidate``, and says when drawing began: it is attached once a job."""

    def draw_one(number: int) -> float:
        first = number * BATCH % (len(samples) - BATCH + 1)
        with _attached(pipe, candidate):
            began = time.process_time()
            call(pipe, samples[first : first + BATCH])
            return began

    return draw_one


@contextmanager
def _attached(pipe: Any, candidate: Filter | Attaches) -> Iterator[None]:
    if isinstance(candidate, Nothing):
        yield
    elif isinstance(candidate, LCMem):
        pipe.with_memorization_filter(candidate.filter.index, on_memorized="flag")
        yield
        pipe.without_memorization_filter()
    elif isinstance(candidate, Attaches):
        with candidate.attached(pipe):
            yield
    else:
        with watched_decoder(pipe, candidate.scores):
            yield
