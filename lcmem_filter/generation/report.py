"""A job's rows to the report that is handed in with the images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from PIL import Image

from ..filter import MemorizationFilter
from ..folders import name_of
from ..images import ImageSource
from ..report import Pictures, Results, Run, RungRow, Sample, results_of, write_report
from ..report.summarise import STOPPED
from ..report.write import HTML, JSON
from .folder import REPORT, JobFolder
from .rows import Row

REPORT_FILES = (f"{REPORT}/{HTML}", f"{REPORT}/{JSON}")
"""Relative to the job's folder."""


def report_on(
    folder: JobFolder,
    job: Mapping[str, Any],
    rows: Sequence[Row],
    judge: MemorizationFilter,
    *,
    training: ImageSource | None,
    thumbnails: bool,
    salt: bytes | None,
    stopped: str | None,
) -> Results:
    """Write the report on ``rows``, and return what is in it."""
    results = results_of(
        _run(folder, job, rows, judge, training, stopped),
        [_sample(row, judge.calibration.threshold) for row in rows if row.status != "unsafe"],
        judge.calibration,
        rungs=_rungs(rows),
    )
    pictures = _pictures(folder, training, judge) if thumbnails else None
    write_report(results, folder.path / REPORT, pictures=pictures, salt=salt)
    return results


def _sample(row: Row, threshold: float) -> Sample:
    judged = row.accepted is not None  # of what was interrupted the score is no number
    problem = row.reason
    if row.accepted is False and row.threshold < row.score <= threshold:
        problem = f"the score exceeds {row.threshold:.3f}, the threshold for what is drawn again"
    return Sample(
        row.file_name or f"{row.position:06d} (not delivered)",
        row.accepted,
        row.score if judged else None,
        row.p_value if judged else None,
        row.neighbours,
        tuple(dict.fromkeys(label for label in row.label.split("|") if label)),
        row.sha256 or "",
        problem,
        delivered=row.delivered,
        prompt=row.drawn_prompt or row.prompt,
        seed=row.seed if row.last_seed is None else row.last_seed,
        attempts=row.attempts,
        rung=row.rung or None,
        matched_before=row.matched_before,
    )


def _rungs(rows: Sequence[Row]) -> list[RungRow]:
    """How often an image was drawn again by each remedy, and how often that was the end of it."""
    tried = Counter(rung for row in rows for rung in row.rungs)
    accepted = Counter(row.rung for row in rows if row.rung and row.accepted)
    return [RungRow(rung, count, accepted[rung]) for rung, count in tried.items()]


def _run(
    folder: JobFolder,
    job: Mapping[str, Any],
    rows: Sequence[Row],
    judge: MemorizationFilter,
    training: ImageSource | None,
    stopped: str | None,
) -> Run:
    fixed, index = job["fixed"], judge.index
    texts = {name: value for name, value in fixed["options"].items() if _has_text(value)}
    numbers = {name: value for name, value in fixed["options"].items() if name not in texts}
    private = {"pipeline": str(job["pipeline"]), "seed": str(fixed["seed"])}
    if texts:
        private["texts of its call"] = json.dumps(texts, ensure_ascii=False)
    settings = {
        **private,
        "options of its call": json.dumps(numbers, ensure_ascii=False),
        "batch size": str(fixed["batch_size"]),
        "matches": _policy(fixed),
        "device": f"{fixed['device']}, {fixed['dtype']}",
        "held-out images": f"{judge.calibration.n:,}",
        "images asked for": f"{fixed['images']:,}",
    }
    if unsafe := sum(row.status == "unsafe" for row in rows):
        settings["withheld by the pipeline's own safety checker"] = f"{unsafe:,}"
    if stopped:
        settings[STOPPED] = f"after {len(rows):,} images: {stopped}"
    return Run(
        kind="generation",
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        images=name_of(folder.path),
        training=training.name if training else f"index {name_of(index.path)}",
        training_images=len(index),
        training_unreadable=len(index.unreadable),
        resolution=index.resolution,
        image_size=_size_of_images(folder, rows),
        space=judge.space,
        settings=settings,
        private=tuple(private),
        versions=fixed["versions"],
        fingerprints=fixed["fingerprints"],
    )


def _has_text(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_text, (*value, *value.values())))
    return isinstance(value, str) or (isinstance(value, list | tuple) and any(map(_has_text, value)))


def _size_of_images(folder: JobFolder, rows: Sequence[Row]) -> tuple[int, int] | None:
    for row in rows:
        if row.file_name is not None:
            with Image.open(folder.path / row.file_name) as opened:
                return opened.size
    return None


def _policy(fixed: Mapping[str, Any]) -> str:
    again = f"drawn again up to {fixed['max_resamples']} times, then withheld"
    return {"flag": "delivered and marked", "reject": "withheld", "resample": again}[fixed["on_memorized"]]


def _pictures(folder: JobFolder, training: ImageSource | None, judge: MemorizationFilter) -> Pictures:
    """Of delivered images and, where they are given, of training images; withheld images were never decoded."""

    def sample(id_: str) -> Image.Image | None:
        path = folder.path / id_
        if not path.is_file():
            return None
        with Image.open(path) as opened:
            return opened.convert("RGB")

    return Pictures(sample, judge.index.pictures_in(training) if training else None)
