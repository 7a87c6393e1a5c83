"""Callbacks of a pipeline's call: whether one may do something of its own to each row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

CALLBACKS = ("callback", "callback_on_step_end", "prior_callback_on_step_end")
"""Called with the latents of all rows: one that changes them may have something of its own for each."""


class Watched:
    """A callback, and whether it changed anything that it was given."""

    def __init__(self, callback: Callable[..., Any]) -> None:
        self.callback, self.changed = callback, False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = (args, kwargs)
        before = [(one, _state_of(one)) for one in _tensors(given)]
        found = self.callback(*args, **kwargs)
        kept = {id(one) for one, _ in before}
        self.changed |= any(id(one) not in kept for one in _tensors((given, found)))
        self.changed |= any(not _is_in_state(one, state) for one, state in before)
        return found


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in ``value``, however deep they lie: some pipelines have a list of embeddings, one a prompt."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _tensors(one)


def _state_of(tensor: torch.Tensor) -> Any:
    """What tells later whether a tensor was written to; those made in inference mode do not count that."""
    return tensor.clone() if tensor.is_inference() else tensor._version


def _is_in_state(tensor: torch.Tensor, state: Any) -> bool:
    return torch.equal(tensor, state) if isinstance(state, torch.Tensor) else tensor._version == state


def watched(callback: Any) -> Any:
    """``callback``, watched; diffusers' objects for callbacks, which pipelines know by their class, as they are."""
    return callback if callback is None or hasattr(callback, "tensor_inputs") else Watched(callback)


def may_know_rows(callback: Any) -> bool:
    """Whether a callback may do something else to each row. Of diffusers' classes for them, its own do not."""
    if callback is None or isinstance(callback, Watched):
        return callback is not None and callback.changed
    several = getattr(callback, "callbacks", [callback])
    return any(type(one).__module__ != "diffusers.callbacks" for one in several)
