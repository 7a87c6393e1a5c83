"""Pipelines that take no prompt, but how many images to draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor

from lcmem_filter import generate
from lcmem_filter.index import MemorizationIndex
from lcmem_filter.pipeline import attach

from .planting import latent_of
from tests.tiny import tiny_vae


class Unconditional(DiffusionPipeline):
    """Decodes noise; the first batch has picture 3, which is in the index, in its row 2."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.register_modules(vae=vae)
        self.drawn: list[int] = []

    @torch.no_grad()
    def __call__(self, batch_size: int = 1, generator: Any = None, output_type: str = "pil") -> Any:
        latents = randn_tensor((batch_size, 4, 16, 16), generator=generator)
        if not self.drawn:
            latents[2] = latent_of(3, self.vae)
        self.drawn.append(batch_size)
        decoded = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return ImagePipelineOutput(VaeImageProcessor().postprocess(decoded, output_type=output_type))


def test_only_the_copy_is_drawn_again(index: MemorizationIndex) -> None:
    given = {"batch_size": 4, "output_type": "np"}
    plain = Unconditional(tiny_vae())(**given, generator=torch.Generator().manual_seed(0))
    pipe = attach(Unconditional(tiny_vae()), index)
    out = pipe(**given, generator=torch.Generator().manual_seed(0))
    assert pipe.drawn == [4, 1]
    assert [d.attempts for d in out.memorization] == [1, 1, 2, 1]
    assert all(d.accepted for d in out.memorization)
    assert len(out.images) == 4 and np.array_equal(out.images[[0, 1, 3]], plain.images[[0, 1, 3]])
    assert not np.allclose(out.images[2], plain.images[2], atol=1e-2)


class Unseeded(Unconditional):
    """Takes no generator."""

    def __call__(self, batch_size: int = 1, output_type: str = "pil") -> Any:
        return super().__call__(batch_size, None, output_type)


def test_a_pipeline_that_takes_no_generator_draws_again_unseeded(index: MemorizationIndex) -> None:
    pipe = attach(Unseeded(tiny_vae()), index)
    out = pipe(batch_size=4)
    assert pipe.drawn == [4, 1] and [d.attempts for d in out.memorization] == [1, 1, 2, 1]
    assert [d.seed for d in out.memorization] == [None] * 4


def test_a_job_of_a_count(index: MemorizationIndex, tmp_path: Path) -> None:
    pipe = Unconditional(tiny_vae())
    report = generate(pipe, 4, index, tmp_path, batch_size=4, progress=False)
    assert [(row.status, row.attempts) for row in report.rows] == [
        ("accepted", 1),
        ("accepted", 1),
        ("accepted", 2),
        ("accepted", 1),
    ]
