"""Write the generated blocks of the README and of the benchmarks' page, or with ``--check`` find those out of date.

A block stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (README, ROOT / "benchmarks" / "README.md")
BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def commands() -> str:
    """The command line at a glance: what each command is called, and its one line of help."""
    from lcmem_filter.cli.main import commands as found

    rows = [f"| `lcmem-filter {name}` | {command.HELP} |" for name, command in found().items()]
    return _table(["command", "what it does"], rows)


def benchmarks() -> str:
    """Every benchmark: what it answers, by its first line, and the results file of its folder's name."""
    rows = []
    for script in sorted(RESULTS.parent.glob("*/run.py")):
        name = script.parent.name
        about = script.read_text().split('"""')[1].strip().split("\n")[0]
        file = RESULTS / f"{name}.json"
        where = f"[{file.name}](benchmarks/results/{file.name})" if file.exists() else "not run yet"
        rows.append(f"| [{name}](benchmarks/{name}) | {about} | {where} |")
    return _table(["benchmark", "what it answers", "results"], rows)


def filters(name: str = "filters") -> str:
    """The comparison of filters on one pipeline, from a results file of ``benchmarks/filters``."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return "The comparison has not been run yet.\n"
    results = json.loads(path.read_text())
    columns = [
        "filter",
        "memorised images returned",
        "unseen images rejected",
        "other generations rejected",
        "processor time",
    ]
    rows = [
        f"| {row['label']} | {_share(row['memorised_returned'])} | {_share(row['held_out_rejected'])} "
        f"| {_share(row['other_generations_rejected'])} | {_time(row)} |"
        for row in results["filters"]
    ]
    rows += [f"| {row['label']} | - | - | - | {_time(row)} |" for row in results.get("time_only", ())]
    attached = "; ".join(
        f'{run["memorised_with_filter"]["count"]} with `{run["head"]}` and `on_memorized="{run["on_memorized"]}"`'
        for run in results["pipeline_with_lcmem"]
    )
    before = results["pipeline_with_lcmem"][0]["memorised_without_filter"]
    note = (
        f"\nCopies among all that the pipeline returns: {before['count']} of {before['n']} without the filter; "
        f"{attached}.\n\n{_by_prompts(results['filters'])}{_named(results['filters'])}"
        f"From [{path.name}](benchmarks/results/{path.name}), {results['about']}{_not_run(results)}\n"
    )
    return _table(columns, rows) + note


NAMED_SHARES = ("memorised_returned", "other_generations_rejected")


def _time(row: dict[str, Any]) -> str:
    """How many times as long as without a filter, with its interval."""
    low, high = row.get("time_ratio_interval", (None, None))
    return _ratio(row["time_ratio"]) + ("" if low is None else f" ({low:.2f} to {high:.2f})")


def _by_prompts(rows: list[dict[str, Any]]) -> str:
    """What filters that judge prompts reject of prompts, where the others reject images."""
    judged = [
        f"{row['label']} {_share(row['held_out_prompts_rejected'])}"
        for row in rows
        if "held_out_prompts_rejected" in row
    ]
    return (
        f"Of unseen images' captions, detectors of prompts reject: {'; '.join(judged)}.\n\n" if judged else ""
    )


def _named(rows: list[dict[str, Any]]) -> str:
    """What filters do on prompts that name an unseen identity; some are answered with copies nevertheless."""
    rows = [row for row in rows if "named_prompts" in row]
    if not rows:
        return ""
    copies, others = (rows[0]["named_prompts"][name]["n"] for name in NAMED_SHARES)
    counts = [
        "{}: {} and {}".format(row["label"], *(row["named_prompts"][name]["count"] for name in NAMED_SHARES))
        for row in rows
    ]
    return (
        "For prompts that name an identity that the pipeline never saw, worded as those of memorised images, it draws "
        f"{copies} copies and {others} others. Copies returned and others rejected: {'; '.join(counts)}.\n\n"
    )


def _not_run(results: dict[str, Any]) -> str:
    missing = [f"{label} ({why})" for label, why in results.get("not_run", {}).items()]
    return f" Not measured: {'; '.join(missing)}." if missing else ""


def detection() -> str:
    """The figure that decides, from the results file of ``benchmarks/detection``."""
    path = RESULTS / "detection.json"
    if not path.exists():
        return "The comparison has not been run yet.\n"
    results = json.loads(path.read_text())
    columns = [
        "query",
        "domain",
        "n",
        "raw latents",
        "strongest other",
        *(what.format(head=head) for head in COMPARED.values() for what in OF_HEAD),
    ]
    rows = [
        _detection_row(DETECTION_TASKS[task], domain, row, results["labels"])
        for task, domains in results["deciding"].items()
        for domain, row in domains.items()
    ]
    dlib = [
        f"{DETECTION_TASKS[task]} {_recall(domains['faces']['methods']['dlib_faces'])}"
        for task, domains in results["deciding"].items()
        if "dlib_faces" in domains.get("faces", {"methods": {}})["methods"]
    ]
    beside = f" dlib, trained on 3 million faces, finds of faces: {', '.join(dlib)}." if dlib else ""
    siamese: dict[str, list[str]] = {}
    for label, note in results["notes"].items():
        if "siamese" in label and not label.endswith("relative"):
            siamese.setdefault(note, []).append(label)
    trained = "".join(f"{', '.join(labels)}: {note}. " for note, labels in siamese.items())
    near = results["near_duplicates"]
    dropped = sum(one["dropped_0.98"] for one in near["by_domain"].values()) + len(near["seen_by_eye"])
    note = (
        f"\nFrom [detection.json](benchmarks/results/detection.json): {results['about']} "
        f"{dropped} further ones, whose picture or person stands in the index under another name "
        f"([list](benchmarks/detection/near_duplicates.csv)), set no threshold.{beside} "
        "LCMem's scores are relative to each query's background; so are those of rows called relative. "
        f"{trained}{_leads(results['deciding'])}"
        f"Not measured: {', '.join(results['not_run'])}; the file says why. "
        "Plots: [recall](benchmarks/results/detection-recall.png), "
        "[curves](benchmarks/results/detection-curves.png).\n"
    )
    return _table(columns, rows) + note


DETECTION_TASKS = {
    "mild_copies": "mild copy",
    "half_formed_copies": "half-formed copy",
    "heavy_copies": "heavily transformed copy",
    "same_identity": "other image of the identity",
}


HEADS = {
    "lcmem_lcmem_reid": "lcmem-reid",
    "lcmem_lcmem_large": "lcmem-large",
    "lcmem": "lcmem-small",
    "lcmem_lcmem_xray": "lcmem-xray",
}
"""The heads that ship, by their methods in ``benchmarks/detection``, the one to take first."""

COMPARED = {name: HEADS[name] for name in ("lcmem", "lcmem_lcmem_reid")}
"""Those that have columns."""

OF_HEAD = ("{head}", "lead of {head} over the strongest other", "{head}, told identities")
"""Their columns."""


def as_they_ship() -> str:
    """The figure that decides for the heads as they ship, from a results file of ``benchmarks/detection``."""
    path = RESULTS / "detection-heads.json"
    if not path.exists():
        return "The heads have not been measured yet.\n"
    results = json.loads(path.read_text())
    shown = _heads_of(results)
    rows = []
    for task, domains in results["deciding"].items():
        for domain, row in domains.items():
            cells = row["methods"]
            best = max(_others(cells), key=lambda name: cells[name]["recall"])
            found = [f"{results['labels'][best]} {_recall(cells[best])}"]
            found += [_recall(cells.get(name)) for name in shown]
            rows.append(f"| {DETECTION_TASKS[task]} | {domain} | {row['n']:,} | {' | '.join(found)} |")
    note = (
        f"\nFrom [detection-heads.json](benchmarks/results/detection-heads.json): {results['about']} "
        f"{_leads(results['deciding'])}\n"
    )
    return _table(["query", "domain", "n", "strongest other there", *shown.values()], rows) + note


def _heads_of(results: dict[str, Any]) -> dict[str, str]:
    """Methods of a results file of ``benchmarks/detection`` that are heads which ship, and what they are called."""
    return {
        name + told: head + ", identities named" * bool(told)
        for name, head in HEADS.items()
        for told in ("", "_told")
        if name + told in results["labels"]
    }


def _detection_row(task: str, domain: str, row: dict[str, Any], labels: dict[str, str]) -> str:
    cells = row["methods"]
    best = _strongest_other(cells)
    found = [
        _recall(cells.get("raw_latents")),
        "-" if best is None else f"{labels[best]} {_recall(cells[best])}",
    ]
    for name in COMPARED:
        lead = None if best is None else cells[best]["leads"].get(name)
        found += [
            _recall(cells.get(name)),
            "-" if lead is None else _interval(lead[0], lead[1:]),
            _recall(cells.get(f"{name}_told")),
        ]
    return f"| {task} | {domain} | {row['n']:,} | {' | '.join(found)} |"


def _strongest_other(cells: dict[str, Any]) -> str | None:
    """The filter that finds most, of those that are not LCMem and have no column or line of their own."""
    others = [name for name in _others(cells) if name != "raw_latents"]
    return max(others, key=lambda name: cells[name]["recall"], default=None)


def _strongest(cells: dict[str, Any]) -> dict[str, Any]:
    """What the strongest other filter finds, where there is one."""
    return max((cells[name] for name in _others(cells)), key=lambda cell: cell["recall"])


def _others(cells: dict[str, Any]) -> list[str]:
    """Filters that are not LCMem, but for dlib, which was trained on millions of faces and stands beside."""
    return [name for name in cells if name != "dlib_faces" and not name.startswith("lcmem")]


def _leads(tasks: dict[str, Any]) -> str:
    """Over how many of the others, in how many of the domains, each head leads beyond doubt."""
    told = []
    for name, head in HEADS.items():
        leads = [
            row["methods"][other]["leads"].get(name)
            for domains in tasks.values()
            for row in domains.values()
            for other in _others(row["methods"])
        ]
        known = [lead for lead in leads if lead]
        sure = sum(low > 0 for _, low, _ in known)
        if known:
            told.append(
                f"{head} leads over every other but dlib in {sure} of {len(known)} comparisons beyond doubt"
            )
    return f"{'; '.join(told)}. " if told else ""


def _detections() -> list[dict[str, Any]]:
    """The results files of ``benchmarks/detection`` that are there. Heads of the second ask by middles too, those of
    the third compare latents as they lie too: as they ship."""
    paths = [RESULTS / f"detection{more}.json" for more in ("", "-middles", "-heads")]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def _deciding() -> dict[str, Any] | None:
    """The figure that decides by task, domain and method, of the last of ``_detections`` that has it."""
    files = [results["deciding"] for results in _detections()]
    if not files:
        return None
    found: dict[str, Any] = {}
    for task in [task for task in DETECTION_TASKS if any(task in file for file in files)]:
        for file in files:
            for domain, row in file.get(task, {}).items():
                found.setdefault(task, {}).setdefault(domain, {}).update(row["methods"])
    return found


def found() -> str:
    """The figure that decides by domain, from the results files of ``benchmarks/detection``."""
    deciding = _deciding()
    if deciding is None:
        return "The comparison has not been run yet.\n"
    domains = list(dict.fromkeys(domain for task in deciding.values() for domain in task))
    rows = []
    for task, cells in deciding.items():
        shown = {label: {one: cells[one].get(method) for one in cells} for method, label in FOUND.items()}
        shown["strongest other there"] = {one: _strongest(cells[one]) for one in cells}
        for label, by_domain in shown.items():
            if not any(by_domain.values()):
                continue
            shares = [f"{by_domain[one]['recall']:.1%}" if by_domain.get(one) else "-" for one in domains]
            rows.append(f"| {DETECTION_TASKS[task]} | {label} | {' | '.join(shares)} |")
    return _table(["query", "filter", *domains], rows)


FOUND = {
    "lcmem_lcmem_reid": "lcmem-reid",
    "lcmem_lcmem_reid_told": "lcmem-reid, identities named",
    "lcmem_lcmem_large": "lcmem-large",
    "lcmem_lcmem_large_told": "lcmem-large, identities named",
    "lcmem": "lcmem-small",
    "lcmem_lcmem_xray_told": "lcmem-xray, identities named",
}
"""Methods of ``benchmarks/detection`` that the README shows by domain, the one to take first."""


def heads() -> str:
    """What the shipped heads find and take, from the results files of ``benchmarks/detection`` and ``overhead``."""
    deciding, path = _deciding(), RESULTS / "overhead-heads.json"
    if deciding is None or not path.exists():
        return "The heads have not been compared yet.\n"
    timed = json.loads(path.read_text())
    shown = {
        "mild copies": ("mild_copies", "all domains", ""),
        "half-formed copies": ("half_formed_copies", "all domains", ""),
        "heavily transformed copies": ("heavy_copies", "all domains", ""),
        "the same, identities named": ("heavy_copies", "all domains", "_told"),
        "those of X-rays, patients named": ("heavy_copies", "X-rays", "_told"),
        "a patient's other X-rays": ("same_identity", "X-rays", ""),
        "the same, patients named": ("same_identity", "X-rays", "_told"),
    }
    rows = []
    for method, head in HEADS.items():
        cells = [f"[{head}](lcmem_filter/heads/{head}/README.md)"]
        for task, domain, told in shown.values():
            found = deciding.get(task, {}).get(domain, {}).get(method + told)
            cells.append("-" if found is None else f"{found['recall']:.1%}")
        for when in ("", AGAIN):
            took = timed["seconds"].get(head + when)
            cells.append("-" if took is None else f"{took / timed['seconds']['lcmem-small' + when]:.1f}")
        rows.append(f"| {' | '.join(cells)} |")
    return _table(["head", *shown, "time at first", "time later"], rows)


AGAIN = ", their neighbours compared before"
"""How a results file calls the second time that samples of the same neighbours are judged."""


def _recall(cell: dict[str, Any] | None) -> str:
    return "-" if cell is None else _interval(cell["recall"], cell["interval"])


def _interval(value: float, interval: list[float]) -> str:
    return f"{value:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"


def attacks() -> str:
    """What white-box attacks leave to be found, from the results files of ``benchmarks/attacks``, a head each."""
    measured = {name: RESULTS / f"attacks{name and '-'}{name}.json" for name in ATTACKED}
    results = {name: json.loads(path.read_text()) for name, path in measured.items() if path.exists()}
    if "" not in results:
        return "Attacks have not been measured yet.\n"
    bounds = list(results[""]["found"]["image"])
    rows = [
        f"| {ATTACKED[name]} | {what}, {how} | "
        + " | ".join(_attacked(one["found"][kind].get(bound), how) for bound in bounds)
        + " |"
        for name, one in results.items()
        for kind, what in (("image", "pixels, at most"), ("latent", "the decoded latent, root mean square"))
        for how in ("noise", "attack")
    ]
    head = f"| head | changed by | {' | '.join(bounds)} |"
    notes = "; ".join(
        f"[{measured[name].name}](benchmarks/results/{measured[name].name}): {one['about']} "
        f"Unchanged: {one['found']['unchanged'][0]:.1%}"
        for name, one in results.items()
    )
    return "\n".join([head, "| --- " * (2 + len(bounds)) + "|", *rows]) + f"\n\nFrom {notes}.\n"


def _attacked(found: dict[str, list[float]] | None, how: str) -> str:
    return "-" if found is None else _interval(found[how][0], found[how][1:])


ATTACKED = {
    "": "lcmem-small",
    "reid": "lcmem-reid",
    "large": "lcmem-large",
    "recipe": "short recipe",
    "adversarial": "short recipe, copies moved against the head",
}
"""Heads that were attacked, by what their results file is called after."""


def pairs() -> str:
    """Pair-level figures, for comparison with the literature, from the results file of ``benchmarks/detection``."""
    path = RESULTS / "detection.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    tasks: dict[str, Any] = results.get("pairs", {})
    if not tasks:
        return "Pairs have not been measured yet.\n"
    named = {
        "mild_copies": "mild copies",
        "heavy_copies": "heavily transformed copies",
        "same_identity": "images of an identity",
        "same_identity_same_labels": "the same, strangers with the very same labels",
    }
    rows = []
    for task, methods in tasks.items():
        if task not in named:
            continue
        for domain in ("X-rays", "all domains"):
            own = ("lcmem", "lcmem_embedding", "lcmem_lcmem_reid", "lcmem_lcmem_large", "lcmem_lcmem_xray")
            others = {name: found[domain] for name, found in methods.items() if not name.startswith("lcmem")}
            best = max(others, key=lambda name: others[name]["auc"])
            cells = [_pair(methods[name][domain]) if name in methods else "-" for name in own]
            cells.append(f"{results['labels'][best]} {_pair(others[best])}")
            rows.append(f"| {named[task]} | {domain} | {' | '.join(cells)} |")
    columns = [
        "pairs of",
        "domain",
        "LCMem (the filter)",
        "its embedding alone",
        "lcmem-reid",
        "lcmem-large",
        "lcmem-xray",
        "best other by AUC",
    ]
    return _table(columns, rows)


def _pair(cell: dict[str, Any]) -> str:
    interval = " ({:.3f} to {:.3f})".format(*cell["auc_interval"]) if "auc_interval" in cell else ""
    return f"{cell['auc']:.3f}{interval}, {cell['accuracy']:.1%}"


def robustness() -> str:
    """Recall of single changes at four strengths, from results files of ``benchmarks/detection``."""
    files = [results.get("robustness") for results in _detections()]
    if not files or not files[0]:
        return "Single changes have not been measured yet.\n"
    found = files[0]
    recall = {name: one for file in files if file for name, one in file["recall"].items()}
    others = [one for name, one in recall.items() if not name.startswith("lcmem")]
    heads = {name: head for name, head in HEADS.items() if name in recall}

    def told(shares: Iterable[float]) -> str:
        return ", ".join(f"{share:.0%}" for share in shares)

    rows = [
        f"| {kind}: {', '.join(names)} | {found['images'][kind]} | "
        + " | ".join(told(recall[name][kind]) for name in heads)
        + f" | {told(max(shares) for shares in zip(*(one[kind] for one in others), strict=True))} |"
        for kind, names in found["strengths"].items()
    ]
    return _table(["change", "n", *heads.values(), "the best other at each"], rows)


def middles() -> str:
    """What asking by samples' middles adds, from a results file of ``benchmarks/detection``."""
    path = RESULTS / "detection-middles.json"
    if not path.exists():
        return "What middles add has not been measured yet.\n"
    results = json.loads(path.read_text())
    bordered = results["robustness"]["recall"]
    names = results["robustness"]["strengths"]["collimation"]
    rows = []
    for name, head in HEADS.items():
        without = name.replace("lcmem", "lcmem_without_middles", 1)
        if without not in results["labels"]:
            continue
        of_all = [domains["all domains"]["methods"] for domains in results["deciding"].values()]
        leads = (
            "; {:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * x for x in one[without]["leads"][name]))
            for one in of_all
        )
        told = [f"{one[without]['recall']:.1%}" for one in of_all]
        now = [f"{one[name]['recall']:.1%}{lead}" for one, lead in zip(of_all, leads, strict=True)]
        for method, how, cells in ((without, "without middles", told), (name, "as the filter does", now)):
            shares = ", ".join(f"{share:.0%}" for share in bordered[method]["collimation"])
            rows.append(f"| {head} | {how} | {' | '.join(cells)} | {shares} |")
    columns = ["head", "asking", *(DETECTION_TASKS[task] for task in results["deciding"])]
    note = (
        "\nFrom [detection-middles.json](benchmarks/results/detection-middles.json): the mean of the domains; what is "
        f"gained in percentage points, with 95 % intervals paired by identity; {results['about']}\n"
    )
    return _table([*columns, f"X-rays with {', '.join(names)}"], rows) + note


