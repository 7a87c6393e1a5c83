"""Figures as SVG data URIs, the same bytes for the same numbers."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from .results import Results

UNSEEN, ACCEPTED, REJECTED, INK = "#8a8f98", "#2f6f9f", "#b3261e", "#1d232b"
_STYLE: Any = {
    "font.size": 10,
    "axes.edgecolor": "#9aa1ab",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "svg.hashsalt": "lcmem_filter",
    "text.color": INK,
    "xtick.color": "#4b5360",
    "ytick.color": "#4b5360",
}


def score_histogram(results: Results) -> str:
    """Scores of unseen real images above those of the samples, accepted and rejected, with the threshold."""
    unseen = np.array(results.calibration.scores)
    accepted = np.array([s.score for s in results.samples if s.accepted and s.score is not None])
    rejected = np.array([s.score for s in results.samples if s.accepted is False and s.score is not None])
    together = np.concatenate([unseen, accepted, rejected])
    bins = _bins(together, results.calibration.threshold)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9.4, 4), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        above.hist(unseen, bins, color=UNSEEN, label=f"unseen real images ({len(unseen):,})")
        named = "examined" if results.run.kind == "audit" else "drawn"
        below.hist(
            [accepted, rejected],
            bins,
            stacked=True,
            color=[ACCEPTED, REJECTED],
            label=[f"{named}: no match ({len(accepted):,})", f"{named}: match ({len(rejected):,})"],
        )
        for axes in (above, below):
            axes.axvline(results.calibration.threshold, color=INK, linewidth=1.2, linestyle="--")
            axes.set_ylabel("images")
            axes.yaxis.get_major_locator().set_params(integer=True)
            axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 0.98), ncols=2, borderpad=0)
        above.annotate(
            "threshold",
            (results.calibration.threshold, 1),
            (4, -2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="top",
        )
        below.set_xlabel("resemblance to the most alike training image")
        return _data_uri(figure)


def calibration_plot(results: Results) -> str:
    """Share of images rejected at each promised rate: unseen real images lie on the diagonal."""
    n = results.calibration.n
    certificate = results.certificate
    unseen = () if certificate is None else certificate.specificity.p_values
    samples = [s.p_value for s in results.samples if s.p_value is not None]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 3.9), layout="constrained")
        axes = figure.subplots()
        floor = 0.7 / (n + 1)
        axes.plot([floor, 1], [floor, 1], color=INK, linewidth=1, linestyle=":", label="as promised")
        if unseen:
            _step(axes, unseen, n, UNSEEN, f"unseen real images ({len(unseen):,})")
        if samples:
            named = "examined" if results.run.kind == "audit" else "drawn"
            _step(axes, samples, n, ACCEPTED, f"images {named} ({len(samples):,})")
        rate = results.calibration.false_rejection_rate
        axes.axvline(rate, color=INK, linewidth=1.2, linestyle="--")
        leftmost = rate < 10 * floor  # where the axis has no room left of it
        axes.annotate(
            f"chosen: {rate:.2g}",
            (rate, 1),
            (4 if leftmost else -4, -2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="left" if leftmost else "right",
            va="top",
        )
        axes.set(xscale="log", yscale="log", xlim=(floor, 1), ylim=(floor, 1.3))
        axes.set(xlabel="promised rate of false alarms", ylabel="share of images rejected at it")
        percent = FuncFormatter(lambda value, _: f"{value:.3g}" if value >= 1e-3 else f"{value:.0e}")
        axes.xaxis.set_major_formatter(percent)
        axes.yaxis.set_major_formatter(percent)
        axes.legend(frameon=False, loc="lower right")
        return _data_uri(figure)


def _bins(values: np.ndarray, threshold: float) -> np.ndarray:
    """Bins of which one begins at the threshold, so that no bar lies on both sides of it."""
    low, high = min(float(values.min()), threshold), max(float(values.max()), threshold)
    width = max(high - low, 1e-6) / 50
    before = np.ceil((threshold - low) / width + 1e-9)
    after = np.ceil((high - threshold) / width + 1e-9)
    return threshold + width * np.arange(-before, after + 1)


def _step(axes: Axes, p_values: Sequence[float], n: int, color: str, label: str) -> None:
    levels = np.arange(1, n + 2) / (n + 1)
    share = np.searchsorted(np.sort(p_values), levels * (1 + 1e-12), side="right") / len(p_values)
    axes.step(
        levels, np.where(share > 0, share, np.nan), where="post", color=color, linewidth=1.8, label=label
    )


def _data_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
