"""SHA-256 of files."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sha256(path: Path, prefix: bytes = b"") -> str:
    """SHA-256 of ``prefix`` and what a file holds, in hexadecimal."""
    digest = hashlib.sha256(prefix)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
