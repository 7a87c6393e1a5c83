"""What an index is searched by: its images' embeddings, and the outlines of their latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch

from ..errors import CorruptArtifactError, LcmemFilterError
from ..latents import outlines
from . import folder as files
from .backends import Backend, make_backend
from .shards import Shards

Key: TypeAlias = Literal["embeddings", "outlines"]


class Keys:
    """Both keys of every row, and a search engine for each; of outlines from when they are first asked for.

    Args:
        path: The index's folder.
        latents: Those that it keeps.
        backend: Search engine, one of ``BACKENDS``.

    Raises:
        CorruptArtifactError: embeddings of another shape than the manifest says.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], latents: Shards | None, backend: str) -> None:
        self._path, self._latents, self._name = path, latents, backend
        embeddings = torch.from_numpy(Shards(path, manifest, files.EMBEDDINGS).read_all())
        if embeddings.shape != (manifest["rows"], manifest["embedding_dim"]):
            raise CorruptArtifactError(f"index {path}: embeddings of another shape than its manifest says")
        self._stored: dict[Key, torch.Tensor] = {"embeddings": embeddings}
        self._backends: dict[Key, Backend] = {"embeddings": make_backend(backend, embeddings)}
        self._device = torch.device("cpu")

    def to(self, device: torch.device) -> None:
        """Search on ``device`` from now on."""
        self._device = device
        for backend in self._backends.values():
            backend.to(device)

    def stored(self, by: Key) -> torch.Tensor:
        """Of every row, (N, D), float16, on the CPU.

        Raises:
            CorruptArtifactError: latents are not finite, or have changed since the index was loaded.
            LcmemFilterError: there are none to make outlines of, or no such key.
        """
        if by not in get_args(Key):
            raise LcmemFilterError(f"no key {by!r}; an index is searched by {' or '.join(get_args(Key))}")
        if by not in self._stored:
            self._stored[by] = self._outlines()
        return self._stored[by]

    def backend(self, by: Key) -> Backend:
        """The search engine of a key; raises as ``stored``."""
        if by not in self._backends:
            made = make_backend(self._name, self.stored(by))
            made.to(self._device)
            self._backends[by] = made
        return self._backends[by]

    def propose(self, queries: torch.Tensor, k: int, by: Key) -> torch.Tensor:
        """Rows (B, k), int64, of the k nearest to each of ``queries`` (B, D), or all where there are fewer; raises as
        ``stored``."""
        return self.backend(by).propose(queries.float(), min(k, len(self._stored["embeddings"])))

    @torch.inference_mode(False)
    def _outlines(self) -> torch.Tensor:
        if self._latents is None:
            raise LcmemFilterError(
                f"index {self._path} keeps no latents, so it has no outlines; build it without --no-latents"
            )
        found: torch.Tensor | None = None
        first = 0
        for latents in self._latents.each():
            some = outlines(torch.from_numpy(latents.astype(np.float32)))
            if not torch.isfinite(some).all():
                raise CorruptArtifactError(
                    f"index {self._path} holds latents that are not finite; build it again"
                )
            if found is None:
                found = torch.empty(len(self._stored["embeddings"]), some.shape[1], dtype=torch.float16)
            found[first : first + len(some)] = some
            first += len(some)
        assert found is not None
        return found
