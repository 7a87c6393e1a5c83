"""No guidance until the sample has left the training image's attraction basin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..guidance import guidance_layout, tapped_guidance
from ..rows import BoundCall
from . import Redraw


class DelayedGuidance:
    """Denoises without the text until the first local minimum of |e_text - e_uncond|, sample by sample.

    After Jain et al., "Classifier-Free Guidance inside the Attraction Basin May Cause Memorization" (CVPR 2025,
    section 4): a memorised prompt pulls every sample towards one image until a transition point, where that distance
    is smallest. It acts on the denoiser's output. Models that do not guide, or whose guidance is distilled into them,
    are left alone.
    """

    name = "delayed_guidance"

    @contextmanager
    def attempt(self, redraw: Redraw) -> Iterator[BoundCall | None]:
        layout = guidance_layout(redraw.pipe, redraw.call)
        if layout is None:
            yield None
            return
        with tapped_guidance(redraw.pipe, layout, len(redraw.seeds), _UntilMinimum()):
            yield redraw.call


class _UntilMinimum:
    """The unconditional prediction in the text's place, until a row's distance rises for the first time."""

    def __init__(self) -> None:
        self.last: torch.Tensor | None = None
        self.guided: torch.Tensor | None = None

    def __call__(self, text: torch.Tensor, without: torch.Tensor) -> torch.Tensor:
        distance = (text - without).float().flatten(1).norm(dim=1)
        if self.last is None or self.guided is None:
            self.guided = torch.zeros_like(distance, dtype=torch.bool)
        else:
            self.guided = self.guided | (distance > self.last)
        self.last = distance
        return torch.where(self.guided.view(-1, *[1] * (text.ndim - 1)), text, without)
