"""What was computed of rows lately."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import torch

from lcmem_filter.index.recent import Recent

ONE = 4 * 4
"""Bytes of what ``Computed`` gives for a row."""


class Computed:
    """Four times its number for each row, counted."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, rows: list[int]) -> torch.Tensor:
        self.rows += rows
        return torch.tensor(rows, dtype=torch.float32)[:, None].expand(-1, 4)


def test_each_row_is_computed_once_and_given_in_the_order_asked():
    recent, computed = Recent(), Computed()
    for rows in ([3, 1], [1, 2, 3], [2]):
        assert recent.get(rows, "", computed)[:, 0].tolist() == rows
    assert computed.rows == [3, 1, 2]


def test_those_not_asked_for_longest_make_room():
    recent, computed = Recent(3 * ONE), Computed()
    for rows in ([0, 1, 2], [0], [3]):
        recent.get(rows, "", computed)
    assert computed.rows == [0, 1, 2, 3]
    recent.get([0, 2, 3], "", computed)
    assert computed.rows == [0, 1, 2, 3]
    recent.get([1], "", computed)
    assert computed.rows == [0, 1, 2, 3, 1]


def test_more_rows_than_there_is_room_for_are_given_all_the_same():
    for room in (0, 2 * ONE):
        recent, computed = Recent(room), Computed()
        assert recent.get(range(5), "", computed)[:, 0].tolist() == [0, 1, 2, 3, 4]
        recent.get([4], "", computed)
        assert computed.rows == ([0, 1, 2, 3, 4] if room else [0, 1, 2, 3, 4, 4])


def test_what_is_kept_holds_nothing_else_in_memory():
    recent = Recent()
    recent.get(range(50), "", Computed())
    assert all(one.untyped_storage().nbytes() == ONE for one in recent._kept.values())


def test_of_another_thing_it_is_computed_anew():
    recent, computed = Recent(), Computed()
    for what in ("one", "other", "other", "one"):
        recent.get([1], what, computed)
    assert computed.rows == [1, 1, 1]


def test_a_copy_computes_its_own():
    recent, computed = Recent(3 * ONE), Computed()
    recent.get([1], "", computed)
    for copied in (copy.deepcopy(recent), pickle.loads(pickle.dumps(recent))):
        copied.get([1, 2, 3, 4], "", computed)
        assert len(copied._kept) == 3
    assert computed.rows == [1, 1, 2, 3, 4, 1, 2, 3, 4]


def test_threads_get_what_they_asked_for():
    recent, computed = Recent(20 * ONE), Computed()

    def asked(number: int) -> bool:
        draw = torch.Generator().manual_seed(number)
        rows = torch.randperm(60, generator=draw)[:15].tolist()
        return recent.get(rows, number % 2, computed)[:, 0].tolist() == rows

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(asked, range(400)))
