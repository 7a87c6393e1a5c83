"""Training of the siamese baselines: the pairs and augmentations that the head sees, as pictures."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from ..errors import ConfigurationError, DataError, EmptyDataError, UnreadableImageError
from ..images import ImageSource, can_be_read, to_pixels
from ..processes import make_accelerator
from ..training.checkpoint import RESULT, Checkpoints, Progress, write_json
from ..training.checks import check_terms
from ..training.config import check_numbers, check_positive
from ..training.data import LatentSet, PairSampler
from ..training.losses import check_finite, nt_xent, verification
from ..training.names import check_names, identities_of, told_of_classes
from ..training.split import each_picture_once
from ..training.views import augment_image, augment_mildly, augment_strongly, generator_for
from ..training.weights import decay_groups
from .siamese import Method, SiameseNetwork

LIGHT_A = 0.6
"""Share of side a that is lightly augmented; the rest stays as it is."""

KINDS_B = ((augment_image, 0.3), (augment_mildly, 0.2), (augment_strongly, 0.5))
"""What side b is augmented by, and how often: about what the head's two stages together see."""


@dataclass(frozen=True, slots=True)
class SiameseConfig:
    """Recipe of a siamese baseline.

    Attributes:
        method: Which baseline. ``"packhaeuser"``: binary cross-entropy on matched and as many mismatched pairs.
            ``"dar"``: NT-Xent over identities. ``"dar_unsupervised"``: NT-Xent over images.
        resolution: Side in pixels that pictures are squashed to.
        widths: Of the network's stages.
        depths: Blocks of each stage.
        features: What is kept of a picture.
        steps: Optimiser steps.
        batch_pairs: Pairs of one step; the network sees twice as many pictures.
        sets_per_batch: A batch is drawn from so many of the data sets.
        same_image: Share of pairs that are two views of one image although the identity has another image.
        temperature: Of NT-Xent.
        learning_rate: Peak of a cosine decay after ``warmup_steps``.
        weight_decay: AdamW's, on matrices and kernels only.
        mixed_precision: ``"bf16"`` for the network, ``"no"`` for none; losses and the finished network are float32.
        evaluate_every: Steps between checkpoints. Nothing is validated: the last weights are the result.
        seed: Of everything that is drawn.
    """

    method: Method
    resolution: int = 128
    widths: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    features: int = 128
    steps: int = 4000
    batch_pairs: int = 128
    sets_per_batch: int = 2
    same_image: float = 0.5
    temperature: float = 0.07
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    mixed_precision: Literal["no", "bf16"] = "no"
    evaluate_every: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(self)
        for name in ("resolution", "steps", "sets_per_batch", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_pairs < 2:
            raise ConfigurationError(f"batch_pairs must be at least 2, got {self.batch_pairs}")
        check_positive(self, "temperature", "learning_rate")
        if self.mixed_precision not in ("no", "bf16"):
            raise ConfigurationError(f"mixed_precision must be no or bf16, got {self.mixed_precision}")
        if not 0 <= self.same_image <= 1:
            raise ConfigurationError(f"same_image must be in [0, 1], got {self.same_image}")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return {**asdict(self), "widths": list(self.widths), "depths": list(self.depths)}


class Batch(NamedTuple):
    """Pairs of pictures (P, 3, side, side) in [-1, 1], identities and offsets (P,), and how many were left out."""

    a: torch.Tensor
    b: torch.Tensor
    identities: torch.Tensor
    offsets: torch.Tensor
    left_out: int


class PictureBatches(Dataset[Batch]):
    """The batch of each step; what is drawn depends on the seed and the step alone, so any worker may make it.

    Pictures are read when they are needed; one that is stored twice counts once. A pair of which one cannot be read is
    left out, each time the same.

    Args:
        sources: Balanced against each other as ``PairSampler`` does.
        config: The recipe.

    Raises:
        DataError: fewer than two identities.
    """

    def __init__(self, sources: Sequence[ImageSource], config: SiameseConfig) -> None:
        self.sources, self.config = list(sources), config
        self._first = np.cumsum([0, *(len(source) for source in self.sources)])
        rows = [(source, row) for source in self.sources for row in range(len(source))]
        identities = (
            [f"{s}/{row}" for s, source in enumerate(self.sources) for row in range(len(source))]
            if config.method == "dar_unsupervised"
            else identities_of(self.sources)
        )
        images = LatentSet(
            {},
            ("clean",),
            np.array(identities, dtype=object),
            np.repeat(np.arange(len(self.sources)), [len(source) for source in self.sources]),
            tuple(source.name for source in self.sources),
            ids=np.array([str(place) for place in range(len(rows))], dtype=object),
            pictures=np.array([source.digest(row) or "" for source, row in rows], dtype=object),
        )
        self.images = each_picture_once(images)
        self._pairs = PairSampler(
            self.images,
            pairs=config.batch_pairs,
            sets_per_batch=config.sets_per_batch,
            same_image=config.same_image,
            seed=config.seed,
        )

    def __len__(self) -> int:
        return self.config.steps

    def __getitem__(self, step: int) -> Batch:
        pairs = self._pairs.draw(step)
        made: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        for i, (a, b) in enumerate(zip(pairs.a, pairs.b, strict=True)):
            draw = generator_for(self.config.seed, "pictures", step, i)
            try:
                made.append((i, self._side_a(int(a), draw), self._side_b(int(b), draw)))
            except UnreadableImageError:
                continue
        if len(made) < 2:
            raise EmptyDataError(
                f"of {len(pairs.a)} pairs {len(pairs.a) - len(made)} cannot be read; give images that can"
            )
        rows = [i for i, _, _ in made]
        offsets = generator_for(self.config.seed, "offsets", step).random(len(pairs.a))[rows]
        return Batch(
            torch.stack([a for _, a, _ in made]),
            torch.stack([b for _, _, b in made]),
            torch.from_numpy(pairs.identities[rows]),
            torch.from_numpy(offsets).float(),
            len(pairs.a) - len(made),
        )

    def _side_a(self, row: int, draw: np.random.Generator) -> torch.Tensor:
        image, side = self._image(row), self.config.resolution
        return to_pixels(augment_image(image, side, draw) if draw.random() < LIGHT_A else image, side)

    def _side_b(self, row: int, draw: np.random.Generator) -> torch.Tensor:
        chosen = int(draw.choice(len(KINDS_B), p=[share for _, share in KINDS_B]))
        return to_pixels(
            KINDS_B[chosen][0](self._image(row), self.config.resolution, draw), self.config.resolution
        )

    def _image(self, row: int) -> Any:
        assert self.images.ids is not None
        s = int(self.images.sets[row])
        return self.sources[s].image(int(self.images.ids[row]) - int(self._first[s]))


def siamese_loss(network: SiameseNetwork, batch: Batch, config: SiameseConfig) -> torch.Tensor:
    """What the pairs of a batch cost: binary cross-entropy of the decision, or NT-Xent of the embeddings."""
    a, b = network(torch.cat([batch.a, batch.b])).split(len(batch.a))
    if network.decision is not None:
        return verification(a, b, batch.identities, network.decision, batch.offsets)
    return nt_xent(a, b, batch.identities, config.temperature)


def train_siamese(
    sources: Sequence[ImageSource],
    output: str | os.PathLike[str],
    config: SiameseConfig,
    *,
    terms: str = "",
    workers: int = 0,
    progress: bool = True,
) -> SiameseNetwork:
    """Train a siamese baseline on one device and save it into ``output``, which its class opens by path.

    Interrupted, the same call goes on from the last checkpoint and ends in the same weights; finished, it returns what
    it trained.

    Args:
        sources: Training images; several are balanced against each other.
        output: Folder of the network; checkpoints lie in a subfolder until it is finished.
        terms: Terms of the data, for the record.
        workers: Processes that make pictures; 0 for this one. The result does not depend on them.
        progress: Show progress on stderr.

    Returns:
        The network, on the CPU.

    Raises:
        DataError: no source, two of one name, or too few identities.
        ConfigurationError: several processes, a number of workers below 0, or terms that cannot be written.
        TrainingFailedError: the loss is no longer finite.
        EmptyDataError: no image of a source, or nearly none of a batch, can be read.
        ArtifactError: ``output`` holds something else than an unfinished run of the same plan.
    """
    if not sources:
        raise DataError("training needs at least one data source; give images")
    check_names(sources)
    check_terms(terms)
    for source in sources:
        if not any(can_be_read(source, row) for row in range(len(source))):
            raise EmptyDataError(
                f"none of the {len(source)} images of {source.name!r} can be read; leave it out"
            )
    if workers < 0:
        raise ConfigurationError(f"workers must not be negative, got {workers}")
    accelerator = make_accelerator(mixed_precision=config.mixed_precision)
    if accelerator.num_processes > 1:
        raise ConfigurationError(
            f"siamese baselines train in one process, got {accelerator.num_processes}; leave accelerate launch out"
        )
    run = _Run(sources, Path(output), config, accelerator, terms, progress)
    return run.run(workers)


class _Run:
    def __init__(
        self,
        sources: Sequence[ImageSource],
        output: Path,
        config: SiameseConfig,
        accelerator: Accelerator,
        terms: str,
        progress: bool,
    ) -> None:
        self.config, self.accelerator, self.terms, self.show = config, accelerator, terms, progress
        self.sources = list(sources)
        self.checkpoints = Checkpoints(output, SiameseConfig(config.method).to_dict())
        self.plan = {"config": config.to_dict(), "sources": [source.fingerprint for source in sources]}

    def run(self, workers: int) -> SiameseNetwork:
        if self.checkpoints.finished(self.plan):
            self._say(f"{self.checkpoints.output} is finished already")
            self._state_terms()
            return SiameseNetwork.load(self.checkpoints.output)
        self.checkpoints.check_makeable()
        for line in told_of_classes(self.sources) if self.config.method != "dar_unsupervised" else ():
            self._say(line)
        batches = PictureBatches(self.sources, self.config)
        counts = batches.images.counts()
        images, identities = len(batches.images), len(set(batches.images.identities))
        self._say(f"{images} training images in {len(counts)} sets, {identities} identities")
        if images == identities and self.config.method != "dar_unsupervised":
            self._say(
                "no two images share an identity, so its pairs are views of one image; name a column that tells"
            )
        standing = self.checkpoints.latest(self.plan) or Progress(self.plan)
        network, optimizer, schedule = self._prepare(standing)
        self._train(standing, network, optimizer, schedule, batches, workers)
        if missing := sum(entry["pairs_left_out"] for entry in standing.history):
            self._say(f"{missing} pairs were left out, since one of their images cannot be read")
        trained: SiameseNetwork = self.accelerator.unwrap_model(network, keep_fp32_wrapper=False)
        self._finish(standing, trained, counts)
        return trained.cpu().eval()

    def _state_terms(self) -> None:
        """Let the record of a run that ended before state the terms of today."""
        path = self.checkpoints.output / RESULT
        record = json.loads(path.read_text(encoding="utf-8"))
        if self.terms not in ("", record["terms"]):
            write_json(path, {**record, "terms": self.terms})

    def _prepare(self, standing: Progress) -> tuple[Any, Any, Any]:
        """Network, optimiser and schedule under accelerate, as of ``standing``."""
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = SiameseNetwork(
                config.method, config.resolution, config.widths, config.depths, config.features
            )
        network.train()
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a sixth faster on a CPU
        optimizer = torch.optim.AdamW(
            decay_groups(network.parameters(), config.weight_decay), lr=config.learning_rate
        )
        schedule = get_cosine_schedule_with_warmup(optimizer, config.warmup_steps, config.steps)
        prepared = self.accelerator.prepare(network, optimizer, schedule)
        if standing.step:
            self.checkpoints.restore(self.accelerator, standing.step)
            self._say(f"going on from step {standing.step}")
        return prepared

    def _train(
        self,
        standing: Progress,
        network: Any,
        optimizer: Any,
        schedule: Any,
        batches: PictureBatches,
        workers: int,
    ) -> None:
        since, losses, seen, left_out = time.monotonic(), [], 0, 0
        for batch in self._batches(batches, standing.step, workers):
            loss = siamese_loss(network, batch, self.config)
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            check_finite(losses[-1], standing.step + 1)
            seen, left_out = seen + 2 * len(batch.a), left_out + batch.left_out
            standing.step += 1
            if standing.step % self.config.evaluate_every == 0 or standing.step == self.config.steps:
                standing.seconds += time.monotonic() - since
                standing.history.append(
                    {
                        "step": standing.step,
                        "loss": sum(losses) / len(losses),
                        "seconds": standing.seconds,
                        "images_seen": seen,
                        "pairs_left_out": left_out,
                    }
                )
                self._checkpoint(standing)
                since, losses, seen, left_out = time.monotonic(), [], 0, 0

    def _batches(self, batches: PictureBatches, first: int, workers: int) -> Iterator[Batch]:
        steps = range(first, self.config.steps)
        own = torch.Generator()  # without it the loader draws from the user's
        loader = DataLoader(batches, batch_size=None, sampler=steps, num_workers=workers, generator=own)
        shown = tqdm(
            loader, total=len(batches), initial=first, desc="training", unit="step", disable=not self.show
        )
        for batch in shown:
            device = self.accelerator.device
            a, b = (pictures.to(device, memory_format=torch.channels_last) for pictures in (batch.a, batch.b))
            yield Batch(a, b, batch.identities.to(device), batch.offsets.to(device), batch.left_out)

    def _checkpoint(self, standing: Progress) -> None:
        self.checkpoints.save(self.accelerator, standing)
        entry = standing.history[-1]
        self._say(f"step {standing.step} loss {entry['loss']:.4f} {standing.seconds:.0f} s")

    def _finish(
        self, standing: Progress, network: SiameseNetwork, counts: dict[str, tuple[int, int]]
    ) -> None:
        """Put the network into ``output`` with its record, and drop the checkpoints."""
        output = self.checkpoints.output
        network.save(output)
        record = {
            "plan": standing.plan,
            "step": standing.step,
            "seconds": standing.seconds,
            "images_seen": sum(entry["images_seen"] for entry in standing.history),
            "pairs_left_out": sum(entry["pairs_left_out"] for entry in standing.history),
            "history": standing.history,
            "data": {"train": counts},
            "device": str(self.accelerator.device),
            "versions": {name: version(name) for name in ("torch", "transformers", "accelerate")},
            "terms": self.terms,
        }
        write_json(output / RESULT, record)
        self.checkpoints.clear()

    def _say(self, line: str) -> None:
        if self.show:
            tqdm.write(line, file=sys.stderr)