def in_place() -> str:
    """What comparing latents as they lie adds, from what ``benchmarks/ablations/without.py`` left."""
    path = RESULTS / "ablations-in-place.json"
    if not path.exists():
        return "What comparing latents as they lie adds has not been measured yet.\n"
    results = json.loads(path.read_text())
    rows = []
    for head, tasks in results["heads"].items():
        told, now = [], []
        for task in tasks.values():
            methods = task["all domains"]["methods"]
            lacking = next(name for name in methods if name.startswith("lcmem_not_in_place"))
            (whole,) = methods.keys() - {lacking}
            lead = (100 * points for points in methods[lacking]["leads"][whole])
            told.append(f"{methods[lacking]['recall']:.1%}")
            now.append(f"{methods[whole]['recall']:.1%}; " + "{:+.1f} ({:+.1f} to {:+.1f})".format(*lead))
        rows += [
            f"| {head} | by embeddings and descriptors alone | {' | '.join(told)} |",
            f"| {head} | as the filter does | {' | '.join(now)} |",
        ]
    columns = ["head", "compared", *(DETECTION_TASKS[task] for task in tasks)]
    note = (
        "\nFrom [ablations-in-place.json](benchmarks/results/ablations-in-place.json): the mean of the domains, and "
        f"what is gained in percentage points; {results['about']}\n"
    )
    return _table(columns, rows) + note


