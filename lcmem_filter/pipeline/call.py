"""One filtered call of a pipeline: draw, judge at the gate, draw rejected rows again, hand out what was accepted."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import FilterFailedError, MemorizationError, UnsupportedPipelineError
from ..filter import MemorizationFilter
from ..types import Decision, OnExhausted, OnMemorized
from .gate import Gate, gated, withheld_rows
from .ladder import Ladder
from .outputs import blank_latents, check_one_decision_an_image, has_names, images_of, keep_rows, replace_rows
from .rows import BoundCall, draw_seed, generator_for
from .rungs import DEFAULT_LADDER, Redraw, Rung, make_rungs
from .spaces import decoder_space, drawn_size

DECODERS = ("vae", "movq", "vqgan")

NOT_PICTURES = frozenset(
    {
        "audio",
        "audio_duration",
        "audio_duration_s",
        "audio_length_in_s",
        "frames",
        "num_frames",
        "num_videos_per_prompt",
        "num_waveforms_per_prompt",
        "video",
        "video_length",
    }
)
"""Call arguments that only pipelines for video or sound have. Their decoders are given frames in pieces, or spectra."""


class MemorizationWarning(UserWarning):
    """A filtered pipeline returns fewer images than were asked for."""


@dataclass(frozen=True)
class Policy:
    """What a pipeline does with memorised samples; see ``attach``."""

    filter: MemorizationFilter
    on_memorized: OnMemorized
    max_resamples: int
    on_exhausted: OnExhausted
    rungs: tuple[Rung, ...] = field(default_factory=lambda: make_rungs(DEFAULT_LADDER))
    max_seconds: float | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> Policy:
        return self


@dataclass
class Drawn:
    """What was drawn so far: the pipeline's output and one decision a row."""

    output: Any
    decisions: list[Decision]


def decoder_of(pipe: Any) -> Any:
    """The component that decodes the latents of ``pipe``.

    Raises:
        UnsupportedPipelineError: the pipeline has none, or draws videos or sound.
    """
    found = NOT_PICTURES & set(inspect.signature(type(pipe).__call__).parameters)
    if found:
        raise UnsupportedPipelineError(
            f"{type(pipe).__name__} draws videos or sound (it takes {', '.join(sorted(found))}): "
            "only latent image pipelines can be filtered"
        )
    for name in DECODERS:
        component = getattr(pipe, name, None)
        if component is not None and hasattr(component, "decode"):
            return component
    raise UnsupportedPipelineError(
        f"{type(pipe).__name__} has no latent decoder (looked for {', '.join(DECODERS)}): "
        "only latent image pipelines can be filtered"
    )


