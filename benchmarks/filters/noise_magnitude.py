"""Detection before the image exists: how much the text changes the predicted noise (Wen et al., ICLR 2024).

The statistic is the mean over the first denoising steps of ||eps(x_t, text) - eps(x_t, "")||_2. Both predictions are
the two halves of the batch that guidance needs anyway, so reading them costs next to nothing. A network that predicts
v = sqrt(a_t) eps - sqrt(1 - a_t) x_0 has eps = sqrt(a_t) v + sqrt(1 - a_t) x_t; x_t is the same in both halves, hence
the difference of eps is that of v times sqrt(a_t). Of a network that predicts flow the difference of velocities counts
as it is: in eps it would be none at the first step, where all is noise.

It judges a prompt with its first noise, not an image, so no held-out image can calibrate it. What stands for them are
the captions of the same held-out images, which the pipeline was not trained on, each drawn with a seed of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import Row
from diffusers import FlowMatchEulerDiscreteScheduler
from drawing import BATCH, Sample, request
from filters import threshold_of
from measure import Judged, on_samples
from stats import share

STEPS_READ = (1, 10)
NOTE = (
    "Judges the prompt and its first noise while the pipeline denoises with guidance; calibrated on prompts, not on "
    "images: the captions of the images that calibrate the other filters. Those captions name nobody, those of "
    "memorised images do; named_prompts tells the two apart."
)
FIRST_SEEDS = {"calibration": 1_000_000, "held_out": 2_000_000}  # apart from those of samples that are drawn


class NoiseMagnitude:
    """Rejects where the mean of the first ``steps`` magnitudes is above ``threshold``."""

    def __init__(self, steps: int) -> None:
        when = "first step" if steps == 1 else f"first {steps} steps"
        self.label = f"noise magnitude, {when} (before decoding; calibrated on prompts)"
        self.steps = steps
        self.threshold = float("nan")

    def scores(self, magnitudes: np.ndarray) -> np.ndarray:
        """(n,) of ``magnitudes`` (n, steps or more)."""
        return np.asarray(magnitudes[:, : self.steps].mean(1))

    def rejections(self, magnitudes: np.ndarray) -> np.ndarray:
        return self.scores(magnitudes) > self.threshold

    @contextmanager
    def attached(self, pipe: Any) -> Iterator[None]:
        with watched_noise(pipe, self.steps):
            yield


@contextmanager
def watched_noise(pipe: Any, steps: int) -> Iterator[list[torch.Tensor]]:
    """A list that gets the magnitudes (B,) of each of the next ``steps`` steps of a pipeline that guides.

    Raises:
        SystemExit: the pipeline draws without guidance, or its network predicts something else than eps, v or flow.
    """
    flow = isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler)
    kind = "flow" if flow else pipe.scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction", "flow"):
        raise SystemExit(f"the noise magnitude needs a network that predicts epsilon, v or flow, not {kind}")
    seen: list[torch.Tensor] = []

    def look(_: Any, given: tuple[Any, ...], output: tuple[torch.Tensor]) -> None:
        if len(seen) == steps:
            return
        if not pipe.do_classifier_free_guidance:
            raise SystemExit(
                "the noise magnitude needs guidance: both predictions, with the text and without"
            )
        without, with_text = output[0].chunk(2)
        magnitude = (with_text - without).flatten(1).float().norm(dim=1)
        if kind == "v_prediction":
            magnitude = magnitude * pipe.scheduler.alphas_cumprod[int(given[1])].sqrt().to(magnitude)
        seen.append(magnitude)

    hook = (pipe.transformer if flow else pipe.unet).register_forward_hook(look)
    try:
        yield seen
    finally:
        hook.remove()


def first_steps(
    pipe: Any, samples: Sequence[Sample], steps: int, log: Callable[[str], None] = print
) -> np.ndarray:
    """Magnitudes (n, steps) of the samples' own first steps; the rest is not drawn and nothing is decoded."""

    def stop(_: Any, step: int, __: Any, ___: Any) -> dict[str, Any]:
        pipe._interrupt = (
            step >= steps - 1
        )  # as diffusers documents it: what is left of the loop is passed over
        return {}

    found, start = [], time.perf_counter()
    for first in range(0, len(samples), BATCH):
        with watched_noise(pipe, steps) as seen:
            chosen = request(pipe, samples[first : first + BATCH])
            pipe(**chosen, output_type="latent", callback_on_step_end=stop)
        found.append(torch.stack(seen, 1))
        if first // BATCH % 10 == 0:
            log(f"noise of {first + len(found[-1])}/{len(samples)}, {time.perf_counter() - start:.0f} s")
    return torch.cat(found).numpy()