def ranks() -> str:
    """How near half-formed copies' pictures lie by each key, from what ``benchmarks/ablations/ranks.py`` left."""
    path = RESULTS / "ablations-ranks.json"
    if not path.exists():
        return "How near pictures lie by each key has not been measured yet.\n"
    results = json.loads(path.read_text())
    shown = [results["ranks"].index(rank) for rank in (1, 3, 30, 1000)]
    domains: dict[str, Any] = results["tasks"]["half_formed_copies"]
    keys = list(dict.fromkeys(key for domain in domains.values() for key in domain["by"]))
    rows = [
        f"| {domain} | {found['rows']:,} | {found['n']} | "
        + " | ".join(", ".join(f"{found['by'][key][at][0]:.1%}" for at in shown) for key in keys)
        + " |"
        for domain, found in domains.items()
    ]
    first = ", ".join(f"{results['ranks'][at]:,}" for at in shown)
    note = (
        f"\nFrom [ablations-ranks.json](benchmarks/results/ablations-ranks.json): {results['about']}; here half-formed "
        f"copies, among the first {first}.\n"
    )
    return _table(["domain", "images indexed", "copies", *(f"by {key}" for key in keys)], rows) + note


def alone() -> str:
    """What the heads find in indexes of one kind of images alone, from results files of ``benchmarks/detection``."""
    paths = {domain: RESULTS / f"detection-{name}.json" for name, domain in ALONE.items()}
    files = {domain: json.loads(path.read_text()) for domain, path in paths.items() if path.exists()}
    if not files:
        return "Indexes of one kind of images have not been measured yet.\n"
    asked = [
        task for task in DETECTION_TASKS if any(task in results["deciding"] for results in files.values())
    ]
    rows, notes = [], []
    for domain, results in files.items():
        tasks = [results["deciding"].get(task, {}).get(domain, {}).get("methods", {}) for task in asked]
        shown = {label: [found.get(name) for found in tasks] for name, label in _heads_of(results).items()}
        siamese = any("siamese" in label for label in results["labels"].values())
        others = f"strongest other there{'' if siamese else ', no siamese network among them'}"
        shown[others] = [_strongest(found) if found else None for found in tasks]
        for name, cells in shown.items():
            rows.append(f"| {domain} | {name} | {' | '.join(map(_recall, cells))} |")
        notes.append(
            f"[{paths[domain].name}](benchmarks/results/{paths[domain].name}): {results['about'].split('; 95')[0]}"
        )
    note = (
        f"\nFrom {'. '.join(notes)}. 95 % intervals by identity, thresholds drawn again with them, beyond the largest "
        "score too, since only one or two may lie above one.\n"
    )
    return _table(["domain", "filter", *(DETECTION_TASKS[task] for task in asked)], rows) + note


