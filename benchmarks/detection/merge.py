"""Rows that are measured later stand beside those that were measured before, if the reference's are the same."""

from __future__ import annotations

from typing import Any

from methods import REFERENCE

BY_METHOD = ("labels", "unseen_rejected", "index_level", "curves", "pairs", "robustness")
"""Parts of a results file, other than the figure that decides, in which methods stand by their names."""


def merged(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """``before`` with the methods of ``now`` that it lacks.

    Raises:
        SystemExit: the reference does otherwise in ``now``: its rows were not measured on the same terms.
    """
    for task, domains in before["deciding"].items():
        for domain, row in domains.items():
            old, new = row["methods"][REFERENCE], now["deciding"][task][domain]["methods"][REFERENCE]
            if old != new:
                raise SystemExit(
                    f"{REFERENCE} finds {new['recall']:.2%} of {task} in {domain}, and {old['recall']:.2%} in the file "
                    "that rows are added to: images, head or code differ; measure all rows anew"
                )
    result: dict[str, Any] = _with(before, {name: now[name] for name in BY_METHOD if name in now})
    result["deciding"] = _with(before["deciding"], now["deciding"])
    result["notes"] = {**now["notes"], **before["notes"]}
    measured = set(now["labels"].values())
    result["not_run"] = {label: why for label, why in before["not_run"].items() if label not in measured}
    return result


def _with(before: Any, now: Any) -> Any:
    """Dictionaries of dictionaries, what stands in ``before`` first."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return before
    return {
        **{key: _with(value, now[key]) if key in now else value for key, value in before.items()},
        **{key: value for key, value in now.items() if key not in before},
    }
