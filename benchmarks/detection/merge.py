"""Rows that are measured later stand beside those that were measured before, or in their place, if the reference's are
the same."""

from __future__ import annotations

from typing import Any

from methods import REFERENCE, ROWS

BY_METHOD = (
    "labels",
    "fingerprints",
    "unseen_rejected",
    "index_level",
    "curves",
    "pairs",
    "robustness",
    "deciding",
)
"""Parts of a results file in which methods stand by their names."""


def reference_of(before: dict[str, Any]) -> str:
    """The method of a results file that has to come out the same where rows are added to it: LCMem, or its first."""
    return REFERENCE if REFERENCE in before["labels"] else next(iter(before["labels"]), REFERENCE)


def merged(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """``before`` with the methods, and parts, of ``now``, in place of its own where it has them; labels in the order of
    the table of methods.

    Raises:
        SystemExit: the reference does otherwise in ``now``: its rows were not measured on the same terms.
    """
    reference = reference_of(before)
    parts = {name: now[name] for name in (*BY_METHOD, "notes") if name in now}
    for name in BY_METHOD:
        if name in before and name in now:
            _check_same(before[name], now[name], name, reference)
    measured = set(now["labels"].values())
    not_run = {label: why for label, why in before["not_run"].items() if label not in measured}
    found = _with(before, parts)
    names = [*(row.name for row in ROWS), *found["labels"]]
    labels = {name: found["labels"][name] for name in names if name in found["labels"]}
    return {**found, "labels": labels, "not_run": not_run}


def _check_same(before: Any, now: Any, where: str, reference: str) -> None:
    """Whether two trees differ in nothing but methods that are not the reference, and what leads over it."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        if before != now:
            raise SystemExit(
                f"{where} was {before} in the file that rows are added to, and is {now}: images, head, options or code "
                "differ; measure all rows anew"
            )
        return
    keys = {*before, *now} - {"leads"} if reference not in before else {reference}
    for key in sorted(keys):
        _check_same(before.get(key), now.get(key), f"{where}, {key}", reference)


def _with(before: Any, now: Any) -> Any:
    """Dictionaries of dictionaries in the order of ``before``; what stands in both is as it is ``now``."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return now
    return {
        **{key: _with(value, now[key]) if key in now else value for key, value in before.items()},
        **{key: value for key, value in now.items() if key not in before},
    }
