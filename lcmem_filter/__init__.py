"""Stops a latent diffusion pipeline from returning memorised training images.

Importing this package loads neither torch nor diffusers: public names are imported when they are first used, and
``DiffusionPipeline`` gets its two methods when diffusers is imported, whether that was before or comes after.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from .audit import audit_images
    from .calibration import calibrate
    from .errors import LcmemFilterError, MemorizationError
    from .filter import MemorizationFilter
    from .generation import generate
    from .head import LCMemHead
    from .images import open_images
    from .index import MemorizationIndex
    from .latents import load_encoder
    from .pipeline import EarlyStop, attach, detach
    from .report import write_report
    from .training import TrainingConfig, train_head
    from .types import Decision, Neighbour

__version__ = "0.1.0"

_HOMES = {
    "Decision": "types",
    "EarlyStop": "pipeline",
    "LCMemHead": "head",
    "LcmemFilterError": "errors",
    "MemorizationError": "errors",
    "MemorizationFilter": "filter",
    "MemorizationIndex": "index",
    "Neighbour": "types",
    "TrainingConfig": "training",
    "attach": "pipeline",
    "audit_images": "audit",
    "calibrate": "calibration",
    "detach": "pipeline",
    "generate": "generation",
    "load_encoder": "latents",
    "open_images": "images",
    "train_head": "training",
    "write_report": "report",
}

__all__ = [
    "Decision",
    "EarlyStop",
    "LCMemHead",
    "LcmemFilterError",
    "MemorizationError",
    "MemorizationFilter",
    "MemorizationIndex",
    "Neighbour",
    "TrainingConfig",
    "attach",
    "audit_images",
    "calibrate",
    "detach",
    "generate",
    "load_encoder",
    "open_images",
    "train_head",
    "write_report",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _give_pipelines_their_methods(pipeline_utils: Any) -> None:
    importlib.import_module(".pipeline.methods", __name__).install(pipeline_utils.DiffusionPipeline)


def _let_auto_pipelines_carry_filters(auto_pipeline: Any) -> None:
    methods = importlib.import_module(".pipeline.methods", __name__)
    for task in ("Text2Image", "Image2Image", "Inpainting"):
        methods.carry_through_from_pipe(getattr(auto_pipeline, f"AutoPipelineFor{task}"))


wrapt.register_post_import_hook(_give_pipelines_their_methods, "diffusers.pipelines.pipeline_utils")
wrapt.register_post_import_hook(_let_auto_pipelines_carry_filters, "diffusers.pipelines.auto_pipeline")
