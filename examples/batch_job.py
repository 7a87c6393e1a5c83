"""A batch job: a text file of prompts, divided among processes.

    accelerate launch batch_job.py PIPELINE INDEX OUTPUT PROMPTS
    torchrun --nproc-per-node 2 batch_job.py PIPELINE INDEX OUTPUT PROMPTS    # on CPUs, where accelerate starts one

`lcmem-filter generate` does this too, and goes on after a kill, keeps a manifest and writes the report.
"""

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers import StableDiffusionPipeline

import lcmem_filter  # noqa: F401 - gives pipelines their two methods

pipeline, index, output, prompts = sys.argv[1:]
state = PartialState(cpu=not torch.cuda.is_available())  # those of CPUs know of each other if it is said
pipe = StableDiffusionPipeline.from_pretrained(pipeline).to(state.device)
pipe.with_memorization_filter(index, on_exhausted="drop")

folder = Path(output)
folder.mkdir(parents=True, exist_ok=True)
numbered = list(enumerate(Path(prompts).read_text().splitlines()))
with state.split_between_processes(numbered) as mine:
    for number, prompt in mine:
        generator = torch.Generator().manual_seed(number)
        path = folder / f"{number:06d}.png"
        path.unlink(missing_ok=True)  # of an earlier run, which may have been without the filter
        for image in pipe(prompt, num_inference_steps=25, generator=generator).images:
            image.save(path)
