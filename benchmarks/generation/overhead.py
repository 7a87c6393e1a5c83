"""What the filter costs, beside a check of the finished images: the same calls, in turns, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from math import comb
from typing import Any

import torch

from lcmem_filter import MemorizationFilter, MemorizationIndex, load_encoder
from lcmem_filter.images import to_pixels
from lcmem_filter.index.recent import Recent


def overhead(
    pipe: Any,
    index: MemorizationIndex,
    prompts: Sequence[str],
    options: dict[str, Any],
    batch: int,
    repeats: int,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, Any]:
    """Seconds a batch by ``clock``: plain, with the filter at the gate, with the finished images encoded and judged.

    The last is what a check outside the pipeline does: it gets pictures, so it has to encode them before the same head
    and index can judge them. Nothing is known of the samples' neighbours in the index, as at the start of a job, but
    for ``"filter, neighbours compared before"``, as late in a long one.
    """
    encoder = load_encoder(index.encoder_source.path).to(index.head.device)
    judge = MemorizationFilter(index)

    def draw(number: int) -> list[Any]:
        generators = [torch.Generator().manual_seed(1000 * number + row) for row in range(batch)]
        chosen = [prompts[(batch * number + row) % len(prompts)] for row in range(batch)]
        return list(pipe(chosen, generator=generators, **options).images)

    def plain(number: int) -> None:
        draw(number)

    def filtered(number: int, known: bool = False) -> float:
        pipe.with_memorization_filter(index, on_memorized="flag")  # which is done once a job
        index.recent = Recent()
        try:
            if known:
                draw(number)
            since = clock()
            draw(number)
        finally:
            pipe.without_memorization_filter()
        return since

    def image_space(number: int) -> None:
        index.recent = Recent()
        pixels = torch.stack([to_pixels(image, index.resolution) for image in draw(number)])
        judge.judge(encoder.encode(pixels.to(index.head.device)))

    ways: dict[str, Callable[[int], float | None]] = {
        "plain": plain,
        "filter": filtered,
        "filter, neighbours compared before": partial(filtered, known=True),
        "image_space_check": image_space,
    }
    seconds = in_turns(ways, repeats, clock)
    return {
        "batch_size": batch,
        "repeats": repeats,
        "seconds_a_batch": {name: round(statistics.median(values), 4) for name, values in seconds.items()},
        "share_of_generation_time": shares(seconds),
    }


def in_turns(
    ways: Mapping[str, Callable[[int], float | None]], repeats: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds by ``clock`` that each way takes in each of ``repeats`` rounds, which begin with another each time, after
    one to warm up.

    Args:
        ways: Called with the number of the round; what one returns is when its time began, ``None`` for when it was
            called.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-1, repeats):
        for name in sorted(ways, key=lambda name: (number + list(ways).index(name)) % len(ways)):
            called = clock()
            began = ways[name](number + 1)
            if number >= 0:
                seconds[name].append(clock() - (called if began is None else began))
    return seconds


def shares(seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    """``share`` of every way but the first, over the first."""
    (_, base), *others = seconds.items()
    return {name: share(values, base) for name, values in others}


def share(values: list[float], base: list[float]) -> dict[str, Any]:
    """Extra time over ``base``, paired by round: its median, and the order statistics that hold the true one.

    Those of ranks k and n + 1 - k hold it with probability 1 - 2 P(Binomial(n, 1/2) < k), whatever the distribution
    (David and Nagaraja, Order Statistics, section 7.1); k is the largest for which that is 95 % or more, 1 where none
    is: of six rounds the range, 97 %.
    """
    extra = sorted(value / plain - 1 for value, plain in zip(values, base, strict=True))
    n = len(extra)
    missed = list(accumulate(comb(n, below) / 2 ** (n - 1) for below in range(n)))
    k = max(sum(chance <= 0.05 for chance in missed[: n // 2]), 1)
    return {
        "median": round(statistics.median(extra), 4),
        "interval": [round(extra[k - 1], 4), round(extra[n - k], 4)],
        "confidence": round(1 - missed[k - 1], 4),
        "n": n,
    }
