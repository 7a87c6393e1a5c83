"""The demo's one picture: generated, nearest training image, score and verdict; without and with the filter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from .phantoms import Visit, draw_scan
from .roster import lessons
from .run import Outcome, Sample

COLUMNS = 13
RED, GREEN, GREY, INK = "#c62828", "#2e7d32", "#9e9e9e", "#212121"


def draw_story(outcome: Outcome, path: Path) -> None:
    """Write the picture as a PNG, 1760 x 1090 pixels, with at most ``COLUMNS`` samples.

    Which ones does not depend on what was found; all of them stand in the scale below.
    """
    figure = Figure(figsize=(16, 9.9), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    rows = _shown(outcome)
    total, copies = len(outcome.without), outcome.count("without")["copy"]
    withheld = outcome.count("filtered")["withheld"]
    _text(figure, 0.02, 0.965, f"Without the filter: {copies} of {total} images are copies", RED, 17, "bold")
    _panel(figure, [outcome.without[row] for row in rows], top=0.905, captions=True)
    after = f"{outcome.replaced} copies drawn again until new, {withheld} withheld"
    after = f"With the filter, same prompts and seeds: {after}"
    _text(figure, 0.02, 0.57, after, GREEN, 17, "bold")
    _text(figure, 0.985, 0.567, "what is drawn again is judged more strictly", INK, 10.5, align="right")
    _panel(figure, [outcome.filtered[row] for row in rows], top=0.535, captions=False)
    _scale(figure, outcome)
    figure.savefig(path)


def _shown(outcome: Outcome) -> list[int]:
    """The first two samples of captions that were asked for more than once, filled up with those asked for once."""
    rows: dict[str, list[int]] = {}
    for row, sample in enumerate(outcome.without):
        rows.setdefault(sample.prompt, []).append(row)
    shared = [row for members in rows.values() if len(members) > 1 for row in members[:2]][:COLUMNS]
    single = [members[0] for members in rows.values() if len(members) == 1]
    return sorted(single[: COLUMNS - len(shared)] + shared)


def _panel(figure: Figure, samples: list[Sample], top: float, captions: bool) -> None:
    left, width, high = 0.085, 0.9 / COLUMNS, 0.9 / COLUMNS * 16 / 9.9
    training = {lesson.visit.id: lesson.visit for lesson in lessons()}
    for label, down in (
        ("generated", 0.5),
        ("nearest\ntraining\nimage", 1.5),
        ("score", 2.08),
        ("verdict", 2.3),
    ):
        _text(figure, 0.02, top - high * down - 0.004, label, INK, 10.5)
    for column, sample in enumerate(samples):
        x = left + column * width
        colour = GREEN if sample.verdict == "new" else RED
        if captions:
            _text(figure, x + width * 0.46, top + 0.018, _wrapped(sample.prompt), INK, 8.5, align="center")
        nearest = draw_scan(_visit(sample, training))
        box = (x, top - high * 0.94, width * 0.92, high * 0.92)
        _tile(figure, box, None if sample.verdict == "withheld" else sample.image, colour)
        _tile(figure, (x, top - high * 1.9, width * 0.92, high * 0.92), nearest, GREY)
        middle = x + width * 0.46
        sign = ">" if sample.decision.score > sample.decision.threshold else "≤"
        score = f"{sample.decision.score:.3f} {sign} {sample.decision.threshold:.3f}"
        _text(figure, middle, top - high * 2.08, score, colour, 9, align="center")
        _text(figure, middle, top - high * 2.3, _words(sample), colour, 10, "bold", align="center")


def _visit(sample: Sample, training: dict[str, Visit]) -> Visit:
    return training[sample.decision.neighbours[0].id]


def _words(sample: Sample) -> str:
    draws = sample.decision.attempts
    if sample.verdict == "withheld":
        return f"{draws} of {draws} copies"
    if sample.verdict == "copy":
        return "COPY"
    return "new" if draws == 1 else f"new (draw {draws})"


def _tile(
    figure: Figure, box: tuple[float, float, float, float], image: Image.Image | None, colour: str
) -> None:
    axes = figure.add_axes(box)
    axes.set_xticks([]), axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=1 if colour == GREY else 3)
    if image is not None:
        axes.imshow(image, interpolation="lanczos")
        return
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.add_patch(Rectangle((0, 0), 1, 1, facecolor="#fbe9e7", edgecolor="#efb7ae", hatch="//", linewidth=0))
    axes.text(0.5, 0.5, "withheld", ha="center", va="center", color=RED, fontsize=11, weight="bold")


def _scale(figure: Figure, outcome: Outcome) -> None:
    """Every score on one scale: unseen patients as a grey heap, samples as dots, the threshold between."""
    calibration = outcome.index.calibration
    assert calibration is not None
    axes = figure.add_axes((0.085, 0.045, 0.9, 0.125))
    axes.hist(calibration.scores, bins=60, color="#cfd8dc", density=True)
    height = axes.get_ylim()[1]
    for samples, level, label in ((outcome.without, 0.72, "without"), (outcome.filtered, 0.3, "with")):
        for verdict, colour, marker in (("new", GREEN, "o"), ("copy", RED, "o"), ("withheld", RED, "x")):
            scores = [sample.decision.score for sample in samples if sample.verdict == verdict]
            axes.plot(scores, [level * height] * len(scores), marker, color=colour, markersize=6, alpha=0.75)
        axes.text(-0.005, level, label, transform=axes.transAxes, ha="right", va="center", fontsize=10.5)
    axes.axvline(calibration.threshold, color=INK, linewidth=1.5)
    note = f"threshold: 1 % of {calibration.n} unseen patients (grey) score higher "
    axes.text(calibration.threshold, height * 1.02, note, ha="right", va="bottom", fontsize=10, color=INK)
    axes.text(1, 1.02, "score of every image (x: withheld)", transform=axes.transAxes, ha="right", va="bottom",
              fontsize=10)  # fmt: skip
    axes.set_yticks([])
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)


def _wrapped(prompt: str) -> str:
    words = prompt.replace("a chest scan, ", "a chest scan,\n").replace("scan of patient", "scan of\npatient")
    return words if "\n" in words else words + "\n"


def _text(figure: Figure, x: float, y: float, text: str, colour: str, size: float, weight: str = "normal",
          align: Any = "left") -> None:  # fmt: skip
    figure.text(x, y, text, color=colour, fontsize=size, weight=weight, ha=align, va="center")
