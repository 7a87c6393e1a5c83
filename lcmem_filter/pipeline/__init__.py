"""Attach the filter to diffusers pipelines: the decode gate, and drawing rejected rows again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attachment import attach, detach
    from .call import MemorizationWarning
    from .early_stop import EarlyStop

__all__ = ["EarlyStop", "MemorizationWarning", "attach", "detach"]


def __getattr__(name: str) -> Any:
    if name == "MemorizationWarning":
        from .call import MemorizationWarning

        return MemorizationWarning
    if name == "EarlyStop":
        from .early_stop import EarlyStop

        return EarlyStop
    if name in ("attach", "detach"):
        from . import attachment

        return getattr(attachment, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
