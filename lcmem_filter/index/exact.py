"""The oracle: a blocked float32 product over every stored row, in torch, on any device."""

from __future__ import annotations

import torch

BLOCK = 65_536


class ExactBackend:
    """Exact inner-product search. Memory on the device: the stored rows and one block of them in float32."""

    def __init__(self, embeddings: torch.Tensor) -> None:
        self._rows = embeddings

    def to(self, device: torch.device) -> None:
        self._rows = self._rows.to(device)

    def propose(self, queries: torch.Tensor, k: int) -> torch.Tensor:
        """As of every backend; all rows where there are fewer than ``k``."""
        best = torch.empty(len(queries), 0, device=queries.device)
        rows = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
        for start in range(0, len(self._rows), BLOCK):
            block = self._rows[start : start + BLOCK].to(queries.device, torch.float32)
            similarity, found = (queries @ block.T).topk(min(k, len(block)), dim=1)
            best, rows = torch.cat([best, similarity], 1), torch.cat([rows, found + start], 1)
            best, order = best.topk(min(k, best.shape[1]), dim=1)
            rows = rows.gather(1, order)
        return rows
