"""The decode gate: what stands between a pipeline's latents and its decoder for the length of one call."""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import FilterFailedError
from ..types import Decision
from .spaces import picture_latents, uncompiled

Judge = Callable[[torch.Tensor], Sequence[Decision]]


class Gate:
    """Judges the one batch of latents that reaches the decoder and lets only accepted rows through.

    Args:
        judge: Latents (B, C, H, W) to B decisions; a single frame (B, C, 1, H, W) is squeezed for it.
        withhold: Whether rejected rows are kept from the decoder; ``False`` only flags them.

    Attributes:
        decisions: One decision a row once the decoder was called; ``None`` before.
    """

    def __init__(self, judge: Judge, *, withhold: bool = True) -> None:
        self._judge = judge
        self._withhold = withhold
        self.decisions: list[Decision] | None = None

    def decode(self, inner: Callable[..., Any], latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Judge ``latents`` and call the decoder ``inner`` with its rejected rows zeroed.

        The whole batch is decoded in one piece, so accepted rows are bit-identical to an unfiltered call; the decoded
        rejected rows are overwritten with -1, black in the decoder's range.

        Raises:
            FilterFailedError: the decoder is called a second time, or returns other rows than it was given.
            UnsupportedPipelineError: ``latents`` are not of single pictures.
        """
        if self.decisions is not None:
            raise FilterFailedError(
                "the pipeline decoded more than once in one call, so a decision cannot be assigned to each image; "
                "decode previews with another VAE (nobody judges them), and do not filter pipelines that decode in "
                "pieces"
            )
        self.decisions = list(self._judge(picture_latents(latents)))
        if len(self.decisions) != latents.shape[0]:
            raise FilterFailedError(f"{len(self.decisions)} decisions for {latents.shape[0]} latents")
        withheld = withheld_rows(self.decisions) if self._withhold else []
        if not withheld:
            return inner(latents, *args, **kwargs)
        safe = latents.clone()
        safe[withheld] = 0
        return _blank(inner(safe, *args, **kwargs), withheld, latents.shape[0])


def withheld_rows(decisions: Sequence[Decision]) -> list[int]:
    """Rows that must not be returned: rejected, or not checked."""
    return [row for row, decision in enumerate(decisions) if decision.accepted is not True]


@contextmanager
def gated(vae: Any, gate: Gate) -> Iterator[None]:
    """Stand ``gate`` before ``vae.decode``, for this thread, until the block ends; within this thread's ``turn``.

    An instance attribute ``decode`` that was there before (a compiled decoder, say) is called, and put back. Where the
    block fails, the decoder gets back its dtype, which a pipeline that casts it to decode restores only afterwards.
    """
    module = uncompiled(vae)
    dtype = getattr(module, "dtype", None)
    held = _turn_of(module)
    owner, inner = threading.get_ident(), module.decode
    before = module.__dict__.get("decode")
    name_of_latents = next(iter(inspect.signature(inner).parameters))

    @functools.wraps(inner)
    def decode(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != owner:  # an unfiltered pipeline that shares this VAE
            return inner(*args, **kwargs)
        latents, rest = (args[0], args[1:]) if args else (kwargs.pop(name_of_latents), ())
        return gate.decode(inner, latents, *rest, **kwargs)

    object.__setattr__(module, "decode", decode)
    held.gate_stands = True
    try:
        yield
    except BaseException:
        if dtype is not None and module.dtype != dtype:
            module.to(dtype=dtype)
        raise
    finally:
        held.gate_stands = False
        if before is None:
            object.__delattr__(module, "decode")
        else:
            object.__setattr__(module, "decode", before)


class _Turn:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.owner: int | None = None
        self.gate_stands = False


_TURNS: weakref.WeakKeyDictionary[Any, _Turn] = weakref.WeakKeyDictionary()
_TURNS_LOCK = threading.Lock()


@contextmanager
def turn(vae: Any) -> Iterator[None]:
    """Hold ``vae`` for one filtered call, with all its draws: calls of several threads that share a VAE take turns.

    Raises:
        FilterFailedError: this thread is within a draw of a filtered call on the same VAE.
    """
    held = _turn_of(uncompiled(vae))
    if held.owner == threading.get_ident():
        if not held.gate_stands:  # between two draws: a rung may call filtered pipelines of its own
            yield
            return
        raise FilterFailedError(
            "a filtered pipeline was called from within a filtered call on the same VAE (from a callback, perhaps); "
            "the two would share one gate: call it after the first has returned, or give it a VAE of its own"
        )
    with held.lock:
        held.owner = threading.get_ident()
        try:
            yield
        finally:
            held.owner = None


def _turn_of(module: Any) -> _Turn:
    with _TURNS_LOCK:
        return _TURNS.setdefault(module, _Turn())


def _blank(decoded: Any, rows: list[int], expected: int) -> Any:
    """``decoded`` (a tuple, or an output with ``sample``) with ``rows`` of its images overwritten with -1."""
    images = decoded[0] if isinstance(decoded, tuple) else decoded["sample"]
    if images.shape[0] != expected:
        raise FilterFailedError(
            f"the decoder made {images.shape[0]} rows of {expected} latents, so rejected ones cannot be told apart; "
            "this pipeline cannot be filtered"
        )
    images = images.clone()
    images[rows] = -1
    if isinstance(decoded, tuple):
        return (images, *decoded[1:])
    decoded["sample"] = images
    return decoded
