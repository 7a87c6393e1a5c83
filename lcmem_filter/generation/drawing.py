"""One batch of a plan through the filtered pipeline."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ..errors import FilterFailedError, UnsupportedPipelineError
from ..pipeline.call import MemorizationWarning
from ..pipeline.rows import text_of_each
from ..types import Decision
from .plan import Item
from .rows import Status

RESERVED = frozenset(
    {
        "prompt",
        "batch_size",
        "generator",
        "latents",
        "num_images_per_prompt",
        "output_type",
        "return_dict",
    }
)
"""Arguments of the pipeline's call that the plan decides."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What became of one image: ``image`` is ``None`` unless it may be delivered."""

    item: Item
    decision: Decision
    status: Status
    image: Image.Image | None


def draw_batch(pipe: Any, items: Sequence[Item], options: Mapping[str, Any], *, flag: bool) -> list[Drawn]:
    """Draw ``items`` in one call, each from a generator of its own.

    Args:
        pipe: A pipeline with a filter attached that puts blank images in the place of withheld ones.
        items: One image each.
        options: Further arguments of the pipeline's call.
        flag: Whether images that match are delivered all the same.

    Raises:
        FilterFailedError: images and decisions do not go together; nothing may be delivered.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MemorizationWarning)  # the job counts withheld images itself
        output = pipe(
            **prompts_of(pipe, items),
            **{name: text_of_each(name, value, len(items)) for name, value in options.items()},
            generator=[torch.Generator().manual_seed(item.seed) for item in items],
            output_type="pil",
        )
    decisions = getattr(output, "memorization", None)
    images = getattr(output, "images", None)
    if decisions is None or images is None or not len(items) == len(decisions) == len(images):
        raise FilterFailedError(
            f"{len(items)} images were asked for; the pipeline returned others, or no decisions; none is delivered"
        )
    unsafe = getattr(output, "nsfw_content_detected", None) or [False] * len(items)
    return [_drawn(*one, flag=flag) for one in zip(items, decisions, images, unsafe, strict=True)]


def takes_prompts(pipe: Any) -> bool:
    """Whether the pipeline's call is told what to draw."""
    return "prompt" in inspect.signature(type(pipe).__call__).parameters


def prompts_of(pipe: Any, items: Sequence[Item]) -> dict[str, Any]:
    """The argument that says what is drawn, and how many.

    Raises:
        UnsupportedPipelineError: the pipeline takes no prompts but some were given, or needs something else.
    """
    if takes_prompts(pipe):
        return {"prompt": [item.prompt for item in items]}
    name = type(pipe).__name__
    if any(item.prompt for item in items):
        raise UnsupportedPipelineError(f"{name} takes no prompts; give a count instead")
    if "batch_size" not in inspect.signature(type(pipe).__call__).parameters:
        raise UnsupportedPipelineError(
            f"{name} takes neither prompts nor a batch size; attach the filter to it in a script of your own"
        )
    return {"batch_size": len(items)}


def _drawn(item: Item, decision: Decision, image: Image.Image, unsafe: bool, *, flag: bool) -> Drawn:
    if decision.accepted is not True and not (flag and decision.accepted is False):
        return Drawn(item, decision, "withheld", None)
    if unsafe:
        return Drawn(item, decision, "unsafe", None)
    return Drawn(item, decision, "accepted" if decision.accepted else "flagged", image)
