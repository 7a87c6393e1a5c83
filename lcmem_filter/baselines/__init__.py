"""The filters that LCMem is compared with, behind one protocol, searched through the index's own backends."""

from .registry import BASELINES, Baseline, make_baseline
from .search import Found, Searcher

__all__ = ["BASELINES", "Baseline", "Found", "Searcher", "make_baseline"]
