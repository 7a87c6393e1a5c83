"""One prompt through a filtered pipeline."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from ..errors import LcmemFilterError, MemorizationError
from ..index import MemorizationIndex
from ..pipeline import attach
from ..types import OWN_FOUND_AT_LEAST
from .finding import Finding

MAX_RESAMPLES = 4


class Drawer:
    """Draws through the filter; what stays a match after every draw is withheld.

    Attributes:
        takes_prompt: Whether the pipeline is drawn from by a prompt.

    Args:
        pipe: A latent image pipeline; the filter is attached to it.
        index: A calibrated index of its training set.
        max_resamples: How often a match is drawn again, at least 1.

    Raises:
        LcmemFilterError: the pipeline cannot be filtered with this index; see ``attach``.
    """

    def __init__(self, pipe: Any, index: MemorizationIndex, max_resamples: int = MAX_RESAMPLES) -> None:
        self.takes_prompt = "prompt" in inspect.signature(type(pipe).__call__).parameters
        self._pipe = attach(pipe, index, max_resamples=max_resamples, on_exhausted="raise")

    def draw(self, prompt: str, *, steps: int, seed: int) -> Finding:
        """One image of ``prompt`` (ignored by a pipeline that takes none), and what was found about it.

        A call that the filter refuses is "not checked", without an image.
        """
        call: dict[str, Any] = {
            "num_inference_steps": steps,
            "generator": torch.Generator().manual_seed(seed),
        }
        if self.takes_prompt:
            call["prompt"] = prompt
        try:
            out = self._pipe(**call)
        except MemorizationError as error:
            return Finding(error.decisions[0], drawn=True)
        except LcmemFilterError as error:
            return Finding(None, problem=str(error), drawn=True)
        doubt = self._pipe.memorization_filter.calibration.doubt(OWN_FOUND_AT_LEAST)
        return Finding(out.memorization[0], out.images[0], drawn=True, doubt=doubt)
