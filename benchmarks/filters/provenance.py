"""What a results file must say besides its figures."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any


def provenance(pipeline: Path, indexes: Mapping[str, Any]) -> dict[str, Any]:
    """Versions, hardware, the heads, whose ``indexes`` are by their names, and how the pipeline was trained."""
    training = json.loads((pipeline / "training.json").read_text())
    losses = training.pop("losses")
    return {
        "seed": 0,
        "heads": {name: index.head.fingerprint_of(index.space) for name, index in indexes.items()},
        "pipeline_training": {**training, "last_loss": losses[-1], "device": "cpu"},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "diffusers", "transformers", "numpy")},
        },
        "hardware": {"processor": _processor(), "cores": os.cpu_count(), "threads": 1},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
