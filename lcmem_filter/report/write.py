"""Results to ``report.html`` and ``report.json``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import check_kind
from .figures import calibration_plot, score_histogram
from .pages import check_file, environment, replace_file, style_and_script
from .pictures import Pictures, thumbnails
from .results import Results, Sample
from .salting import salted, salted_id
from .summarise import STOPPED

HTML, JSON = "report.html", "report.json"
GALLERY = 200
"""Matches that are shown; the JSON has all of them."""
ROWS = 100
"""Rows of every other table that are shown."""


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """Where a report was written."""

    html: Path
    json: Path


def check_output(folder: str | os.PathLike[str]) -> None:
    """Make the folder of a report, before the hours that the report may take.

    Raises:
        OSError: it cannot be made, or no report be written to it.
    """
    for name in (HTML, JSON):
        check_file(Path(folder, name))


def write_report(
    results: Results,
    output_folder: str | os.PathLike[str],
    *,
    pictures: Pictures | None = None,
    salt: bytes | None = None,
) -> ReportFiles:
    """Write one self-contained HTML page, and a JSON file with every number in it.

    The page needs no network and no other file. Everything that comes from outside (file names, prompts, labels)
    is escaped, and the page's own policy lets nothing run but its one script.

    Args:
        results: What was found; ``results_of`` makes it.
        output_folder: Made where it is missing; files of an older report are replaced.
        pictures: Where thumbnails come from; without it images are named, not shown.
        salt: Replaces ids by keyed hashes, and leaves out prompts, seeds, the names of the data and private
            settings.
    """
    check_kind("results", results, Results, "results_of, and audit_images as its results,")
    shown = _gallery(results)
    samples, training = {}, {}
    if pictures is not None:
        samples = thumbnails((one.id for one in shown), pictures.sample)
        training = thumbnails((one.neighbours[0].id for one in shown if one.neighbours), pictures.training)
    if salt is not None:
        results = salted(results, salt)
        samples = {salted_id(id_, salt): uri for id_, uri in samples.items()}
        training = {salted_id(id_, salt, "training"): uri for id_, uri in training.items()}
    folder = Path(output_folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = ReportFiles(folder / HTML, folder / JSON)
    replace_file(files.html, render(results, samples, training, salted=salt is not None))
    replace_file(files.json, results.to_json())
    return files


def render(
    results: Results, samples: dict[str, str], training: dict[str, str], *, salted: bool = False
) -> str:
    """The page, with data URIs of the thumbnails by id."""
    templates = environment()
    templates.filters |= {
        "percent": _percent,
        "number": _number,
        "p": _p_value,
        "probability": _probability,
        "moment": _moment,
    }
    return templates.get_template("report.html.jinja").render(
        results=results,
        run=results.run,
        shown=_gallery(results),
        rejected=sum(one.accepted is False for one in results.samples),
        discovered=frozenset(results.false_discovery.discoveries if results.false_discovery else ()),
        samples=samples,
        training=training,
        salted=salted,
        stopped=STOPPED in results.run.settings,
        rows=ROWS,
        histogram=score_histogram(results),
        calibration_plot=calibration_plot(results),
        **style_and_script(templates, "report.js"),
    )


def _gallery(results: Results) -> list[Sample]:
    rejected = [one for one in results.samples if one.accepted is False]
    return sorted(rejected, key=lambda one: -(one.score or 0.0))[:GALLERY]


def _percent(share: float) -> str:
    for digits in (1, 2, 3):
        text = f"{share:.{digits}%}"
        if float(text[:-1]) not in (0.0, 100.0) or share in (0.0, 1.0):
            return text.replace(f".{'0' * digits}%", "%")
    return "< 0.001%" if share < 0.5 else "> 99.999%"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _p_value(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2g}" if value >= 0.0001 else f"{value:.1e}"


def _probability(value: float) -> str:
    return "less than 0.001" if value < 0.001 else f"about {value:.2g}"


def _moment(iso: str) -> str:
    return datetime.fromisoformat(iso).strftime("%d %B %Y, %H:%M %Z").strip(" ,")
