"""Finished images against a calibrated index: everything that the report shows."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ..calibration import Judged, judge_images
from ..errors import LcmemFilterError, check_kind
from ..filter import MemorizationFilter
from ..folders import name_of
from ..images import ImageSource
from ..index import MemorizationIndex
from ..index.training_set import check_training
from ..latents import Encoder
from ..report import AllowEntry, Pictures, Results, Run, Sample, results_of
from ..report.summarise import NONE_GIVEN, UNSEEN
from ..verification import compared_by
from .allow import apply_allow_list
from .certificate import SENSITIVITY_IMAGES, SENSITIVITY_SEEDS, Judge, certify
from .duplicates import find_duplicates

VERSIONS = ("lcmem-filter", "torch", "diffusers", "transformers", "numpy", "pillow")
COMPARED_BY = {
    "descriptors": "head, then training images laid over each sample",
    "deformed descriptors": "head, then training images laid over each sample and deformed",
    "tokens": "head, picture as a whole and part by part",
    "latents": "head, and aligned latents",
    None: "head alone",
}


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found.

    Attributes:
        results: For ``write_report``; its ``exit_code`` is the verdict.
        pictures: For ``write_report``, where thumbnails are wanted.
    """

    results: Results
    pictures: Pictures


def audit_images(
    images: ImageSource,
    index: MemorizationIndex,
    *,
    encoder: Encoder | None = None,
    training: ImageSource | None = None,
    unseen: ImageSource | None = None,
    allow_list: Sequence[AllowEntry] = (),
    false_discovery_rate: float = 0.1,
    sensitivity_images: int = SENSITIVITY_IMAGES,
    sensitivity_seeds: int = SENSITIVITY_SEEDS,
    image_to_image: Any = None,
    progress: bool = True,
) -> Audit:
    """Look for copies of training images in a finished set, and measure how far the answer can be trusted.

    Args:
        images: What is examined.
        index: A calibrated index of the training set.
        encoder: Of the pipeline's latent space; the index's own by default.
        training: The images that the index was built from, with the same ids. Their pictures may then be shown, and
            near-duplicates made of them measure sensitivity and consistency.
        unseen: Real images that neither the pipeline nor the calibration saw; they measure specificity.
        allow_list: Known false alarms.
        false_discovery_rate: Share of false alarms that is allowed among the discoveries, in (0, 1).
        sensitivity_images: Training images that near-duplicates are made of.
        sensitivity_seeds: Near-duplicates of each.
        image_to_image: A diffusers pipeline, unfiltered, that draws the near-duplicates from the training pictures;
            without it they are made by transformations in pixels.
        progress: Show progress on stderr.

    Raises:
        CalibrationError: the index has no threshold for the encoder's latent space.
        DataError: none of ``training`` is an image of the index, by its id.
        LatentSpaceError: the head does not know it.
        LcmemFilterError: a rate that does not lie between 0 and 1.
    """
    if not 0 < false_discovery_rate < 1:
        raise LcmemFilterError(f"a false-discovery rate lies between 0 and 1, got {false_discovery_rate}")
    check_kind("images", images, ImageSource, "open_images(PATH)")
    check_kind("index", index, MemorizationIndex, "MemorizationIndex.load(PATH)")
    for name, source in (("training", training), ("unseen", unseen)):
        if source is not None:
            check_kind(name, source, ImageSource, "open_images(PATH)")
    if training is not None:
        check_training(index, training)
    encoder = index.load_encoder() if encoder is None else encoder
    check_kind("encoder", encoder, Encoder, "load_encoder(PATH)")
    space = index.head.identify_space(encoder.vae).told()
    judge = Judge(MemorizationFilter(index, space=space), encoder, progress)
    samples, canonical = _examine(judge, images)
    samples, entries = apply_allow_list(samples, allow_list)
    checked = [sample for sample in samples if sample.accepted is not None]
    duplicates = find_duplicates(
        index,
        space,
        judge.filter.calibration.threshold,
        [sample.id for sample in checked],
        [sample.sha256 for sample in checked],
        canonical,
    )
    results = results_of(
        _run(judge, images, training, unseen),
        samples,
        judge.filter.calibration,
        false_discovery_rate=false_discovery_rate,
        certificate=certify(judge, training, unseen, sensitivity_images, sensitivity_seeds, image_to_image),
        duplicates=duplicates,
        allow_list=entries,
    )
    return Audit(results, Pictures(images.image_of, index.pictures_in(training) if training else None))


def _examine(judge: Judge, images: ImageSource) -> tuple[list[Sample], torch.Tensor]:
    """A sample for each image, and the canonical latents (m, C, grid, grid), float16, of those that were checked."""
    head = judge.filter.index.head
    samples, latents = [], []
    for one in judge_images(
        judge.filter.index,
        images,
        range(len(images)),
        judge.encoder,
        judge.filter.space,
        progress=judge.progress,
        description="examining",
    ):
        samples.append(_sample(judge, images, one))
        if one.latent is not None:
            with torch.inference_mode():
                canonical = head.canonical(one.latent[None].to(head.device), judge.filter.space)
            latents.append(canonical.half().cpu())
    channels = int(head.config.spaces[judge.filter.space])
    nothing = torch.empty(0, channels, head.grid, head.grid, dtype=torch.float16)
    return samples, torch.cat(latents or [nothing])


def _sample(judge: Judge, images: ImageSource, one: Judged) -> Sample:
    record = images.records[one.row]
    labels = tuple(dict.fromkeys(label for label in record.labels.split("|") if label))
    if one.scored is None:
        return Sample(record.id, None, labels=labels, problem=one.problem, sha256=one.sha256)
    decision = judge.filter.decide(one.scored)
    return Sample(
        record.id,
        decision.accepted,
        decision.score,
        decision.p_value,
        decision.neighbours,
        labels,
        one.sha256,
    )


def _run(judge: Judge, images: ImageSource, training: ImageSource | None, unseen: ImageSource | None) -> Run:
    index = judge.filter.index
    return Run(
        kind="audit",
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        images=images.name,
        training=training.name if training else f"index {name_of(index.path)}",
        training_images=len(index),
        training_unreadable=len(index.unreadable),
        resolution=index.resolution,
        space=judge.filter.space,
        settings={
            "compared by": COMPARED_BY[compared_by(index, judge.filter.space)],
            "held-out images": f"{judge.filter.calibration.n:,}",
            UNSEEN: f"{len(unseen):,}" if unseen else NONE_GIVEN,
        },
        versions={"Python": platform.python_version(), **_versions()},
        fingerprints={
            "index": index.fingerprint,
            "head": index.head.fingerprint,
            "encoder": judge.encoder.source.sha256,
            "images examined": images.fingerprint,
        },
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found
