"""The training set, searchable: a folder of embeddings, canonical latents and records, behind one façade."""

from .backends import BACKENDS, Backend
from .core import Hits, MemorizationIndex

__all__ = ["BACKENDS", "Backend", "Hits", "MemorizationIndex"]
