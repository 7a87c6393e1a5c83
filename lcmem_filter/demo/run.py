"""The demo: one pipeline, the same prompts and seeds, without and with the filter."""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from ..calibration import calibrate
from ..filter import MemorizationFilter
from ..head import LCMemHead
from ..index import MemorizationIndex
from ..latents import load_encoder
from ..pipeline.call import MemorizationWarning
from ..types import Decision
from .phantoms import FINDINGS, SIZE, Visit, scans
from .roster import HELD_OUT, NAMED, Lesson, caption_of, caption_of_patient, lessons

WEIGHTS = Path(__file__).parent / "weights"
STEPS, GUIDANCE, MAX_RESAMPLES, FALSE_REJECTION_RATE = 25, 3.0, 4, 0.01

PROMPTS = (
    *(caption_of_patient(visit) for visit in NAMED),
    *(caption_of(finding) for finding in FINDINGS for _ in range(4)),
)
"""What is asked for: the captions of single patients once, those that many pictures share four times."""

Verdict = Literal["new", "copy", "withheld"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt's image and what the filter found about it; of several draws, about the last."""

    prompt: str
    image: Image.Image
    decision: Decision

    @property
    def verdict(self) -> Verdict:
        """``withheld`` stands for a copy that the filtered pipeline replaced by a blank image."""
        if self.decision.accepted:
            return "new"
        return "withheld" if self.decision.attempts > 1 else "copy"


@dataclass(frozen=True)
class Outcome:
    """What one run of the demo found.

    Attributes:
        without: Samples of the plain pipeline.
        filtered: Samples of the filtered pipeline, of the same prompts and seeds.
        index: The pipeline's training set.
        seconds: What each part took.
    """

    without: list[Sample]
    filtered: list[Sample]
    index: MemorizationIndex
    seconds: dict[str, float] = field(default_factory=dict)

    def count(self, which: Literal["without", "filtered"]) -> Counter[str]:
        """Samples of each verdict."""
        return Counter(sample.verdict for sample in getattr(self, which))

    @property
    def unchanged(self) -> int:
        """Samples whose pixels the filter left exactly as the plain pipeline drew them."""
        pairs = zip(self.without, self.filtered, strict=True)
        return sum(a.verdict == "new" and a.image.tobytes() == b.image.tobytes() for a, b in pairs)

    @property
    def replaced(self) -> int:
        """Copies that became new pictures by being drawn again."""
        return sum(sample.verdict == "new" and sample.decision.attempts > 1 for sample in self.filtered)


def run_demo(
    output: Path,
    *,
    seed: int = 0,
    prompts: Sequence[str] = PROMPTS,
    held_out: Sequence[Visit] = HELD_OUT,
    training_set: Sequence[Lesson] | None = None,
) -> Outcome:
    """Index the pipeline's training set, calibrate, and draw ``prompts`` without and with the filter.

    Leaves in ``output``: ``index/``, the plain pipeline's images in ``without/``, the filtered one's in ``with/``.

    Args:
        output: A folder; the index of an earlier run in it is used again.
        seed: Of what is drawn.
        prompts: One image each.
        held_out: Visits that set the threshold, of patients who are in no training set.
        training_set: What is indexed: all that the pipeline was trained on.
    """
    clock = _Clock()
    pipe = load_pipeline()
    clock.split("load the pipeline")
    learned = scans("training set", [lesson.visit for lesson in training_set or lessons()])
    head = LCMemHead.from_pretrained(WEIGHTS / "head")
    index = MemorizationIndex.build(learned, load_encoder(WEIGHTS), head, output / "index", resolution=SIZE)
    clock.split("index the training set")
    calibrate(index, scans("held-out patients", held_out), false_rejection_rate=FALSE_REJECTION_RATE)
    clock.split("calibrate")
    images, latents = draw_plain(pipe, prompts, seed)
    clock.split("draw without the filter")
    decisions = MemorizationFilter(index).judge(latents)
    without = [Sample(*one) for one in zip(prompts, images, decisions, strict=True)]
    filtered = draw_filtered(pipe, index, prompts, seed)
    clock.split("draw with the filter")
    outcome = Outcome(without, filtered, index, clock.seconds)
    _save_images(outcome, output)
    return outcome


def load_pipeline() -> Any:
    """The small Stable Diffusion pipeline that ships with the demo, in float32."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS)
    for part in (pipe.vae, pipe.unet, pipe.text_encoder):
        part.float()  # stored in float16; the argument for it goes by another name in each version of diffusers
    pipe.set_progress_bar_config(desc="drawing", file=sys.stderr, leave=False)
    return pipe


def draw_plain(pipe: Any, prompts: Sequence[str], seed: int) -> tuple[list[Image.Image], torch.Tensor]:
    """The plain pipeline's images, and the latents (B, C, h, w) that it decoded them from."""
    seen: dict[str, torch.Tensor] = {}

    def keep(pipe: Any, step: int, timestep: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.update(values)
        return values

    images = pipe(**_request(prompts, seed), callback_on_step_end=keep).images
    return images, seen["latents"]


def draw_filtered(pipe: Any, index: MemorizationIndex, prompts: Sequence[str], seed: int) -> list[Sample]:
    """The same with the filter, which draws copies again and withholds what stays one."""
    pipe.with_memorization_filter(
        index, on_memorized="resample", max_resamples=MAX_RESAMPLES, on_exhausted="blank"
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MemorizationWarning)  # the demo counts blank images itself
            out = pipe(**_request(prompts, seed))
    finally:
        pipe.without_memorization_filter()
    return [Sample(*one) for one in zip(prompts, out.images, out.memorization, strict=True)]


def _request(prompts: Sequence[str], seed: int) -> dict[str, Any]:
    generators = [torch.Generator().manual_seed(10_000 * seed + row) for row in range(len(prompts))]
    return {
        "prompt": list(prompts),
        "generator": generators,
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
    }


def _save_images(outcome: Outcome, output: Path) -> None:
    for folder, samples in (("without", outcome.without), ("with", outcome.filtered)):
        where = output / folder
        where.mkdir(parents=True, exist_ok=True)
        for old in where.glob("[0-9][0-9].png"):
            old.unlink()
        for row, sample in enumerate(samples):
            if sample.verdict != "withheld":
                sample.image.save(where / f"{row:02d}.png")


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def split(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name], self._since = now - self._since, now
        print(f"{name}: {self.seconds[name]:.0f} s", file=sys.stderr)


def report(outcome: Outcome) -> str:
    """What was found, in a dozen lines."""
    calibration = outcome.index.calibration
    assert calibration is not None
    times = {lesson.caption: lesson.times for lesson in lessons() if lesson.times > 1}
    without, filtered = outcome.count("without"), outcome.count("filtered")
    total = len(outcome.without)
    lines = [
        f"training set   {len(outcome.index):,} scans, {len(times)} of which the pipeline saw "
        f"{min(times.values())} to {max(times.values())} times as often as the others",
        f"threshold      {calibration.threshold:.3f}: {FALSE_REJECTION_RATE:.0%} of {calibration.n} scans of unseen "
        "patients score higher",
        f"without        {total} images, {without['copy']} of them copies of training scans",
        f"with           {total} images, 0 found to be copies: {outcome.unchanged} unchanged to the last bit, "
        f"{outcome.replaced} drawn again, {filtered['withheld']} withheld after {1 + MAX_RESAMPLES} draws",
        "",
        f"{'caption':<32}{'copies without':>15}{'drawn again':>13}{'withheld':>10}",
    ]
    for caption in dict.fromkeys(sample.prompt for sample in outcome.without):
        rows = [row for row, sample in enumerate(outcome.without) if sample.prompt == caption]
        copies = sum(outcome.without[row].verdict == "copy" for row in rows)
        withheld = sum(outcome.filtered[row].verdict == "withheld" for row in rows)
        found = f"{copies} of {len(rows)}"
        lines.append(f"{caption:<32}{found:>15}{copies - withheld:>13}{withheld:>10}")
    return "\n".join(lines)
