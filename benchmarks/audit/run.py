"""Audit an unfiltered and a filtered set of a pipeline that memorised, both with copies planted among them.

    python benchmarks/filters/run.py --pipeline CACHE/pipeline --cache CACHE/filters
    python benchmarks/audit/run.py --pipeline CACHE/pipeline --filters CACHE/filters --cache CACHE/audit

The unfiltered set is what ``benchmarks/filters`` drew; the filtered set is what the filter accepts of it. In both,
copies of training images are planted: the file itself, cropped, rotated, and as JPEG. The set is written as files and
audited as ``lcmem-filter audit`` does. Writes ``benchmarks/results/audit.json``; reports go to ``--cache``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "filters"))

from copies import CopyJudge
from data import read_image, read_pictures, split_rows, vae_folder
from provenance import provenance
from sources import head_name, index_folder, open_rows

import lcmem_filter
from lcmem_filter.audit import audit_images
from lcmem_filter.report import write_report

RESULTS = Path(__file__).resolve().parents[1] / "results" / "audit.json"
PLANTED, SEED, RESOLUTION = 25, 0, 128
Save = Callable[[Image.Image, Path], None]


def crop(picture: Image.Image, share: float) -> Image.Image:
    """The middle ``share`` of each side, stretched to the whole."""
    edge = picture.width * (1 - share) / 2
    box = (edge, edge, picture.width - edge, picture.height - edge)
    return picture.resize(picture.size, Image.Resampling.BICUBIC, box)


def turn(picture: Image.Image, degrees: float) -> Image.Image:
    return picture.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=picture.getpixel((0, 0)))


PLANTS: dict[str, Save] = {
    "exact": lambda picture, path: picture.save(path.with_suffix(".png")),
    "cropped to 90 %": lambda picture, path: crop(picture, 0.9).save(path.with_suffix(".png")),
    "cropped to 75 %": lambda picture, path: crop(picture, 0.75).save(path.with_suffix(".png")),
    "rotated by 5 degrees": lambda picture, path: turn(picture, 5).save(path.with_suffix(".png")),
    "rotated by 15 degrees": lambda picture, path: turn(picture, 15).save(path.with_suffix(".png")),
    "JPEG of quality 50": lambda picture, path: picture.save(path.with_suffix(".jpg"), quality=50),
    "JPEG of quality 10": lambda picture, path: picture.save(path.with_suffix(".jpg"), quality=10),
}


def main() -> None:
    arguments = _parse()
    torch.set_num_threads(1)
    rows = split_rows()
    plain = torch.load(arguments.filters / "plain-6-240.pt", weights_only=True)
    images = plain["images"].numpy()
    judge = CopyJudge(
        read_pictures(rows["pipeline"]),
        [row.identity for row in rows["pipeline"]],
        read_pictures(rows["calibration"]),
    )
    copied = judge(images).copied
    index = lcmem_filter.MemorizationIndex.load(index_folder(arguments.filters, arguments.head))
    unseen = open_rows(rows["held_out"], arguments.cache / "held_out.parquet")
    decisions = lcmem_filter.MemorizationFilter(index).judge(plain["latents"])
    accepted = np.array([decision.accepted is True for decision in decisions])
    sets = {"unfiltered": np.ones(len(images), bool), "filtered": accepted}
    table = {}
    for name, kept in sets.items():
        folder = arguments.cache / name
        kinds = write_set(folder / "images", images, kept, copied, rows["pipeline"])
        audit = audit_images(
            lcmem_filter.open_images(folder / "images"),
            index,
            encoder=lcmem_filter.load_encoder(vae_folder()),
            unseen=unseen,
        )
        write_report(audit.results, folder / "report", pictures=audit.pictures)
        table[name] = describe(audit.results, kinds)
        print(name, json.dumps(table[name], indent=1), flush=True)
    results = {
        "about": f"{len(images)} images that the pipeline drew, {int(copied.sum())} of them copies by a judge in pixel "
        f"space, and {PLANTED} planted copies of each kind; an index of {len(index):,} images; counts of matches at "
        "the calibrated threshold.",
        "sets": table,
        "resolution": RESOLUTION,
        **provenance(arguments.pipeline, {head_name(arguments.head): index}),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")


def write_set(
    folder: Path, images: np.ndarray, kept: np.ndarray, copied: np.ndarray, training: list[Any]
) -> dict[str, str]:
    """Write the drawn images of ``kept`` and the planted copies; what each file is, by its name."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    kinds = {}
    for row in np.flatnonzero(kept):
        Image.fromarray(images[row]).save(folder / f"drawn-{row:04d}.png")
        kinds[f"drawn-{row:04d}.png"] = "drawn, copies" if copied[row] else "drawn, others"
    order = np.random.default_rng(SEED).permutation(len(training))
    for number, (kind, save) in enumerate(PLANTS.items()):
        for i, row in enumerate(order[number * PLANTED : (number + 1) * PLANTED]):
            picture = read_image(training[row]).convert("RGB").resize((RESOLUTION, RESOLUTION))
            save(picture, folder / f"planted-{number}-{i:02d}")
            (written,) = folder.glob(f"planted-{number}-{i:02d}.*")
            kinds[written.name] = kind
    return kinds


def describe(results: Any, kinds: dict[str, str]) -> dict[str, Any]:
    """Matches of each kind, and what the report says of the whole."""
    matches: dict[str, list[int]] = {}
    for sample in results.samples:
        count = matches.setdefault(kinds[Path(sample.id).name], [0, 0])
        count[0] += sample.accepted is False
        count[1] += 1
    return {
        "matches_of_each_kind": matches,
        "verdict": results.verdict,
        "exit_code": results.exit_code,
        "rate": asdict(results.rate),
        "chance": asdict(results.chance),
        "false_discovery": asdict(results.false_discovery),
        "specificity": asdict(results.certificate.specificity.rate),
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pipeline", type=Path, required=True, help="folder that train_pipeline.py wrote")
    parser.add_argument(
        "--filters", type=Path, required=True, help="cache of benchmarks/filters, which has run"
    )
    parser.add_argument("--cache", type=Path, required=True, help="a folder outside the repository")
    parser.add_argument(
        "--head",
        default="lcmem-reid",
        help="shipped name or folder of a head that benchmarks/filters ran with",
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="the results file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
