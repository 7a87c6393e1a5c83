"""p-values and thresholds against their definitions, what is left out, and what is refused."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcmem_filter.calibration import calibrate, fit, judge_images, realised_rate
from lcmem_filter.errors import ArtifactError, CalibrationError, EmptyDataError, LatentSpaceError
from lcmem_filter.images import open_images
from lcmem_filter.index import MemorizationIndex
from lcmem_filter.latents import Encoder
from lcmem_filter.verification import score_latents

from tests.index.material import build, head, pictures, saved_encoder
from tests.tiny import fussy_encode, picture, tiny_vae, write_unjudgeable

SCORES = st.lists(st.integers(0, 40).map(lambda v: v / 40), min_size=20, max_size=80)


@given(SCORES, st.floats(0, 1))
@settings(deadline=None)
def test_p_value_is_its_definition(scores, score):
    calibration = fit(scores, 0.05, "sd", len(scores))
    assert calibration.p_value(score) == (1 + sum(s >= score for s in scores)) / (len(scores) + 1)


@given(SCORES, st.sampled_from([0.05, 0.1, 0.31]), st.floats(0, 1))
@settings(deadline=None)
def test_the_threshold_rejects_just_the_p_values_up_to_the_rate(scores, rate, score):
    calibration = fit(scores, rate, "sd", len(scores))
    assert (score > calibration.threshold) == (calibration.p_value(score) <= rate + 1e-12)


def test_the_promise_holds_on_exchangeable_scores():
    draw = np.random.default_rng(0)
    rates = []
    for _ in range(400):
        scores = draw.normal(size=1199)
        threshold = fit(scores[:199].tolist(), 0.05, "sd", 199).threshold
        rates.append((scores[199:] > threshold).mean())
    assert 0.045 < np.mean(rates) < 0.055  # k / (n + 1) = 10 / 200
    low, high = realised_rate(199, 0.05)
    inside = np.mean([low <= rate <= high for rate in rates])
    assert 0.9 < inside < 0.99  # 95 %, with 1,000 draws of noise on each rate


def test_realised_rate_is_the_known_one():
    closed_form = [1 - (1 - level) ** (1 / 99) for level in (0.025, 0.975)]  # of Beta(1, 99)
    np.testing.assert_allclose(realised_rate(99, 0.01), closed_form, rtol=1e-6)
    draws = np.random.default_rng(0).beta(10, 990, size=400_000)  # k = 10 of n = 999
    np.testing.assert_allclose(realised_rate(999, 0.01), np.quantile(draws, [0.025, 0.975]), rtol=0.01)


def test_too_few_images_are_told_how_many_are_needed():
    with pytest.raises(
        CalibrationError,
        match=r"needs at least 99 held-out images, got 98 usable \(3 left out: why\) \(98 allow 0\.011 and more\); ",
    ):
        fit([0.1] * 98, 0.01, "sd", 101, Counter(why=3))
    assert fit([0.1] * 98, 0.011, "sd", 98).n == 98
    with pytest.raises(
        CalibrationError, match=r"with 99 the rate comes out between 0\.03% and 3\.66%, with 999"
    ):
        fit([], 0.01, "sd", 0)
    assert fit([0.1] * 99, 0.01, "sd", 99).n == 99


def test_raising_the_rate_never_rejects_less():
    scores = np.random.default_rng(0).normal(size=300).tolist()
    thresholds = [fit(scores, rate, "sd", 300).threshold for rate in (0.01, 0.02, 0.05, 0.2)]
    assert thresholds == sorted(thresholds, reverse=True)


def test_calibration_is_kept_with_the_index(tmp_path):
    index = build(tmp_path)
    found = calibrate(
        index, pictures(tmp_path / "held", range(100, 160)), false_rejection_rate=0.1, progress=False
    )
    assert found.n == 60 and found.query_space == "sd" and not found.dropped
    assert index.calibration == found == MemorizationIndex.load(tmp_path / "index").calibration
    again = calibrate(
        tmp_path / "index", open_images(tmp_path / "held"), false_rejection_rate=0.2, progress=False
    )
    assert again.scores == found.scores and again.threshold <= found.threshold
    assert MemorizationIndex.load(tmp_path / "index").calibration == again


def test_what_would_raise_the_threshold_is_left_out(tmp_path):
    index = build(tmp_path, images=30)
    held = tmp_path / "held"
    pictures(held, range(100, 140))
    (held / "same.png").write_bytes((tmp_path / "train" / "003.png").read_bytes())
    picture(7).save(held / "near.webp", quality=95)
    (held / "broken.png").write_text("no image")
    (held / "twice.png").write_bytes((held / "100.png").read_bytes())
    found = calibrate(index, open_images(held), false_rejection_rate=0.1, progress=False)
    reasons = ("same file in the index", "near-duplicate in the index", "unreadable", "same file again")
    assert found.dropped == dict.fromkeys(reasons, 1)
    assert found.n == 40 and found.given == 44


def test_training_images_in_place_of_held_out_ones_are_told_before_any_is_encoded(tmp_path, monkeypatch):
    index = build(tmp_path, images=30)
    monkeypatch.setattr("lcmem_filter.calibration.judge_images", lambda *args, **more: pytest.fail("encoded"))
    with pytest.raises(CalibrationError, match=r"got 0 usable \(30 left out: same file in the index\)"):
        calibrate(index, open_images(tmp_path / "train"), false_rejection_rate=0.1, progress=False)
    assert index.calibration is None


def test_those_that_set_the_threshold_are_told_and_can_be_left_out(tmp_path):
    index = build(tmp_path, images=30)
    held = pictures(tmp_path / "held", range(100, 140))
    found = calibrate(index, held, false_rejection_rate=0.1, progress=False)
    assert [score for _, _, score in found.highest] == sorted(found.scores, reverse=True)[:20]
    assert found.highest[3][2] == found.threshold
    more = calibrate(index, held, false_rejection_rate=0.6, progress=False)
    assert len(more.highest) == 24 and more.highest[-1][2] == more.threshold
    (image, nearest, score), *_ = found.highest
    (judged,) = judge_images(index, held, [int(image[:3]) - 100], index.load_encoder(), "sd", progress=False)
    assert (judged.scored.neighbours[0].id, judged.scored.score) == (nearest, pytest.approx(score, abs=1e-5))
    again = calibrate(index, held, false_rejection_rate=0.1, leave_out={image}, progress=False)
    assert again.dropped == {"left out by name": 1}
    assert again.scores == pytest.approx(found.scores[:-1], abs=1e-5)
    assert again.threshold < found.threshold and image not in {one for one, _, _ in again.highest}
    with pytest.raises(CalibrationError, match=r"no held-out image 'x.png' to leave out \(1 such\)"):
        calibrate(index, held, false_rejection_rate=0.1, leave_out={"x.png"}, progress=False)


def test_images_that_cannot_be_judged_are_left_out_and_stop_nothing(tmp_path, monkeypatch):
    index = build(tmp_path)
    expected = calibrate(
        index, pictures(tmp_path / "held", range(100, 140)), false_rejection_rate=0.1, progress=False
    )
    write_unjudgeable(tmp_path / "held")
    monkeypatch.setattr("lcmem_filter.latents.encode_pixels", fussy_encode)
    found = calibrate(index, open_images(tmp_path / "held"), false_rejection_rate=0.1, progress=False)
    assert found.dropped == {"cannot be judged": 1, "unreadable": 1} and found.n == 40
    assert found.scores == pytest.approx(expected.scores, abs=1e-5)


def test_identities_count_once_and_must_be_unseen(tmp_path):
    source = pictures(tmp_path / "people", range(30), identities=1)
    index = MemorizationIndex.build(
        source, saved_encoder(tmp_path), head(), tmp_path / "index", resolution=32, progress=False
    )
    held = tmp_path / "held"
    pictures(held, range(28, 60), identities=1)  # persons 28 and 29 are in the index
    picture(300).save(held / "person040" / "other.png")
    found = calibrate(index, open_images(held), false_rejection_rate=0.1, progress=False)
    assert (
        found.dropped == {"identity is in the index": 2, "further image of an identity": 1} and found.n == 30
    )
    with pytest.raises(EmptyDataError, match="2 left out: identity is in the index"):
        calibrate(index, pictures(tmp_path / "known", range(2), identities=1), progress=False)


def test_subfolders_that_are_classes_hold_nothing_out(tmp_path):
    for name, seeds in (("normal", range(25)), ("ill", range(100, 125))):
        pictures(tmp_path / "train" / name, seeds)
    source = open_images(tmp_path / "train")
    index = MemorizationIndex.build(
        source, saved_encoder(tmp_path), head(), tmp_path / "index", resolution=32, progress=False
    )
    held = tmp_path / "held"
    pictures(held / "normal", range(200, 215))
    pictures(held / "other", range(300, 325))
    found = calibrate(index, open_images(held), false_rejection_rate=0.1, progress=False)
    assert found.n == 40 and not found.dropped

    pictures(
        held / "somebody", range(400, 402)
    )  # whoever names a person names persons, but for the index's classes
    found = calibrate(index, open_images(held), false_rejection_rate=0.1, progress=False)
    assert found.n == 17 and found.dropped == {"further image of an identity": 25}
    with pytest.raises(CalibrationError, match=r"25 left out: further image.*give the images in one folder"):
        calibrate(index, open_images(held), false_rejection_rate=0.05, progress=False)


def test_an_image_may_be_called_as_the_identity_that_it_shows(tmp_path):
    def people(name, seeds):
        pictures(tmp_path / name, seeds)
        rows = [f"{i:03d}.png,{i // 2},{i // 2}{'b' * (i % 2)}" for i in seeds]
        (tmp_path / name / "metadata.csv").write_text("\n".join(["file_name,identity,name", *rows]))
        return open_images(tmp_path / name, id_column="name")

    index = MemorizationIndex.build(
        people("train", range(6)),
        saved_encoder(tmp_path),
        head(),
        tmp_path / "index",
        resolution=32,
        progress=False,
    )
    assert index.identities.tolist() == [0, 0, 1, 1, 2, 2]
    found = calibrate(index, people("held", range(4, 44)), false_rejection_rate=0.1, progress=False)
    assert found.dropped == {"identity is in the index": 2, "further image of an identity": 19}


def test_a_column_of_held_out_images_names_people_however_many_images_share_a_name(tmp_path):
    pictures(tmp_path / "held", range(100, 142))
    rows = [f"{i:03d}.png,{'ab'[i % 2]}" for i in range(100, 142)]
    (tmp_path / "held" / "metadata.csv").write_text("\n".join(["file_name,identity", *rows]))
    index = build(tmp_path, images=20)
    found = calibrate(index, open_images(tmp_path / "held"), false_rejection_rate=0.5, progress=False)
    assert found.n == 2 and found.dropped == {"further image of an identity": 40}


def test_people_whom_the_index_believes_are_people_in_held_out_folders_too(tmp_path):
    for number, name in enumerate(("alice", "bob", "carol")):
        first = 100 * number
        pictures(tmp_path / "train" / name, range(first, first + 22))
        pictures(tmp_path / "held" / name, range(first + 50, first + 72))
    rows = [
        f"{path.parent.name}/{path.name},{path.parent.name}" for path in (tmp_path / "train").rglob("*.png")
    ]
    (tmp_path / "train" / "metadata.csv").write_text("\n".join(["file_name,identity", *rows]))
    index = MemorizationIndex.build(
        open_images(tmp_path / "train"), saved_encoder(tmp_path), head(), tmp_path / "index", resolution=32
    )
    (tmp_path / "held" / "carol").rename(tmp_path / "held" / "dave")
    found = calibrate(index, open_images(tmp_path / "held"), false_rejection_rate=0.5, progress=False)
    assert found.n == 1
    assert found.dropped == {"identity is in the index": 44, "further image of an identity": 21}


def test_further_images_of_what_is_left_out_by_name_are_left_out(tmp_path):
    index = build(tmp_path, images=20)
    held = open_images(pictures(tmp_path / "held", range(100, 106), identities=2) and tmp_path / "held")
    first = held.records[0]
    found = calibrate(index, held, false_rejection_rate=0.5, leave_out=[first.id], progress=False)
    assert first.identity is not None and found.n == 2
    assert (
        found.dropped["left out by name"] == found.dropped["further image of what was left out by name"] == 1
    )


def test_flat_folders_share_file_names_but_not_identities(tmp_path):
    index = build(tmp_path, images=20)
    held = tmp_path / "held"
    held.mkdir()
    for i in range(20):
        picture(200 + i).save(held / f"{i:03d}.png")
    assert calibrate(index, open_images(held), false_rejection_rate=0.1, progress=False).n == 20


def test_refusals(tmp_path):
    index = build(tmp_path)
    held = pictures(tmp_path / "held", range(100, 120))
    for rate in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(CalibrationError, match="between 0 and 1"):
            calibrate(index, held, false_rejection_rate=rate)
    with pytest.raises(LatentSpaceError):
        calibrate(index, held, false_rejection_rate=0.1, encoder=Encoder(tiny_vae(seed=9), "other"))
    with pytest.raises(
        TypeError, match=r"encoder has to be of Encoder, got str; load_encoder\(PATH\) gives one"
    ):
        calibrate(index, held, false_rejection_rate=0.1, encoder="vae")
    assert index.calibration is None


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_encoded(tmp_path, monkeypatch):
    index = build(tmp_path)
    monkeypatch.setattr("lcmem_filter.calibration.encode_batches", None)
    (index.path / "lock").mkdir()
    with pytest.raises(ArtifactError, match=r"cannot be written to.*copy it"):
        calibrate(
            index, pictures(tmp_path / "held", range(100, 120)), false_rejection_rate=0.1, progress=False
        )


def test_a_threshold_is_tried_on_the_index_itself(tmp_path):
    index = build(tmp_path, images=40)
    held = pictures(tmp_path / "held", range(100, 140))
    found = calibrate(index, held, false_rejection_rate=0.1, progress=False)
    rows = torch.arange(40)[torch.linspace(0, 39, 32).long()]
    mirrored = torch.flip(index.latents(rows).float(), [3])
    moved = torch.cat([mirrored[..., -1:], mirrored[..., :-1]], -1)
    moved = torch.cat([moved[:, :, -1:], moved[:, :, :-1]], 2)
    scores = [one.score for one in score_latents(index, moved, "sd")]
    assert found.own_found == (sum(score > found.threshold for score in scores), 32)
    assert found.own_found[0] > 0 and index.calibration.own_found == found.own_found
    without = build(tmp_path / "b", images=20, keep_latents=False)
    assert calibrate(without, held, false_rejection_rate=0.1, progress=False).own_found is None
