"""Which of the processes that a launcher started this is."""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object

from .errors import ArtifactError, ConfigurationError


def this_process() -> PartialState:
    """This process among those of ``accelerate launch`` or ``torchrun``.

    On CPUs accelerate counts each for the only one, and all of them would write to one folder, unless it is told first
    that they compute there.

    Raises:
        ConfigurationError: it was asked before, and not told so.
    """
    several = "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
    state = PartialState(cpu=True) if several and not torch.cuda.is_available() else PartialState()
    if several and state.num_processes == 1:
        raise ConfigurationError(
            f"{os.environ['WORLD_SIZE']} processes were started, and accelerate takes each for the only one; have "
            "PartialState(cpu=True) made before any other PartialState or Accelerator"
        )
    return state


def gathered(own: Any) -> list[Any]:
    """What each process has in the place of ``own``, in their order; all of them have to ask."""
    found: list[Any] = gather_object([own])
    return found


def check_processes(own: dict[str, Any], of: str, when: str) -> None:
    """
    Args:
        own: What every process has to have the same of.
        of: What they share, for the error.
        when: What can make them differ.

    Raises:
        ArtifactError: they differ; every process raises it.
    """
    first, *others = gathered(own)
    if changed := next(filter(None, (differences(first, other) for other in others)), None):
        raise ArtifactError(
            f"the processes of this {of} differ in {', '.join(changed)}, as where {when} while they start, or "
            "machines differ; have all of them see the same, and run again"
        )


def differences(found: Any, wanted: Any) -> list[str]:
    """Keys of what differs; of what holds keys itself, those in parentheses."""
    changed = []
    for key in sorted(found.keys() | wanted.keys()):
        was, now = found.get(key), wanted.get(key)
        if was != now:
            within = isinstance(was, dict) and isinstance(now, dict)
            changed.append(f"{key} ({', '.join(differences(was, now))})" if within else key)
    return changed


def make_accelerator(**options: Any) -> Accelerator:
    """An ``Accelerator`` of ``this_process``.

    Raises:
        ConfigurationError: this process computes in another precision already.
    """
    this_process()
    try:
        return Accelerator(**options)
    except ValueError as error:
        if not AcceleratorState._shared_state:
            raise
        precision = AcceleratorState().mixed_precision
        raise ConfigurationError(
            f"this process already computes in mixed precision {precision!r}, got {options.get('mixed_precision')!r}; "
            "give that, or a process of its own"
        ) from error
