"""Which argument belongs to which row of a pipeline call, and the call that draws some rows again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from .callbacks import CALLBACKS, may_know_rows, watched
from .outputs import size_of

Role = Literal["prompt", "cycled", "shared"]
"""Which entry of an argument row r of a call with n images a prompt uses: entry r // n, entry r modulo their number,
or the argument as a whole."""

PROMPTS = ("prompt", "prompt_2", "prompt_3", "prompt_4")
_EMBEDS = (
    "prompt_embeds",
    "prompt_embeds_2",
    "prompt_embeds_mask",
    "prompt_embeds_mask_2",
    "prompt_embeds_pooled",
    "pooled_prompt_embeds",
    "prompt_attention_mask",
    "prompt_attention_mask_2",
    "image_embeds",
)
TEXTS = frozenset(PROMPTS + tuple(f"negative_{name}" for name in PROMPTS))
PER_PROMPT = (
    TEXTS
    | frozenset(_EMBEDS + tuple(f"negative_{name}" for name in _EMBEDS))
    | {"negative_pooled_prompt_embeds"}
)
"""Arguments with one entry a prompt, in whichever pipeline."""

_SIZES = ("crops_coords_top_left", "original_size", "target_size")
SIZES = frozenset(_SIZES) | {f"negative_{name}" for name in _SIZES}
"""What SDXL adds to each other, as tuples."""

SHARED = SIZES | frozenset(
    {
        "callback_on_step_end",
        "callback_on_step_end_tensor_inputs",
        "complex_human_instruction",
        "control_guidance_end",
        "control_guidance_start",
        "controlnet_conditioning_scale",
        "prior_callback_on_step_end_tensor_inputs",
        "sigmas",
        "skip_guidance_layers",
        "text_encoder_out_layers",
        "timesteps",
    }
)
"""Lists that belong to the call, not to its rows."""

PICTURES: Mapping[str, Mapping[str, Role]] = {
    "FluxControlNetPipeline": {"control_image": "prompt"},
    "FluxImg2ImgPipeline": {"image": "cycled"},
    "KandinskyV22Img2ImgPipeline": {"image": "prompt"},
    "LatentConsistencyModelImg2ImgPipeline": {"image": "cycled"},
    "StableDiffusion3Img2ImgPipeline": {"image": "cycled"},
    "StableDiffusionControlNetImg2ImgPipeline": {"image": "cycled", "control_image": "prompt"},
    "StableDiffusionControlNetPipeline": {"image": "prompt"},
    "StableDiffusionImg2ImgPipeline": {"image": "cycled"},
    "StableDiffusionInpaintPipeline": {"image": "cycled", "mask_image": "cycled"},
    "StableDiffusionUpscalePipeline": {"image": "cycled"},
    "StableDiffusionXLControlNetPipeline": {"image": "prompt"},
    "StableDiffusionXLImg2ImgPipeline": {"image": "cycled"},
    "StableDiffusionXLInpaintPipeline": {"image": "cycled", "mask_image": "cycled"},
}
"""Picture arguments by pipeline class: each has its own way. Of a class that is not here, pictures given as a list or a
tensor are not taken apart: they may be one for each row, for each ControlNet, or references for all."""

_PICTURES = frozenset(name for roles in PICTURES.values() for name in roles)

_IMAGE_EMBEDS = frozenset({"image_embeds", "negative_image_embeds"})

_MANY = (list, tuple, torch.Tensor, np.ndarray)


def roles_of(pipe: Any) -> dict[str, Role]:
    """The role of every argument of ``pipe`` that is known."""
    roles: dict[str, Role] = dict.fromkeys(PER_PROMPT, "prompt")
    roles |= dict.fromkeys(SHARED, "shared")
    named = (PICTURES[kind.__name__] for kind in type(pipe).__mro__ if kind.__name__ in PICTURES)
    controlnet = getattr(pipe, "controlnet", None)
    if not isinstance(controlnet, _MANY) and "Multi" not in type(controlnet).__name__:
        roles |= next(named, {})
    return roles


@dataclass(frozen=True)
class BoundCall:
    """The arguments of one pipeline call by name; ``positional`` are those that only go by position, of ``*args``,
    ``cell`` the pixels along a side that a cell of the latents that it takes becomes, where that is known, and
    ``seeded`` whether it takes a generator."""

    arguments: dict[str, Any]
    roles: Mapping[str, Role]
    positional: tuple[Any, ...] = ()
    cell: int | None = None
    seeded: bool = True

    @classmethod
    def bind(
        cls, original: Callable[..., Any], pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> BoundCall:
        """
        Raises:
            TypeError: as ``original`` itself would for these arguments.
        """
        parameters = list(inspect.signature(original).parameters.values())
        arguments = dict(inspect.signature(original).bind(pipe, *args, **kwargs).arguments)
        arguments.pop(parameters[0].name)
        positional: tuple[Any, ...] = ()
        for place, parameter in enumerate(parameters):
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                arguments |= arguments.pop(parameter.name, {})
            elif parameter.kind is inspect.Parameter.VAR_POSITIONAL and arguments.get(parameter.name):
                before = [arguments.pop(earlier.name) for earlier in parameters[1:place]]
                positional = (*before, *arguments.pop(parameter.name))
            elif parameter.default is not inspect.Parameter.empty and not positional:
                arguments.setdefault(parameter.name, parameter.default)
        arguments |= {name: watched(arguments[name]) for name in CALLBACKS if name in arguments}
        seeded = any(
            one.name == "generator" or one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters
        )
        return cls(arguments, roles_of(pipe), positional, _cell_of(pipe), seeded)

    @property
    def output_type(self) -> str | None:
        return self.arguments.get("output_type")

    def run(self, original: Callable[..., Any], pipe: Any) -> Any:
        return original(pipe, *self.positional, **self.arguments)

    def can_slice(self, total: int) -> bool:
        """Whether it is known of every argument which of the ``total`` rows it belongs to."""
        images = self.arguments.get("num_images_per_prompt") or 1
        prompts = total // images
        return (
            not self.positional
            and prompts * images == total
            and self._has_prompts(prompts)
            # around a single picture, which may not be a list
            and self.arguments.get("padding_mask_crop") is None
            and not any(may_know_rows(self.arguments.get(name)) for name in CALLBACKS)
            and self._batch_size_counts_rows(total)
            and all(
                name in ("generator", "latents")
                or not isinstance(value, _MANY)
                or (
                    not (name in _PICTURES and (_may_be_one(value) or _differ_in_size(value)))
                    and _entries_are_rows(value, self.roles.get(name), prompts, total, texts=name in TEXTS)
                    and not (name in _IMAGE_EMBEDS and _lists_batches(value))
                )
                for name, value in self.arguments.items()
            )
        )

    def for_rows(self, rows: Sequence[int], generators: list[torch.Generator]) -> BoundCall:
        """The call that draws only ``rows``, one image each, each from its own generator."""
        images = self.arguments.get("num_images_per_prompt") or 1
        changed = dict(self.arguments)
        together = self._is_one_prompt_beside_a_picture()
        for name, value in self.arguments.items():
            role = self.roles.get(name)
            if role == "prompt" and not together:
                changed[name] = _take(value, [row // images for row in rows], repeat=name in TEXTS)
            elif role == "cycled":
                changed[name] = _take(value, rows)
        if self.arguments.get("batch_size") is not None:
            changed["batch_size"] = len(rows)
        return self._from_other_noise(changed, generators, images=len(rows) if together else 1)

    def _is_one_prompt_beside_a_picture(self) -> bool:
        """Whether a single picture is given whose role is not known, and one prompt, for several images: some pipelines
        take such a picture for one prompt alone."""
        return (
            "num_images_per_prompt" in self.arguments
            and all(entries == 1 for entries in self._prompts_given())
            and any(
                isinstance(value, Image.Image) and name not in self.roles
                for name, value in self.arguments.items()
            )
        )

    def _has_prompts(self, prompts: int) -> bool:
        """Whether so many prompts are given, or none: a subclass may make more of each, or draw more images of one."""
        given = self._prompts_given()
        return not given or max(given) == prompts

    def _prompts_given(self) -> list[int]:
        """How many entries each argument has that goes by prompts and is given."""
        return [
            _entries(value)
            for name, value in self.arguments.items()
            if value is not None and self.roles.get(name) == "prompt"
        ]

    def _batch_size_counts_rows(self, total: int) -> bool:
        """Whether ``batch_size``, where it is given, is how many rows are drawn: beside prompts, it may be for each."""
        size = self.arguments.get("batch_size")
        return size is None or (size == total and not self._prompts_given())

    def for_all_rows(self, generators: list[torch.Generator]) -> BoundCall:
        """The same call from other generators, one a row; for arguments that cannot be taken apart."""
        total = len(generators)
        changed = {
            name: _take(value, range(total)) if self._is_too_few(name, value, total) else value
            for name, value in self.arguments.items()
        }
        return self._from_other_noise(changed, generators)

    def _is_too_few(self, name: str, value: Any, total: int) -> bool:
        """Whether ``value`` has fewer pictures than the ``total`` rows, between which they go round: not every pipeline
        lets them where each row has a generator."""
        return (
            self.roles.get(name) == "cycled"
            and self.arguments.get("padding_mask_crop")
            is None  # around a single picture, which may not be a list
            and _entries_are_rows(value, "cycled", total, total, texts=False)
            and not _may_be_one(value)
            and _entries(value) < total
        )

    def _from_other_noise(
        self, arguments: dict[str, Any], generators: list[torch.Generator], images: int | None = None
    ) -> BoundCall:
        """The call with ``arguments``, from noise of the size of that which was given."""
        if self.seeded:
            arguments["generator"] = generators
        latents = arguments.get("latents")
        if latents is not None:
            if self.cell is not None and latents.ndim == 4:
                for name, cells in (("height", latents.shape[2]), ("width", latents.shape[3])):
                    if name in arguments:
                        arguments[name] = cells * self.cell
            arguments["latents"] = None
        if images is not None and "num_images_per_prompt" in arguments:
            arguments["num_images_per_prompt"] = images
        return replace(self, arguments=arguments)


def text_of_each(name: str, value: Any, count: int) -> Any:
    """A text that stands for ``count`` prompts as one text for each, since pipelines want it like the prompts, a list;
    any other argument as it is."""
    return [value] * count if name in TEXTS and isinstance(value, str) else value


def draw_seed(generator: torch.Generator | list[torch.Generator] | None, row: int) -> int:
    """A seed below 2**53 for drawing ``row`` again, which JSON and tables with gaps hold exactly, from the caller's
    generator (torch's default one where there is none)."""
    if isinstance(generator, list):
        generator = generator[row % len(generator)]
    device = generator.device if generator is not None else "cpu"
    return int(torch.randint(2**53, (1,), generator=generator, device=device).item())


def generator_for(seed: int, like: torch.Generator | list[torch.Generator] | None) -> torch.Generator:
    """A generator seeded with ``seed``, on the device of the caller's."""
    like = like[0] if isinstance(like, list) else like
    return torch.Generator(like.device if like is not None else "cpu").manual_seed(seed)


def _cell_of(pipe: Any) -> int | None:
    """Pixels along a side of a cell of the ``latents`` that ``pipe`` takes; FLUX.2 takes them patched two by two."""
    cell = getattr(pipe, "vae_scale_factor", None)
    return 2 * cell if cell and hasattr(pipe, "_unpack_latents_with_ids") else cell


def _entries_are_rows(value: Any, role: Role | None, prompts: int, total: int, *, texts: bool) -> bool:
    """Whether ``value``, a list or an array, can be taken apart as its role says."""
    if role is None or role == "shared":
        return role == "shared"
    entries = _entries(value)
    if isinstance(value, (list, tuple)) and not texts and any(_holds_several(entry) for entry in value):
        return False
    return entries == prompts or entries == 1 if role == "prompt" else entries > 0 and total % entries == 0


def _entries(value: Any) -> int:
    """How many entries an argument has; one where it is no list and no array."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return int(value.shape[0]) if value.ndim else 0
    return len(value) if isinstance(value, (list, tuple)) else 1


def _may_be_one(value: Any) -> bool:
    """Whether a picture given as an array may be a single one, (3, H, W), and no batch."""
    return isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim < 4


def _differ_in_size(value: Any) -> bool:
    """Whether pictures of a list are of several sizes, of which pipelines take the first one's for all."""
    return isinstance(value, (list, tuple)) and len({size_of(one) for one in value}) > 1


def _lists_batches(value: Any) -> bool:
    """Whether a list has a batch (B, D) of several embeddings for an entry."""
    return isinstance(value, (list, tuple)) and any(
        isinstance(one, torch.Tensor) and one.ndim > 1 and len(one) > 1 for one in value
    )


def _holds_several(entry: Any) -> bool:
    """Whether a list's entry is itself more than one row: a list, or a batch (B, C, H, W)."""
    if isinstance(entry, (torch.Tensor, np.ndarray)):
        return entry.ndim > 3
    return isinstance(entry, (list, tuple))


def _take(value: Any, positions: Sequence[int], *, repeat: bool = False) -> Any:
    """Entries of ``value`` at ``positions``, modulo their number; a single picture or text, or a caption (a dict), is
    repeated."""
    if isinstance(value, Image.Image):
        return [value] * len(positions)
    if isinstance(value, str | dict):
        return [value] * len(positions) if repeat else value
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return value[[position % value.shape[0] for position in positions]]
    if isinstance(value, (list, tuple)):
        return [value[position % len(value)] for position in positions]
    return value