ALONE = {"xrays": "X-rays", "lesions": "skin lesions", "faces": "faces"}
"""Kinds of images that were measured alone, by what their results file is called after."""


ACROSS = {
    "spaces": ("spaces.json", "space"),
    "spaces_reid": ("spaces-reid.json", "latent space"),
    "spaces_large": ("spaces-large.json", "latent space"),
    "spaces_large_sana": ("spaces-large-sana.json", "latent space"),
    "spaces_256": ("spaces-256.json", "latent space"),
    "resolutions": ("resolutions.json", "resolution"),
    "resolutions_reid": ("resolutions-reid.json", "resolution"),
    "resolutions_large": ("resolutions-large.json", "resolution"),
    "resolutions_1024_reid": ("resolutions-1024-reid.json", "resolution"),
    "resolutions_1024_large": ("resolutions-1024-large.json", "resolution"),
    "resolutions_1024_small": ("resolutions-1024-small.json", "resolution"),
}
"""Blocks from results files of ``benchmarks/spaces``: samples of each space or resolution in an index of each."""


def _across(name: str, what: str) -> str:
    path = RESULTS / name
    if not path.exists():
        return f"Samples of one {what} in an index of another have not been measured yet.\n"
    results = json.loads(path.read_text())
    cells = {(row["query"], row["index"]): row["mean"] for row in results["table"]}
    stored = list(dict.fromkeys(index for _, index in cells))

    def cell(query: str, index: str) -> str:
        if (query, index) not in cells:
            return "-"
        (mild, mild_auc), (heavy, heavy_auc) = (
            cells[query, index][task] for task in ("mild_copies", "heavy_copies")
        )
        identity = cells[query, index].get("same_identity")
        aucs = [mild_auc, heavy_auc, *([identity[1]] if identity else [])]
        return f"{mild:.1%}, {heavy:.1%}; {' '.join(f'{auc:.3f}' for auc in aucs)}"

    rows = [
        f"| {query} | " + " | ".join(cell(query, index) for index in stored) + " |"
        for query in dict.fromkeys(query for query, _ in cells)
    ]
    header = f"| samples \\ index | {' | '.join(stored)} |"
    sets = ", ".join(results.get("sets", ()))
    note = (
        f"\nRecall of mild and of heavy copies, mean of domains; area under the curve over pairs of mild copies, heavy "
        f"copies and identities. From [{name}](benchmarks/results/{name}), {results['about']} Sets: {sets}.\n"
    )
    return "\n".join([header, "| --- " * (len(stored) + 1) + "|", *rows]) + "\n" + note


