"""Draw samples and set the thresholds of early stop by those that the filter accepts in the end."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from tqdm.auto import tqdm

from .. import calibration
from ..errors import CalibrationError, DataError, UnsupportedPipelineError
from ..exemption import Exemptions
from ..filter import MemorizationFilter
from ..types import Calibration, Decision
from ..verification import Scored
from .call import filtered_call
from .policy import Policy, attached_policy, plain_class
from .rows import text_of_each
from .watch import Stage, Watch, why_not_early

DECIDED = frozenset({"allowed_ids", "generator", "num_images_per_prompt", "prompt"})
MOST_REJECTED = 0.5
"""Give up once more than this share of the samples that were drawn, and as many as were asked for, was rejected."""


def fit_stages(
    pipe: Any,
    prompts: Sequence[str],
    bound: float,
    fractions: Sequence[float],
    samples: int | None,
    batch_size: int,
    seed: int,
    progress: bool,
    call: Mapping[str, Any],
) -> tuple[tuple[Stage, ...], int]:
    """The stages, and how many steps the samples took; arguments and errors are those of ``EarlyStop.fit``."""
    check_fractions(fractions, bound)
    if decided := sorted(DECIDED & {name for name, value in call.items() if value is not None}):
        raise DataError(f"EarlyStop.fit decides {', '.join(decided)} itself; leave it out")
    if isinstance(prompts, str) or not prompts:
        raise DataError(f"prompts are a list of texts, got {prompts!r}; give several that are not memorised")
    policy, against = attached_policy(pipe), why_not_early(pipe)
    if against:
        raise UnsupportedPipelineError(f"early stop cannot be calibrated: {against}")
    judge = policy.filter
    if judge.fingerprint != judge.index.fingerprint:
        raise CalibrationError(
            f"index {judge.index.path} was calibrated again since the filter was attached; attach it again"
        )
    needed = samples_needed(fractions, bound)
    samples = 2 * needed + 1 if samples is None else samples
    if samples < needed:
        raise CalibrationError(
            f"a bound of {bound:g} over {len(fractions)} fractions needs at least {needed} accepted samples, "
            f"got samples={samples}"
        )
    recorder = Recorder(fractions)
    with tqdm(total=samples, desc="early stop", unit="sample", disable=not progress) as bar:
        while len(recorder.accepted) < samples:
            before = recorder.drawn
            _draw(pipe, policy, recorder, prompts, batch_size, seed, call)
            if recorder.drawn == before:
                raise CalibrationError(
                    "a call came to no decisions, since it was interrupted; leave out the callback that does that"
                )
            bar.update(min(len(recorder.accepted), samples) - bar.n)
            if recorder.rejected >= samples and recorder.rejected > MOST_REJECTED * recorder.drawn:
                raise CalibrationError(
                    f"{recorder.rejected} of {recorder.drawn} samples were rejected by the filter; give prompts that "
                    "the pipeline has not memorised"
                )
    return _stages(recorder, samples, bound, judge), recorder.steps


def check_fractions(fractions: Sequence[float], bound: float) -> None:
    """
    Raises:
        ValueError: they are not ascending between 0 and 1, or ``bound`` is not between 0 and 1.
    """
    values = list(fractions)
    if not values or sorted(set(values)) != values or not 0 < values[0] <= values[-1] < 1:
        raise ValueError(f"fractions of the steps ascend between 0 and 1, got {fractions!r}")
    if not 0 < bound < 1:
        raise ValueError(f"the share of accepted samples that may be stopped is between 0 and 1, got {bound}")


def samples_needed(fractions: Sequence[float], bound: float) -> int:
    """How many accepted samples thresholds need at least."""
    return math.ceil(len(fractions) / bound - 1e-9) - 1


class Recorder:
    """Stands in the place of early stop, and keeps what the predicted clean latents score without stopping anything.

    Attributes:
        accepted: The scores of each sample that the filter accepted, one a fraction.
        rejected: How many samples it did not.
        noise: At each fraction.
        steps: Of a call.
    """

    def __init__(self, fractions: Sequence[float]) -> None:
        self.fractions = tuple(fractions)
        self.accepted: list[tuple[float, ...]] = []
        self.rejected = self.steps = 0
        self.noise: dict[int, float] = {}

    @property
    def drawn(self) -> int:
        """Samples so far."""
        return len(self.accepted) + self.rejected

    def watch(
        self,
        pipe: Any,
        vae: Any,
        judge: MemorizationFilter,
        exempt: Exemptions,
        wanted: Sequence[int] | None,
        steered: bool,
    ) -> Watch:
        """What watches the next call of ``pipe``."""
        return _Recording(self, pipe, vae, judge)


class _Recording(Watch):
    def __init__(self, recorder: Recorder, pipe: Any, vae: Any, judge: MemorizationFilter) -> None:
        super().__init__(pipe, vae, recorder.fractions, judge.score)
        self.recorder, self._judge = recorder, judge
        self.seen: dict[int, Sequence[Scored]] = {}

    def look(self, place: int, noise: float, scored: Sequence[Scored]) -> None:
        self.seen[place] = scored
        self.recorder.noise[place] = noise

    def judge(self, latents: torch.Tensor) -> list[Decision]:
        decisions = self._judge.judge(latents)
        missing = [f for place, f in enumerate(self.fractions) if place not in self.seen]
        if missing:
            raise CalibrationError(
                f"nothing is left to save after {missing[0]:g} of {self.total} steps; take more steps, or smaller "
                "fractions"
            )
        for row, decision in enumerate(decisions):
            if decision.accepted:
                self.recorder.accepted.append(
                    tuple(self.seen[place][row].score for place in range(len(self.fractions)))
                )
            else:
                self.recorder.rejected += 1
        self.recorder.steps = self.total
        return decisions


def _draw(
    pipe: Any,
    policy: Policy,
    recorder: Recorder,
    prompts: Sequence[str],
    batch_size: int,
    seed: int,
    call: Mapping[str, Any],
) -> None:
    rows = range(recorder.drawn, recorder.drawn + batch_size)
    given = {
        "output_type": "latent",
        **{name: text_of_each(name, value, batch_size) for name, value in call.items()},
        "prompt": [prompts[row % len(prompts)] for row in rows],
        "generator": [torch.Generator().manual_seed(seed + row) for row in rows],
    }
    recording = replace(policy, on_memorized="flag", early_stop=recorder)
    filtered_call(pipe, plain_class(pipe).__call__, recording, (), given)


def _stages(recorder: Recorder, samples: int, bound: float, judge: MemorizationFilter) -> tuple[Stage, ...]:
    rate, dropped = bound / len(recorder.fractions), Counter({"rejected": recorder.rejected})
    columns = zip(*recorder.accepted[:samples], strict=True)
    return tuple(
        Stage(fraction, recorder.noise[place], _no_laxer_than(judge.calibration, fitted))
        for place, (fraction, scores) in enumerate(zip(recorder.fractions, columns, strict=True))
        for fitted in [calibration.fit(scores, rate, judge.space, recorder.drawn, dropped)]
    )


def _no_laxer_than(end: Calibration, fitted: Calibration) -> Calibration:
    """``fitted``, so that no sample is stopped for a score that would be accepted at the end."""
    return replace(fitted, threshold=max(fitted.threshold, end.threshold))