def filtered_call(
    pipe: Any, original: Callable[..., Any], policy: Policy, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call ``original(pipe, *args, **kwargs)`` so that no memorised image is returned.

    Raises:
        FilterFailedError: an image could not be judged; none is returned.
        MemorizationError: rows were rejected to the last attempt and the policy is to raise.
    """
    try:
        call = BoundCall.bind(original, pipe, args, kwargs)
    except TypeError:
        original(pipe, *args, **kwargs)  # raises the pipeline's own error
        raise FilterFailedError(
            "the pipeline took arguments that do not fit its signature; no image is returned"
        ) from None
    policy.filter.last_decisions = ()
    drawn = _draw(pipe, original, call, policy)
    if policy.on_memorized == "resample":
        _draw_again(pipe, original, call, policy, drawn)
    return _hand_out(drawn, call, policy)


def _draw(pipe: Any, original: Callable[..., Any], call: BoundCall, policy: Policy) -> Drawn:
    gate = Gate(policy.filter.judge, withhold=policy.on_memorized != "flag")
    if call.output_type == "latent":
        return _draw_latents(pipe, original, call, policy)
    with gated(decoder_of(pipe), gate):
        output = call.run(original, pipe)
    check_one_decision_an_image(output, gate.decisions)
    assert gate.decisions is not None
    return Drawn(output, gate.decisions)


def _draw_latents(pipe: Any, original: Callable[..., Any], call: BoundCall, policy: Policy) -> Drawn:
    """Draw latents that are returned undecoded, and judge them in the decoder's space."""
    if call.arguments.get("denoising_end") not in (None, 1, 1.0):
        raise UnsupportedPipelineError(
            f"latents of a denoising that ends early (denoising_end={call.arguments['denoising_end']}) show too little "
            "to be judged; call the pipeline without the filter, and filter the one that finishes them"
        )
    vae, withhold = decoder_of(pipe), policy.on_memorized != "flag"
    with gated(vae, Gate(policy.filter.judge, withhold=withhold)), drawn_size(pipe) as sizes:
        output = call.run(original, pipe)
    latents = decoder_space(pipe, vae, images_of(output), sizes[-1] if sizes else None)
    decisions = list(policy.filter.judge(latents))
    check_one_decision_an_image(output, decisions)
    if withhold and withheld_rows(decisions):
        output = blank_latents(output, withheld_rows(decisions))
    return Drawn(output, decisions)


def _draw_again(
    pipe: Any, original: Callable[..., Any], call: BoundCall, policy: Policy, drawn: Drawn
) -> None:
    """Replace rejected rows of ``drawn`` by new draws, each from a seed of the caller's generator, rung by rung."""
    total = len(drawn.decisions)
    ladder = Ladder(policy.rungs, policy.max_resamples, policy.max_seconds)
    while (rows := withheld_rows(drawn.decisions)) and ladder.may_go_on():
        redraw = _redraw(pipe, call, policy, drawn, rows)
        with ladder.attempt(redraw) as attempt:
            if attempt is None:
                _warn_that_no_rung_applies(pipe, policy)
                return
            fresh = _draw(pipe, original, attempt.call, policy)
        if len(fresh.decisions) != len(redraw.seeds):
            raise FilterFailedError(
                f"drawing {len(redraw.seeds)} rows again gave {len(fresh.decisions)} images; no image is returned"
            )
        drawn.output = replace_rows(drawn.output, rows, fresh.output, redraw.wanted, total)
        for row, source_row in zip(rows, redraw.wanted, strict=True):
            drawn.decisions[row] = replace(
                fresh.decisions[source_row],
                attempts=drawn.decisions[row].attempts + 1,
                seed=redraw.seeds[source_row],
                rung=attempt.rung,
            )


def _redraw(pipe: Any, call: BoundCall, policy: Policy, drawn: Drawn, rows: list[int]) -> Redraw:
    """The call that draws ``rows`` again: only them where the arguments can be taken apart, else all beside them."""
    total, generator = len(drawn.decisions), call.arguments.get("generator")
    seeds = {row: draw_seed(generator, row) for row in rows}
    alone = call.can_slice(total)
    drawing = rows if alone else list(range(total))
    given = [seeds.get(row, seeds[rows[0]]) for row in drawing]
    generators = [generator_for(seed, generator) for seed in given]
    return Redraw(
        pipe,
        call.for_rows(rows, generators) if alone else call.for_all_rows(generators),
        wanted=[drawing.index(row) for row in rows],
        decisions=[drawn.decisions[row] for row in drawing],
        seeds=given,
        filter=policy.filter,
    )


def _warn_that_no_rung_applies(pipe: Any, policy: Policy) -> None:
    names = ", ".join(rung.name for rung in policy.rungs)
    warnings.warn(
        f"none of the rungs ({names}) can draw rows of this call of {type(pipe).__name__} again",
        MemorizationWarning,
        stacklevel=5,
    )


def _hand_out(drawn: Drawn, call: BoundCall, policy: Policy) -> Any:
    decisions, total = tuple(drawn.decisions), len(drawn.decisions)
    policy.filter.last_decisions = decisions
    check_one_decision_an_image(drawn.output, decisions)
    output, withheld = drawn.output, withheld_rows(decisions)
    if withheld and policy.on_memorized != "flag":
        attempts = max(decisions[row].attempts for row in withheld)
        found = f"{len(withheld)} of {total} samples were memorised in each of {attempts} attempt(s)"
        if policy.on_exhausted == "raise":
            raise MemorizationError(f"{found}; no image is returned", decisions)
        if policy.on_exhausted == "drop":
            kept = [row for row in range(total) if row not in set(withheld)]
            output = keep_rows(output, kept, total)
            decisions = tuple(decisions[row] for row in kept)
            warnings.warn(f"{found} and were dropped", MemorizationWarning, stacklevel=4)
        else:
            warnings.warn(f"{found}; blank images stand in their place", MemorizationWarning, stacklevel=4)
    if has_names(output):
        output.memorization = decisions
    return output