TASKS = {
    "mild_copies": "mild copies",
    "heavy_copies": "heavily transformed copies",
    "same_identity": "other image of the identity",
}


def recipe() -> str:
    """What parts of the training recipe gain or lose, from the results file of ``benchmarks/recipe``."""
    return _changes(RESULTS / "recipe.json")


def recipe_latents() -> str:
    """The same of finer latents, which only some sets can be measured on."""
    return _changes(RESULTS / "recipe-latents.json")


def _changes(path: Path) -> str:
    if not path.exists():
        return "Parts of the training recipe have not been measured yet.\n"
    results = json.loads(path.read_text())
    rows = []
    for name, row in results["variants"].items():
        cells = [_gained(row["filter"][task], whole=name == "the recipe") for task in TASKS]
        rows.append(f"| {name} | {len(row['seeds'])} | {' | '.join(cells)} |")
    note = f"\nFrom [{path.name}](benchmarks/results/{path.name}): {results['about']}\n"
    return _table(["changed", "heads", *TASKS.values()], rows) + note


def recipe_spaces() -> str:
    """A head of each space beside the shared one within it, from a results file of ``benchmarks/recipe``."""
    path = RESULTS / "recipe-spaces.json"
    if not path.exists():
        return "Heads of one space each have not been measured yet.\n"
    results = json.loads(path.read_text())
    named = {"own": "trained in it alone", "shared": "a stem of the shared head"}
    scores = {"filter": "filter", "embedding": "embedding alone"}
    rows = [
        f"| {space} | {named[name]} | {scores[score]} | "
        + " | ".join(_gained(heads[name][score][task], whole=name == "own") for task in TASKS)
        + " |"
        for space, heads in results["spaces"].items()
        for score in scores
        for name in heads
    ]
    note = f"\nFrom [{path.name}](benchmarks/results/{path.name}): {results['about']}\n"
    return _table(["within", "head", "score", *TASKS.values()], rows) + note


