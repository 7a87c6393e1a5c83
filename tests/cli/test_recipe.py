"""What ``lcmem-filter train --help`` says of a recipe is what the recipe is."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from lcmem_filter.branches import POOLINGS
from lcmem_filter.cli._recipe import RECIPE
from lcmem_filter.head import SIZES
from lcmem_filter.training import AddHalvingConfig, AddSpaceConfig, TrainingConfig
from lcmem_filter.training.config import SIZE

DEFAULTS = {field.name: field.default for field in fields(TrainingConfig)}


def told(value: Any) -> str:
    if value is None:
        return f"that of --initial, or else {SIZE}"
    return f"{value:g}" if isinstance(value, float) else str(value)


@pytest.mark.parametrize("name", [name for name in RECIPE if DEFAULTS.get(name, ()) != ()])
def test_help_tells_the_default(name: str) -> None:
    others = {told(getattr(one(), name, DEFAULTS[name])) for one in (AddSpaceConfig, AddHalvingConfig)}
    usual = told(DEFAULTS[name])
    if DEFAULTS[name] is False:
        assert RECIPE[name]["action"] == "store_true"  # as it says, only where it is given
        return
    beside = "".join(f"; with --add-space and --add-halving {other}" for other in others - {usual})
    assert RECIPE[name]["help"].endswith(f" (default: {usual}{beside})")


@pytest.mark.parametrize(("name", "known"), [("size", SIZES), ("pooling", POOLINGS)])
def test_choices_are_those_that_there_are(name: str, known: Any) -> None:
    assert set(RECIPE[name]["choices"]) == set(known)
