"""What a head's configuration may say."""

from __future__ import annotations

from typing import Any

LATER: dict[str, Any] = {
    "token_dim": 0,
    "match_dim": 0,
    "match_width": 0,
    "match_deformed": False,
    "same_identity": 0.0,
    "match_spaces": (),
    "halved_spaces": (),
    "pooling": "mean",
    "trunk_type": "convnext",
    "embedding_weight": 0.0,
    "middles": False,
}
"""Entries of the configuration that heads of before lack; with these values, they change no fingerprint."""