ABLATED = {
    "lcmem-small": "ablations.json",
    "lcmem-reid": "ablations-reid.json",
    "lcmem-large": "ablations-large.json",
}


def ablations() -> str:
    """What parts of the score gain or lose with each shipped head, from the results files of
    ``benchmarks/ablations``."""
    found = {head: RESULTS / name for head, name in ABLATED.items() if (RESULTS / name).exists()}
    results = {head: json.loads(path.read_text()) for head, path in found.items()}
    if not results:
        return "Parts of the score have not been measured yet.\n"
    tasks = {"mild_copies": "mild copies", "heavy_copies": "heavy copies", "same_identity": "other image"}
    usual = "the filter"
    rows = []
    for name in dict.fromkeys(name for one in results.values() for name in one["variants"]):
        cells = [
            _gained(one["variants"].get(name, {}).get(task), whole=name == usual)
            for one in results.values()
            for task in tasks
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    columns = [f"{task}, {head}" for head in results for task in tasks.values()]
    files = " and ".join(f"[{path.name}](benchmarks/results/{path.name})" for path in found.values())
    about = dict.fromkeys(one["about"] for one in results.values())
    return _table(["changed", *columns], rows) + f"\nFrom {files}: {' '.join(about)}\n"


CONCLUDED = {
    "identities_concluded": "ablations-identities.json",
    "identities_concluded_small": "ablations-identities-small.json",
    "identities_concluded_xrays": "ablations-identities-xrays.json",
}
"""Blocks of what is found where an index names no identities and the head concludes them, from results files of
``benchmarks/ablations/identities.py``: among all domains, in small indexes, and of X-rays alone."""


def _concluded(name: str) -> str:
    path = RESULTS / name
    if not path.exists():
        return "Identities that no index names have not been concluded yet.\n"
    results = json.loads(path.read_text())
    usual = "never"
    rows = [
        f"| {head} | {name} | "
        + " | ".join(_gained(cells[task], whole=name == usual) for task in TASKS)
        + " |"
        for head, variants in results["heads"].items()
        for name, cells in variants.items()
        if name != "different identities"
    ]
    note = f"\nFrom [{path.name}](benchmarks/results/{path.name}): {results['about']}\n"
    return _table(["head", "of one identity from", *TASKS.values()], rows) + note


def _gained(cell: dict[str, Any] | None, *, whole: bool) -> str:
    """Points gained, with their interval; of what the others are compared with, its own recall."""
    if cell is None:
        return "-"
    if whole:
        recall = cell["recall"]
        return f"{recall.get('all domains', list(recall.values())[-1]):.1%}"
    low, high = (100 * end for end in cell["gained_interval"])
    return f"{100 * cell['gained']:+.1f} ({low:+.1f} to {high:+.1f})"


def identities() -> str:
    """What fewer identities to train on cost, from what ``benchmarks/recipe --descriptors`` left."""
    path = RESULTS / "recipe-descriptors.json"
    if not path.exists():
        return "Fewer identities have not been trained on yet.\n"
    results = json.loads(path.read_text())
    variants: dict[str, Any] = results["variants"]
    tasks: dict[str, dict[str, Any]] = variants["the recipe"]["filter"]
    domains = [domain for domain in tasks["same_identity"]["recall"] if domain != "all domains"]
    columns = ["mild copies", "heavily transformed copies", *(f"other image, {domain}" for domain in domains)]
    rows = []
    for name, row in variants.items():
        found = {task: row["filter"][task]["recall"] for task in tasks}
        shares = [found[task]["all domains"] for task in ("mild_copies", "heavy_copies")]
        shares += [found["same_identity"][domain] for domain in domains]
        share = "all" if name == "the recipe" else name.removesuffix(" of the identities")
        rows.append(f"| {share} | {' | '.join(f'{one:.1%}' for one in shares)} |")
    note = f"\nFrom [{path.name}](benchmarks/results/{path.name}): {results['about']}\n"
    return _table(["identities", *columns], rows) + note


def ladder(name: str = "ladder") -> str:
    """What each rung does for memorised prompts of one pipeline, from a results file of ``benchmarks/ladder``."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return "The ladder has not been measured yet.\n"
    results = json.loads(path.read_text())
    reference = results.get("worth_of_reference")
    columns = [
        "drawn again by",
        "accepted, no copy to the judge",
        "at once",
        "accepted, a copy",
        "draws",
        "processor time",
    ]
    columns += ["show their domain", "distance to real images"] if reference else []
    rows = [
        f"| {_rungs(row)} | {_share(row['freed'])} | {row['freed_by_attempt'][0]['count']} "
        f"| {row['accepted_but_copies']['count']} | {row['mean_attempts']:.1f} "
        f"| {row['processor_seconds_a_sample']:.1f} s |" + (_worth(row["worth"]) if reference else "")
        for row in results["ladders"]
    ]
    note = f"\nFrom [{path.name}](benchmarks/results/{path.name}): {results['about']}\n"
    return _table(columns, rows) + note


def _worth(worth: dict[str, Any]) -> str:
    found, ratio = worth["shows_its_domain"], worth["distance_ratio"]
    if ratio is None:
        return " - | - |"
    low, high = ratio["interval"]
    return f" {found['count']} of {found['n']} | {ratio['mean']:.2f}x ({low:.2f} to {high:.2f}) |"


def _rungs(row: dict[str, Any]) -> str:
    names = ", ".join(f"`{name}`" for name in row["rungs"])
    return f"{names} (the default)" if row["label"] == "default ladder" else names


def early_stop(name: str = "early_stop") -> str:
    """Steps saved and samples lost with one pipeline, from a results file of ``benchmarks/early_stop``."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return "Early stop has not been measured yet.\n"
    results = json.loads(path.read_text())
    columns = [
        "scheduler",
        "memorised samples stopped",
        "their steps saved",
        "drawn one by one",
        "accepted samples lost",
    ]
    rows = [
        f"| {row['label']} | {_share(row['memorised']['stopped'])} "
        f"| {_mean(row['memorised']['steps_saved'])} "
        f"| {_mean(row['memorised']['steps_saved_if_drawn_one_by_one'])} "
        f"| {_share(row['innocent']['accepted_lost'])} |"
        for row in results["schedulers"]
    ]
    fitted = ", ".join(f"{row['fit']['accepted_samples']} ({row['label']})" for row in results["schedulers"])
    note = (
        f"\nFrom [{path.name}](benchmarks/results/{path.name}): {results['about']} Accepted samples that the "
        f"thresholds rest on, none of those counted above: {fitted}.\n"
    )
    return _table(columns, rows) + note


def _mean(value: dict[str, Any]) -> str:
    return _interval(value["mean"], value["interval"])


def audits() -> str:
    """What an audit finds among drawn images and planted copies, from the results file of ``benchmarks/audit``."""
    path = RESULTS / "audit.json"
    if not path.exists():
        return "Audits have not been measured yet.\n"
    results = json.loads(path.read_text())
    sets = results["sets"]
    rows = [
        f"| {kind} | "
        + " | ".join(
            "{} of {}".format(*one["matches_of_each_kind"].get(kind, (0, 0))) for one in sets.values()
        )
        + " |"
        for kind in next(iter(sets.values()))["matches_of_each_kind"]
    ]
    head = f"| found | {' | '.join(f'{name} set' for name in sets)} |"
    specificity = next(iter(sets.values()))["specificity"]
    note = (
        f"\nFrom [audit.json](benchmarks/results/audit.json): {results['about']} "
        f"{specificity['count']} of {specificity['of']} further unseen images match nothing.\n"
    )
    return "\n".join([head, "| --- " * (1 + len(sets)) + "|", *rows]) + "\n" + note


def overhead() -> str:
    """What judging and searching take on a GPU, from the results file of ``benchmarks/overhead``."""
    path = RESULTS / "overhead.json"
    if not path.exists():
        return "What the filter costs on a GPU has not been measured yet.\n"
    results = json.loads(path.read_text())
    judged, cost = results["judging"], results["overhead"]
    rows = [f"| to judge {judged['batch_size']} samples | {_milliseconds(judged)} |"]
    rows += [
        f"| to search {row['rows']:,} rows for {row['batch_size']} samples | {_milliseconds(row)} |"
        for row in results["search"]
    ]
    share = cost["share_of_generation_time"]["filter"]
    low, high = (f"{value:+.0%}" for value in share["interval"])
    note = (
        f"\nFrom [overhead.json](benchmarks/results/overhead.json), {results['hardware']['device']}: "
        f"{results['about']}. Medians of {judged['n']} and their range. A batch of {cost['batch_size']} took "
        f"{cost['seconds_a_batch']['plain']} s to generate; paired by round, {share['median']:+.0%} with the filter "
        f"({low} to {high}){': too few rounds to tell' if share['interval'][0] < 0 < share['interval'][1] else ''}.\n"
    )
    return _table(["", "milliseconds"], rows) + note + _heads_in_turns()


def _heads_in_turns() -> str:
    """What other shipped heads take to judge, from the results file of ``benchmarks/overhead/heads.py``."""
    path = RESULTS / "overhead-heads.json"
    if not path.exists():
        return ""
    results = json.loads(path.read_text())
    first = next(iter(results["seconds"]))
    extra = ", ".join(
        f"{_head_and_when(way)} {1 + one['median']:.2f} times as long ({1 + one['interval'][0]:.2f} to "
        f"{1 + one['interval'][1]:.2f})"
        for way, one in results["extra"].items()
    )
    hardware, rounds = results["hardware"], next(iter(results["extra"].values()))["n"]
    return (
        f"\nFrom [overhead-heads.json](benchmarks/results/overhead-heads.json), {hardware['threads']} thread of "
        f"{hardware['device']}: {results['about']}, in turns. `{first}` takes "
        f"{1000 * results['seconds'][first]:.0f} ms, {extra}; medians of {rounds} rounds.\n"
    )


def _head_and_when(way: str) -> str:
    head, _, when = way.partition(", ")
    return f"`{head}`" + (f", {when}," if when else "")


def _milliseconds(timed: dict[str, Any]) -> str:
    value, low, high = (f"{1000 * seconds:.2f}" for seconds in (timed["seconds"], *timed["range"]))
    return f"{value} ({low} to {high})"


def pipelines() -> str:
    """The families of pipelines that the tests run over."""
    from tests.pipeline.families import families

    tested: dict[tuple[str, str], list[str]] = {}
    for family in families():
        forms = tested.setdefault((family.pipeline, family.decoder), [])
        forms.append(family.variant or "as it is")
        if family.autoencoder:
            forms.append(f"real autoencoder `{family.autoencoder}`")
    rows = [f"| `{name}` | `{decoder}` | {'; '.join(forms)} |" for (name, decoder), forms in tested.items()]
    return _table(["pipeline", "decoder", "tested"], rows)


GENERATORS: dict[str, Callable[[], str]] = {
    "ablations": ablations,
    "alone": alone,
    "as_they_ship": as_they_ship,
    "attacks": attacks,
    "audits": audits,
    "benchmarks": benchmarks,
    "commands": commands,
    "detection": detection,
    "early_stop": early_stop,
    "early_stop_sd3": partial(early_stop, "early_stop-sd3"),
    "filters": filters,
    "filters_sd3": partial(filters, "filters-sd3"),
    "found": found,
    "heads": heads,
    "identities": identities,
    "ladder": ladder,
    "ladder_sd3": partial(ladder, "ladder-sd3"),
    "overhead": overhead,
    "pairs": pairs,
    "pipelines": pipelines,
    "recipe": recipe,
    "recipe_latents": recipe_latents,
    "recipe_spaces": recipe_spaces,
    "robustness": robustness,
    "middles": middles,
    "in_place": in_place,
    "ranks": ranks,
    **{block: partial(_across, *of) for block, of in ACROSS.items()},
    **{block: partial(_concluded, name) for block, name in CONCLUDED.items()},
}


def refreshed(page: Path) -> str:
    """The text of ``page`` with every generated block written anew, its links as they lead from there."""
    here = page.parent.relative_to(ROOT).as_posix()

    def block(match: re.Match[str]) -> str:
        made = GENERATORS[match[2]]()
        return match[1] + (made if here == "." else made.replace(f"]({here}/", "](")) + match[4]

    return BLOCK.sub(block, page.read_text())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 where a block is out of date"
    )
    arguments = parser.parse_args(argv)
    stale = {page: text for page in PAGES if (text := refreshed(page)) != page.read_text()}
    for page, text in stale.items():
        name = page.relative_to(ROOT).as_posix()
        if arguments.check:
            print(
                f"{name} has generated blocks that are out of date; run: python -m tools.readme",
                file=sys.stderr,
            )
        else:
            page.write_text(text)
    return int(arguments.check and bool(stale))


def _table(columns: Sequence[str], rows: Sequence[str]) -> str:
    """Rows that are lines already, under a header."""
    return "\n".join([f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|", *rows]) + "\n"


def _share(value: dict[str, Any] | None) -> str:
    if value is None:
        return "-"
    low, high = value["interval"]
    return f"{value['count']} of {value['n']}: {value['share']:.1%} ({low:.1%} to {high:.1%})"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


if __name__ == "__main__":
    sys.exit(main())
