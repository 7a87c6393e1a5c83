"""Checkpoints of the demo's trainings: one file each, which belongs to one recipe."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..errors import ArtifactError


def read_checkpoint(path: Path, recipe: Any) -> dict[str, Any] | None:
    """What ``write_checkpoint`` wrote last; ``None`` where nothing was.

    Raises:
        ArtifactError: it is of another recipe.
    """
    if not path.exists():
        return None
    saved: dict[str, Any] = torch.load(path, weights_only=True)
    if saved.get("recipe", asdict(recipe)) != asdict(recipe):  # checkpoints of before did not say
        raise ArtifactError(f"{path} is of another recipe; give another folder, or remove it")
    return saved


def write_checkpoint(path: Path, recipe: Any, parts: dict[str, Any], **values: Any) -> None:
    """Write the states of ``parts`` and what else is given aside, then rename."""
    aside = path.with_suffix(".tmp")
    states = {name: part.state_dict() for name, part in parts.items()}
    torch.save({"recipe": asdict(recipe), **states, **values}, aside)
    os.replace(aside, path)
