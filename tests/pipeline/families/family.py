"""What the tests need to know of a family of pipelines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """A tiny random pipeline, and a call of it for two prompts.

    Attributes:
        pipeline: Name of the diffusers class.
        make: Builds the pipeline; the same weights each time.
        arguments: The call's arguments for two prompts, those that every call shares (seed, images a prompt, steps,
            output type) left out.
        variant: What sets it apart from another family of the same class.
        decoder: Name of the component that decodes.
        per_prompt: Arguments that hold one entry a prompt.
        cycled: Arguments whose entries repeat over the rows of the batch.
        taken_apart: Whether rejected rows alone are drawn again, not the whole batch.
        autoencoder: The real tiny autoencoder that ``test_real_autoencoders.py`` gives it, if any.
        tolerance: How far a row drawn alone may be from the same row drawn in a batch.
    """

    pipeline: str
    make: Callable[[], Any]
    arguments: Callable[[], dict[str, Any]]
    variant: str = ""
    decoder: str = "vae"
    per_prompt: tuple[str, ...] = ("prompt",)
    cycled: tuple[str, ...] = ()
    taken_apart: bool = True
    autoencoder: str = ""
    tolerance: float = 1e-4

    @property
    def name(self) -> str:
        return f"{self.pipeline} ({self.variant})" if self.variant else self.pipeline
