"""FAISS: a flat inner-product index, on the CPU, or on a GPU where the installed wheel has one."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from ..errors import FilterFailedError, MissingExtraError

BLOCK = 65_536
"""Rows that are handed to FAISS at once."""
WHEELS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs")


class FaissBackend:
    """``IndexFlatIP`` over the stored rows.

    Searches run in a thread of their own: FAISS sets OpenMP's number of threads, which torch shares, and a search
    in a forked process hangs in threads that the fork did not copy.
    """

    def __init__(self, embeddings: torch.Tensor) -> None:
        self._faiss = import_faiss()
        self._index = self._faiss.IndexFlatIP(embeddings.shape[1])
        for block in embeddings.split(BLOCK):  # a copy in float32 of all would be twice what it keeps
            self._index.add(np.ascontiguousarray(block.float().numpy()))
        self._resources: Any = None
        self._thread: tuple[int, ThreadPoolExecutor] | None = None

    def to(self, device: torch.device) -> None:
        if device.type == "cuda" and self._resources is None and hasattr(self._faiss, "StandardGpuResources"):
            self._resources = self._faiss.StandardGpuResources()
            self._index = self._faiss.index_cpu_to_gpu(self._resources, device.index or 0, self._index)

    def propose(self, queries: torch.Tensor, k: int) -> torch.Tensor:
        given = np.ascontiguousarray(queries.float().cpu().numpy())
        _, rows = self._own_thread().submit(self._search, given, k).result()
        if (rows < 0).any():
            raise FilterFailedError(f"faiss found fewer than {k} rows in an index of {self._index.ntotal}")
        return torch.from_numpy(rows).to(queries.device)

    def _search(self, queries: np.ndarray, k: int) -> Any:
        self._faiss.omp_set_num_threads(1 if len(queries) == 1 else torch.get_num_threads())
        return self._index.search(queries, k)

    def _own_thread(self) -> ThreadPoolExecutor:
        if self._thread is None or self._thread[0] != os.getpid():
            self._thread = (os.getpid(), ThreadPoolExecutor(1, "lcmem-faiss"))
        return self._thread[1]


def import_faiss() -> Any:
    """
    Raises:
        MissingExtraError: FAISS is not installed, or two wheels overwrite each other.
    """
    installed = [name for name in WHEELS if _is_installed(name)]
    if len(installed) > 1:
        raise MissingExtraError(
            f"{' and '.join(installed)} are both installed and share one folder; uninstall both, then install one"
        )
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError(
            f"the faiss backend needs FAISS ({error}); run: pip install 'lcmem-filter[cpu]' (or [gpu]), "
            "or search with backend='exact'"
        ) from error
    return faiss


def _is_installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False
