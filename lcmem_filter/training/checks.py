"""What is told of a run before hours of work."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, cast

from ..branches import check_space_name
from ..errors import ConfigurationError, check_kind
from ..head import SIZES, LCMemHead
from ..images import ImageSource
from ..latents import Encoder
from ..processes import make_accelerator, this_process
from .checkpoint import Checkpoints
from .config import SIZE, Stage, TrainingConfig
from .data import check_pairs
from .names import identities_of
from .shapes import check_fineness, check_initial, check_known, other_trunk, size_of

Sources: TypeAlias = ImageSource | Sequence[ImageSource]


def sized(config: TrainingConfig, stages: Sequence[Stage], initial: LCMemHead | None) -> TrainingConfig:
    """``config`` with a size: where it names none, that of the head to go on from, if that is of a named one. Stage 3
    does not go by it."""
    if config.size is not None:
        return config
    usual = not isinstance(initial, LCMemHead) or set(stages) == {3}
    return replace(config, size=SIZE if usual else size_of(cast(LCMemHead, initial)))


def check_run(
    stages: Sequence[Stage],
    config: TrainingConfig,
    encoders: Mapping[str, Encoder],
    initial: LCMemHead | None,
) -> None:
    """What can be said of a run before anything is encoded.

    Raises:
        TypeError: an encoder or a head that is none.
        ConfigurationError: stages, or options of a stage, that cannot be followed.
        ArtifactError: ``initial`` does not go with the recipe.
    """
    if not stages or set(stages) - {1, 2, 3} or list(stages) != sorted(set(stages)):
        raise ConfigurationError(f"stages are 1, 2 and 3, or some of them in that order, got {tuple(stages)}")
    for space, encoder in encoders.items():
        check_space_name(space)
        check_kind(f"the encoder of {space}", encoder, Encoder, "load_encoder(PATH)")
    if config.mixed_precision == "fp16" and this_process().device.type == "cpu":
        raise ConfigurationError("mixed_precision fp16 needs a GPU, and there is none; give bf16 or no")
    grid = initial.grid if isinstance(initial, LCMemHead) else int(SIZES[config.size or SIZE]["grid"])
    for encoder in encoders.values():
        for resolution in (config.resolution, *config.further_resolutions):
            check_fineness(encoder, resolution, grid)
    processes = make_accelerator(mixed_precision=config.mixed_precision).num_processes
    for stage in stages:
        config.for_stage(stage).check_batch(processes)
    if 3 not in stages and (config.deformed or config.match_width):
        raise ConfigurationError("deformed and match_width are of stage 3, which is not among the stages")
    if config.keep_spaces and (initial is None or set(stages) == {3}):
        raise ConfigurationError(
            "keep_spaces needs a head to go on from, and stage 1 or 2; give both, or leave it out"
        )
    if initial is None:
        if stages[0] == 3:
            raise ConfigurationError(
                "stage 3 needs a trained head to go on from: run stages 1 and 2 before it"
            )
        if config.keep_initial and len(stages) == 1:
            raise ConfigurationError("keep_initial needs a head to go on from; give one, or leave it out")
        return
    check_kind("initial", initial, LCMemHead, "LCMemHead.from_pretrained(NAME)")
    check_initial(initial, config, encoders, trunk=stages[0] < 3)
    if config.keep_spaces or stages[0] == 3:
        check_known(initial, encoders)
    if config.keep_spaces and config.keep_initial and other_trunk(initial, config.size):
        raise ConfigurationError(
            "keep_initial goes back to weights of the head to go on from, whose trunk is of another shape; leave it out"
        )


def check_terms(terms: str) -> None:
    """Whether a card can state the terms of the data.

    Raises:
        ConfigurationError: they are no text that can be written as UTF-8.
    """
    try:
        terms.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"the terms of the data cannot be written as UTF-8 ({error.reason}, character {error.start + 1}); give "
            "them in the encoding of this system"
        ) from error


def listed(sources: Sources) -> list[ImageSource]:
    """One or several sources as a list.

    Raises:
        TypeError: one is none.
    """
    every = list(sources) if isinstance(sources, list | tuple) else [cast(ImageSource, sources)]
    for source in every:
        check_kind("a source", source, ImageSource, "open_images(PATH)")
    return every


def check_sources(
    sources: Sequence[ImageSource], validation: Sequence[ImageSource], config: TrainingConfig
) -> None:
    """What records tell before anything is encoded.

    Raises:
        DataError: fewer than two identities, or no labels to go by.
    """
    labels = (record.labels for source in sources for record in source.records)
    check_pairs(identities_of(sources, beside=validation), labels, config.same_labels)


def plan_of(
    sources: Sequence[ImageSource],
    validation: Sequence[ImageSource],
    encoders: Mapping[str, Encoder],
    config: TrainingConfig,
    leave_out: Collection[str],
    initial: LCMemHead | None = None,
) -> dict[str, Any]:
    """Everything that a stage's result depends on; see ``Progress.plan``."""
    return {
        "config": config.to_dict(),
        "sources": [source.fingerprint for source in sources],
        "validation": [source.fingerprint for source in validation],
        "encoders": {space: encoder.source.sha256 for space, encoder in encoders.items()},
        "processes": this_process().num_processes,
        "initial": initial.fingerprint if initial is not None else None,
        **({"left_out": sorted(leave_out)} if leave_out else {}),
    }


def check_folders(plans: Mapping[Path, dict[str, Any]]) -> None:
    """What stands in the way of a later stage is told before an earlier one trains for hours.

    Args:
        plans: Of each stage's folder, whatever head it goes on from.

    Raises:
        ArtifactError: a folder holds something else.
    """
    for folder, plan in plans.items():
        Checkpoints(folder, TrainingConfig().to_dict()).refuse_other(plan)
