"""What each rung of the ladder does for prompts whose image the pipeline memorised, and what the whole ladder does.

    python benchmarks/filters/train_pipeline.py --output CACHE/pipeline
    python benchmarks/ladder/run.py --pipeline CACHE/pipeline --head lcmem-reid --cache CACHE/ladder

Every ladder draws the same prompts from the same first seeds, through the attached filter; a sample is freed where the
filter accepts it and the judge in pixel space of ``benchmarks/filters/copies.py``, which knows nothing of the filter,
does not call it a copy. Writes ``benchmarks/results/ladder.json``. About ten minutes on one core, the index, kept
in ``--cache``, included. Of a pipeline that was trained with ``--model sd3``, with ``LCMEM_VAE=.../taesd3``, another
``--cache`` and ``--output``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "filters"))

from copies import CopyJudge
from data import Row, read_pictures, split_rows, vae_folder
from drawing import Drawn, Sample, draw, load_pipeline
from provenance import provenance
from sources import RATE, head_name, small_index
from stats import share
from worth import Worth

import lcmem_filter
from lcmem_filter.errors import MissingExtraError
from lcmem_filter.generation.job import pipeline_fingerprint
from lcmem_filter.pipeline import MemorizationWarning
from lcmem_filter.pipeline.rungs import DEFAULT_LADDER, RUNGS

RESULTS = Path(__file__).resolve().parents[1] / "results" / "ladder.json"
ATTEMPTS = 4


def main() -> None:
    arguments = _parse()
    torch.set_num_threads(1)
    rows = split_rows()
    pipe = load_pipeline(arguments.pipeline)
    encoder = lcmem_filter.load_encoder(vae_folder())
    index = small_index(rows, encoder, arguments.head, arguments.cache)
    judge = CopyJudge(
        read_pictures(rows["pipeline"]),
        [row.identity for row in rows["pipeline"]],
        read_pictures(rows["calibration"]),
    )
    duplicated = sorted((row for row in rows["pipeline"] if row.copies > 1), key=lambda row: -row.copies)
    captions = [row.caption for row in duplicated][: arguments.prompts]
    samples = [Sample(caption, number, True) for number, caption in enumerate(captions)]
    samples = memorised(pipe, index, judge, samples)
    log(f"{len(samples)} of {len(captions)} prompts give a memorised image")
    ladders = {name: (name,) for name in RUNGS} | {"default ladder": DEFAULT_LADDER}
    folder = (
        arguments.cache
        / "ladders"
        / f"{len(samples)}-{index.fingerprint[:8]}-{pipeline_fingerprint(pipe)[:8]}"
    )
    folder.mkdir(parents=True, exist_ok=True)
    table = [through(pipe, index, judge, samples, label, rungs, folder) for label, rungs in ladders.items()]
    worth = measured_worth(pipe, rows, arguments.cache)
    if worth is not None:
        table = [row | {"worth": of_freed(worth, folder / f"{row['label']}.npz")} for row in table]
    results = {
        "about": f"{len(samples)} prompts whose first image is memorised, by the filter and by the judge; "
        f"drawn again up to {ATTEMPTS} times; an index of the pipeline's {len(index)} training images; "
        "shares with 95 % intervals.",
        "ladders": table,
        "worth_of_reference": None if worth is None else worth.reference(),
        "judge": {"threshold": judge.threshold},
        "calibration": {
            "false_rejection_rate": RATE,
            "images": index.calibration.n if index.calibration else 0,
        },
        **provenance(arguments.pipeline, {head_name(arguments.head): index}),
    }
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")
    log(f"wrote {arguments.output}")


def measured_worth(pipe: Any, rows: dict[str, list[Row]], cache: Path) -> Worth | None:
    """What measures freed images; ``None`` where EfficientNet-Lite0's packages are not installed."""
    try:
        return Worth(pipe, rows, cache)
    except MissingExtraError as error:
        log(f"prompt alignment and quality are not measured: {error}")
        return None


def of_freed(worth: Worth, path: Path) -> dict[str, Any]:
    """What the freed images in ``path`` are worth."""
    with np.load(path) as kept:
        freed = kept["freed"]
        return worth(kept["images"][freed], kept["prompts"][freed].tolist())


def memorised(pipe: Any, index: Any, judge: CopyJudge, samples: list[Sample]) -> list[Sample]:
    """Those of ``samples`` that the filter rejects and the judge calls copies."""
    pipe.with_memorization_filter(index, on_memorized="flag")
    drawn = draw(pipe, samples, log)
    copied = judge(drawn.images).copied
    found = zip(samples, drawn.decisions, copied, strict=True)
    return [sample for sample, decision, copy in found if copy and decision.accepted is False]


def through(
    pipe: Any,
    index: Any,
    judge: CopyJudge,
    samples: list[Sample],
    label: str,
    rungs: tuple[str, ...],
    folder: Path,
) -> dict[str, Any]:
    """Draw memorised samples through one ladder, and judge what comes back; from ``folder`` where that was done."""
    kept = folder / f"{label}.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    pipe.with_memorization_filter(index, rungs=rungs, max_resamples=ATTEMPTS)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MemorizationWarning)
        drawn = draw(pipe, samples, log)
    seconds = time.process_time() - start
    row, freed = report(drawn, judge(drawn.images).copied, seconds)
    row = {"label": label, "rungs": list(rungs), **row}
    log(
        f"{label}: freed {row['freed']['share']:.2f}, copies that passed {row['accepted_but_copies']['count']}, "
        f"{row['processor_seconds_a_sample']:.1f} s a sample"
    )
    prompts = np.array([sample.prompt for sample in samples])
    np.savez_compressed(kept.with_suffix(".npz"), images=drawn.images, freed=freed, prompts=prompts)
    kept.write_text(json.dumps(row, indent=1) + "\n")
    return row


def report(drawn: Drawn, copied: np.ndarray, seconds: float) -> tuple[dict[str, Any], np.ndarray]:
    """The figures of one ladder, and which samples (n,) it freed."""
    accepted = np.array([decision.accepted is True for decision in drawn.decisions])
    attempts = np.array([decision.attempts for decision in drawn.decisions])
    freed = accepted & ~copied
    row = {
        "freed": share(freed),
        "freed_by_attempt": [share(freed & (attempts <= 1 + k)) for k in range(1, ATTEMPTS + 1)],
        "accepted": share(accepted),
        "accepted_but_copies": share(accepted & copied),
        "freed_by_rung": dict(
            Counter(d.rung for d, free in zip(drawn.decisions, freed, strict=True) if free)
        ),
        "mean_attempts": float(attempts.mean()),
        "processor_seconds_a_sample": seconds / len(freed),
    }
    return row, freed


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pipeline", type=Path, required=True, help="folder that train_pipeline.py wrote")
    parser.add_argument("--cache", type=Path, required=True, help="a folder outside the repository")
    parser.add_argument("--prompts", type=int, default=40, help="how many prompts, the most memorised first")
    parser.add_argument("--head", default="lcmem-reid", help="shipped name or folder of the head")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the results file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
