"""Training images that a sample may resemble: they alone are exempt, and the rest is judged without them."""

from __future__ import annotations

import pytest
import torch

from lcmem_filter import MemorizationFilter, MemorizationIndex
from lcmem_filter.calibration import calibrate
from lcmem_filter.errors import AllowedIdsError
from lcmem_filter.exemption import IndexWithout

from tests.index.material import build, pictures, saved_encoder
from tests.tiny import encode_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An index of 40 pictures, of which the last two are the first two once more."""
    where = tmp_path_factory.mktemp("exemption")
    source = pictures(where / "train", range(40))
    for seed in (0, 1):
        (where / "train" / f"{38 + seed:03d}.png").write_bytes(
            (where / "train" / f"{seed:03d}.png").read_bytes()
        )
    assert len(source) == 40
    calibrate(
        build(where, images=40),
        pictures(where / "held", range(100, 200)),
        false_rejection_rate=0.05,
        progress=False,
    )
    return where


@pytest.fixture(scope="module")
def judge(folder):
    return MemorizationFilter(folder / "index")


@pytest.fixture(scope="module")
def train(folder):
    source = pictures(folder / "train", range(40))
    return encode_images(source, range(40), saved_encoder(folder), 32).latents


def test_a_sample_is_judged_as_if_the_index_lacked_what_it_may_resemble(folder, judge, train, tmp_path):
    (found,) = judge.judge(train[5:6], allowed_ids=["005.png"])
    without = tmp_path / "train"
    without.mkdir()
    for path in (folder / "train").glob("*.png"):
        if path.name != "005.png":
            (without / path.name).write_bytes(path.read_bytes())
    saved_encoder(tmp_path)
    smaller = build(tmp_path, images=39)  # of those files: it writes none where the last is there
    assert len(smaller) == 39 and "005.png" not in {record.id for record in smaller.records}
    smaller.set_calibration(judge.calibration)
    (expected,) = MemorizationFilter(smaller).judge(train[5:6])
    assert found.accepted and found.allowed_ids == ("005.png",) and expected.allowed_ids == ()
    assert found.score == pytest.approx(expected.score, abs=1e-5)
    assert [near.id for near in found.neighbours] == [near.id for near in expected.neighbours]
    assert not judge.judge(train[5:6])[0].accepted


def test_a_repetition_under_another_id_is_not_exempt(judge, train):
    (found,) = judge.judge(train[:1], allowed_ids=["000.png"])
    assert not found.accepted and found.neighbours[0].id == "038.png"
    assert judge.judge(train[:1], allowed_ids=["000.png", "038.png"])[0].accepted


def test_one_sequence_for_all_rows_or_one_for_each(judge, train):
    rows = train[[3, 4, 3]]
    of_all = judge.judge(rows, allowed_ids=["003.png"])
    assert [d.accepted for d in of_all] == [True, False, True]
    of_each = judge.judge(rows, allowed_ids=[["003.png", "003.png"], ["004.png", "003.png"], []])
    assert [d.accepted for d in of_each] == [True, True, False]
    assert [d.allowed_ids for d in of_each] == [("003.png",), ("004.png", "003.png"), ()]
    assert of_each[2].score == pytest.approx(judge.judge(rows)[2].score, abs=1e-6)
    assert judge.judge(rows, allowed_ids=[]) == judge.judge(rows)


@pytest.mark.parametrize(
    ("allowed_ids", "message"),
    [
        (
            ["nowhere.png"],
            r"'nowhere\.png', but index .* holds no such image \(its ids are like '000\.png'\)",
        ),
        ([["000.png"], ["nowhere.png"]], "holds no such image"),
        ("000.png", "a sequence of ids for all images"),
        (["000.png", ["001.png"]], "one such sequence for each"),
        ([[0], [1]], "one such sequence for each"),
        ([["000.png"]], r"1 sequences of ids for 2 images"),
        ([f"{row:03d}.png" for row in range(40)], "all 40 images"),
    ],
)
def test_what_does_not_fit_is_refused(judge, train, allowed_ids, message):
    with pytest.raises(AllowedIdsError, match=message):
        judge.judge(train[:2], allowed_ids=allowed_ids)


@pytest.mark.parametrize("backend", ["exact", "faiss"])
def test_further_rows_take_the_places_of_those_left_out(folder, backend):
    index = MemorizationIndex.load(folder / "index", backend=backend)
    queries = torch.nn.functional.normalize(torch.randn(3, 64, generator=torch.Generator().manual_seed(0)))
    assert index.embeddings(torch.tensor([0])).shape[1] == 64
    whole = index.search(queries, 40)
    left_out = sorted({int(whole.rows[row, row]) for row in range(3)})
    hits = IndexWithout(index, [index.records[row].id for row in left_out]).search(queries, 10)
    for row in range(3):
        kept = [place for place in range(40) if int(whole.rows[row, place]) not in left_out][:10]
        assert hits.similarity[row].tolist() == pytest.approx(whole.similarity[row, kept].tolist(), abs=1e-6)
        assert not set(hits.rows[row].tolist()) & set(left_out)
    assert IndexWithout(index, ["000.png"]).search(queries, 50).rows.shape == (3, 39)
