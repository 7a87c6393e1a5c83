"""Move the prompt's embedding to where the text no longer pulls so hard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..guidance import guidance_layout
from ..rows import BoundCall
from ..taps import Inputs, denoiser_of, tapped_inputs
from . import Redraw

STEPS = 20
RATE = 0.05
TARGET = 0.25


class PromptEmbedding:
    """Lowers |e_text - e_uncond| at the first step by gradient descent on the prompt's embedding.

    After Wen et al., "Detecting, Explaining, and Mitigating Memorization in Diffusion Models" (ICLR 2024, section 5.1):
    for memorised prompts that magnitude is large at every step, whichever the seed. Each row stops once it is down to
    ``target`` of where it began (there: to a fixed value); each repetition halves that. Needs memory for the denoiser's
    gradient, and a denoiser that predicts both halves in one call.

    Args:
        steps: Adam steps at most; each costs about three denoising steps.
        rate: Adam's step size, relative to the embedding's standard deviation.
        target: In (0, 1).
    """

    name = "prompt_embedding"

    def __init__(self, steps: int = STEPS, rate: float = RATE, target: float = TARGET) -> None:
        self.steps, self.rate, self.target = steps, rate, target

    @contextmanager
    def attempt(self, redraw: Redraw) -> Iterator[BoundCall | None]:
        denoiser = denoiser_of(redraw.pipe)
        halves = guidance_layout(redraw.pipe, redraw.call) == "halves"
        if denoiser is None or not halves or not _can_go_back(denoiser) or not _reads_text(redraw.call):
            yield None
            return
        embedding = _Optimised(
            denoiser, len(redraw.seeds), self.steps, self.rate, self.target / 2**redraw.repeats
        )
        with tapped_inputs(denoiser, embedding.replace):
            yield redraw.call


class _Optimised:
    """Found at the denoiser's first call, and put in the text embedding's place from then on."""

    def __init__(self, denoiser: torch.nn.Module, rows: int, steps: int, rate: float, target: float) -> None:
        self.denoiser, self.rows = denoiser, rows
        self.steps, self.rate, self.target = steps, rate, target
        self.found: torch.Tensor | None = None
        self.searching = False

    def replace(self, inputs: Inputs) -> Inputs:
        args, kwargs = inputs
        given = kwargs.get("encoder_hidden_states")
        if self.searching or given is None:
            return inputs
        if self.found is None:
            if given.shape[0] != 2 * self.rows:
                return inputs
            self.searching = True
            try:
                self.found = self._search(args, kwargs)
            finally:
                self.searching = False
        text = self.found.to(given.dtype)
        both = text if given.shape[0] == self.rows else torch.cat([given[: self.rows], text])
        return args, {**kwargs, "encoder_hidden_states": both}

    def _search(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            args = tuple(_usable(value) for value in args)
            kwargs = {name: _usable(value) for name, value in kwargs.items()}
            given = kwargs["encoder_hidden_states"]
            without, start = given.chunk(2)
            text = start.float().clone().requires_grad_()
            adam = torch.optim.Adam([text], lr=self.rate * float(start.float().std()))
            best, least, first = start.float(), None, None
            for step in range(self.steps + 1):
                kwargs["encoder_hidden_states"] = torch.cat([without, text.to(given.dtype)])
                size = self._magnitude(args, kwargs)
                now = size.detach()
                first = now if first is None else first
                better = torch.ones_like(now, dtype=torch.bool) if least is None else now < least
                best = torch.where(better.view(-1, 1, 1), text.detach(), best)
                least = now if least is None else torch.minimum(least, now)
                if step == self.steps or bool((least <= self.target * first).all()):
                    break
                (text.grad,) = torch.autograd.grad((size * (least > self.target * first)).sum(), text)
                adam.step()
        return best

    def _magnitude(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        output = self.denoiser(*args, **kwargs)
        without, text = (output[0] if isinstance(output, tuple) else output["sample"]).float().chunk(2)
        return (text - without.detach()).flatten(1).norm(dim=1)


def _usable(value: Any) -> Any:
    """Tensors that autograd can keep, however deep they lie: those made in inference mode are copied."""
    if type(value) is dict:
        return {name: _usable(one) for name, one in value.items()}
    if type(value) in (list, tuple):  # and no size or named tuple, which are made otherwise
        return type(value)(_usable(one) for one in value)
    return value.clone() if isinstance(value, torch.Tensor) and value.is_inference() else value


def _can_go_back(denoiser: torch.nn.Module) -> bool:
    """Whether there is a gradient: weights may leave the device after the forward pass, or come of inference mode."""
    moved = any(
        hasattr(module, "_diffusers_hook") or getattr(getattr(module, "_hf_hook", None), "offload", False)
        for module in denoiser.modules()
    )
    return not moved and not any(weight.is_inference() for weight in denoiser.parameters())


def _reads_text(call: BoundCall) -> bool:
    return any(call.arguments.get(name) is not None for name in ("prompt", "prompt_embeds"))
