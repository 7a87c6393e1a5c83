"""Push the sample away from the training image that it was found to copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from ...errors import UnsupportedPipelineError
from ..call import decoder_of
from ..clean import can_be_tapped, predict_clean
from ..rows import BoundCall
from ..spaces import Size, decoder_space, drawn_size
from ..taps import tapped_step
from . import Redraw

STRENGTH = 1.0
ENOUGH = 0.0


class Repulsion:
    """Lowers the cosine to the matched neighbours' stored embeddings, on the predicted clean latent of every step.

    In the spirit of AMG (Chen et al., "Towards Memorization-Free Diffusion Models", CVPR 2024, section 4.2), whose
    dissimilarity guidance follows the gradient of the similarity to the nearest training image; here that gradient is
    the head's own, in latent space, so no image is decoded. It reaches the scheduler through the model's output. For
    schedulers that are not in ``clean.TAPPABLE`` the rung does not apply.

    It follows the gradient of part of what the filter then judges, so weak pushes mislead the filter sooner than they
    change the picture: with less than the default strength most of what is accepted is still a copy to the eye, and
    some of it with the default. Use it where a second judge looks at the images.

    Args:
        strength: How far the first step moves the clean latent, relative to its root mean square; later ones less, as
            the noise goes.
        enough: Rows whose cosine is below this are left alone.
    """

    name = "repulsion"
    steers = True

    def __init__(self, strength: float = STRENGTH, enough: float = ENOUGH) -> None:
        self.strength, self.enough = strength, enough

    @contextmanager
    def attempt(self, redraw: Redraw) -> Iterator[BoundCall | None]:
        targets = _targets(redraw)
        scheduler = getattr(redraw.pipe, "scheduler", None)
        if not targets or scheduler is None or not can_be_tapped(scheduler):
            yield None
            return
        strength = self.strength * 2**redraw.repeats
        with drawn_size(redraw.pipe) as sizes:
            push = _Push(redraw, targets, sizes, strength, self.enough)
            with tapped_step(scheduler, push.around):
                yield redraw.call


def _targets(redraw: Redraw) -> dict[int, torch.Tensor]:
    """Stored embeddings (k, D) of what each wanted row was found to copy."""
    found = {}
    for row in redraw.wanted:
        decision = redraw.decisions[row]
        if decision.matched_ids:
            found[row] = redraw.filter.index.embeddings_of(decision.matched_ids)
    return found


class _Push:
    """Stands around ``scheduler.step`` and corrects the model's output of the wanted rows."""

    def __init__(
        self,
        redraw: Redraw,
        targets: dict[int, torch.Tensor],
        sizes: list[Size],
        strength: float,
        enough: float,
    ) -> None:
        self.pipe, self.vae, self.sizes = redraw.pipe, decoder_of(redraw.pipe), sizes
        self.filter = redraw.filter
        self.targets, self.strength, self.enough = targets, strength, enough

    def around(
        self,
        step: Callable[..., Any],
        output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        *rest: Any,
        **options: Any,
    ) -> Any:
        # of latents in a layout that is not known there is no gradient
        with suppress(UnsupportedPipelineError):
            output = self._pushed(output, timestep, sample)
        return step(output, timestep, sample, *rest, **options)

    def _pushed(self, output: torch.Tensor, timestep: Any, sample: torch.Tensor) -> torch.Tensor:
        predicted = predict_clean(self.pipe.scheduler, output, timestep, sample)
        corrected = output.clone()
        for row, target in self.targets.items():
            # early steps decide what is shown; a push at late ones would only dazzle the head
            move = self._move(predicted.clean[row : row + 1], target) * (predicted.noise / predicted.slope)
            corrected[row : row + 1, : sample.shape[1]] += move.to(output.dtype)
        return corrected

    def _move(self, clean: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Where to move one clean latent, of its own shape."""
        with torch.inference_mode(False), torch.enable_grad():
            variable = clean.clone().requires_grad_()
            latents = decoder_space(self.pipe, self.vae, variable, self.sizes[-1] if self.sizes else None)
            embedding = self.filter.index.head.embed(latents, self.filter.space)
            # cloned, since autograd cannot keep what was made in inference mode
            similarity = (embedding @ target.clone().to(embedding).T).max()
            (uphill,) = torch.autograd.grad(similarity, variable)
        if float(similarity) < self.enough or not torch.isfinite(uphill).all():
            return torch.zeros_like(clean)
        size = clean.square().mean().sqrt() * self.strength
        return -uphill * (size / uphill.square().mean().sqrt().clamp_min(1e-12))
