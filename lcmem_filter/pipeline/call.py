"""One filtered call of a pipeline: draw, judge at the gate, draw rejected rows again, hand out what was accepted."""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import FilterFailedError, MemorizationError, UnsupportedPipelineError
from ..exemption import Exemptions
from ..types import Decision
from .gate import Gate, Judge, gated, turn, withheld_rows
from .ladder import Ladder
from .outputs import (
    blank_rows,
    check_one_decision_an_image,
    count_rows,
    has_names,
    images_of,
    keep_rows,
    replace_rows,
)
from .policy import Policy
from .rows import BoundCall, draw_seed, generator_for
from .rungs import Redraw
from .spaces import decoder_space, drawn_size
from .unfinished import Ending, refuse_early_end, too_early, unjudged
from .watch import STOPPED_EARLY, Watch

if TYPE_CHECKING:
    import torch

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
    """A filtered pipeline withheld images that were asked for, or could not draw them again as it was told to."""


@dataclass
class Drawn:
    """What was drawn so far: the pipeline's output and one decision a row; ``partial`` where its denoising ended early,
    and nobody has judged it."""

    output: Any
    decisions: list[Decision]
    partial: bool = False


@dataclass(frozen=True)
class Drawing:
    """How the rows of one call of a pipeline are drawn and judged.

    Attributes:
        pipe: The pipeline.
        original: Its plain ``__call__``.
        policy: What becomes of memorised rows.
        exempt: The training images that the rows may resemble.
        wanted: The rows that matter; ``None`` for all.
        steered: Whether samples are corrected at every step, after the clean latents that can be predicted.
        rejected_for: For each row the training images that its earlier draws were rejected for.
    """

    pipe: Any
    original: Callable[..., Any]
    policy: Policy
    exempt: Exemptions
    wanted: Sequence[int] | None = None
    steered: bool = False
    rejected_for: tuple[frozenset[str], ...] = ()

    @property
    def withhold(self) -> bool:
        """Whether rejected rows are kept from the user."""
        return self.policy.on_memorized != "flag"

    @property
    def judge(self) -> Judge:
        """Latents (B, C, H, W) of all rows to B decisions."""
        allowed = self.exempt.allowed_ids
        if allowed is None:
            return self.policy.filter.judge
        return functools.partial(self.policy.filter.judge, allowed_ids=allowed)

    def judging_again(self, judge: Judge) -> Judge:
        """``judge``, asking less to reject rows that are drawn in place of rejected ones."""
        if not any(self.rejected_for):
            return judge

        def again(latents: torch.Tensor) -> Sequence[Decision]:
            decisions = judge(latents)
            if len(decisions) != len(self.rejected_for):
                return decisions  # whoever counts them refuses them
            return [
                self.policy.filter.decide_again(one, latents[row : row + 1], ids) if ids else one
                for row, (one, ids) in enumerate(zip(decisions, self.rejected_for, strict=True))
            ]

        return again

    def watch(self, vae: Any) -> Watch | None:
        """What watches the next call, if anything does."""
        early = self.policy.early_stop
        if early is None:
            return None
        return early.watch(self.pipe, vae, self.policy.filter, self.exempt, self.wanted, self.steered)

    def of_rows(self, rows: Sequence[int], wanted: Sequence[int]) -> Drawing:
        """For a call that draws ``rows`` alone, of which those at ``wanted`` matter."""
        return replace(self, exempt=self.exempt.taken(rows), wanted=wanted)


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

    One further argument goes to the filter, by name: ``allowed_ids``, see ``MemorizationFilter.judge``.

    Raises:
        AllowedIdsError: ``allowed_ids`` names images that the index does not hold, or has not one sequence an image.
        FilterFailedError: an image could not be judged; none is returned.
        LatentSpaceError: the pipeline's decoder has been replaced by one of another latent space.
        MemorizationError: rows were rejected to the last attempt and the policy is to raise.
        UnsupportedPipelineError: the call ends before its latents are clean, and the policy is to refuse that; or what
            the pipeline makes cannot be judged.
    """
    policy.filter.last_decisions = ()
    allowed_ids = kwargs.pop("allowed_ids", None)
    exempt = Exemptions() if allowed_ids is None else Exemptions.of(allowed_ids, policy.filter.index)
    try:
        call = BoundCall.bind(original, pipe, args, kwargs)
    except TypeError:
        original(pipe, *args, **kwargs)  # raises the pipeline's own error
        raise FilterFailedError(
            "the pipeline took arguments that do not fit its signature; no image is returned"
        ) from None
    drawing = Drawing(pipe, original, policy, exempt)
    with turn(decoder_of(pipe)):
        refuse_early_end(original, call.arguments, call.output_type, allowed=policy.allow_partial_latents)
        drawn = _draw(drawing, call)
        if drawn.partial:
            return _hand_out_unjudged(drawn, policy)
        if policy.on_memorized == "resample":
            _draw_again(drawing, call, drawn)
    return _hand_out(drawn, call, policy)


def _draw(drawing: Drawing, call: BoundCall) -> Drawn:
    vae, policy = decoder_of(drawing.pipe), drawing.policy
    policy.decoders.check(drawing.pipe, vae, policy.filter)
    ending = Ending(drawing.pipe, call.arguments)
    watch = None if ending.may_be_early else drawing.watch(vae)
    judge = drawing.judging_again(drawing.judge if watch is None else watch.judge)
    watching: AbstractContextManager[None] = ending.seen() if watch is None else watch.watching()
    judge = _only_finished(drawing.pipe, judge, ending, call.output_type)
    gate = Gate(judge, withhold=drawing.withhold)
    if call.output_type == "latent":
        return _draw_latents(drawing, call, vae, judge, watching, ending)
    with gated(vae, gate), watching:
        output = call.run(drawing.original, drawing.pipe)
    check_one_decision_an_image(output, gate.decisions)
    assert gate.decisions is not None
    return _withheld(drawing, Drawn(output, gate.decisions), images=False)


def _withheld(drawing: Drawing, drawn: Drawn, *, images: bool) -> Drawn:
    """``drawn`` without what is to be kept from the user; ``images``: whether these still show it."""
    rows = withheld_rows(drawn.decisions) if drawing.withhold else []
    if rows:
        drawn.output = blank_rows(drawn.output, rows, len(drawn.decisions), images=images)
    return drawn


def _only_finished(pipe: Any, judge: Judge, ending: Ending, output_type: str | None) -> Judge:
    """``judge``, but for a call that its caller interrupted or that ends early: a half-denoised copy would be taken for
    no copy."""

    def finished(latents: torch.Tensor) -> Sequence[Decision]:
        if _is_interrupted(pipe):
            return [_INTERRUPTED] * latents.shape[0]
        if found := ending.why_early():
            raise too_early(found, output_type)
        return judge(latents)

    return finished


def _is_interrupted(pipe: Any) -> bool:
    found = getattr(pipe, "interrupt", False)
    return bool(found) and found is not STOPPED_EARLY


_INTERRUPTED = Decision(
    None,
    math.nan,
    math.nan,
    math.nan,
    reason="the call was interrupted (pipe._interrupt), and what is half denoised shows too little to be judged",
)


def _draw_latents(
    drawing: Drawing,
    call: BoundCall,
    vae: Any,
    judge: Judge,
    watching: AbstractContextManager[None],
    ending: Ending,
) -> Drawn:
    """Draw latents that are returned undecoded, and judge them in the decoder's space."""
    pipe = drawing.pipe
    with gated(vae, Gate(judge, withhold=drawing.withhold)), drawn_size(pipe) as sizes, watching:
        output = call.run(drawing.original, pipe)
    if drawing.policy.allow_partial_latents and (found := ending.why_early()):
        return Drawn(output, [unjudged(found)] * (count_rows(images_of(output)) or 0), partial=True)
    latents = decoder_space(pipe, vae, images_of(output), sizes[-1] if sizes else None)
    decisions = list(judge(latents))
    check_one_decision_an_image(output, decisions)
    return _withheld(drawing, Drawn(output, decisions), images=True)


