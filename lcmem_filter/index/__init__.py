"""The training set, searchable: a folder of embeddings, canonical latents and records, behind one façade."""

from .backends import BACKENDS, Backend, Hits
from .core import MemorizationIndex
from .keys import Key

__all__ = ["BACKENDS", "Backend", "Hits", "Key", "MemorizationIndex"]
