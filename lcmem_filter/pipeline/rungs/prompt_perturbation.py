"""Ask for the same in slightly other words."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from ..rows import PROMPTS, BoundCall
from . import Redraw

WORDS = 6
EMBEDDING_NOISE = 0.3
EMBEDS = ("prompt_embeds", "prompt_embeds_2")


class PromptPerturbation:
    """Puts random words between those of the prompt; embeddings given in a prompt's place get Gaussian noise.

    After Somepalli et al., "Understanding and Mitigating Copying in Diffusion Models" (NeurIPS 2023, section 7): a
    memorised caption is a key that must fit exactly. Words come from the tokenizer's vocabulary, numbers where there is
    none. Each repetition adds as many again. Of a caption in JSON, or a dict, the longest text gets them, so that it
    stays one.

    Args:
        words: How many words are put in.
        noise: Standard deviation of an embedding's noise, relative to the embedding's own.
    """

    name = "prompt_perturbation"

    def __init__(self, words: int = WORDS, noise: float = EMBEDDING_NOISE) -> None:
        self.words, self.noise = words, noise

    @contextmanager
    def attempt(self, redraw: Redraw) -> Iterator[BoundCall | None]:
        arguments, times = redraw.call.arguments, 1 + redraw.repeats
        seeds = redraw.seeds[:: arguments.get("num_images_per_prompt") or 1]
        word = _vocabulary(redraw.pipe)

        def reworded(text: str, draw: random.Random) -> str:
            return with_words(text, self.words * times, word, draw)

        changed = {name: _each(arguments[name], seeds, reworded) for name in PROMPTS if arguments.get(name)}
        for name in EMBEDS:
            if isinstance(arguments.get(name), torch.Tensor):
                changed[name] = noised(arguments[name], seeds, self.noise * times)
        yield replace(redraw.call, arguments={**arguments, **changed}) if changed else None


def with_words(text: str, count: int, word: Callable[[random.Random], str], draw: random.Random) -> str:
    """``text`` with ``count`` random words at random places between its own."""
    words = text.split()
    for _ in range(count):
        words.insert(draw.randint(0, len(words)), word(draw))
    return " ".join(words)


def noised(embeds: torch.Tensor, seeds: Sequence[int], scale: float) -> torch.Tensor:
    """Embeddings (P, T, D) with noise of ``scale`` times their own standard deviation, each prompt's from its seed."""
    draws = [torch.Generator("cpu").manual_seed(seeds[i % len(seeds)]) for i in range(len(embeds))]
    noise = torch.stack(
        [torch.randn(embeds.shape[1:], generator=draw, dtype=torch.float32, device="cpu") for draw in draws]
    )
    return embeds + noise.to(embeds) * embeds.float().std().to(embeds.dtype) * scale


def _each(value: Any, seeds: Sequence[int], change: Callable[[str, random.Random], str]) -> Any:
    if not isinstance(value, list | tuple):
        return _in_text(value, random.Random(seeds[0]), change)
    draws = [random.Random(seeds[i % len(seeds)]) for i in range(len(value))]
    return [_in_text(prompt, draw, change) for prompt, draw in zip(value, draws, strict=True)]


def _in_text(prompt: Any, draw: random.Random, change: Callable[[str, random.Random], str]) -> Any:
    """``prompt`` with its text changed, or with the longest text of the caption that it is."""
    caption = prompt if isinstance(prompt, dict) else _caption_in(prompt)
    if caption is None:
        return change(prompt, draw)
    longest = max(_texts_of(caption), key=len, default="")
    changed = _with_text(caption, longest, change(longest, draw))
    return changed if isinstance(prompt, dict) else json.dumps(changed, ensure_ascii=False)


def _caption_in(prompt: str) -> dict[str, Any] | None:
    """The caption that ``prompt`` holds as JSON; ``None`` where it is words."""
    try:
        found = json.loads(prompt)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _texts_of(caption: Any) -> Iterator[str]:
    """The texts in a caption, however deep they lie; its keys are none."""
    if isinstance(caption, str):
        yield caption
    elif isinstance(caption, dict | list):
        for one in caption.values() if isinstance(caption, dict) else caption:
            yield from _texts_of(one)


def _with_text(caption: Any, text: str, changed: str) -> Any:
    """``caption`` with ``changed`` in the place of ``text``."""
    if isinstance(caption, dict):
        return {name: _with_text(one, text, changed) for name, one in caption.items()}
    if isinstance(caption, list):
        return [_with_text(one, text, changed) for one in caption]
    return changed if caption == text else caption


def _vocabulary(pipe: Any) -> Callable[[random.Random], str]:
    """Draws one word that the pipeline's tokenizer knows whole; a number where it has no vocabulary."""
    tokenizer: Any = getattr(pipe, "tokenizer", None)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor, which FLUX.2 has in its place
    size = len(tokenizer) if hasattr(tokenizer, "decode") and hasattr(tokenizer, "__len__") else 0

    def word(draw: random.Random) -> str:
        for _ in range(100 if size else 0):
            found = tokenizer.decode([draw.randrange(size)], skip_special_tokens=True).strip()
            if len(found) > 2 and found.isalpha():
                return str(found)
        return str(draw.randrange(10**6))

    return word
