"""A real index, of the tiny autoencoder's latent space."""

from __future__ import annotations

import pytest

from lcmem_filter.calibration import calibrate
from lcmem_filter.index import MemorizationIndex

from tests.index.material import build, pictures


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> MemorizationIndex:
    """An index of ``tests.tiny.picture`` 0 to 19, calibrated at 10 % on pictures that it has not."""
    folder = tmp_path_factory.mktemp("pipeline")
    made = build(folder)
    calibrate(made, pictures(folder / "held_out", range(100, 140)), false_rejection_rate=0.1, progress=False)
    return made
