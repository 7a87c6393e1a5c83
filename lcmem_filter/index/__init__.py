"""The training set, searchable: a folder of embeddings, canonical latents and records, behind one façade."""

from .backends import BACKENDS, Backend, Hits
from .core import MemorizationIndex

__all__ = ["BACKENDS", "Backend", "Hits", "MemorizationIndex"]
