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
    the path itself. Text alone is a name: a ``Path``, and text with a separator in it, never is."""
    named = isinstance(name_or_path, str) and name_or_path in shipped_heads()
    return SHIPPED / name_or_path if named else Path(name_or_path)
