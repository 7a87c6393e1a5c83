"""Training images that a sample may resemble, and the index as if it held none of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .errors import AllowedIdsError
from .index import Key, MemorizationIndex
from .types import AllowedIds


@dataclass(frozen=True, slots=True)
class Exemptions:
    """Ids of training images that samples may resemble.

    Attributes:
        shared: Those of every row.
        by_row: Those of each row, where they differ by row.
    """

    shared: tuple[str, ...] = ()
    by_row: tuple[tuple[str, ...], ...] | None = None

    @classmethod
    def of(cls, allowed_ids: AllowedIds | None, index: MemorizationIndex) -> Exemptions:
        """From what a call names: one sequence of ids for all rows, or one for each.

        Raises:
            AllowedIdsError: neither of both, or an id that the index does not hold.
        """
        if allowed_ids is None:
            return cls()
        if isinstance(allowed_ids, str):
            raise _malformed(allowed_ids)
        entries = list(allowed_ids)
        if all(isinstance(entry, str) for entry in entries):
            return cls(_known(entries, index))
        if any(isinstance(entry, str) or not isinstance(entry, Sequence) for entry in entries):
            raise _malformed(allowed_ids)
        return cls(by_row=tuple(_known(entry, index) for entry in entries))

    def of_rows(self, rows: int) -> list[tuple[str, ...]]:
        """The ids of each of ``rows`` rows.

        Raises:
            AllowedIdsError: they were given for another number of rows.
        """
        if self.by_row is None:
            return [self.shared] * rows
        if len(self.by_row) != rows:
            raise AllowedIdsError(
                f"allowed_ids has {len(self.by_row)} sequences of ids for {rows} images; give one for each image of "
                "the batch, in the order of the images, or a single one for all of them"
            )
        return list(self.by_row)

    def taken(self, rows: Sequence[int]) -> Exemptions:
        """Those of ``rows`` alone, in this order."""
        return self if self.by_row is None else Exemptions(by_row=tuple(self.by_row[row] for row in rows))

    @property
    def allowed_ids(self) -> AllowedIds | None:
        """As a call names them; ``None`` where there are none."""
        return self.by_row or self.shared or None


class IndexWithout(MemorizationIndex):
    """``index`` as if it held none of the images ``ids``; shares everything with it.

    Raises:
        AllowedIdsError: nothing is left.
    """

    def __init__(self, index: MemorizationIndex, ids: Sequence[str]) -> None:
        self.__dict__.update(index.__dict__, identities=index.identities)  # numbered once for all
        self._left_out = torch.tensor(sorted({index._row_of[id_] for id_ in ids}), dtype=torch.long)
        if len(self._left_out) == len(index):
            raise AllowedIdsError(
                f"allowed_ids names all {len(index)} images of index {index.path}, so there is nothing left to judge "
                "by; name only those that the sample was made from"
            )

    def propose(self, queries: torch.Tensor, k: int, by: Key = "embeddings") -> torch.Tensor:
        """As of the whole index; the rows left out are passed over, and further ones take their places."""
        left = min(k, len(self) - len(self._left_out))
        rows = super().propose(queries, k + len(self._left_out), by)
        passed_over = torch.isin(rows, self._left_out.to(rows.device))
        return rows.gather(1, passed_over.byte().argsort(dim=1, stable=True)[:, :left])


def _known(ids: Sequence[object], index: MemorizationIndex) -> tuple[str, ...]:
    named: dict[str, None] = {}
    for id_ in ids:
        if not isinstance(id_, str):
            raise _malformed(ids)
        if id_ not in index._row_of:
            raise AllowedIdsError(
                f"allowed_ids names {id_!r}, but index {index.path} holds no such image (its ids are like "
                f"{index.records[0].id!r}); no image is returned"
            )
        named[id_] = None
    return tuple(named)


def _malformed(found: object) -> AllowedIdsError:
    return AllowedIdsError(
        f"allowed_ids must be a sequence of ids for all images, or one such sequence for each, got {found!r}"
    )
