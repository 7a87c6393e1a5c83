"""What teaching a trained head something more, all else frozen, begins and ends with."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ArtifactError
from ..head import LCMemHead
from .card import write_card
from .checkpoint import LATENTS, RESULT, write_json


def refuse_occupied(output: Path) -> None:
    """Whether ``output`` is free for a head, or can be made.

    Raises:
        ArtifactError: a head lies there, or it is no folder.
    """
    if output.exists() and not output.is_dir():
        raise ArtifactError(f"{output} is a file; give a folder as --output")
    if (output / LCMemHead.config_name).exists():
        raise ArtifactError(f"{output} already holds a head or model; give another --output")


def save_extended(
    head: LCMemHead,
    output: Path,
    kind: str,
    space: str,
    added: dict[str, Any],
    record: Mapping[str, Any] | None,
) -> None:
    """Save a head, with its card where its own record is known, and drop what was encoded inside ``output``: pictures
    can be had from latents, and whoever gets the head gets that folder.

    Args:
        kind: Part of the record that ``added`` belongs to, by ``space``.
        record: ``training.json`` of the head that was extended.
    """
    head.save_pretrained(output)
    if record is None:
        print(
            f"{output}: no record of the head's own training was given, so no card is written",
            file=sys.stderr,
        )
    else:
        whole = {**record, kind: {**record.get(kind, {}), space: added}}
        write_card(output, head, whole)
        write_json(output / RESULT, whole)
    shutil.rmtree(output / LATENTS, ignore_errors=True)
