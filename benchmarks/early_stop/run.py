"""How many denoising steps early stop saves on memorised prompts, and how many innocent samples it loses.

    python benchmarks/filters/train_pipeline.py --output CACHE/pipeline
    python benchmarks/early_stop/run.py --pipeline CACHE/pipeline --head lcmem-reid --cache CACHE/ladder

For each scheduler, thresholds are fitted on prompts that are not memorised, and measured on other seeds. Shares the
index of ``benchmarks/ladder``, kept in ``--cache``; what was fitted and measured is kept there too and not repeated.
Writes ``benchmarks/results/early_stop.json`` as it goes. About ten minutes on one core for the first, the index not
included.

Of a pipeline that was trained with ``--model sd3``, with ``LCMEM_VAE=.../taesd3``, take
``--schedulers "flow matching"``, and another ``--cache`` and ``--output``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "filters"))

import steps
from copies import CopyJudge
from data import Row, read_pictures, split_rows, vae_folder
from drawing import BATCH, GUIDANCE, STEPS, Sample, choose_samples, load_pipeline, settings
from provenance import provenance
from sources import head_name, small_index

import lcmem_filter
from lcmem_filter.generation.job import pipeline_fingerprint

RESULTS = Path(__file__).resolve().parents[1] / "results" / "early_stop.json"
FLOW = "flow matching"
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    FLOW: ("FlowMatchEulerDiscreteScheduler", {}),
}
BOUND, FRACTIONS = 0.01, (0.3, 0.5)
FIT_SEED, INNOCENT_SEED, MEMORISED_SEED = 10_000, 20_000, 30_000  # of the first sample of each


@dataclass(frozen=True)
class Size:
    """How much is drawn: accepted samples to fit on, innocent ones to measure on, memorised prompts, seeds of each."""

    fit: int
    innocent: int
    prompts: int
    seeds: int = 4


def main() -> None:
    arguments = _parse()
    torch.set_num_threads(1)
    rows = split_rows()
    pipe = load_pipeline(arguments.pipeline)
    index = small_index(rows, lcmem_filter.load_encoder(vae_folder()), arguments.head, arguments.cache)
    judge = CopyJudge(
        read_pictures(rows["pipeline"]),
        [row.identity for row in rows["pipeline"]],
        read_pictures(rows["calibration"]),
    )
    sizes = dict.fromkeys(arguments.schedulers, arguments.fewer)
    sizes[arguments.schedulers[0]] = arguments.first
    measured: list[dict[str, Any]] = []
    about = {
        "about": f"{STEPS} steps, guidance {GUIDANCE:g}; an index of the pipeline's {len(index)} training images; "
        f"at most {BOUND:.0%} of accepted samples may be stopped; intervals of 95 %, those of memorised samples by "
        "prompt.",
        "bound": BOUND,
        "judge": {"threshold": judge.threshold},
        **provenance(arguments.pipeline, {head_name(arguments.head): index}),
    }
    for name, size in sizes.items():
        row: dict[str, Any] = {"label": name}
        measured.append(row)
        for part in one_scheduler(pipe, index, judge, rows["pipeline"], name, size, arguments.cache):
            row |= part
            if "innocent" in row:
                arguments.output.parent.mkdir(exist_ok=True)
                arguments.output.write_text(json.dumps({**about, "schedulers": measured}, indent=1) + "\n")
    log(f"wrote {arguments.output}")


def one_scheduler(
    pipe: Any, index: Any, judge: CopyJudge, rows: list[Row], name: str, size: Size, cache: Path
) -> Iterator[dict[str, Any]]:
    """Fit on some samples and measure on others, with one scheduler; yields what is found, as it is found."""
    kind, options = SCHEDULERS[name]
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, **options)
    stem = f"{cache}/early-stop-{kind}-{index.fingerprint[:8]}-{pipeline_fingerprint(pipe)[:8]}-{size.fit}"
    early = fitted(pipe, index, rows, size.fit, Path(f"{stem}.json"))
    log(f"{name}: thresholds {[round(stage.calibration.threshold, 3) for stage in early.stages]}")
    yield {"scheduler": kind, "fit": describe(early, index)}
    memorised = keep(
        Path(f"{stem}-memorised-{size.prompts}-{size.seeds}.json"),
        lambda: steps.memorised(pipe, index, early, judge, memorised_batches(rows, size), log),
    )
    yield {"memorised": memorised}
    samples, path = innocent_samples(rows, size.innocent), Path(f"{stem}-innocent.jsonl")
    for found in steps.innocent(pipe, index, early, samples, path, log):
        yield {"innocent": found}


def fitted(pipe: Any, index: Any, rows: list[Row], accepted: int, path: Path) -> Any:
    """Early stop for the pipeline as it is; from ``path`` where it was fitted before."""
    if path.exists():
        return lcmem_filter.EarlyStop.load(path)
    pipe.with_memorization_filter(index, on_memorized="flag")
    early = lcmem_filter.EarlyStop.fit(
        pipe,
        [sample.prompt for sample in choose_samples(rows, 0, accepted, seed=1)],
        bound=BOUND,
        fractions=FRACTIONS,
        samples=accepted,
        batch_size=BATCH,
        seed=FIT_SEED,
        **settings(pipe),
    )
    early.save(path)
    return early


def describe(early: Any, index: Any) -> dict[str, Any]:
    """What the thresholds rest on."""
    first = early.stages[0].calibration
    return {
        "accepted_samples": first.n,
        "rejected_samples": first.dropped.get("rejected", 0),
        "index_threshold": index.calibration.threshold,
        "stages": [
            {
                "fraction": stage.fraction,
                "noise": stage.noise,
                "threshold": stage.calibration.threshold,
                "largest_accepted_score": stage.calibration.scores[-1],
            }
            for stage in early.stages
        ],
    }


def innocent_samples(rows: list[Row], count: int) -> list[Sample]:
    """Captions as images have them that stand once in the training set."""
    found = choose_samples(rows, 0, count, seed=2)
    return [Sample(sample.prompt, INNOCENT_SEED + sample.seed, False) for sample in found]


def memorised_batches(rows: list[Row], size: Size) -> list[list[Sample]]:
    """The captions of the images that stand most often in the training set, each with some seeds."""
    often = max(row.copies for row in rows)
    captions = [row.caption for row in rows if row.copies == often]
    chosen = captions[:: max(1, len(captions) // size.prompts)][: size.prompts]
    numbers = iter(range(MEMORISED_SEED, MEMORISED_SEED + size.seeds * len(chosen)))
    return [[Sample(caption, next(numbers), True) for _ in range(size.seeds)] for caption in chosen]


def keep(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``make`` measured, from ``path`` where it was measured before."""
    if not path.exists():
        path.write_text(json.dumps(make(), indent=1) + "\n")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pipeline", type=Path, required=True, help="folder that train_pipeline.py wrote")
    parser.add_argument("--cache", type=Path, required=True, help="a folder outside the repository")
    parser.add_argument("--head", default="lcmem-reid", help="shipped name or folder of the head")
    parser.add_argument(
        "--schedulers",
        nargs="+",
        choices=list(SCHEDULERS),
        default=[name for name in SCHEDULERS if name != FLOW],
    )
    sizes = "samples to fit on, innocent samples, memorised prompts, e.g. 399,240,24"
    parser.add_argument("--first", type=_size, default=Size(399, 480, 24), help=f"first scheduler: {sizes}")
    parser.add_argument("--fewer", type=_size, default=Size(199, 240, 24), help=f"the others: {sizes}")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the results file")
    return parser.parse_args()


def _size(text: str) -> Size:
    return Size(*map(int, text.split(",")))


if __name__ == "__main__":
    main()
