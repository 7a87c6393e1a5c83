"""``job.json``: everything that a job's bytes depend on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from .. import __version__
from ..errors import DataError
from ..filter import MemorizationFilter
from ..pipeline.rows import SIZES
from .drawing import RESERVED
from .plan import Plan

LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "pillow")
TILING = ("use_slicing", "use_tiling")
"""Of an autoencoder, besides what begins with ``tile_``."""
ADAPTERS = ("scaling", "active_adapters", "disable_adapters", "merged_adapters")
"""Of a layer of PEFT, what says which adapters count, and how much."""


def describe(
    pipe: Any,
    judge: MemorizationFilter,
    plan: Plan,
    settings: Mapping[str, Any],
    threads: int,
) -> dict[str, Any]:
    """A job, ready for JSON: what may not change while it goes on is in ``fixed``."""
    index = judge.index
    return {
        "format": 1,
        "pipeline": str(getattr(pipe, "name_or_path", "") or type(pipe).__name__),
        "index": str(index.path),
        "fixed": {
            "plan": plan.fingerprint,
            "images": len(plan.items),
            "batch_size": plan.batch_size,
            **settings,
            "device": pipe.device.type,
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "threads": threads,
            "versions": versions(),
            "fingerprints": {
                "pipeline": pipeline_fingerprint(pipe),
                "index": judge.fingerprint,
                "head": index.head.fingerprint,
            },
        },
    }


def checked_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Arguments of the pipeline's call as they come back from JSON, but for sizes, which are tuples.

    Raises:
        DataError: the plan decides one of them, or one cannot be kept.
    """
    options = dict(options or {})
    if reserved := sorted(RESERVED & options.keys()):
        raise DataError(f"options may not hold {', '.join(reserved)}: the plan decides that; leave it out")
    try:
        kept: dict[str, Any] = json.loads(json.dumps(options, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise DataError(f"options cannot be kept in job.json: {error}; give numbers and texts") from error
    return {
        name: tuple(value) if name in SIZES and isinstance(value, list) else value
        for name, value in kept.items()
    }


def versions() -> dict[str, str]:
    """Of Python, of this package and of what it draws with."""
    return {
        "python": platform.python_version(),
        "lcmem-filter": __version__,
        **{name: version(name) for name in LIBRARIES},
    }


def pipeline_fingerprint(pipe: Any) -> str:
    """SHA-256 over the class, its settings and every component's, vocabularies, every weight and buffer, as they lie in
    memory, and how adapters, FreeU, tiling and the schedule's shift are set."""
    digest = hashlib.sha256(f"{type(pipe).__name__}: {_settings_of(pipe.config)}\n".encode())
    for name, component in sorted(pipe.components.items()):
        digest.update(f"{name}: {type(component).__name__}\n".encode())
        if isinstance(component, torch.nn.Module):
            for key, tensor in sorted(_weights_of(component).items()):
                digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(_bytes_of(tensor))
            for line in _switches_of(component):
                digest.update(line.encode())
        if (shift := getattr(component, "shift", None)) is not None:
            digest.update(f"shift: {shift}\n".encode())
        if hasattr(component, "config"):
            digest.update(_settings_of(component.config).encode())
        if hasattr(component, "get_vocab"):
            digest.update(json.dumps(component.get_vocab(), sort_keys=True).encode())
    return digest.hexdigest()


def _switches_of(component: torch.nn.Module) -> list[str]:
    """What changes images and is neither weight nor configuration: which adapters are on and how much they count,
    FreeU's factors, and how an autoencoder goes piece by piece."""
    pieces = {
        key: value for key, value in vars(component).items() if key in TILING or key.startswith("tile_")
    }
    found = [f"{json.dumps(pieces, sort_keys=True, default=str)}\n"] if pieces else []
    for name, module in component.named_modules():
        said: dict[str, Any] = {key: getattr(module, key, None) for key in ("s1", "s2", "b1", "b2")}
        if isinstance(getattr(module, "scaling", None), dict):  # of PEFT
            said |= {key: getattr(module, key, None) for key in ADAPTERS}
        if isinstance(scale := getattr(module, "scale", None), list):  # of IP-Adapter
            said["scale"] = scale
        if any(isinstance(value, int | float | dict | list) for value in said.values()):
            found.append(f"{name}: {json.dumps(said, sort_keys=True, default=str)}\n")
    return found


def _settings_of(config: Any) -> str:
    """A configuration of diffusers or transformers, without where it was loaded from."""
    entries = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    kept = {key: value for key, value in entries.items() if not key.startswith("_")}
    return json.dumps(kept, sort_keys=True, default=str)


def _weights_of(component: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights and buffers, those too that accelerate holds elsewhere while they are not used."""
    found: dict[str, torch.Tensor] = component.state_dict()
    away = [key for key, tensor in found.items() if tensor.is_meta]
    if not away:
        return found
    from accelerate.utils.modeling import get_state_dict_offloaded_model

    with contextlib.suppress(ValueError):  # raised for what accelerate holds nowhere
        found = {**found, **get_state_dict_offloaded_model(component)}
    if missing := [key for key in away if found[key].is_meta]:
        raise DataError(
            f"the weights {missing[0]} of {type(component).__name__} lie on no device, so the job cannot be told from "
            "another; load the pipeline, or offload it by enable_model_cpu_offload()"
        )
    return found


def _bytes_of(tensor: torch.Tensor) -> Any:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""
