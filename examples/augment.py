"""An augmentation job: variants of every image of a folder, by img2img.

    python augment.py PIPELINE INDEX OUTPUT IMAGES PROMPT

The images are some of those that the index was built from. A variant may resemble the image that it was made from, and
no other: what comes out as another training image is drawn again, and left out if it stays one. Variants that are to be
handed out must not resemble their own source either: leave out ``allowed_ids``, and use a higher strength.
"""

import sys
from pathlib import Path

import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image

import lcmem_filter  # noqa: F401 - gives pipelines their two methods

pipeline, index, output, images, prompt = sys.argv[1:]
if Path(output).resolve() == Path(images).resolve():
    sys.exit("OUTPUT is the folder of IMAGES, where variants would take the place of images; give another")
pipe = StableDiffusionImg2ImgPipeline.from_pretrained(pipeline)
pipe.with_memorization_filter(index, on_exhausted="drop")

folder = Path(output)
folder.mkdir(parents=True, exist_ok=True)
for path in sorted(Path(images).rglob("*.png")):
    name = path.relative_to(images).as_posix()
    generator = torch.Generator().manual_seed(0)
    image = Image.open(path).convert("RGB")
    out = pipe(
        prompt,
        image=image,
        strength=0.8,
        num_images_per_prompt=2,
        generator=generator,
        allowed_ids=[name],
    )
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for number in range(2):  # of an earlier run, which may have been without the filter
        (folder / f"{name[:-4]}-{number}.png").unlink(missing_ok=True)
    for number, variant in enumerate(out.images):
        variant.save(folder / f"{name[:-4]}-{number}.png")
