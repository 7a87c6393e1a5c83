"""Compare filters on one pipeline that memorised: the same prompts, seeds and calibration images for each.

    python benchmarks/filters/train_pipeline.py --output CACHE/pipeline
    python benchmarks/filters/run.py --pipeline CACHE/pipeline --head lcmem-small --cache CACHE/filters

Writes ``benchmarks/results/filters.json``; the index, what was drawn and the contact sheets go to ``--cache``, which
must lie outside the repository. Slow stages are kept there and not repeated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from copies import CopyJudge, mild_copies
from data import RESOLUTION, Row, read_image, split_rows, vae_folder
from drawing import Drawn, Sample, choose_samples, decode, draw, load_pipeline
from filters import Filter, LCMem, LCMemEmbedding, Nothing, Pixels, RawLatents, fit_threshold
from provenance import provenance
from sheets import contact_sheet
from sources import build_index, open_rows

import lcmem_filter

RESULTS = Path(__file__).resolve().parents[1] / "results" / "filters.json"


def main() -> None:
    arguments = _parse()
    torch.set_num_threads(1)
    cache, rows = arguments.cache, split_rows()
    pipe = load_pipeline(arguments.pipeline)
    encoder = lcmem_filter.load_encoder(vae_folder())

    pictures = {name: read_pictures(rows[name]) for name in ("pipeline", "calibration", "held_out")}
    judge = CopyJudge(
        pictures["pipeline"], [row.identity for row in rows["pipeline"]], pictures["calibration"]
    )
    log(f"the judge calls an image a copy below {judge.threshold:.3f}")

    samples = choose_samples(rows["pipeline"], arguments.seeds, arguments.generic)
    plain = keep(cache / f"plain-{arguments.seeds}-{arguments.generic}.pt", lambda: draw(pipe, samples, log))
    verdicts = judge(plain.images)
    nearest = pictures["pipeline"][verdicts.nearest]
    for name, chosen in (("memorised", verdicts.copied), ("not_memorised", ~verdicts.copied)):
        some = np.random.default_rng(0).permutation(np.flatnonzero(chosen))[:48]
        contact_sheet(cache / "sheets" / f"{name}.png", plain.images, nearest, verdicts, np.sort(some))
    edge = np.argsort(np.abs(verdicts.ratio - judge.threshold))[:24]
    contact_sheet(
        cache / "sheets" / "nearest_to_the_judges_threshold.png", plain.images, nearest, verdicts, edge
    )
    if arguments.only_draw:
        return

    real = {name: through_vae(encoder, pictures[name]) for name in ("calibration", "held_out")}
    copied = mild_copies(pictures["pipeline"][:: len(pictures["pipeline"]) // 500][:500], seed=0)
    real["copies"] = through_vae(encoder, copied)
    indexed = [*rows["pipeline"], *rows["distractors"]]
    index = build_index(
        open_rows(indexed, cache / "indexed.parquet"), encoder, arguments.head, cache / "index"
    )
    lcmem = LCMem(index, open_rows(rows["calibration"], cache / "calibration.parquet"))
    others = [LCMemEmbedding(index), RawLatents(index), Pixels(read_pictures(indexed))]
    for candidate in others:
        fit_threshold(candidate, *real["calibration"])
    filters: list[Filter] = [Nothing(), lcmem, *others]

    table = [measure.offline(candidate, real, plain, verdicts, samples) for candidate in filters]
    seconds = measure.seconds_an_image(pipe, filters, samples, arguments.repeats)
    for row in table:
        row |= seconds[row["label"]]
    live = [
        measure.through_the_pipeline(pipe, index, mode, samples, plain, judge, log)
        for mode in ("reject", "resample")
    ]
    results = {
        "about": about(samples, rows, len(index)),
        "filters": table,
        "pipeline_with_lcmem": live,
        "judge": measure.describe_judge(judge, pictures["held_out"], copied, verdicts, samples),
        "samples": {
            "own_prompts": sum(s.own for s in samples),
            "generic_prompts": sum(not s.own for s in samples),
        },
        "index": {
            "images": len(index),
            "pipeline": len(rows["pipeline"]),
            "distractors": len(rows["distractors"]),
        },
        "calibration": measure.describe_calibration(lcmem, len(rows["calibration"]), len(rows["held_out"])),
        **provenance(arguments.pipeline, index),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    log(f"wrote {RESULTS}")


def read_pictures(rows: list[Row]) -> np.ndarray:
    """uint8 pixels (n, 128, 128, 3)."""
    return np.stack([np.asarray(read_image(row).resize((RESOLUTION, RESOLUTION))) for row in rows])


def through_vae(encoder: Any, pictures: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """Latents of real pictures and what they decode to: what a filter would see if the pipeline drew them."""
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = torch.cat([encoder.encode(pixels[i : i + 16]) for i in range(0, len(pixels), 16)])
    return latents, decode(encoder.vae, latents)


def keep(path: Path, make: Callable[[], Drawn]) -> Drawn:
    """What ``make`` drew, from ``path`` where it was drawn before."""
    if path.exists():
        saved = torch.load(path, weights_only=True)
        return Drawn(saved["latents"], saved["images"].numpy(), [], saved["seconds"])
    drawn = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {"latents": drawn.latents, "images": torch.from_numpy(drawn.images), "seconds": drawn.seconds}
    torch.save(values, path)
    return drawn


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
    parser.add_argument("--head", default="lcmem-small", help="shipped name or folder of the head")
    parser.add_argument("--seeds", type=int, default=6, help="seeds for each duplicated image's prompt")
    parser.add_argument("--generic", type=int, default=240, help="samples of the other images' prompts")
    parser.add_argument("--repeats", type=int, default=5, help="timed batches")
    parser.add_argument(
        "--only-draw", action="store_true", help="stop after the unfiltered samples and their sheets"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
