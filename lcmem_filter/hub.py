"""What may lie on the hub, and what is told to be missing without asking there."""

from __future__ import annotations

import os
from pathlib import Path


def check_reachable(name_or_path: str | os.PathLike[str]) -> None:
    """Whether something lies at a path, or may lie on the hub under this id, ``owner/name``.

    Raises:
        FileNotFoundError: there is no such folder, and no hub id is written so, or what would be its owner is a folder
            here.
    """
    name = os.fspath(name_or_path)
    if Path(name).exists():
        return
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError("there is no such folder, nor is this a hub id")
    owner, inside = name.split("/")
    if Path(owner).is_dir():
        raise FileNotFoundError(f"there is a folder {owner!r} here, without {inside!r}")
