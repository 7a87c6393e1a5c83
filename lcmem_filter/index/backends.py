"""Which search engines there are. A backend proposes rows, by either key of an index; what is stored of them decides.

To add one: a module here with a class as below, its name in ``BACKENDS``.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Protocol, cast

import torch

from ..errors import LcmemFilterError

BACKENDS = {"exact": "exact:ExactBackend", "faiss": "faiss:FaissBackend"}
"""Module and class of each backend; imported when it is first asked for."""


@dataclass(frozen=True, slots=True)
class Hits:
    """The nearest rows of an index.

    Attributes:
        rows: (B, k), int64.
        similarity: Cosine of query and stored embedding, (B, k), float32, descending.
    """

    rows: torch.Tensor
    similarity: torch.Tensor


class Backend(Protocol):
    """Proposes the stored rows that are most alike a query, by inner product."""

    def __init__(self, embeddings: torch.Tensor) -> None:
        """``embeddings`` (N, D): float16, unit-norm, on the CPU."""

    def to(self, device: torch.device) -> None:
        """Search on ``device`` from now on, where the backend can."""

    def propose(self, queries: torch.Tensor, k: int) -> torch.Tensor:
        """Rows (B, k), int64, of the k nearest to each of ``queries`` (B, D), float32; k is at most N."""


def make_backend(name: str, embeddings: torch.Tensor) -> Backend:
    """
    Raises:
        LcmemFilterError: no such backend.
        MissingExtraError: what it needs is not installed.
    """
    if name not in BACKENDS:
        raise LcmemFilterError(f"no search backend {name!r}; choose one of {', '.join(BACKENDS)}")
    module, class_name = BACKENDS[name].split(":")
    made = getattr(importlib.import_module(f".{module}", __package__), class_name)
    return cast(Backend, made(embeddings))
