"""A real index, of the tiny autoencoder's latent space, and thresholds of early stop for it."""

from __future__ import annotations

from typing import Any

import pytest

from lcmem_filter.calibration import calibrate
from lcmem_filter.index import MemorizationIndex
from lcmem_filter.pipeline import EarlyStop, attach

from .families.parts import PROMPTS
from .planting import FIT, SETTINGS, made
from tests.index.material import build, pictures


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> MemorizationIndex:
    """An index of ``tests.tiny.picture`` 0 to 19, calibrated at 10 % on pictures that it has not."""
    folder = tmp_path_factory.mktemp("pipeline")
    built = build(folder)
    calibrate(built, pictures(folder / "held_out", range(100, 140)), false_rejection_rate=0.1, progress=False)
    return built


@pytest.fixture(scope="session")
def early(index: MemorizationIndex) -> Any:
    """Thresholds for each scheduler, fitted when they are first asked for."""
    found: dict[str, EarlyStop] = {}

    def of(scheduler: str = "DDIMScheduler") -> EarlyStop:
        if scheduler not in found:
            pipe = attach(made(scheduler), index)
            found[scheduler] = EarlyStop.fit(pipe, PROMPTS, **FIT, **SETTINGS)
        return found[scheduler]

    return of
