"""The pictures of a results file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

TITLES = {
    "mild_copies": "copies as a memorising model emits them",
    "half_formed_copies": "copies of which it returns no more than the outlines",
    "heavy_copies": "heavily transformed copies",
    "same_identity": "other images of an identity",
}
COLOURS = {
    "lcmem": ("#1b9e77", "#d95f02", "#7570b3", "#e7298a"),
    "others": ("#4c78a8", "#9ecae9", "#6f6f6f", "#b8b8b8", "#d4a72c", "#8c6d31", "#c9a98a"),
}
MOST_OTHERS = 7
"""Filters other than LCMem that are drawn, those that find most: more are no longer told apart."""


def draw(results: dict[str, Any], stem: Path, rate: float) -> None:
    """Write ``stem``-recall.png, -curves.png and, where robustness was measured, -robustness.png: LCMem by each head,
    told no identities, and the strongest others, each in the better of its forms.

    Args:
        rate: Share of unseen images that thresholds reject.
    """
    labels = shown(results)
    colours: dict[str, Any] = {}
    for kind, palette in COLOURS.items():
        names = [name for name in labels if is_lcmem(name) == (kind == "lcmem")]
        colours |= {name: palette[i % len(palette)] for i, name in enumerate(names)}
    _write(_recall(results, labels, colours, rate), stem, "recall")
    _write(_curves(results, labels, colours, rate), stem, "curves")
    if "robustness" in results:
        _write(_robustness(results["robustness"], labels, colours, rate), stem, "robustness")


def is_lcmem(name: str) -> bool:
    """Whether a method is LCMem or a part of it."""
    return name.startswith("lcmem")


def shown(results: dict[str, Any]) -> dict[str, str]:
    """Names and labels of what is drawn, in the order of the results."""
    labels: dict[str, str] = results["labels"]
    forms: dict[str, str] = {}
    for name in sorted(labels, key=lambda name: _worth(results, name)):
        if not is_lcmem(name):
            forms[name.removesuffix("_relative")] = name  # the better form comes last
    others = sorted(forms.values(), key=lambda name: _worth(results, name))[-MOST_OTHERS:]
    heads = [name for name in labels if name == "lcmem" or name.startswith("lcmem_lcmem_")]
    heads = [name for name in heads if not name.endswith("_told")]
    found = {name: label for name, label in labels.items() if name in (*heads, *others)}
    if "lcmem" in found:
        found["lcmem"] = f"LCMem, {results['head']['name']}"
    return found


def _worth(results: dict[str, Any], name: str) -> float:
    """Recall in the mean of tasks and domains."""
    cells = [one["methods"].get(name) for task in results["deciding"].values() for one in task.values()]
    shares = [cell["recall"] for cell in cells if cell]
    return sum(shares) / len(shares) if shares else 0.0


def _at(rate: float) -> str:
    return f"at {100 * rate:g} % false rejection"


def _write(figure: Figure, stem: Path, name: str) -> None:
    figure.savefig(stem.with_name(f"{stem.name}-{name}.png"), dpi=110, metadata={"Software": None})
    plt.close(figure)


def _recall(results: dict[str, Any], labels: dict[str, str], colours: dict[str, Any], rate: float) -> Figure:
    tasks = results["deciding"]
    figure, axes = plt.subplots(
        len(tasks), 1, figsize=(11, 3.1 * len(tasks)), layout="constrained", squeeze=False
    )
    for axis, (task, domains) in zip(axes[:, 0], tasks.items(), strict=True):
        for place, (name, label) in enumerate(labels.items()):
            offset = (place - (len(labels) - 1) / 2) * 0.8 / len(labels)
            for x, domain in enumerate(domains.values()):
                if name not in domain["methods"]:
                    continue
                cell = domain["methods"][name]
                low, high = cell["interval"]
                shown = label if label not in axis.get_legend_handles_labels()[1] else None
                axis.bar(x + offset, cell["recall"], 0.78 / len(labels), color=colours[name], label=shown)
                axis.plot([x + offset] * 2, [low, high], color="black", linewidth=0.8)
        axis.set_xticks(range(len(domains)), [f"{name}\nn = {one['n']:,}" for name, one in domains.items()])
        axis.set(ylim=(0, 1.02), ylabel="recall", title=f"{TITLES.get(task, task)}, {_at(rate)}")
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8
    )
    return figure


def _curves(results: dict[str, Any], labels: dict[str, str], colours: dict[str, Any], rate: float) -> Figure:
    curves = dict(results["curves"])
    rates = curves.pop("rates")
    height = max(4.0, 0.19 * len(labels))  # of the legend
    figure, axes = plt.subplots(
        1, len(curves), figsize=(4.2 * len(curves), height), layout="constrained", squeeze=False
    )
    for axis, (task, methods) in zip(axes[0], curves.items(), strict=True):
        for name in [name for name in labels if name in methods]:
            shares = methods[name]
            if len(next(iter(results["deciding"].values()))) > 1 and name == "dlib_faces":
                continue  # one domain alone is no mean over domains
            points = [(rate, share) for rate, share in zip(rates, shares, strict=True) if share is not None]
            width = 2.2 if is_lcmem(name) else 1.6
            axis.plot(*zip(*points, strict=True), color=colours[name], label=labels[name], linewidth=width)
        axis.axvline(rate, color="grey", linewidth=0.6, linestyle=":")
        axis.set(xscale="log", ylim=(0, 1.02), xlabel="unseen images rejected", title=TITLES.get(task, task))
        axis.title.set_fontsize(9)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("recall, mean over domains")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8
    )
    return figure


def _robustness(
    found: dict[str, Any], labels: dict[str, str], colours: dict[str, Any], rate: float
) -> Figure:
    kinds = found["strengths"]
    figure, axes = plt.subplots(-(-len(kinds) // 5), 5, figsize=(13, 9), layout="constrained", sharey=True)
    for axis in axes.flat[len(kinds) :]:
        axis.set_visible(False)
    for axis, (kind, strengths) in zip(axes.flat, kinds.items(), strict=False):
        for name, recall in found["recall"].items():
            if name not in labels:
                continue
            line = "" if kind == "flip" else "-"
            width = 2.2 if is_lcmem(name) else 1.6
            axis.plot(
                recall[kind],
                marker="o",
                markersize=3,
                linestyle=line,
                color=colours[name],
                label=labels[name],
                linewidth=width,
                zorder=3 if is_lcmem(name) else 2,
            )
        axis.set_xticks(range(len(strengths)), strengths, fontsize=7, rotation=25, ha="right")
        axis.set(title=kind, ylim=(-0.02, 1.02))
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel(f"recall {_at(rate)}")
    figure.legend(
        *axes.flat[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=8,
    )
    return figure