def _hand_out_unjudged(drawn: Drawn, policy: Policy) -> Any:
    """Latents that another pipeline is to finish, where the policy allows it; nobody has judged them."""
    decisions = policy.filter.last_decisions = tuple(drawn.decisions)
    check_one_decision_an_image(drawn.output, decisions)
    if has_names(drawn.output):
        drawn.output.memorization = decisions
    return drawn.output


def _draw_again(drawing: Drawing, call: BoundCall, drawn: Drawn) -> None:
    """Replace rejected rows of ``drawn`` by new draws, each from a seed of the caller's generator, rung by rung."""
    total, policy = len(drawn.decisions), drawing.policy
    ladder = Ladder(policy.rungs, policy.max_resamples, policy.max_seconds)
    rejected_for: list[frozenset[str]] = [frozenset()] * total
    while (rows := withheld_rows(drawn.decisions)) and ladder.may_go_on():
        if _is_interrupted(drawing.pipe) or any(drawn.decisions[row].accepted is None for row in rows):
            return  # nobody waits for another draw
        for row in rows:
            rejected_for[row] |= set(drawn.decisions[row].matched_ids)
        redraw, redrawing = _redraw(drawing, call, drawn, rows, rejected_for)
        with ladder.attempt(redraw) as attempt:
            if attempt is None:
                _warn_that_no_rung_applies(drawing.pipe, policy)
                return
            fresh = _draw(replace(redrawing, steered=attempt.steers), attempt.call)
        if len(fresh.decisions) != len(redraw.seeds):
            raise FilterFailedError(
                f"drawing {len(redraw.seeds)} rows again gave {len(fresh.decisions)} images; no image is returned"
            )
        drawn.output = replace_rows(drawn.output, rows, fresh.output, redraw.wanted, total)
        for row, source_row in zip(rows, redraw.wanted, strict=True):
            before, found = drawn.decisions[row], fresh.decisions[source_row]
            drawn.decisions[row] = replace(
                found,
                attempts=before.attempts + 1,
                steps_run=_sum(before.steps_run, found.steps_run),
                steps_saved=_sum(before.steps_saved, found.steps_saved),
                seed=redraw.seeds[source_row] if attempt.call.seeded else None,
                rung=attempt.rung,
                prompt=_reworded(attempt.call, redraw.call, source_row),
                matched_before=before.matched_before + tuple(near.id for near in before.neighbours[:1]),
            )


