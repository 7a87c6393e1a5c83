"""A step for modular diffusers that judges latents before they are decoded."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from diffusers.modular_pipelines import (
    InputParam,
    ModularPipelineBlocks,
    OutputParam,
    PipelineState,
    SequentialPipelineBlocks,
)

from ..errors import FilterFailedError, MemorizationError, UnsupportedPipelineError
from ..filter import MemorizationFilter
from ..index import MemorizationIndex
from ..types import Decision, OnExhausted
from .call import MemorizationWarning, decoder_of
from .gate import withheld_rows
from .spaces import Weights, decoder_space, identify_space, weights_of
from .unfinished import ends_noisy

_SHARED_CODE = '''"""Needs the package lcmem-filter."""

from lcmem_filter.pipeline.modular import MemorizationFilterStep

__all__ = ["MemorizationFilterStep"]
'''

UNPACK = "put the step behind the block that unpacks them; a pipeline that has none cannot be filtered"


class MemorizationFilterStep(ModularPipelineBlocks):
    """Keeps memorised latents from the decode step that follows; the state gains ``memorization``, the decisions.

    Slot it in with ``filter_before_decode``. A step cannot draw again: rejected rows are withheld. It is shared as
    every block is, by ``save_pretrained`` and ``push_to_hub``, without the index, and loaded by
    ``ModularPipelineBlocks.from_pretrained(folder, trust_remote_code=True, index="my-index/")``.

    Args:
        index: A calibrated index of the pipeline's training set, or the folder of one.
        on_memorized: ``"reject"`` withholds memorised samples, ``"flag"`` only tells of them.
        on_exhausted: In place of a withheld sample a ``"blank"`` latent is decoded, or the sample is dropped
            (``"drop"``), or ``MemorizationError`` is raised (``"raise"``, also where none is left to decode).
    """

    def __init__(
        self,
        index: MemorizationIndex | str | os.PathLike[str] | None = None,
        on_memorized: Literal["reject", "flag"] = "reject",
        on_exhausted: OnExhausted = "blank",
    ) -> None:
        super().__init__()
        if on_memorized not in ("reject", "flag"):
            raise ValueError(f"on_memorized must be 'reject' or 'flag' in a step, got {on_memorized!r}")
        if on_exhausted not in get_args(OnExhausted):
            raise ValueError(f"on_exhausted must be one of {get_args(OnExhausted)}, got {on_exhausted!r}")
        self.on_memorized, self.on_exhausted = on_memorized, on_exhausted
        self._index = MemorizationIndex.load(index) if isinstance(index, (str, os.PathLike)) else index
        if self._index is not None:
            self._index.check_complete()
        self._filter: tuple[Any, Weights, MemorizationFilter] | None = None

    @property
    def description(self) -> str:
        return "Keeps latents that resemble a training image from being decoded"

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam("latents", required=True, type_hint=torch.Tensor, description="The denoised latents."),
            InputParam("height", description="Height in pixels, for packed latents."),
            InputParam("width", description="Width in pixels, for packed latents."),
            InputParam("denoising_end", description="Must not end the denoising early."),
            InputParam("allowed_ids", description="Training images that the samples may resemble."),
            InputParam("images", description="Must not be there yet."),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [
            OutputParam("latents", type_hint=torch.Tensor, description="The latents that may be decoded."),
            OutputParam(
                "memorization", type_hint=tuple, description="One decision for each row of `latents`."
            ),
        ]

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """
        Raises:
            AllowedIdsError: see ``MemorizationFilter.judge``.
            FilterFailedError: the step has no index, or stands behind the decode step.
            LatentSpaceError: the index's head does not know the pipeline's latent space.
            MemorizationError: see ``on_exhausted``.
            UnsupportedPipelineError: latents in a layout that is not known, or not yet denoised (``denoising_end``,
                ``sigmas``).
        """
        block = self.get_block_state(state)
        if block.images is not None:
            raise FilterFailedError("the filter's step stands behind the decode step; put it before")
        if block.denoising_end not in (None, 1):
            raise UnsupportedPipelineError(
                f"the denoising ends early (denoising_end={block.denoising_end}), and such latents show too little to "
                "be judged; leave it out, and filter the pipeline that finishes them"
            )
        if found := ends_noisy(getattr(components, "scheduler", None)):
            raise UnsupportedPipelineError(
                f"{found}, and such latents show too little to be judged; let the sigmas end at 0, and filter the "
                "pipeline that finishes them"
            )
        vae = decoder_of(components)
        size = (int(block.height), int(block.width)) if block.height and block.width else None
        judged = decoder_space(components, vae, block.latents, size, instead=UNPACK)
        decisions = self._filter_of(components, vae).judge(judged, allowed_ids=block.allowed_ids)
        if len(decisions) != block.latents.shape[0]:
            raise FilterFailedError(f"{len(decisions)} decisions for {block.latents.shape[0]} latents")
        block.latents, block.memorization = self._withhold(block.latents, tuple(decisions))
        self.set_block_state(state, block)
        return components, state

    def save_config(self, save_directory: str | os.PathLike[str], **options: Any) -> None:
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{__name__.rpartition('.')[2]}.py").write_text(_SHARED_CODE, encoding="utf-8")
        super().save_config(save_directory, **options)

    def _filter_of(self, components: Any, vae: Any) -> MemorizationFilter:
        if self._index is None:
            raise FilterFailedError(
                "the filter's step has no index; load it with index=..., or make it as MemorizationFilterStep(index)"
            )
        if self._filter is None or self._filter[:2] != (vae, weights_of(vae)):
            space = identify_space(components, vae, self._index)
            self._filter = vae, weights_of(vae), MemorizationFilter(self._index, space=space)
        return self._filter[2]

    def _withhold(
        self, latents: torch.Tensor, decisions: tuple[Decision, ...]
    ) -> tuple[torch.Tensor, tuple[Decision, ...]]:
        withheld = withheld_rows(decisions)
        if not withheld or self.on_memorized == "flag":
            return latents, decisions
        found = f"{len(withheld)} of {len(decisions)} samples were memorised"
        kept = [row for row in range(len(decisions)) if row not in set(withheld)]
        if self.on_exhausted == "raise" or (self.on_exhausted == "drop" and not kept):
            raise MemorizationError(f"{found}; no image is returned", decisions)
        if self.on_exhausted == "drop":
            warnings.warn(f"{found} and were dropped", MemorizationWarning, stacklevel=2)
            return latents[kept], tuple(decisions[row] for row in kept)
        warnings.warn(f"{found}; blank latents stand in their place", MemorizationWarning, stacklevel=2)
        latents = latents.clone()
        latents[withheld] = 0
        return latents, decisions


def filter_before_decode(
    blocks: SequentialPipelineBlocks, step: MemorizationFilterStep
) -> SequentialPipelineBlocks:
    """Insert ``step`` as ``memorization`` before the ``decode`` block of ``blocks``, in place of an earlier one.

    A pipeline's own ``blocks`` are a copy, so it goes on unfiltered: make another of what is returned, by its
    ``init_pipeline``.

    Raises:
        UnsupportedPipelineError: ``blocks`` do not run one after the other (pipelines are none), or have no ``decode``
            block, or one that decodes something else than the ``latents`` that ``step`` judges, as some for videos and
            sound do.
    """
    if not isinstance(blocks, SequentialPipelineBlocks):
        raise UnsupportedPipelineError(
            f"a step goes between blocks that run one after the other, SequentialPipelineBlocks, got "
            f"{type(blocks).__name__}; of a pipeline, make another: "
            "filter_before_decode(pipe.blocks, step).init_pipeline(...)"
        )
    if "decode" not in blocks.sub_blocks:
        raise UnsupportedPipelineError(
            f"{type(blocks).__name__} has no block named 'decode' (it has {', '.join(blocks.sub_blocks)}); "
            "insert the step yourself before the one that decodes"
        )
    decode = blocks.sub_blocks["decode"]
    taken = [one.name for one in decode.inputs if one.name]
    if "latents" not in taken:
        raise UnsupportedPipelineError(
            f"{type(decode).__name__} decodes no 'latents' (it takes {', '.join(taken)}), and the step judges nothing "
            "else: only latent image pipelines can be filtered"
        )
    blocks.sub_blocks.pop("memorization", None)
    blocks.sub_blocks.insert("memorization", step, list(blocks.sub_blocks).index("decode"))
    return blocks
