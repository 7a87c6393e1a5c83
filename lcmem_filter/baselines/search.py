"""Search with any baseline, through the backends of the index."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from ..index.backends import Backend, make_backend
from ..latents import outlines
from ..shortlist import InPlace, propose
from .lcmem import LCMem
from .registry import Baseline

BATCH = 64


@dataclass(frozen=True, slots=True)
class Found:
    """The stored rows most alike each query.

    Attributes:
        rows: (B, k), int64.
        similarity: (B, k), float32, descending.
    """

    rows: torch.Tensor
    similarity: torch.Tensor


class Searcher:
    """What a baseline kept of the training set, searchable.

    Args:
        baseline: How images are compared.
        stored: (N, D) as ``baseline.embed`` gave them.
        backend: Search engine, one of ``lcmem_filter.index.BACKENDS``.
    """

    def __init__(self, baseline: Baseline, stored: torch.Tensor, *, backend: str = "exact") -> None:
        self.baseline, self._stored = baseline, stored
        self._keys = make_backend(backend, baseline.key(stored))
        if isinstance(baseline, LCMem) and baseline.by_place:  # samples and stored are of one space then
            self._outlines = outlines(baseline.latents(stored))
            self._lying = make_backend(backend, self._outlines)

    @torch.inference_mode()
    def search(self, queries: torch.Tensor, k: int, *, but: torch.Tensor | None = None) -> Found:
        """The ``k`` rows most alike each of ``queries`` (B, D), best first.

        Args:
            queries: As ``baseline.embed`` gave them.
            k: At most N, or N - 1 with ``but``.
            but: (B,) a row that must not be found for each query, or -1: the query's own.
        """
        parts = [
            self._search(queries[i : i + BATCH], k, None if but is None else but[i : i + BATCH])
            for i in range(0, len(queries), BATCH)
        ]
        return Found(torch.cat([part.rows for part in parts]), torch.cat([part.similarity for part in parts]))

    def _search(self, queries: torch.Tensor, k: int, but: torch.Tensor | None) -> Found:
        asked = self.baseline.query(queries)
        poses = asked if asked.ndim == 3 else asked[None]
        nearest = functools.partial(self._proposed, self._keys, but=but)
        in_place = None
        if isinstance(self.baseline, LCMem) and self.baseline.by_place:
            lying = functools.partial(self._proposed, self._lying, but=but)
            in_place = InPlace.of(self.baseline.latents(queries), lying, self._outlines.__getitem__)
        rows = propose(poses, nearest, in_place, count=max(k, self.baseline.shortlist))
        similarity = self.baseline.similarity(queries, self._stored[rows])
        similarity = _of_each_row(rows, similarity)
        similarity, order = similarity.sort(dim=1, descending=True, stable=True)
        return Found(rows.gather(1, order)[:, :k], similarity[:, :k])

    def _proposed(
        self, backend: Backend, asked: torch.Tensor, k: int, but: torch.Tensor | None
    ) -> torch.Tensor:
        """Rows (N, k) for each of (N, D), without ``but``, (B,), of B samples that ask in turn."""
        proposed = min(k + (but is not None), len(self._stored))
        rows = backend.propose(asked, proposed)
        if but is None:
            return rows
        own = but.repeat(len(asked) // len(but))[:, None]
        return rows.gather(1, (rows == own).byte().argsort(dim=1, stable=True)[:, : proposed - 1])


def _of_each_row(rows: torch.Tensor, similarity: torch.Tensor) -> torch.Tensor:
    """The largest ``similarity`` (B, K) of each of ``rows`` (B, K) where it stands first, as the filter takes it;
    ``-inf`` where it stands again."""
    same = rows[:, :, None] == rows[:, None, :]
    most = similarity[:, None].masked_fill(~same, -torch.inf).amax(2)
    return most.masked_fill(same.tril(-1).any(2), -torch.inf)
