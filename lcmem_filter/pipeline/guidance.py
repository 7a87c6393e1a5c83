"""Classifier-free guidance: how each pipeline asks its denoiser for both predictions, and a tap on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch

from .rows import BoundCall
from .taps import denoiser_of, tapped_outputs, tapped_step

Layout = Literal["halves", "in turn"]
"""One call of the denoiser with the unconditional half before the text half, or one call for the text and, where the
step is guided, one without it after that."""

_HALVES = (
    "HunyuanDiTPipeline",
    "KandinskyV22InpaintPipeline",
    "KandinskyV22Img2ImgPipeline",
    "KandinskyV22Pipeline",
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
    "SanaPipeline",
    "StableDiffusion3Img2ImgPipeline",
    "StableDiffusion3InpaintPipeline",
    "StableDiffusion3Pipeline",
    "StableDiffusionControlNetImg2ImgPipeline",
    "StableDiffusionControlNetInpaintPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionUpscalePipeline",
    "StableDiffusionXLControlNetPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLPipeline",
)
_IN_TURN = (
    "Flux2KleinPipeline",
    "FluxImg2ImgPipeline",
    "FluxPipeline",
    "Lumina2Pipeline",
    "QwenImagePipeline",
)

LAYOUTS: Mapping[str, Layout] = {
    **dict.fromkeys(_HALVES, "halves"),
    **dict.fromkeys(_IN_TURN, "in turn"),
}
"""By pipeline class, those derived from it included. Others may guide in a way of their own, so rungs that act on
guidance do not apply to them."""

Guide = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""The text and the unconditional prediction, (B, ...) each, to the text prediction that guidance is to use."""


def guidance_layout(pipe: Any, call: BoundCall) -> Layout | None:
    """How ``pipe`` guides in calls like ``call``, of which it has drawn one; ``None`` where it does not, or not in a
    way that is known: guidance-distilled models and guidance scales of 1 have nothing to act on."""
    names = (kind.__name__ for kind in type(pipe).__mro__)
    layout = next((LAYOUTS[name] for name in names if name in LAYOUTS), None)
    if layout is None or denoiser_of(pipe) is None:
        return None
    if hasattr(pipe, "do_classifier_free_guidance"):
        return layout if _guides(pipe, call) else None
    if "true_cfg_scale" in call.arguments:
        negative = ("negative_prompt", "negative_prompt_embeds")
        guided = any(call.arguments.get(name) is not None for name in negative)
        return layout if guided and call.arguments["true_cfg_scale"] > 1 else None
    return layout if (call.arguments.get("guidance_scale") or 0) > 1 else None


def _guides(pipe: Any, call: BoundCall) -> bool:
    """Whether ``pipe`` says that it guides at the scale of ``call``: callbacks may have changed that as it drew."""
    given, left = call.arguments.get("guidance_scale"), getattr(pipe, "_guidance_scale", None)
    if given is None or left is None:
        return bool(pipe.do_classifier_free_guidance)
    pipe._guidance_scale = given
    try:
        return bool(pipe.do_classifier_free_guidance)
    finally:
        pipe._guidance_scale = left


@contextmanager
def tapped_guidance(pipe: Any, layout: Layout, rows: int, guide: Guide) -> Iterator[None]:
    """Let ``guide`` replace the text prediction of every guided step of a call of ``pipe`` for ``rows`` rows."""
    denoiser = denoiser_of(pipe)
    assert denoiser is not None
    if layout == "halves":
        with tapped_outputs(denoiser, lambda output: _in_halves(output, rows, guide)):
            yield
        return
    turns = _Turns(guide)
    with tapped_outputs(denoiser, turns.output), tapped_step(pipe.scheduler, turns.step):
        yield


def _in_halves(output: torch.Tensor, rows: int, guide: Guide) -> torch.Tensor:
    if output.shape[0] != 2 * rows:  # a further prediction of the text alone, as skip-layer guidance asks for
        return output
    without, text = output.chunk(2)
    return torch.cat([without, guide(text, without)])


class _Turns:
    """Pairs the calls of one step: when the second comes, the first's prediction is changed in place."""

    def __init__(self, guide: Guide) -> None:
        self.guide = guide
        self.text: torch.Tensor | None = None

    def output(self, output: torch.Tensor) -> torch.Tensor:
        if self.text is None:
            self.text = output
        else:
            self.text.copy_(self.guide(self.text, output))
        return output

    def step(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.text = None
        return step(*args, **kwargs)
