"""The filter: latents in, decisions out; closed where anything goes wrong."""

from __future__ import annotations

import copy
import pickle
import threading
import time
import warnings
from dataclasses import replace

import pytest
import torch

from lcmem_filter import MemorizationFilter, MemorizationIndex, verification
from lcmem_filter.calibration import calibrate, fit
from lcmem_filter.errors import ArtifactNotFoundError, CalibrationError, FilterFailedError, LatentSpaceError
from lcmem_filter.verification import Scored

from tests.index.material import build, pictures, saved_encoder
from tests.tiny import encode_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("filter")
    calibrate(
        build(where, images=40),
        pictures(where / "held", range(100, 200)),
        false_rejection_rate=0.05,
        progress=False,
    )
    return where


def latents(folder, name: str, rows: range) -> torch.Tensor:
    source = pictures(folder / name, rows)
    encoded = encode_images(source, range(len(source)), saved_encoder(folder), 32).latents
    assert encoded is not None
    return encoded


def test_training_images_are_rejected_and_new_ones_pass(folder):
    judge = MemorizationFilter(folder / "index")
    copies = judge.judge(latents(folder, "train", range(40)))
    assert [d.accepted for d in copies] == [False] * 40
    assert [d.neighbours[0].id for d in copies] == [f"{i:03d}.png" for i in range(40)]
    assert all(d.score > d.threshold and d.p_value == 1 / 101 for d in copies)
    fresh = judge.judge(latents(folder, "fresh", range(500, 600)))
    accepted = [d.accepted for d in fresh]
    assert accepted.count(True) >= 85  # 95 % promised; the realised rate scatters
    assert all((d.p_value <= 0.05) == (d.accepted is False) for d in fresh)
    assert all(len(d.neighbours) == 5 and d.attempts == 1 and d.seed is None for d in fresh)


def test_a_held_out_image_has_the_rank_of_its_score(folder):
    judge = MemorizationFilter(folder / "index")
    decisions = judge.judge(latents(folder, "held", range(100, 200)))
    p_values = sorted(d.p_value for d in decisions)
    assert p_values == pytest.approx([(i + 2) / 101 for i in range(100)], abs=0.011)


