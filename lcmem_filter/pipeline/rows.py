"""Which argument belongs to which row of a pipeline call, and the call that draws some rows again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

_TEXTS = ("prompt", "prompt_2", "prompt_3", "negative_prompt", "negative_prompt_2", "negative_prompt_3")
_EMBEDS = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
    "prompt_attention_mask",
    "negative_prompt_attention_mask",
    "prompt_embeds_mask",
    "negative_prompt_embeds_mask",
)
PER_PROMPT = frozenset(_TEXTS + _EMBEDS)
"""Arguments with one entry a prompt: row r of n images a prompt uses entry r // n."""

CYCLED = frozenset({"image", "mask_image"})
"""Arguments whose entries repeat over the rows: row r uses entry r modulo their number."""

_MANY = (list, tuple, torch.Tensor, np.ndarray)

SHARED = frozenset({"timesteps", "sigmas", "callback_on_step_end_tensor_inputs", "callback_on_step_end"})
"""Lists that belong to the call, not to its rows."""


@dataclass(frozen=True)
class BoundCall:
    """The arguments of one pipeline call by name; those of ``**kwargs`` apart, in ``extra``."""

    arguments: dict[str, Any]
    extra: dict[str, Any]

    @classmethod
    def bind(cls, original: Callable[..., Any], pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> BoundCall:
        """
        Raises:
            TypeError: as ``original`` itself would for these arguments.
        """
        signature = inspect.signature(original)
        arguments = dict(signature.bind(pipe, *args, **kwargs).arguments)
        arguments.pop(next(iter(signature.parameters)))
        collected = [p.name for p in signature.parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD]
        extra = arguments.pop(collected[0], {}) if collected else {}
        for name, parameter in signature.parameters.items():
            if parameter.default is not inspect.Parameter.empty:
                arguments.setdefault(name, parameter.default)
        return cls(arguments, extra)

    @property
    def output_type(self) -> str | None:
        return self.arguments.get("output_type")

    def run(self, original: Callable[..., Any], pipe: Any) -> Any:
        return original(pipe, **self.arguments, **self.extra)

    def can_slice(self) -> bool:
        """Whether it is known of every argument which rows it belongs to."""
        known = PER_PROMPT | SHARED | {"generator", "latents"}
        return not self.extra and all(
            name in known
            or not isinstance(value, _MANY)
            or (name in CYCLED and _entries_are_rows(value))
            for name, value in self.arguments.items()
        )

    def for_rows(self, rows: Sequence[int], generators: list[torch.Generator]) -> BoundCall:
        """The call that draws only ``rows``, one image each, each from its own generator."""
        images = self.arguments.get("num_images_per_prompt") or 1
        changed = dict(self.arguments)
        for name, value in self.arguments.items():
            if name in PER_PROMPT:
                changed[name] = _take(value, [row // images for row in rows], repeat=name == "prompt")
            elif name in CYCLED:
                changed[name] = _take(value, rows, cycle=True)
        return BoundCall(_redrawn(changed, generators, images=1), self.extra)

    def for_all_rows(self, generators: list[torch.Generator]) -> BoundCall:
        """The same call from other generators, one a row; for arguments that cannot be taken apart."""
        return BoundCall(_redrawn(dict(self.arguments), generators), self.extra)


def draw_seed(generator: torch.Generator | list[torch.Generator] | None, row: int) -> int:
    """A seed for drawing ``row`` again, from the caller's generator (torch's default one where there is none)."""
    if isinstance(generator, list):
        generator = generator[row % len(generator)]
    device = generator.device if generator is not None else "cpu"
    return int(torch.randint(2**62, (1,), generator=generator, device=device).item())


def generator_for(seed: int, like: torch.Generator | list[torch.Generator] | None) -> torch.Generator:
    """A generator seeded with ``seed``, on the device of the caller's."""
    like = like[0] if isinstance(like, list) else like
    return torch.Generator(like.device if like is not None else "cpu").manual_seed(seed)


def _redrawn(arguments: dict[str, Any], generators: list[torch.Generator], images: int | None = None) -> dict[str, Any]:
    arguments["generator"] = generators
    if arguments.get("latents") is not None:
        arguments["latents"] = None
    if images is not None and "num_images_per_prompt" in arguments:
        arguments["num_images_per_prompt"] = images
    return arguments


def _entries_are_rows(value: Any) -> bool:
    """Whether each entry of a picture argument is one picture, so that entries can be taken for rows."""
    if isinstance(value, (list, tuple)):
        return all(not isinstance(entry, (torch.Tensor, np.ndarray)) or entry.ndim <= 3 for entry in value)
    return bool(value.ndim == 4)


def _take(value: Any, positions: Sequence[int], *, repeat: bool = False, cycle: bool = False) -> Any:
    if isinstance(value, str):
        return [value] * len(positions) if repeat else value
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return value[[p % value.shape[0] for p in positions] if cycle else list(positions)]
    if isinstance(value, (list, tuple)):
        return [value[p % len(value) if cycle else p] for p in positions]
    return value