def kept_first_steps(
    path: Path, pipe: Any, samples: Sequence[Sample], log: Callable[[str], None] = print
) -> np.ndarray:
    """``first_steps`` of the longest statistic, from ``path`` where they were read before."""
    drawn_for = [f"{sample.seed}: {sample.prompt}" for sample in samples]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        magnitudes = torch.from_numpy(first_steps(pipe, samples, max(STEPS_READ), log))
        torch.save({"samples": drawn_for, "magnitudes": magnitudes}, path)
    stored = torch.load(path, weights_only=True)
    if stored["samples"] != drawn_for:
        raise SystemExit(f"{path} is of other prompts or seeds; remove it, or give another --cache")
    return np.asarray(stored["magnitudes"].numpy())


def unseen_prompts(rows: dict[str, list[Row]]) -> dict[str, list[Sample]]:
    """Samples of held-out images' captions: some to calibrate with, others to measure on."""
    memorised = {row.caption for row in rows["pipeline"] if row.copies > 1}
    return {
        name: [
            Sample(row.caption, seed + i, False)
            for i, row in enumerate(rows[name])
            if row.caption not in memorised
        ]
        for name, seed in FIRST_SEEDS.items()
    }


def noise_rows(
    pipe: Any,
    rows: dict[str, list[Row]],
    generated: Judged,
    named: Judged,
    cache: Path,
    log: Callable[[str], None],
) -> list[tuple[NoiseMagnitude, dict[str, Any]]]:
    """Each detector, calibrated, with its row of the table; what the network predicted is kept in ``cache``."""
    unseen = unseen_prompts(rows)
    own = sum(sample.own for sample in generated.samples)
    files = {
        f"{own}-{len(generated.samples) - own}": generated.samples,
        f"named-{len(named.samples)}": named.samples,
        **unseen,
    }
    read = [kept_first_steps(cache / f"noise-{name}.pt", pipe, some, log) for name, some in files.items()]
    magnitudes = dict(zip(("generated", "named", *unseen), read, strict=True))
    found = []
    for steps in STEPS_READ:
        detector = NoiseMagnitude(steps)
        detector.threshold = threshold_of(detector.scores(magnitudes["calibration"]))
        found.append((detector, noise_row(detector, magnitudes, unseen, generated, named)))
    return found


def noise_row(
    detector: NoiseMagnitude,
    magnitudes: dict[str, np.ndarray],
    unseen: dict[str, list[Sample]],
    generated: Judged,
    named: Judged,
) -> dict[str, Any]:
    """One row: the shares of samples as every filter has them, one of prompts where others have images'."""
    rejected = {name: detector.rejections(values) for name, values in magnitudes.items()}
    prompts = {name: [sample.prompt for sample in some] for name, some in unseen.items()}
    return {
        "label": detector.label,
        "note": NOTE,
        "threshold": detector.threshold,
        **on_samples(rejected["generated"], generated),
        "held_out_rejected": None,
        "mild_copies_of_training_images_missed": None,
        "named_prompts": on_samples(rejected["named"], named),
        "held_out_prompts_rejected": share(rejected["held_out"], prompts["held_out"]),
        "calibration_prompts": {
            "n": len(prompts["calibration"]),
            "different": len(set(prompts["calibration"])),
        },
    }