def _reworded(call: BoundCall, given: BoundCall, row: int) -> str | None:
    """The prompt that ``call`` draws a row from, where it is not the one that was given."""

    def of_row(prompt: Any) -> Any:
        place = row // (call.arguments.get("num_images_per_prompt") or 1)
        return prompt[place % len(prompt)] if isinstance(prompt, list | tuple) and prompt else prompt

    drawn, asked = (of_row(one.arguments.get("prompt")) for one in (call, given))
    return None if drawn is None or drawn == asked else str(drawn)


def _sum(before: int | None, found: int | None) -> int | None:
    return found if before is None else before if found is None else before + found


def _redraw(
    drawing: Drawing,
    call: BoundCall,
    drawn: Drawn,
    rows: list[int],
    rejected_for: Sequence[frozenset[str]],
) -> tuple[Redraw, Drawing]:
    """The call that draws ``rows`` again: only them where the arguments can be taken apart, else all beside them."""
    total, generator = len(drawn.decisions), call.arguments.get("generator")
    seeds = {row: draw_seed(generator, row) for row in rows}
    alone = call.can_slice(total)
    drawing_rows = rows if alone else list(range(total))
    given = [seeds.get(row, seeds[rows[0]]) for row in drawing_rows]
    generators = [generator_for(seed, generator) for seed in given]
    redraw = Redraw(
        drawing.pipe,
        call.for_rows(rows, generators) if alone else call.for_all_rows(generators),
        wanted=[drawing_rows.index(row) for row in rows],
        decisions=[drawn.decisions[row] for row in drawing_rows],
        seeds=given,
        filter=drawing.policy.filter,
    )
    known = tuple(rejected_for[row] if row in seeds else frozenset() for row in drawing_rows)
    return redraw, replace(drawing.of_rows(drawing_rows, redraw.wanted), rejected_for=known)


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
        found = _why_withheld([decisions[row] for row in withheld], total)
        if policy.on_exhausted == "raise":
            if not any(decisions[row].accepted is False for row in withheld):
                raise FilterFailedError(f"{found}; no image is returned")
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


def _why_withheld(decisions: Sequence[Decision], total: int) -> str:
    attempts = max(one.attempts for one in decisions)
    memorised = sum(one.accepted is False for one in decisions)
    found = f"{memorised} of {total} samples were memorised in each of {attempts} attempt(s)"
    reasons = {one.reason: None for one in decisions if one.accepted is None}
    if not reasons:
        return found
    unjudged = f"{len(decisions) - memorised} of {total} samples were not judged: {'; '.join(reasons)}"
    return f"{found}, {unjudged}" if memorised else unjudged
