"""What was computed of an index's rows lately, kept in memory: samples of a pipeline have many neighbours in common."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch

AT_MOST = 256 * 2**20
"""Bytes that are kept."""


class Recent:
    """A tensor for each of some rows; those that were not asked for longest make room. May be used by several threads.

    Args:
        at_most: Bytes that are kept.
    """

    def __init__(self, at_most: int = AT_MOST) -> None:
        self._at_most = at_most
        self._lock = threading.Lock()
        self._of: Hashable = None
        self._kept: OrderedDict[int, torch.Tensor] = OrderedDict()

    def __reduce__(self) -> tuple[type[Recent], tuple[int]]:
        return type(self), (self._at_most,)  # a copy computes its own

    def get(
        self, rows: Sequence[int], of: Hashable, compute: Callable[[list[int]], torch.Tensor]
    ) -> torch.Tensor:
        """What ``compute`` gives, or gave, for ``rows``.

        Args:
            rows: n different ones, at least one.
            of: What is computed, and on what; of one such thing at a time something is kept.
            compute: From k rows to (k, ...), each independent of which others it is asked for with.

        Returns:
            (n, ...)
        """
        with self._lock:
            if of != self._of:
                self._of = of
                self._kept.clear()
            found = {row: self._kept[row] for row in rows if row in self._kept}
        if missing := [row for row in rows if row not in found]:
            # copies: a part of what was computed would hold all of it in memory
            found.update((row, one.clone()) for row, one in zip(missing, compute(missing), strict=True))
        with self._lock:
            if of == self._of:
                self._keep(rows, found)
        return torch.stack([found[row] for row in rows])

    def _keep(self, rows: Sequence[int], found: dict[int, torch.Tensor]) -> None:
        for row in rows:
            self._kept[row] = found[row]
            self._kept.move_to_end(row)
        one = found[rows[0]]
        places = self._at_most // max(1, one.numel() * one.element_size())
        while len(self._kept) > places:
            self._kept.popitem(last=False)
