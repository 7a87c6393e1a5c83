"""What another index holds of the same pictures: a training set that grew is not encoded again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import ArtifactError
from ..images import ImageSource

if TYPE_CHECKING:
    from ..head import LCMemHead
    from .build import Build
    from .core import MemorizationIndex


@dataclass(frozen=True, slots=True)
class Held:
    """Some rows of a source, as an index holds pictures of the same bytes.

    Attributes:
        rows: Rows of the source, n of them.
        sha256: Of each image's stored bytes, n of them.
        embeddings: (n, D), float16.
        latents: (n, C, grid, grid), float16; ``None`` where they are not wanted.
    """

    rows: list[int]
    sha256: list[str]
    embeddings: np.ndarray
    latents: np.ndarray | None


def check_reusable(index: MemorizationIndex, build: Build) -> None:
    """
    Raises:
        ArtifactError: what ``index`` holds of a picture is not what ``build`` makes of it.
    """
    pairs = {
        "encoder": (index.encoder_source.sha256, build.encoder.source.sha256),
        "resolution": (index.resolution, build.resolution),
        "latent space": (index.space, build.space),
        "head": (_of_space(index.head, build.space), _of_space(build.head, build.space)),
    }
    others = [
        f"{name} ({_short(was)}, not {_short(is_)})" for name, (was, is_) in pairs.items() if was != is_
    ]
    if others:
        raise ArtifactError(
            f"index {index.path} cannot be reused: it was built with another {' and another '.join(others)}; name "
            "what it was built with (`lcmem-filter index show` prints it), or leave --reuse out"
        )
    if build.keep_latents and not index.has_latents:
        raise ArtifactError(
            f"index {index.path} keeps no latents, so it can be reused only by an index without (--no-latents)"
        )


def _short(value: object) -> str:
    """A checksum by its beginning, anything else whole."""
    return str(value)[:12] if isinstance(value, str) and len(value) == 64 else str(value)


def _of_space(head: LCMemHead, space: str) -> str:
    return head.fingerprint_of(space) if space in head.spaces else f"none of {space!r}"


def held_by(
    index: MemorizationIndex, source: ImageSource, rows: Sequence[int], *, latents: bool
) -> Held | None:
    """Those of ``rows`` whose stored bytes ``index`` holds a picture of; ``None`` where there are none."""
    found: dict[int, tuple[int, str]] = {}
    for row in rows:
        digest = source.digest(row)
        if digest is not None and (there := index.row_of_picture.get(digest)) is not None:
            found[row] = there, digest
    if not found:
        return None
    theirs = torch.tensor([there for there, _ in found.values()])
    return Held(
        list(found),
        [digest for _, digest in found.values()],
        index.embeddings(theirs).half().numpy(),
        index.latents(theirs).half().numpy() if latents else None,
    )
