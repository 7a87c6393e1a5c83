"""What is told of a run before hours of work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from accelerate import Accelerator

from ..errors import ConfigurationError
from ..head import LCMemHead, check_space_name
from ..latents import Encoder
from .config import Stage, TrainingConfig
from .weights import check_initial, check_known


def check_run(
    stages: Sequence[Stage],
    config: TrainingConfig,
    encoders: Mapping[str, Encoder],
    initial: LCMemHead | None,
) -> None:
    """What can be said of a run before anything is encoded.

    Raises:
        ConfigurationError: stages, or options of a stage, that cannot be followed.
        ArtifactError: ``initial`` does not go with the recipe.
    """
    if not stages or set(stages) - {1, 2, 3} or list(stages) != sorted(set(stages)):
        raise ConfigurationError(f"stages are 1, 2 and 3, or some of them in that order, got {tuple(stages)}")
    for space in encoders:
        check_space_name(space)
    processes = Accelerator(mixed_precision=config.mixed_precision).num_processes
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
    check_initial(initial, config, encoders, trunk=stages[0] < 3)
    if config.keep_spaces:
        check_known(initial, encoders)
