"""Training on cached latents, under accelerate: stage 1, one identity, one place; stage 2, copies however changed;
stage 3, what lies where in them."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, broadcast
from tqdm.auto import tqdm

from ..calibration import held_out_needed
from ..errors import DataError, TrainingFailedError, check_kind
from ..head import LCMemHead
from ..images import ImageSource
from ..latents import Encoder
from ..processes import make_accelerator, this_process
from .batches import batch_of, moved_against
from .card import write_card
from .checkpoint import LATENTS, RESULT, Checkpoints, Progress, training_record, write_json
from .checks import (
    Sources,
    check_folders,
    check_run,
    check_sources,
    check_terms,
    listed,
    plan_of,
    sized,
)
from .config import Stage, TrainingConfig
from .data import LatentSet, Pairs, PairSampler, digest_of, drawn_ahead, sampler_for
from .fresh import DeviceViews, FreshViews
from .history import data_of, encoders_before, unseen_before, went_on_from
from .losses import check_finite
from .objective import MatchObjective, Objective
from .prepare import prepare_data, sets_at_further_sides
from .validation import Validator, embed_all, validator_for
from .views import generator_for
from .weights import averaged, decay_groups, head_to_train, lost_with_the_trunk

MOST_WORKERS = 8
"""Processes that draw pairs."""


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

    Interrupted, the same call goes on from the last checkpoint and, on a CPU, ends in the same weights; finished, it
    returns what it trained. Processes of ``accelerate launch``, on CPUs of ``torchrun``, divide the batch.

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
        DataError: too few identities, or two sets of one name.
        ArtifactError: ``output`` holds something else than an unfinished run of the same plan, or ``initial`` does not
            go with the recipe.
        ConfigurationError: stages or a recipe that cannot be followed, or terms that cannot be written.
        TrainingFailedError: the loss is no longer finite.
    """
    output, config = Path(output), sized(config or TrainingConfig(), stages, initial)
    check_kind("encoders", encoders, Mapping, "{'sd': load_encoder(PATH)}")
    check_terms(terms)
    check_run(stages, config, encoders, initial)
    folders = [output if stage == stages[-1] else output / f"stage{stage}" for stage in stages]
    given = listed(sources), listed(validation or ())
    plans = [plan_of(*given, encoders, config.for_stage(stage), leave_out) for stage in stages]
    check_folders(dict(zip(folders, plans, strict=True)))
    # folders of earlier stages are kept: they say that their stage is done
    for stage, folder in zip(stages, folders, strict=True):
        run = _Run(
            given[0],
            dict(encoders),
            folder,
            config.for_stage(stage),
            initial,
            given[1],
            Path(cache) if cache else output / LATENTS,
            terms,
            record,
            leave_out,
            progress,
        )
        initial, record = run.run(), training_record(folder)
    if this_process().is_main_process:
        shutil.rmtree(output / LATENTS, ignore_errors=True)
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
        self.leave_out, self.checkpoints = leave_out, Checkpoints(output, TrainingConfig().to_dict())
        self.initial, self.before, self.cache, self.terms = initial, before or {}, cache, terms
        self.accelerator = make_accelerator(
            mixed_precision=config.mixed_precision,
            # given as a number, a variable of the environment would count more
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=config.gradient_accumulation),
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=len(encoders) > 1 and config.stage < 3)
            ],
        )
        self.further: dict[int, list[str]] = {}
        self.drawn: FreshViews | DeviceViews | None = None
        self.show = progress and self.accelerator.is_main_process
        self.plan = plan_of(sources, validation, encoders, config, leave_out, initial)

    def run(self) -> LCMemHead:
        if self.checkpoints.finished(self.plan):
            self._say(f"{self.checkpoints.output} is finished already")
            return self._finished()
        standing = self.checkpoints.latest(self.plan) or Progress(self.plan)
        check_sources(self.sources, self.validation, self.config)
        self.further = sets_at_further_sides(self.sources, self.config)
        for line in lost_with_the_trunk(self.config, self.initial):
            self._say(line)
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
        self.checkpoints.refuse_other_images(standing, digest_of(train, held_out))
        sampler = sampler_for(train, self.config)
        validator = validator_for(train, held_out, self.config, laid_over=self.config.stage == 3)
        self._say(
            f"stage {self.config.stage}: {len(train)} training images of {len(set(train.identities))} identities, "
            f"{len(held_out)} validation images of {len(set(held_out.identities))} identities"
        )
        if validator.strangers < held_out_needed(self.config.false_rejection_rate):
            self._say(
                f"too few for a false rejection of {self.config.false_rejection_rate:g}, by which checkpoints are "
                "chosen: the largest score of each half is its threshold"
            )
        objective, optimizer = self._prepare(standing, train)
        if self.config.views_on_device:
            self.drawn = FreshViews(
                train,
                self.sources,
                self.encoders,
                self.config.resolution,
                self.accelerator.unwrap_model(objective).head.grid,
                self.accelerator.device,
                autocast=self.accelerator.autocast if self.config.mixed_precision == "bf16" else nullcontext,
                progress=self.show,
            )
            if self.config.device_views:
                self.drawn = DeviceViews(
                    self.drawn, generator_for(self.config.seed, "views"), progress=self.show
                )
        self._train(standing, objective, optimizer, train, sampler, validator)
        return self._finish(standing, train, held_out, validator)

    def _finished(self) -> LCMemHead:
        """The head of a run that ended before, whose card states the terms of today."""
        output = self.checkpoints.output
        head, record = LCMemHead.from_pretrained(output), training_record(output)
        if self.accelerator.is_main_process and record and self.terms not in ("", record["terms"]):
            write_card(output, head, {**record, "terms": self.terms})
            write_json(output / RESULT, {**record, "terms": self.terms})
        return head

    def _prepare(self, standing: Progress, train: LatentSet) -> tuple[Any, Any]:
        """Objective and optimiser under accelerate, as of ``standing``."""
        channels = {space: values.shape[2] for space, values in train.latents.items()}
        head, told = head_to_train(self.config, channels, self.initial, self.encoders)
        for line in told:
            self._say(line)
        optimizer = torch.optim.AdamW(
            decay_groups(head.parameters(), self.config.weight_decay), lr=self.config.learning_rate
        )
        made = (MatchObjective if self.config.stage == 3 else Objective)(head, self.config)
        objective, prepared = self.accelerator.prepare(made, optimizer)
        if standing.step:
            self.checkpoints.restore(self.accelerator, standing.step)
            self._say(f"going on from step {standing.step}")
        return objective, prepared

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
        workers = 0
        if self.accelerator.device.type == "cuda":  # there a step takes less than its pairs take to draw
            workers = min(MOST_WORKERS, (os.cpu_count() or 1) // (2 * self.accelerator.num_processes))
        self._mine(sampler, objective, train)
        drawn = self._drawn(standing, sampler, workers)
        name = f"stage {config.stage}"
        with tqdm(None, name, config.steps, initial=standing.step, unit="step", disable=not self.show) as bar:
            while standing.step < config.steps and standing.stale < config.patience:
                rate = config.learning_rate_at(standing.step)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                losses.append(self._step(standing.step, objective, optimizer, train, next(drawn)))
                standing.step += 1
                bar.update()
                if standing.step % config.evaluate_every == 0 or standing.step == config.steps:
                    standing.seconds += time.monotonic() - since
                    self._evaluate(standing, objective, validator, sum(losses) / len(losses), rate)
                    self._mine(sampler, objective, train)
                    if standing.step < config.steps and standing.stale < config.patience:
                        drawn = self._drawn(standing, sampler, workers)
                    since, losses = time.monotonic(), []
        if standing.step < config.steps:
            self._say(
                f"no better in {standing.stale} validations: stopped, with the head of step {standing.best_step}"
            )

    def _drawn(self, standing: Progress, sampler: PairSampler, workers: int) -> Iterator[Pairs]:
        """The pairs of the steps up to the next validation."""
        every = self.config.evaluate_every
        until = min((standing.step // every + 1) * every, self.config.steps)
        return drawn_ahead(sampler, range(standing.step, until), workers)

    def _mine(self, sampler: PairSampler, objective: Any, train: LatentSet) -> None:
        """Tell the sampler where images lie; at checkpoints only, so that a run goes on as it would have gone."""
        if sampler.hard_negatives:
            head = self.accelerator.unwrap_model(objective).head.eval()
            space, device = train.spaces[0], self.accelerator.device
            embeddings = embed_all(head, train.latents[space][:, 0], space, device)
            # statistics of batches are each process's own, and one batch is drawn by all
            sampler.mine(broadcast(embeddings.to(device, copy=True)).cpu())
            head.train()

    def _step(self, step: int, objective: Any, optimizer: Any, train: LatentSet, pairs: Pairs) -> float:
        """One optimiser step; what is drawn depends on the seed and ``step`` alone."""
        accumulation = self.config.gradient_accumulation
        total = 0.0
        size = len(pairs.a) // accumulation
        for i in range(accumulation):
            with self.accelerator.accumulate(objective):
                part = slice(i * size, (i + 1) * size)
                batch = batch_of(pairs, part, train, self.config, self.accelerator, step, i, self.drawn)
                if self.config.adversarial:
                    batch = moved_against(
                        self.accelerator.unwrap_model(objective), batch, self.config.adversarial
                    )
                loss = objective(*batch)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(objective.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            total += float(loss.detach())
        if self.accelerator.scaler is None:  # which leaves such steps out
            check_finite(total, step + 1)
        return total / accumulation

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
        # no score can be better than one of 1: of heads that have it, the one that was trained longest is taken
        if measured["score"] > standing.best_score or measured["score"] >= 1:
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
        self.checkpoints.save(accelerator, standing)
        self._say(standing.told())

    def _finish(
        self, standing: Progress, train: LatentSet, held_out: LatentSet, validator: Validator
    ) -> LCMemHead:
        """Put the best head into ``output``, with its card and its record, and drop the checkpoints."""
        output = self.checkpoints.output
        head = LCMemHead.from_pretrained(self.checkpoints.best(standing.best_step))
        best = next(entry for entry in standing.history if entry["step"] == standing.best_step)
        self.accelerator.wait_for_everyone()  # every process has read it before it is dropped
        keep = self.config.keep_initial if self.initial is not None else 0.0
        if keep and self.initial is not None:
            head = averaged(head, self.initial, keep)
        if not all(bool(values.isfinite().all()) for values in head.state_dict().values()):
            raise TrainingFailedError("the trained weights are not finite; give a smaller learning rate")
        if self.accelerator.is_main_process:
            by_parts = self.config.stage < 3 and self.config.keep_spaces and head.dense is not None
            if keep or by_parts:
                if by_parts:
                    validator = validator_for(train, held_out, self.config, laid_over=True)
                device = self.accelerator.device
                best = {**best, **validator.measure(head.to(device), device).to_dict()}
                head = head.cpu()
            head.save_pretrained(output)
            record = {
                **standing.to_dict(),
                "best": best,
                "data": data_of(train, held_out, self.leave_out, split=not self.validation),
                **({"further_sides": self.further} if self.further else {}),
                "spaces": {
                    **encoders_before(self.before, head),
                    **{space: encoder.described() for space, encoder in self.encoders.items()},
                },
                "versions": {
                    name: version(name) for name in ("torch", "transformers", "diffusers", "accelerate")
                },
                "terms": self.terms,
                **({} if self.initial is None else {"unseen_before": unseen_before(self.before, self.plan)}),
                **went_on_from(self.before, self.config, self.initial, head, train.counts(), self.terms),
            }
            write_card(output, head, record)
            write_json(output / RESULT, record)
            self.checkpoints.clear()
        self.accelerator.wait_for_everyone()
        return head

    def _say(self, line: str) -> None:
        if self.show:
            tqdm.write(line, file=sys.stderr)
