"""Training on cached latents, under accelerate: stage 1, one identity, one place; stage 2, copies however changed;
stage 3, what lies where in them."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs
from tqdm.auto import tqdm

from ..errors import DataError
from ..head import LCMemHead, Size
from ..images import ImageSource
from ..latents import Encoder, canonical
from .card import went_on_from, write_card
from .checkpoint import RESULT, Checkpoints, Progress, training_record, write_json
from .config import MATCHED_AMONG, Stage, TrainingConfig
from .data import LatentSet, Pairs, PairSampler, sampler_for
from .objective import MatchObjective, Objective
from .prepare import prepare_data
from .validation import MOST_QUERIES, Validator, embed_all
from .views import augment_latents, generator_for, half_formed, mirror_some, turn_groups, warp_elastically
from .weights import averaged, decay_groups, take_weights, with_descriptors

Sources: TypeAlias = ImageSource | Sequence[ImageSource]


def train_head(
    sources: Sources,
    encoders: Mapping[str, Encoder],
    output: str | os.PathLike[str],
    config: TrainingConfig | None = None,
    *,
    stages: Sequence[Stage] = (1,),
    initial: LCMemHead | None = None,
    validation: Sources | None = None,
    cache: str | os.PathLike[str] | None = None,
    terms: str = "",
    record: Mapping[str, Any] | None = None,
    leave_out: Collection[str] = (),
    progress: bool = True,
) -> LCMemHead:
    """Train a head and save the best one, by recall on unseen identities, into ``output``.

    Interrupted, the same call goes on from the last checkpoint and ends in the same weights; finished, it
    returns what it trained. Under ``accelerate launch`` the batch is divided among the processes.

    Args:
        sources: Training images; several are balanced against each other.
        encoders: The encoder of each latent space, by the space's name.
        output: Folder of the head; checkpoints lie in a subfolder until it is finished.
        stages: 1, identity consistency; 2, strong augmentation of one side; 3, descriptors of every cell, all else
            frozen; or several, one after the other.
        initial: A trained head to go on from; without it, weights are drawn.
        validation: Images whose identities are not trained on; a share of the training identities by default.
        cache: Folder of encoded latents, for use by other runs too; inside ``output`` by default.
        terms: Terms of the data, for the model card.
        record: ``training.json`` of ``initial``, for the card.
        leave_out: Ids (``SET/ID`` of several sources) of validation images that show a picture, or a person, of the
            training images under another name, as somebody saw: they would set the threshold.
        progress: Show progress on stderr.

    Returns:
        The head, in float32, on the CPU.

    Raises:
        EmptyDataError: a source without readable images.
        DataError: too few identities.
        ArtifactError: ``output`` holds something else than an unfinished run of the same plan.
    """
    output, config = Path(output), config or TrainingConfig()
    if not stages or set(stages) - {1, 2, 3} or list(stages) != sorted(set(stages)):
        raise ValueError(f"stages are 1, 2 and 3, or some of them in that order, got {tuple(stages)}")
    if stages[0] == 3 and initial is None:
        raise ValueError("stage 3 needs a trained head to go on from: run stages 1 and 2 before it")
    for stage in stages:  # folders of earlier stages are kept: they say that their stage is done
        folder = output if stage == stages[-1] else output / f"stage{stage}"
        run = _Run(
            _listed(sources),
            dict(encoders),
            folder,
            config.for_stage(stage),
            initial,
            _listed(validation or ()),
            Path(cache) if cache else output / ".latents",
            terms,
            record,
            leave_out,
            progress,
        )
        initial, record = run.run(), training_record(folder)
    if PartialState().is_main_process:
        shutil.rmtree(output / ".latents", ignore_errors=True)
    return cast(LCMemHead, initial)


class _Run:
    def __init__(
        self,
        sources: Sequence[ImageSource],
        encoders: dict[str, Encoder],
        output: Path,
        config: TrainingConfig,
        initial: LCMemHead | None,
        validation: Sequence[ImageSource],
        cache: Path,
        terms: str,
        before: Mapping[str, Any] | None,
        leave_out: Collection[str],
        progress: bool,
    ) -> None:
        if not sources or not encoders:
            raise DataError("training needs at least one data source and one encoder")
        self.sources, self.encoders, self.validation, self.config = sources, encoders, validation, config
        self.terms, self.leave_out, self.checkpoints = terms, leave_out, Checkpoints(output)
        self.initial, self.before, self.cache = initial, before or {}, cache
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation,
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=len(encoders) > 1 and config.stage < 3)
            ],
        )
        self.show = progress and self.accelerator.is_main_process
        portion = config.gradient_accumulation * self.accelerator.num_processes
        if config.batch_pairs % portion:
            raise ValueError(
                f"batch_pairs must be a multiple of processes x gradient_accumulation ({portion}), "
                f"got {config.batch_pairs}"
            )
        self.plan = {
            "config": config.to_dict(),
            "sources": [source.fingerprint for source in sources],
            "validation": [source.fingerprint for source in validation],
            "encoders": {space: encoder.source.sha256 for space, encoder in encoders.items()},
            "processes": self.accelerator.num_processes,
            "initial": initial.fingerprint if initial is not None else None,
            **({"left_out": sorted(leave_out)} if leave_out else {}),
        }

    def run(self) -> LCMemHead:
        if self.checkpoints.finished(self.plan):
            self._say(f"{self.checkpoints.output} is finished already")
            return LCMemHead.from_pretrained(self.checkpoints.output)
        standing = self.checkpoints.latest(self.plan) or Progress(self.plan)
        train, held_out = prepare_data(
            self.sources,
            self.validation,
            self.encoders,
            self.config,
            self.cache,
            self.accelerator,
            grid=self.initial.grid if self.initial is not None else None,
            leave_out=self.leave_out,
            progress=self.show,
        )
        sampler = sampler_for(train, self.config)
        validator = Validator(
            train,
            held_out,
            false_rejection_rate=self.config.false_rejection_rate,
            seed=self.config.seed,
            most_queries=MOST_QUERIES if self.config.stage == 3 else None,
        )
        self._say(
            f"{len(train)} training images of {len(set(train.identities))} identities, {len(held_out)} "
            f"validation images of {len(set(held_out.identities))}; {train.unreadable} unreadable"
        )
        objective, optimizer = self._prepare(standing, train)
        self._train(standing, objective, optimizer, train, sampler, validator)
        return self._finish(standing, train, held_out, validator)

    def _prepare(self, standing: Progress, train: LatentSet) -> tuple[Any, Any]:
        """Objective and optimiser under accelerate, as of ``standing``."""
        if self.config.stage == 3 and self.initial is not None:
            head = with_descriptors(self.initial, tuple(self.encoders), self.config)
        else:
            head = self._starting_head({space: values.shape[2] for space, values in train.latents.items()})
        optimizer = torch.optim.AdamW(
            decay_groups(head.parameters(), self.config.weight_decay), lr=self.config.learning_rate
        )
        made = (MatchObjective if self.config.stage == 3 else Objective)(head, self.config)
        objective, prepared = self.accelerator.prepare(made, optimizer)
        if standing.step:
            self.checkpoints.restore(self.accelerator, standing.step)
            self._say(f"going on from step {standing.step}")
        return objective, prepared

    def _starting_head(self, channels: Mapping[str, int]) -> LCMemHead:
        config = self.config
        trained_for = {
            "nt-xent": {"score": "cosine", "activation": "none"},
            "verification": {"score": "verification", "activation": "sigmoid"},
        }[config.loss]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            head = LCMemHead.create(cast(Size, config.size), channels, **trained_for)
        if self.initial is not None:
            take_weights(head, self.initial)
        for space, encoder in self.encoders.items():
            head.add_probes(space, encoder.vae)
        head.fc_end.requires_grad_(config.loss == "verification")
        return head.train()

    def _train(
        self,
        standing: Progress,
        objective: Any,
        optimizer: Any,
        train: LatentSet,
        sampler: PairSampler,
        validator: Validator,
    ) -> None:
        config, since, losses = self.config, time.monotonic(), []
        bar = tqdm(
            total=config.steps, initial=standing.step, desc="training", unit="step", disable=not self.show
        )
        self._mine(sampler, objective, train)
        while standing.step < config.steps and standing.stale < config.patience:
            rate = _learning_rate(config, standing.step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            losses.append(self._step(standing.step, objective, optimizer, train, sampler))
            standing.step += 1
            bar.update()
            if standing.step % config.evaluate_every == 0 or standing.step == config.steps:
                standing.seconds += time.monotonic() - since
                self._evaluate(standing, objective, validator, sum(losses) / len(losses), rate)
                self._mine(sampler, objective, train)
                since, losses = time.monotonic(), []
        bar.close()

    def _mine(self, sampler: PairSampler, objective: Any, train: LatentSet) -> None:
        """Tell the sampler where images lie; at checkpoints only, so that a run goes on as it would have gone."""
        if sampler.hard_negatives:
            head = self.accelerator.unwrap_model(objective).head.eval()
            space = train.spaces[0]
            sampler.mine(embed_all(head, train.latents[space][:, 0], space, self.accelerator.device))
            head.train()

    def _step(
        self, step: int, objective: Any, optimizer: Any, train: LatentSet, sampler: PairSampler
    ) -> float:
        """One optimiser step; what is drawn depends on the seed and ``step`` alone."""
        accumulation = self.config.gradient_accumulation
        pairs, total = sampler.draw(step), 0.0
        size = len(pairs.a) // accumulation
        for i in range(accumulation):
            with self.accelerator.accumulate(objective):
                loss = objective(*self._batch(pairs, slice(i * size, (i + 1) * size), train, step, i))
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(objective.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            total += float(loss.detach())
        return total / accumulation

    def _batch(self, pairs: Pairs, part: slice, train: LatentSet, step: int, i: int) -> tuple[Any, ...]:
        """This process's rows of a batch: latents of both sides, their spaces, identities, offsets, copies."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        size = (part.stop - part.start) // processes
        rows = slice(part.start + rank * size, part.start + (rank + 1) * size)
        shared = generator_for(self.config.seed, "batch", step, i)
        spaces = tuple(str(shared.choice(train.spaces)) for _ in range(2))
        offsets = shared.random(part.stop - part.start)[rank * size : (rank + 1) * size]
        own = generator_for(self.config.seed, "augment", step, i, rank)
        sides = []
        half = self.config.half_formed if self.config.stage > 1 else 0.0
        elastic = self.config.elastic if self.config.stage < 3 else 0.0
        for space, images, views, clean, share, warped in zip(
            spaces,
            (pairs.a, pairs.b),
            (pairs.view_a, pairs.view_b),
            (0.5, 0.1),
            (0.0, half),
            (0.0, elastic),
            strict=True,
        ):
            latents = train.latents[space][images[rows], views[rows]].float().to(self.accelerator.device)
            if share:
                latents = half_formed(latents, own, share=share)
            if warped:
                latents = warp_elastically(latents, own, share=warped)
            if (
                self.config.stage == 3
            ):  # both sides of a group the same way up, as the filter asks: upright, then turned
                turns = generator_for(self.config.seed, "turn", step, i, rank)
                latents = turn_groups(mirror_some(latents, own), MATCHED_AMONG, turns)
            elif self.config.augment:
                latents = augment_latents(latents, own, clean=clean)
            sides.append(canonical(latents, latents.shape[-1]))
        device = self.accelerator.device
        identities = torch.from_numpy(pairs.identities[rows]).to(device)
        copies = torch.from_numpy(pairs.a[rows] == pairs.b[rows]).to(device)
        return (*sides, spaces, identities, torch.from_numpy(offsets).float().to(device), copies)

    def _evaluate(
        self, standing: Progress, objective: Any, validator: Validator, loss: float, rate: float
    ) -> None:
        """Validate on the main process, keep the head if it is the best, and write a checkpoint."""
        accelerator, since = self.accelerator, time.monotonic()
        head = accelerator.unwrap_model(objective).head
        entry: list[dict[str, Any] | None] = [None]
        if accelerator.is_main_process:
            head.eval()
            entry[0] = validator.measure(head, accelerator.device).to_dict()
            head.train()
        if accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(entry)
        measured = entry[0] or {}
        standing.stale += 1
        if measured["score"] > standing.best_score:
            standing.best_score, standing.best_step, standing.stale = measured["score"], standing.step, 0
            if accelerator.is_main_process:
                head.save_pretrained(self.checkpoints.best(standing.step))
        standing.seconds += time.monotonic() - since
        standing.history.append(
            {
                "step": standing.step,
                "loss": loss,
                "learning_rate": rate,
                "seconds": standing.seconds,
                **measured,
            }
        )
        accelerator.save_state(str(self.checkpoints.state(standing.step)))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            self.checkpoints.seal(standing)
        self._say(standing.told())

    def _finish(
        self, standing: Progress, train: LatentSet, held_out: LatentSet, validator: Validator
    ) -> LCMemHead:
        """Put the best head into ``output``, with its card and its record, and drop the checkpoints."""
        output = self.checkpoints.output
        head = LCMemHead.from_pretrained(self.checkpoints.best(standing.best_step))
        best = next(entry for entry in standing.history if entry["step"] == standing.best_step)
        if self.initial is not None and self.config.keep_initial:
            head = averaged(head, self.initial, self.config.keep_initial)
        if self.accelerator.is_main_process:
            if self.config.keep_initial:
                best = {**best, **validator.measure(head.to(self.accelerator.device)).to_dict()}
                head = head.cpu()
            head.save_pretrained(output)
            record = {
                **standing.to_dict(),
                "best": best,
                "data": {
                    "train": train.counts(),
                    "validation": held_out.counts(),
                    "unreadable": train.unreadable,
                    "left_out": len(set(self.leave_out)),
                },
                "spaces": {space: encoder.described() for space, encoder in self.encoders.items()},
                "versions": {
                    name: version(name) for name in ("torch", "transformers", "diffusers", "accelerate")
                },
                "terms": self.terms,
                **went_on_from(self.before, self.config.stage),
            }
            write_card(output, head, record)
            write_json(output / RESULT, record)
            self.checkpoints.clear()
        self.accelerator.wait_for_everyone()
        return head

    def _say(self, line: str) -> None:
        if self.show:
            tqdm.write(line, file=sys.stderr)


def _listed(sources: Sources) -> list[ImageSource]:
    return list(sources) if isinstance(sources, list | tuple) else [cast(ImageSource, sources)]


def _learning_rate(config: TrainingConfig, step: int) -> float:
    """Linear warm-up, then a cosine to 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
