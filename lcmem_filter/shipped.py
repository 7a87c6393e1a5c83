"""The heads that lie in this package, by their names."""

from __future__ import annotations

import os
from pathlib import Path

SHIPPED = Path(__file__).parent / "heads"


def shipped_heads() -> list[str]:
    """Names of the heads that lie in this package."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))


def folder_of(name_or_path: str | os.PathLike[str]) -> Path:
    """Where a head lies that ships with this package, if that is its name, whatever lies in a folder of that name; else
    the path itself."""
    name = os.fspath(name_or_path)
    return SHIPPED / name if name in shipped_heads() else Path(name)
