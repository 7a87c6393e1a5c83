"""Intervals, discoveries and chance against naive references that count in whole numbers."""

from __future__ import annotations

import random
from fractions import Fraction
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcmem_filter.calibration import fit
from lcmem_filter.report.statistics import (
    benjamini_hochberg,
    chance_of,
    held_out_for,
    rate_of,
    smallest_group,
)


def tail(counts: range, of: int, p: float) -> float:
    """P(Binomial(of, p) in counts), term by term."""
    return sum(comb(of, i) * p**i * (1 - p) ** (of - i) for i in counts)


@pytest.mark.parametrize(("count", "of"), [(0, 10), (1, 10), (3, 7), (10, 10), (2, 300), (150, 300)])
def test_interval_ends_where_the_tails_are_as_likely_as_the_confidence_allows(count, of):
    found = rate_of(count, of)
    assert found.low <= found.share <= found.high
    assert (found.low == 0) == (count == 0) and (found.high == 1) == (count == of)
    if count:
        assert tail(range(count, of + 1), of, found.low) == pytest.approx(0.025)
    if count < of:
        assert tail(range(count + 1), of, found.high) == pytest.approx(0.025)


@pytest.mark.parametrize(
    ("count", "of", "independent"), [(270, 300, 100), (271, 300, 100), (0, 6, 3), (6, 6, 3)]
)
def test_interval_of_samples_in_groups_covers_that_of_as_many_samples_as_groups(count, of, independent):
    found = rate_of(count, of, independent=independent)
    assert (found.count, found.of) == (count, of)
    assert found.low == rate_of(count * independent // of, independent).low
    assert found.high == rate_of(-(-count * independent // of), independent).high
    single = rate_of(count, of)
    assert found.low <= single.low and found.high >= single.high and found != single
    assert rate_of(count, of, independent=of) == single


def test_interval_of_a_large_and_of_an_empty_set():
    assert rate_of(0, 1_000_000).high == pytest.approx(3.689e-6, rel=1e-3)  # log(1 / 0.025) / n
    nothing = rate_of(0, 0)
    assert (nothing.share, nothing.low, nothing.high) == (0, 0, 1)


def naive_benjamini_hochberg(p_values: list[Fraction], rate: Fraction) -> list[int]:
    m = len(p_values)
    for i in range(m, 0, -1):
        within = [j for j, p in enumerate(p_values) if p <= rate * i / m]
        if len(within) >= i:
            return within
    return []


@given(
    st.lists(st.integers(1, 40), max_size=30),
    st.sampled_from([Fraction(1, 20), Fraction(1, 10), Fraction(1, 2)]),
)
def test_discoveries_are_those_of_the_definition(ranks, rate):
    exact = [Fraction(rank, 40) for rank in ranks]
    found = benjamini_hochberg([float(p) for p in exact], float(rate))
    assert found == naive_benjamini_hochberg(exact, rate)


@pytest.mark.parametrize(
    ("m", "copies", "n", "rate"), [(86, 43, 19, 0.1), (43, 43, 19, 0.05), (86, 43, 9, 0.2)]
)
def test_p_values_that_lie_on_the_line_are_discovered_whatever_floats_make_of_it(m, copies, n, rate):
    assert 1 / (n + 1) > rate * copies / m  # equal in fractions
    assert len(benjamini_hochberg([1 / (n + 1)] * copies + [1.0] * (m - copies), rate)) == copies


@given(st.integers(1, 400), st.integers(1, 500), st.sampled_from([0.05, 0.1, 0.2]))
def test_smallest_group_is_where_discoveries_begin(m, n, rate):
    fewest = smallest_group(m, n, rate)
    for copies in {max(1, fewest - 1), fewest}:
        if copies <= m:
            p_values = [1 / (n + 1)] * copies + [1.0] * (m - copies)
            assert len(benjamini_hochberg(p_values, rate)) == (copies if copies >= fewest else 0)


@given(st.integers(1, 400), st.integers(1, 5), st.sampled_from([0.05, 0.1, 0.2]))
def test_held_out_images_that_are_asked_for_are_just_enough(m, copies, rate):
    n = held_out_for(copies, m, rate)
    assert smallest_group(m, n, rate) <= copies
    if n > 1:
        assert smallest_group(m, n - 1, rate) > copies


@pytest.mark.parametrize(("n", "rate", "m"), [(99, 0.05, 40), (999, 0.01, 300), (20, 0.2, 7), (19, 0.05, 1)])
def test_chance_is_a_count_over_all_orders_of_held_out_and_examined_scores(n, rate, m):
    calibration = fit([i / n for i in range(n)], rate, "sd", n)
    k = sum(score >= calibration.threshold for score in calibration.scores)
    # of all orders in which m new scores can fall among n old ones, those with i above the k-th largest old one
    pmf = [comb(k - 1 + i, i) * comb(n - k + m - i, m - i) / comb(n + m, m) for i in range(m + 1)]
    assert sum(pmf) == pytest.approx(1)
    for rejected in (0, 1, m):
        found = chance_of(calibration, m, rejected)
        assert found.probability == pytest.approx(sum(pmf[rejected:]), rel=1e-6)
    assert found.expected == pytest.approx(sum(i * p for i, p in enumerate(pmf)))
    assert sum(pmf[: found.low]) < 0.025 and sum(pmf[: found.low + 1]) >= 0.025 - 1e-9
    assert sum(pmf[: found.high]) < 0.975 and sum(pmf[: found.high + 1]) >= 0.975 - 1e-9


def test_chance_is_what_happens_when_thresholds_are_drawn():
    draw, n, m = random.Random(0), 99, 50
    counts = []
    for _ in range(2000):
        threshold = sorted(draw.random() for _ in range(n))[-5]  # 5 of 100
        counts.append(sum(draw.random() > threshold for _ in range(m)))
    found = chance_of(fit([i / n for i in range(n)], 0.05, "sd", n), m, 0)
    assert sum(counts) / len(counts) == pytest.approx(found.expected, abs=0.15)
    inside = sum(found.low <= count <= found.high for count in counts) / len(counts)
    assert 0.94 <= inside <= 0.99
