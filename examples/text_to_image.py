"""A plain diffusers script: one prompt, eight images.

python text_to_image.py PIPELINE INDEX OUTPUT PROMPT
"""

import sys
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

import lcmem_filter  # noqa: F401 - gives pipelines their two methods

pipeline, index, output, prompt = sys.argv[1:]
pipe = StableDiffusionPipeline.from_pretrained(pipeline)
pipe.with_memorization_filter(index, on_exhausted="drop")

folder = Path(output)
folder.mkdir(parents=True, exist_ok=True)
for left in folder.glob("[0-9].png"):  # of an earlier run, which may have been without the filter
    left.unlink()
generator = torch.Generator().manual_seed(0)
out = pipe(prompt, num_images_per_prompt=8, num_inference_steps=25, generator=generator)
for number, image in enumerate(out.images):
    image.save(folder / f"{number}.png")
