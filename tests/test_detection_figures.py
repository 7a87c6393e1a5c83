"""The figures of the detection benchmark on scores made by hand, against naive recomputations."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lcmem_filter.errors import CalibrationError
from lcmem_filter.images import open_images

from tests.tiny import picture, write_pictures

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "detection"
PEOPLE = 60


@pytest.fixture
def figures(monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("figures")
    for name in {file.stem for file in FOLDER.glob("*.py")}:
        sys.modules.pop(name, None)


def case(figures, rate: float = 0.1):
    """Sixty people with an image each in the test set, two domains, half of them unseen in each index."""
    draw = np.random.default_rng(0)
    rows = np.arange(PEOPLE)
    design = SimpleNamespace(
        half=rows % 2,
        strangers=rows,
        test_identity=lambda: rows + 100,
        test=SimpleNamespace(domains=np.where(rows < 20, "faces", "X-rays")),
    )
    kept = np.ones(PEOPLE, bool)
    kept[[3, 8]] = False
    judge = figures.Judge(design, kept, rate, draws=50, seed=0)
    top = draw.normal(1, 1, PEOPLE)
    own = np.where(draw.random(PEOPLE) < 0.2, -np.inf, top)
    answers = SimpleNamespace(top=top, own=own)
    strangers = draw.normal(0, 1, PEOPLE)
    strangers[~kept] = 50.0  # near-duplicates would spoil the thresholds
    measured = SimpleNamespace(strangers=strangers, tasks={"copies": answers})
    return judge, measured, SimpleNamespace(name="copies", rows=rows)


def test_thresholds_reject_the_rate_of_the_unseen_half_without_near_duplicates(figures):
    judge, measured, _ = case(figures)
    for half, threshold in enumerate(judge.thresholds(measured)):
        unseen = measured.strangers[judge.kept & (judge.design.half != half)]
        assert (unseen > threshold).sum() == int(0.1 * (len(unseen) + 1)) - 1
        assert threshold in unseen


def test_too_few_strangers_are_refused_before_anything_is_measured(figures):
    judge, _, _ = case(figures, rate=0.04)  # 29 and 29 unseen, of faces 9 and 9
    with pytest.raises(
        CalibrationError, match=r"needs at least 33 .* got 29 usable.*give more test identities"
    ):
        case(figures, rate=0.03)
    with pytest.raises(CalibrationError, match="got 9 usable"):
        judge.check_number(("faces",))
    every, faces = (
        SimpleNamespace(row=SimpleNamespace(domains=domains, label=label))
        for domains, label in (((), "of all"), (("faces",), "of one"))
    )
    absent: dict[str, str] = {}
    assert importlib.import_module("run").measurable([every, faces], judge, absent) == [every]
    assert set(absent) == {"of one"} and "faces alone" in absent["of one"]


def test_drawing_everybody_once_changes_nothing(figures):
    judge, measured, task = case(figures)
    once = np.ones((1, PEOPLE), int)
    assert np.array_equal(judge.drawn_thresholds(measured, once)[0], judge.thresholds(measured))
    found = figures.recalls(judge, measured, task, once)
    for domain, share in found.share.items():
        assert found.drawn[domain][0] == pytest.approx(share)


def test_a_draw_is_a_recomputation_on_who_was_drawn(figures):
    judge, measured, task = case(figures)
    weights = judge.weights()
    found = figures.recalls(judge, measured, task, weights)
    for d in range(5):
        who = np.repeat(np.arange(PEOPLE), weights[d])
        hits = {"faces": [], "X-rays": []}
        for half in (0, 1):
            unseen = np.sort(measured.strangers[who[judge.kept[who] & (judge.design.half[who] != half)]])
            threshold = unseen[-int(0.1 * (len(unseen) + 1))]
            for person in who[judge.design.half[who] == half]:
                hits[judge.design.test.domains[person]].append(
                    measured.tasks["copies"].own[person] > threshold
                )
        for domain, values in hits.items():
            assert found.drawn[domain][d] == pytest.approx(np.mean(values))


def test_a_threshold_that_is_the_largest_score_may_lie_higher_when_drawn_again(figures):
    judge, measured, task = case(figures, rate=0.04)  # one score of 29
    drawn = judge.drawn_thresholds(measured, judge.weights())
    above = drawn > judge.thresholds(measured)
    assert 0.3 < above.mean() < 0.95 and np.isfinite(drawn).all()
    scaled = SimpleNamespace(strangers=measured.strangers * 2)
    assert np.allclose(judge.drawn_thresholds(scaled, judge.weights()), 2 * drawn)  # whatever the scale
    found = figures.recalls(judge, measured, task, judge.weights())
    low, high = figures.interval(found.drawn["all domains"])
    assert low < found.share["all domains"] < high


def test_intervals_of_such_a_threshold_hold_what_they_should(figures):
    """Of maxima of 100 normal scores nine in ten intervals and more hold the mean share of matches above them."""
    draw = np.random.default_rng(2)
    held, n = [], 100
    mean = np.mean([(draw.normal(2, 1, n) > draw.normal(0, 1, n).max()).mean() for _ in range(2_000)])
    for _ in range(60):
        scores, matches = np.sort(draw.normal(0, 1, n))[::-1], draw.normal(2, 1, n)
        drawn = draw.multinomial(n, np.full(n, 1 / n), 200).cumsum(1)
        limits = figures.spread(scores, (drawn >= 1).argmax(1), draw.random(200))
        low, high = figures.interval((matches[draw.integers(n, size=(200, n))] > limits[:, None]).mean(1))
        held.append(low <= mean <= high)
    assert np.mean(held) >= 0.9


def test_the_lead_is_paired(figures):
    judge, measured, task = case(figures)
    same = SimpleNamespace(strangers=measured.strangers * 2, tasks={})  # another scale, the same order
    answers = measured.tasks["copies"]
    same.tasks["copies"] = SimpleNamespace(top=answers.top * 2, own=answers.own * 2)
    worse = SimpleNamespace(
        strangers=measured.strangers,
        tasks={"copies": SimpleNamespace(top=answers.top, own=np.full_like(answers.own, -np.inf))},
    )
    compared = {"first": measured, "second": worse, "other": same}
    rows = figures.deciding(judge, compared, task, ("first", "second", "absent"))["faces"]["methods"]
    assert rows["other"]["leads"]["first"] == [0, 0, 0]
    assert rows["other"]["interval"][0] < rows["other"]["recall"] < rows["other"]["interval"][1]
    low, high = rows["other"]["interval"]  # of one that never finds anything
    assert rows["other"]["leads"]["second"] == pytest.approx([-rows["other"]["recall"], -high, -low])
    assert {name: list(row["leads"]) for name, row in rows.items()} == {
        "first": ["second"], "second": ["first"], "other": ["first", "second"]
    }  # fmt: skip


def test_average_precision_counts_queries_whose_best_match_is_wrong(figures):
    judge, measured, task = case(figures)
    answers = measured.tasks["copies"]
    answers.top[:] = np.linspace(10, 11, PEOPLE)  # above every stranger
    answers.own[:] = np.where(np.arange(PEOPLE) % 4 == 0, -np.inf, answers.top)
    answers.top[::4] = -10  # and the wrong ones below
    found = figures.average_precision(judge, measured, task)
    assert found["micro_ap"] == pytest.approx(0.75) and found["recall_at_90_precision"] == pytest.approx(0.75)


def test_wrong_pairs_with_the_same_labels(figures):
    pairs = importlib.import_module("pairs")
    labels = np.array([("ill", "ill|old", "well", "")[person % 4] for person in range(PEOPLE)]).repeat(2)
    images = SimpleNamespace(
        identities=np.arange(PEOPLE).repeat(2),
        domains=np.where(np.arange(2 * PEOPLE) < PEOPLE, "X-rays", "lesions"),
        records=[SimpleNamespace(labels=one) for one in labels],
    )
    plain, alike = (pairs.identity_pairs(images, 0, same_labels=same) for same in (False, True))
    assert plain.same.sum() == PEOPLE and alike.same.sum() == PEOPLE * 3 // 4
    for found in (plain, alike):
        assert (images.domains[found.a] == images.domains[found.b]).all()
        assert ((images.identities[found.a] == images.identities[found.b]) == found.same).all()
        assert (~found.same).sum() == pairs.NEGATIVES * found.same.sum()
    assert (labels[alike.a] == labels[alike.b]).all() and (labels[alike.a] != "").all()
    assert (labels[plain.a] != labels[plain.b])[~plain.same].mean() > 0.5


def test_identities_of_one_image_have_no_pairs(figures):
    pairs = importlib.import_module("pairs")
    images = SimpleNamespace(
        identities=np.arange(6),
        domains=np.array(["X-rays"] * 6),
        records=[SimpleNamespace(labels="ill")] * 6,
    )
    for same_labels in (False, True):
        assert len(pairs.identity_pairs(images, 0, same_labels=same_labels).a) == 0


def test_a_domain_of_one_identity_has_no_figures_of_pairs(figures):
    pairs = importlib.import_module("pairs")
    images = SimpleNamespace(
        identities=np.array([0, 0, 1, 1, 2, 2]), domains=np.array(["faces"] * 2 + ["X-rays"] * 4)
    )
    found = pairs.identity_pairs(images, 0)
    scores = found.same.astype(float)
    assert set(pairs.pair_figures(found, scores, found, scores)) == {"X-rays"}


def test_pictures_name_the_rate(figures, monkeypatch, tmp_path):
    plots = importlib.import_module("plots")
    drawn = []
    monkeypatch.setattr(plots, "_write", lambda figure, stem, name: drawn.append(figure))
    cell = {"recall": 0.5, "interval": [0.4, 0.6]}
    others = {f"filter{i}": {**cell, "recall": i / 10} for i in range(9)}
    others["filter8_relative"] = {**cell, "recall": 0.05}  # the worse form of the best
    results = {
        "labels": {"lcmem": "LCMem", **{name: name.upper() for name in others}},
        "head": {"name": "my-head"},
        "deciding": {"copies": {"faces": {"n": 5, "methods": {"lcmem": cell, **others}}}},
        "curves": {"rates": [0.05, 0.1], "copies": {"lcmem": [0.4, 0.5]}},
        "robustness": {
            "strengths": {kind: ["weak"] for kind in "abcdef"},
            "recall": {"lcmem": {kind: [0.5] for kind in "abcdef"}},
        },
    }
    plots.draw(results, tmp_path / "mine", 0.05)
    recall, curves, robustness = (figure.axes[0] for figure in drawn)
    assert recall.get_title() == "copies, at 5 % false rejection"
    assert robustness.get_ylabel() == "recall at 5 % false rejection"
    assert [line.get_xdata() for line in curves.lines if line.get_linestyle() == ":"] == [[0.05, 0.05]]
    shown = [*(f"FILTER{i}" for i in range(2, 9)), "LCMem, my-head"]  # the seven that find most
    assert sorted(recall.get_legend_handles_labels()[1]) == shown


def test_the_same_photo_is_known_zoomed_either_way_and_another_is_not(figures):
    same_photo = importlib.import_module("same_photo")

    def grey(image):
        return torch.tensor(np.asarray(image.convert("L").resize((64, 64))), dtype=torch.float64)

    whole, other = picture(1, 256), grey(picture(2, 256))
    zoomed = grey(whole.crop((40, 60, 190, 210)))
    assert same_photo.correlation(grey(whole), zoomed) == same_photo.correlation(zoomed, grey(whole)) > 0.95
    assert same_photo.correlation(grey(whole), other) < 0.9
    images = SimpleNamespace(identities=np.array(["a", "b", "a", "a"]))
    assert same_photo.pairs_of_identities(images) == [(0, 2), (0, 3), (2, 3)]


def test_copies_are_of_the_domain_of_their_originals(figures, tmp_path):
    data, views = importlib.import_module("data"), importlib.import_module("views")
    for name in ("lfw", "art"):
        write_pictures(tmp_path / name, range(3))
    images = data.Images("test", tuple(open_images(tmp_path / name) for name in ("lfw", "art")))
    rows = np.array([1, 3, 5])
    copies = views.View("heavy_copies", images, rows, views.heavy, 32).open(tmp_path / "cache")
    assert copies.domains.tolist() == images.domains[rows].tolist() == ["faces", "paintings", "paintings"]


def test_rows_are_added_to_a_file_without_lcmem_where_its_first_row_is_the_same(figures):
    merge = importlib.import_module("merge")

    def file(**recall: float) -> dict:
        cells = {name: {"recall": share} for name, share in recall.items()}
        deciding = {"copies": {"faces": {"n": 5, "methods": cells}}}
        return {"labels": {name: name.upper() for name in recall}, "deciding": deciding, "not_run": {}}

    before = file(mse=0.5, ncc=0.25)
    assert merge.reference_of(before) == "mse" and merge.reference_of(file(ncc=0.5, lcmem=1.0)) == "lcmem"
    after = merge.merged(before, file(ssim=0.75, mse=0.5))
    assert after["deciding"] == file(mse=0.5, ncc=0.25, ssim=0.75)["deciding"]
    assert set(after["labels"]) == {"mse", "ncc", "ssim"}
    with pytest.raises(SystemExit, match=r"copies, faces, methods, mse, recall was 0.5 .* and is 0.4"):
        merge.merged(before, file(ssim=0.75, mse=0.4))
