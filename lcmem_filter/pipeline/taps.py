"""Taps on a pipeline's denoiser and scheduler, for the length of a block and for this thread only."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

DENOISERS = ("unet", "transformer")

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
Step = Callable[..., Any]


def denoiser_of(pipe: Any) -> torch.nn.Module | None:
    """The component that predicts noise, velocity or flow; ``None`` where its name is not known."""
    for name in DENOISERS:
        component = getattr(pipe, name, None)
        if isinstance(component, torch.nn.Module):
            return component
    return None


@contextmanager
def tapped_inputs(denoiser: torch.nn.Module, change: Callable[[Inputs], Inputs]) -> Iterator[None]:
    """Let ``change`` replace the arguments (positional, by name) of every call of ``denoiser``."""
    owner = threading.get_ident()

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs | None:
        return change((args, kwargs)) if threading.get_ident() == owner else None

    with _hooks_run(denoiser):
        handle = denoiser.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def tapped_outputs(
    denoiser: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Let ``change`` replace the prediction, a tensor with one row a sample, of every call of ``denoiser``."""
    owner = threading.get_ident()

    def hook(module: Any, args: Any, output: Any) -> Any:
        if threading.get_ident() != owner:
            return None
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        output["sample"] = change(output["sample"])
        return output

    with _hooks_run(denoiser):
        handle = denoiser.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def tapped_step(scheduler: Any, around: Callable[..., Any]) -> Iterator[None]:
    """Call ``around(step, model_output, timestep, sample, *rest, **options)`` in place of ``scheduler.step``.

    ``around`` calls ``step`` with what follows it. An instance attribute ``step`` that was there before is put back.
    """
    owner, inner = threading.get_ident(), scheduler.step
    before = scheduler.__dict__.get("step")
    names = ("model_output", "timestep", "sample")

    @functools.wraps(inner)  # pipelines look at its signature
    def step(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != owner:
            return inner(*args, **kwargs)
        by_name = [kwargs.pop(name) for name in names[len(args) :]]
        return around(inner, *args, *by_name, **kwargs)

    scheduler.__dict__["step"] = step
    try:
        yield
    finally:
        if before is None:
            del scheduler.__dict__["step"]
        else:
            scheduler.__dict__["step"] = before


@contextmanager
def _hooks_run(module: torch.nn.Module) -> Iterator[None]:
    """A module compiled in place skips hooks added later: for the block it runs as it did before compiling."""
    compiled = module.__dict__.get("_compiled_call_impl")
    if compiled is None:
        yield
        return
    module.__dict__["_compiled_call_impl"] = None
    try:
        yield
    finally:
        module.__dict__["_compiled_call_impl"] = compiled