def test_half_precision_latents_are_judged_in_float32(folder):
    judge, given = MemorizationFilter(folder / "index"), latents(folder, "fresh", range(500, 600))[:4]
    whole = judge.judge(given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = judge.judge(given)
    assert [d.score for d in inside] == [d.score for d in whole]
    assert [d.score for d in judge.judge(given.half())] == pytest.approx([d.score for d in whole], abs=2e-3)


def test_anything_that_goes_wrong_raises(folder, monkeypatch):
    judge, good = MemorizationFilter(folder / "index"), latents(folder, "train", range(40))[:2]
    bad = good.clone()
    bad[1, 0, 0, 0] = float("nan")
    with pytest.raises(FilterFailedError, match="NaN"):
        judge.judge(bad)
    with pytest.raises(FilterFailedError, match=r"constant.*no image is returned"):
        judge.judge(torch.cat([good, torch.full_like(good[:1], 0.25)]))
    with pytest.raises(LatentSpaceError):
        judge.judge(torch.randn(2, 16, 8, 8))
    monkeypatch.setattr(MemorizationIndex, "propose", lambda *_: 1 / 0)
    with pytest.raises(
        FilterFailedError, match=r"could not judge latents of shape \(2, 4, 16, 16\): ZeroDivisionError"
    ):
        judge.judge(good)
    monkeypatch.undo()
    monkeypatch.setattr("lcmem_filter.filter.score_latents", lambda *_: [])
    with pytest.raises(FilterFailedError, match="0 decisions for 2 latents"):
        judge.judge(good)


def test_latents_of_another_size_are_judged_with_one_warning(folder):
    judge, given = MemorizationFilter(folder / "index"), latents(folder, "train", range(40))[:2]
    larger = torch.nn.functional.interpolate(given, scale_factor=2, mode="bilinear")
    with pytest.warns(
        UserWarning, match=r"built and calibrated at 32 px \(latents 16x16\), these latents are 32x32"
    ):
        decisions = judge.judge(larger)
    assert [d.accepted for d in decisions] == [False, False]
    assert judge.judge(larger) == decisions  # silent now: warnings are errors here


def test_no_index_no_calibration_no_filter(tmp_path):
    with pytest.raises(ArtifactNotFoundError, match="no such folder"):
        MemorizationFilter(tmp_path / "missing")
    index = build(tmp_path)
    with pytest.raises(
        CalibrationError, match=r"no threshold for latents of 'sd' yet; run: lcmem-filter calibrate"
    ):
        MemorizationFilter(index)
    with pytest.raises(LatentSpaceError, match="no stem for latent space 'flux'"):
        MemorizationFilter(index, space="flux")
    index.set_calibration(replace(fit([0.0] * 30, 0.1, "sd", 30), statistic="of long ago"))
    with pytest.raises(CalibrationError, match="only another version's threshold"):
        MemorizationFilter(MemorizationIndex.load(index.path))


def test_copies_share_the_index_and_pickles_name_its_folder(folder):
    judge = MemorizationFilter(folder / "index")
    assert copy.deepcopy(judge) is judge
    again = pickle.loads(pickle.dumps(judge))
    assert len(pickle.dumps(judge)) < 1000 and again.calibration == judge.calibration


def test_filters_of_several_devices_bring_their_index_to_each_in_turn(tmp_path, monkeypatch):
    index = build(tmp_path)
    index.set_calibration(fit([0.1] * 30, 0.1, "sd", 30))
    at_once, most, counting = [], [], threading.Lock()

    def score(*_):
        with counting:
            at_once.append(1)
            most.append(len(at_once))
        time.sleep(0.05)
        with counting:
            at_once.pop()
        return [Scored(0.0, ())]

    monkeypatch.setattr("lcmem_filter.filter.score_latents", score)
    judges = [MemorizationFilter(index) for _ in range(4)]
    threads = [threading.Thread(target=judge.score, args=(torch.zeros(1, 4, 8, 8),)) for judge in judges]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4


def test_a_pickle_is_refused_once_its_index_was_calibrated_again(tmp_path):
    index = build(tmp_path)
    index.set_calibration(fit([0.1] * 30, 0.1, "sd", 30))
    judge = MemorizationFilter(index)
    pickled = pickle.dumps(judge)
    assert pickle.loads(pickled).fingerprint == judge.fingerprint == index.fingerprint
    index.set_calibration(fit([0.2] * 30, 0.1, "sd", 30))
    for made in (pickled, pickle.dumps(judge)):  # the filter goes on judging by what it was made with
        with pytest.raises(CalibrationError, match="calibrated again since this filter judged by it"):
            pickle.loads(made)


def test_a_size_is_compared_with_that_of_the_calibration_in_the_samples_own_space(folder):
    judge = MemorizationFilter(folder / "index")
    assert judge.calibration.latent_size == judge.index.latent_size == (16, 16)
    given = latents(folder, "fresh", range(500, 600))[:1]
    judge.calibration = replace(
        judge.calibration, latent_size=(8, 8)
    )  # of an encoder that shrinks twice as much
    with pytest.warns(UserWarning, match=r"latents 8x8\), these latents are 16x16"):
        judge.judge(given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        judge.judge(given[..., ::2, ::2])


def test_less_is_asked_for_to_reject_what_was_drawn_again(folder, monkeypatch):
    judge, latent = MemorizationFilter(folder / "index"), latents(folder, "fresh", range(500, 600))[:1]
    scores = judge.calibration.scores
    assert judge.calibration.threshold == scores[-5]
    (one,) = judge.judge(latent)
    nearest, other = one.neighbours[0].id, one.neighbours[1].id
    found = [Scored(-1.0, one.neighbours)]
    monkeypatch.setattr("lcmem_filter.filter.score_latents", lambda *_: found)
    between = replace(one, accepted=True, score=(scores[-10] + scores[-9]) / 2, threshold=scores[-5])
    rejected = judge.decide_again(between, latent, ["999.png"])
    assert (rejected.accepted, rejected.threshold, rejected.reason) == (False, scores[-10], "")
    assert rejected.score > rejected.threshold
    below = replace(between, score=scores[0] - 0.1)
    assert judge.decide_again(below, latent, ["999.png"]).accepted is True
    recurring = judge.decide_again(below, latent, ["999.png", nearest])
    assert recurring.accepted is False and nearest in recurring.reason
    assert recurring.matched_ids == (nearest,)
    swapped = [replace(near, latent_similarity=1.0 - near.latent_similarity) for near in one.neighbours]
    parts = max(swapped, key=lambda near: near.latent_similarity).id
    assert parts != nearest
    found = [Scored(-1.0, tuple(swapped))]
    assert judge.decide_again(below, latent, [parts]).accepted is False
    assert judge.decide_again(below, latent, [({*"abc", other} - {parts}).pop()]).accepted is True
    already = replace(one, accepted=False, threshold=-1.0)
    assert judge.decide_again(already, latent, [nearest]) == already


def test_what_is_drawn_again_is_compared_with_what_it_was_rejected_for_wherever_its_embedding_lies(
    folder, monkeypatch
):
    judge = MemorizationFilter(folder / "index")
    copied, latent = judge.index.records[3].id, judge.index.latents(torch.tensor([3]))
    proposed = verification.shortlisted

    def led_away(index, asking, latents=None):
        rows = proposed(index, asking, latents)
        return rows[:, (rows != 3).all(0)]

    monkeypatch.setattr(verification, "shortlisted", led_away)
    (one,) = judge.judge(latent)
    assert copied not in [near.id for near in one.neighbours]
    passed = replace(one, accepted=True, score=-1.0)
    again = judge.decide_again(passed, latent, [judge.index.records[4].id, copied])
    assert (again.accepted, again.neighbours[0].id, again.reason) == (False, copied, "")
    assert again.score == pytest.approx(1, abs=0.01) and again.p_value < one.p_value
    allowed = replace(passed, allowed_ids=(judge.index.records[5].id,))
    assert judge.decide_again(allowed, latent, [copied]).neighbours[0].id == copied
    with pytest.raises(FilterFailedError, match="NaN or infinity"):
        judge.decide_again(passed, latent * float("nan"), [copied])


def test_an_index_that_rejects_more_keeps_its_own_threshold(folder):
    judge = MemorizationFilter(folder / "index")
    judge.calibration = fit(judge.calibration.scores, 0.2, judge.space, 100)
    latent = latents(folder, "fresh", range(500, 600))[:1]
    (one,) = judge.judge(latent)
    again = judge.decide_again(replace(one, accepted=True, score=-1.0), latent, [])
    assert again.accepted is True and again.threshold == judge.calibration.threshold
    assert judge.calibration.threshold_at(0.2) == judge.calibration.threshold
    assert judge.calibration.threshold_at(0.001) == float("inf")
