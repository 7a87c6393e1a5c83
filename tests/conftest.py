"""Settings of every test: no hub, no progress bars, no more threads than there are cores to share."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ.setdefault("MPLBACKEND", "agg")
# threads that wait for each other on a busy machine are far slower than one
os.environ.setdefault("OMP_NUM_THREADS", "1")
