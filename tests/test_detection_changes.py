"""Changes of the detection benchmark: each grows with its strength, keeps the picture's size, and repeats."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import picture

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "detection" / "changes.py"
SPEC = importlib.util.spec_from_file_location("detection_changes", FILE)
assert SPEC is not None and SPEC.loader is not None
changes = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = changes
SPEC.loader.exec_module(changes)


def distance(kind: str, place: int, seed: int) -> float:
    change = changes.CHANGES[kind]
    given = changes.noise(picture(seed).resize((128, 128)).convert("RGB"), 0.1, np.random.default_rng(99))
    made = [change.make(given, change.strengths[place], np.random.default_rng(seed)) for _ in range(2)]
    assert made[0].size == (128, 128) and made[0].mode == "RGB" and made[0].tobytes() == made[1].tobytes()
    return float(np.abs(np.asarray(made[0], dtype=float) - np.asarray(given, dtype=float)).mean())


@pytest.mark.parametrize("kind", sorted(changes.CHANGES))
def test_a_change_grows_with_its_strength(kind: str) -> None:
    found = np.array([[distance(kind, place, seed) for place in range(4)] for seed in range(6)]).mean(0)
    assert found[0] > 0.01 and found[3] > 0.4
    if kind != "flip":  # which are of one strength
        assert (np.diff(found) > 0).all(), found


def test_collimation_blackens_borders_alone_and_a_marker_whitens_little() -> None:
    given = picture(1).resize((128, 128)).convert("RGB")
    draw = np.random.default_rng(0)
    framed = np.asarray(changes.collimation(given, 0.18, draw))
    assert (framed[32:96, 32:96] == np.asarray(given)[32:96, 32:96]).all()
    assert all((side == 0).all() for side in (framed[:10], framed[-10:], framed[:, :10], framed[:, -10:]))
    marked = np.asarray(changes.marker(given, 0.12, draw))
    changed = (marked != np.asarray(given)).any(2)
    assert 0.001 < changed.mean() < 0.02
