"""Attach the filter to a diffusers pipeline, and take it off again."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any, TypeVar, get_args

from ..errors import CalibrationError, FilterFailedError, UnsupportedPipelineError, check_kind
from ..filter import MemorizationFilter
from ..index import MemorizationIndex
from ..types import OnExhausted, OnMemorized
from .call import decoder_of, filtered_call
from .early_stop import EarlyStop
from .policy import PLAIN, POLICY, Policy, attached_policy, plain_class
from .rungs import DEFAULT_LADDER, Rung, make_rungs
from .spaces import identify_space
from .watch import why_not_early

Pipe = TypeVar("Pipe")


def attach(
    pipe: Pipe,
    index: MemorizationIndex | str | os.PathLike[str],
    *,
    on_memorized: OnMemorized = "resample",
    max_resamples: int = 4,
    max_seconds: float | None = None,
    rungs: Sequence[str | Rung] = DEFAULT_LADDER,
    on_exhausted: OnExhausted = "blank",
    allow_unindexed: bool = False,
    allow_partial_latents: bool = False,
    early_stop: EarlyStop | str | os.PathLike[str] | None = None,
) -> Pipe:
    """Make ``pipe`` return no image that its training set holds; also a method of every ``DiffusionPipeline``.

    Attaching again replaces what was attached before. The pipeline keeps its identity, its class name and its
    behaviour: a call in which nothing is rejected returns bit for bit what the plain pipeline returns.

    Args:
        pipe: A latent image pipeline of diffusers.
        index: A calibrated index of the pipeline's training set, or the folder of one. A threshold that is set later
            counts once the filter is attached again.
        on_memorized: ``"flag"`` returns memorised samples with their decision; ``"reject"`` withholds them;
            ``"resample"`` draws them again first.
        max_resamples: How often a sample is drawn again, at least 1 where ``on_memorized`` is ``"resample"``.
        max_seconds: In one call, nothing is drawn again once drawing again has taken so long.
        rungs: How a sample is drawn again, each way once and the last one until it is accepted: names in
            ``pipeline.rungs.RUNGS``, or objects with the methods of ``pipeline.rungs.Rung``. Those that a pipeline has
            no use for are skipped.
        on_exhausted: A sample that stays rejected is replaced by a ``"blank"`` image, dropped (``"drop"``), or raises
            ``MemorizationError`` (``"raise"``).
        allow_unindexed: Accept an index that lacks training images which could not be read; copies of those are not
            found. An index that was loaded so is accepted as it is.
        allow_partial_latents: Return latents of a denoising that ends early (``denoising_end``, ``sigmas``) unjudged:
            ``accepted`` is ``None`` in their decisions. The pipeline that finishes them must be filtered itself.
        early_stop: Stop denoising samples that are certainly copies: an ``EarlyStop`` calibrated for this index and the
            pipeline's scheduler, or the file of one. Pipelines that cannot be stopped are named in a warning.

    Returns:
        ``pipe`` itself.

    Raises:
        ArtifactNotFoundError: no index lies at ``index``.
        CalibrationError: the index, or early stop, is not calibrated for this pipeline's latent space; or early stop
            is not for this index or this scheduler.
        IncompleteIndexError: training images are missing in the index.
        LatentSpaceError: the index's head has no stem for this pipeline's latent space.
        UnsupportedPipelineError: ``pipe`` is no latent image pipeline, or is modular.
    """
    _check_options(on_memorized, max_resamples, max_seconds, on_exhausted)
    ladder = make_rungs(rungs)
    _check_class(type(pipe))
    vae = decoder_of(pipe)
    if not isinstance(index, MemorizationIndex):
        if not isinstance(index, (str, os.PathLike)):
            check_kind("index", index, MemorizationIndex, "MemorizationIndex.load(PATH)")
        index = MemorizationIndex.load(index, allow_unindexed=allow_unindexed)
    space = identify_space(pipe, vae, index)
    judge = MemorizationFilter(index, space=space, allow_unindexed=allow_unindexed)
    stop = None if early_stop is None else _early_stop(pipe, judge, early_stop, on_memorized)
    policy = Policy(
        judge, on_memorized, max_resamples, on_exhausted, ladder, max_seconds, allow_partial_latents, stop
    )
    policy.decoders.remember(vae)
    return _wear(pipe, policy)


def detach(pipe: Pipe) -> Pipe:
    """Give ``pipe`` its plain class back; does nothing where no filter is attached."""
    plain = getattr(type(pipe), PLAIN, None)
    if plain is not None:
        pipe.__class__ = plain
        for name in (POLICY, "memorization_filter"):
            pipe.__dict__.pop(name, None)
    return pipe


@contextmanager
def attached(
    pipe: Any, index: MemorizationIndex | str | os.PathLike[str], **options: Any
) -> Iterator[Policy]:
    """``attach``, with its options, for the length of a block; what was attached before is put back."""
    before = pipe.__dict__.get(POLICY)
    attach(pipe, index, **options)
    try:
        yield attached_policy(pipe)
    finally:
        if before is None:
            detach(pipe)
        else:
            _wear(pipe, before)


def carry_over(source: Any, target: Pipe) -> Pipe:
    """Attach to ``target`` what is attached to ``source``, if anything; the decoder of ``target`` is checked anew.
    Early stop that was not calibrated for ``target`` is left out, with a warning."""
    policy = source.__dict__.get(POLICY)
    if policy is None:
        return target
    early = policy.early_stop
    if isinstance(early, EarlyStop):
        try:
            early.check(target, policy.filter)
        except CalibrationError as error:
            warnings.warn(f"early stop is not carried over: {error}", stacklevel=4)
            early = None
    return attach(
        target,
        policy.filter.index,
        on_memorized=policy.on_memorized,
        max_resamples=policy.max_resamples,
        max_seconds=policy.max_seconds,
        rungs=policy.rungs,
        on_exhausted=policy.on_exhausted,
        allow_unindexed=True,  # whoever attached it to the source accepted it
        allow_partial_latents=policy.allow_partial_latents,
        early_stop=early,
    )


def _early_stop(pipe: Any, judge: MemorizationFilter, given: Any, on_memorized: str) -> EarlyStop | None:
    """``given``, checked; ``None``, with a warning, where ``pipe`` cannot be stopped early."""
    if on_memorized == "flag":
        raise ValueError(
            "early_stop needs on_memorized='reject' or 'resample': what is stopped cannot be returned"
        )
    if isinstance(given, (str, os.PathLike)):
        given = EarlyStop.load(given)
    if not isinstance(given, EarlyStop):
        raise CalibrationError(
            f"early_stop must be calibrated for this index first, got {given!r}; attach the filter without it, then "
            "EarlyStop.fit(pipe, prompts)"
        )
    against = why_not_early(pipe)
    if against:
        warnings.warn(f"early stop is not in use: {against}", stacklevel=4)
        return None
    given.check(pipe, judge)
    return given


def _wear(pipe: Pipe, policy: Policy) -> Pipe:
    pipe.__class__ = filtered_class(plain_class(pipe))
    pipe.__dict__[POLICY] = policy
    pipe.__dict__["memorization_filter"] = policy.filter
    return pipe


@functools.cache
def filtered_class(plain: Any) -> type:
    """The subclass of pipeline class ``plain`` that a filtered pipeline wears, under the same name."""
    original = plain.__call__

    @functools.wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        policy = self.__dict__.get(POLICY)
        if policy is None:
            raise FilterFailedError(
                f"this {plain.__name__} was made from the class of a filtered pipeline but has no filter of its own; "
                "call with_memorization_filter(index) on it, or without_memorization_filter() to use it unfiltered"
            )
        return filtered_call(self, original, policy, args, kwargs)

    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        _warn_once_unfiltered(plain.__name__)
        return plain.save_pretrained(self, *args, **kwargs)

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        return _rebuild, (plain,), self.__dict__.copy()

    members = {
        "__call__": __call__,
        "__doc__": plain.__doc__,
        "__module__": plain.__module__,
        "__qualname__": plain.__qualname__,
        "__reduce_ex__": __reduce_ex__,
        "save_pretrained": save_pretrained,
        PLAIN: plain,
    }
    metaclass: Any = type(plain)
    made: type = metaclass(plain.__name__, (plain,), members)
    return made


def _rebuild(plain: type) -> Any:
    worn: Any = filtered_class(plain)
    return worn.__new__(worn)


@functools.cache
def _warn_once_unfiltered(name: str) -> None:
    warnings.warn(
        f"the saved {name} holds no memorization filter: whoever loads it must attach one again", stacklevel=4
    )


def _check_class(kind: type) -> None:
    """
    Raises:
        UnsupportedPipelineError: what pipelines of class ``kind`` draw does not come of calling them.
    """
    if any(one.__name__ == "ModularPipeline" for one in kind.__mro__):
        raise UnsupportedPipelineError(
            f"{kind.__name__} is modular, and hands out whatever is asked of its state; put a step before the decoder "
            "of its blocks, and make a pipeline of these: "
            "lcmem_filter.pipeline.modular.filter_before_decode(pipe.blocks, step).init_pipeline(...)"
        )
    if not any("__call__" in vars(one) for one in kind.__mro__):
        raise UnsupportedPipelineError(
            f"{kind.__name__} cannot be called, and what its own methods draw would not be filtered; use a pipeline of "
            "one task"
        )


def _check_options(
    on_memorized: str, max_resamples: int, max_seconds: float | None, on_exhausted: str
) -> None:
    for name, value, choices in (
        ("on_memorized", on_memorized, get_args(OnMemorized)),
        ("on_exhausted", on_exhausted, get_args(OnExhausted)),
    ):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    if not isinstance(max_resamples, Integral):
        raise ValueError(f"max_resamples must be a whole number, got {max_resamples!r}")
    if max_seconds is not None and not (isinstance(max_seconds, Real) and max_seconds >= 0):
        raise ValueError(f"max_seconds must be a number of seconds from 0 or None, got {max_seconds!r}")
    if on_memorized == "resample" and max_resamples < 1:
        raise ValueError(
            f"max_resamples must be at least 1 to resample, got {max_resamples}; use on_memorized='reject'"
        )
