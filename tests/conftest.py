"""Settings of every test: no hub, no progress bars, no more threads than there are cores to share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ.setdefault("MPLBACKEND", "agg")
# threads that wait for each other on a busy machine are far slower than one
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def forget_precision() -> Iterator[Callable[[], None]]:
    """Makes accelerate forget the precision of training, of which a process has one; it is forgotten afterwards too."""
    from accelerate.state import AcceleratorState

    def forget() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)

    yield forget
    forget()
