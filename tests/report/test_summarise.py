"""Samples to a verdict, an exit code and tables; results to JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lcmem_filter.report import AllowEntry, Certificate, Measured, Results, Run, Sample, rate_of, results_of
from lcmem_filter.report.summarise import NONE_GIVEN, STOPPED, UNSEEN
from lcmem_filter.report.write import render
from lcmem_filter.types import Neighbour

from .made_up import audit, calibration, sample

RUN = Run("audit", "2026-01-31T12:00:00+00:00", "gen", "index", 100)


def of(*samples: Sample, run: Run = RUN, n: int = 999, rate: float = 0.1) -> Results:
    return results_of(run, samples, calibration(n), false_discovery_rate=rate)


UNREADABLE = Sample("broken.png", None, problem="truncated")
MATCH, CLEAN = sample(0, 0.95), sample(1, 0.5)
ALLOWED = replace(MATCH, id="known.png", allowed="a test chart")
WITHHELD = replace(MATCH, id="drawn again", delivered=False)


@pytest.mark.parametrize(
    ("samples", "exit_code", "verdict"),
    [
        ([CLEAN], 0, "No match was found among 1 checked images."),
        ([CLEAN, ALLOWED], 0, "1 that would match was accepted as a known false alarm."),
        ([CLEAN, WITHHELD], 0, "1 image that matched was withheld."),
        ([CLEAN, UNREADABLE], 2, "1 image could not be checked."),
        ([UNREADABLE], 2, "None of the 1 images could be checked"),
        ([CLEAN, MATCH], 1, "1 of 2 images matches a training image; among so many, about 0.02 would"),
        ([CLEAN, MATCH, UNREADABLE, ALLOWED], 1, "1 more was accepted"),
        ([CLEAN, MATCH, UNREADABLE, ALLOWED], 1, "1 of 3 checked images matches"),
    ],
)
def test_verdict_and_exit_code(samples, exit_code, verdict):
    found = of(*samples)
    assert found.exit_code == exit_code
    assert verdict in found.verdict and found.verdict.count(".") <= 2


def test_what_the_check_would_miss_stands_beside_the_verdict():
    def cautions(sensitivity=None, specificity=None, run=RUN, **known):
        parts = [Measured(rate and rate_of(*rate), "") for rate in (sensitivity, specificity, None)]
        rests_on = replace(calibration(), **known)
        return results_of(run, [CLEAN], rests_on, certificate=Certificate(*parts)).cautions

    assert cautions((300, 300), (990, 1000)) == ()
    (low,) = cautions((110, 300), (990, 1000))
    assert "110 of 300 (37%)" in low
    (few,) = cautions((30, 30), (990, 1000))
    assert "30 of 30 (100%), of too few training images to show that it finds more than 88%" in few
    assert "can be missed" in low and "can be missed" not in few
    (unmeasured,) = cautions(None, None)
    assert "not measured" in unmeasured
    (missing,) = cautions((300, 300), run=replace(RUN, training_unreadable=3))
    assert "Copies of 3 images missing from the index" in missing
    (loose,) = cautions((300, 300), (900, 1000))
    assert "100 of 1,000" in loose
    job = replace(RUN, kind="generation", resolution=64, image_size=(64, 64))
    assert cautions(run=job, own_found=(29, 32)) == ()
    (doubt,) = cautions(run=job, own_found=(28, 32))
    assert "Of 32 training images" in doubt and "finds 28: copies of training images" in doubt
    (useless,) = cautions(run=replace(RUN, settings={UNSEEN: "53"}), sensitivity=(300, 300))
    assert useless == "How many real images this check would reject was not measured: "
    assert cautions(run=replace(RUN, settings={UNSEEN: NONE_GIVEN}), sensitivity=(300, 300)) == ()
    (larger,) = cautions(run=replace(job, image_size=(128, 64)))
    assert "The images are 128x64 pixels, and the index was built at 64" in larger


@pytest.mark.parametrize("kind", ["audit", "generation"])
def test_by_a_threshold_that_misses_training_images_nothing_is_clean(kind):
    run, low = replace(RUN, kind=kind), replace(calibration(), own_found=(15, 32))
    good, doubted = (results_of(run, [CLEAN], one) for one in (replace(low, own_found=(16, 32)), low))
    assert (good.exit_code, doubted.exit_code) == (0, 2)
    assert "misses most training images themselves, so that says little" in doubted.verdict
    assert "misses most" not in good.verdict
    assert "<strong>This check says little</strong>" in render(doubted, {}, {})  # but everything was checked
    unread = results_of(run, [CLEAN, UNREADABLE], low)
    assert "<strong>Not everything was checked</strong>" in render(unread, {}, {})
    assert results_of(run, [CLEAN, MATCH], low).exit_code == 1


def test_allowed_images_stay_in_the_rate_and_in_the_tables():
    found = of(CLEAN, ALLOWED, MATCH)
    assert (found.rate.count, found.rate.of) == (2, 3)
    assert found.count("allowed") == 1 and found.labels[1].allowed == 1
    assert found.copied[0].samples == ("known.png", MATCH.id)


def test_images_that_were_drawn_again_count_by_their_first_draw():
    """The last of several draws matches less often than chance would have it."""
    again = replace(CLEAN, id="again.png", attempts=3, labels=("drawn",))
    found = of(CLEAN, again, WITHHELD, run=replace(RUN, kind="generation"))
    assert (found.rate.count, found.rate.of) == (2, 3)
    assert found.chance == of(CLEAN, MATCH, WITHHELD).chance
    assert next(row.rejected.count for row in found.labels if row.label == "drawn") == 1
    assert len(found.copied) == 1


def test_training_images_of_draws_that_others_took_the_place_of_are_named():
    freed = replace(CLEAN, id="freed.png", attempts=3, matched_before=("t9", "t9"))
    kept = replace(MATCH, attempts=2, delivered=False, matched_before=(MATCH.neighbours[0].id,))
    found = of(freed, kept, run=replace(RUN, kind="generation"))
    assert {one.id: one.samples for one in found.copied} == {
        "t9": ("freed.png",),
        MATCH.neighbours[0].id: (kept.id,),
    }


def test_a_job_that_delivers_nothing_is_no_success():
    found = of(WITHHELD, WITHHELD, run=replace(RUN, kind="generation"))
    assert found.exit_code == 2 and found.verdict.startswith("Nothing was delivered: 2 images matched")
    assert of(run=replace(RUN, kind="generation")).verdict == "Nothing was delivered."


def test_what_a_job_could_not_check_was_not_delivered():
    job, unjudged = replace(RUN, kind="generation"), replace(UNREADABLE, delivered=False)
    assert "1 of 2 delivered images matches" in of(CLEAN, MATCH, unjudged, run=job).verdict
    assert "No match was found among 1 checked delivered images" in of(CLEAN, unjudged, run=job).verdict
    nothing = of(WITHHELD, unjudged, unjudged, run=job)
    assert nothing.verdict == (
        "Nothing was delivered: 1 image matched a training image and was withheld, 2 images could not be checked."
    )
    assert "<strong>Nothing was delivered</strong>" in render(nothing, {}, {})
    assert of(unjudged, run=job).verdict == "Nothing was delivered: 1 image could not be checked."


def test_a_job_that_was_stopped_is_no_success():
    run = replace(RUN, kind="generation", settings={STOPPED: "after 2 images: the disk is full"})
    assert of(CLEAN, CLEAN, run=replace(run, settings={})).exit_code == 0
    stopped = of(CLEAN, CLEAN, run=run)
    assert stopped.exit_code == 2 and "stopped before it was done" in stopped.cautions[0]
    assert of(CLEAN, MATCH, run=run).exit_code == 1
    page = render(stopped, {}, {})
    assert "Stopped before it was done" in page and "No match found" not in page


def test_entries_of_an_allow_list_that_name_nothing_are_a_caution():
    entries = [
        AllowEntry("gone.png", "ours", effect="no such image"),
        AllowEntry("a.png", "ours", effect="allowed"),
    ]
    cautions = results_of(RUN, [CLEAN], calibration(), allow_list=entries).cautions
    assert "1 of 2 entries of the allow-list name no image" in cautions[-1]


def test_a_small_group_cannot_be_certified_and_nothing_is_ever_called_clean():
    few = of(*[sample(i, 0.5) for i in range(300)], n=999)
    assert few.false_discovery is not None and few.false_discovery.smallest_group == 3
    assert few.false_discovery.conclusion.startswith(
        "Cannot be certified: with 999 held-out images fewer than 3"
    )
    assert "2,999 held-out" in few.false_discovery.conclusion
    hopeless = of(sample(0, 0.5), n=99, rate=0.005)
    assert hopeless.false_discovery is not None
    assert "no number of copies" in hopeless.false_discovery.conclusion
    enough = of(sample(0, 0.5), n=999)
    assert enough.false_discovery is not None
    assert enough.false_discovery.conclusion.startswith("No image stands out")
    strict = of(sample(0, 0.5), n=999, rate=0.004)
    assert strict.false_discovery is not None and "(rate 0.4%)" in strict.false_discovery.conclusion
    for found in (few, hopeless, enough, of(UNREADABLE)):
        assert "clean" not in found.to_json().lower()


def test_discoveries_are_named_with_what_a_smaller_group_would_need():
    found = audit(images=300, copies=12).false_discovery
    assert found is not None and len(found.discoveries) == 12
    assert "12 images stand out" in found.conclusion and "fewer than 3 copies" in found.conclusion


def test_training_images_are_counted_by_the_nearest_only():
    one, other = (Neighbour(name, 0.9, 0.9) for name in ("one", "other"))
    samples = [replace(MATCH, id=str(i), neighbours=(one, other)) for i in range(3)]
    samples.append(replace(MATCH, id="3", neighbours=(other, one)))
    samples.append(replace(CLEAN, neighbours=(other,)))
    assert [(row.id, row.count) for row in of(*samples).copied] == [("one", 3), ("other", 1)]


def test_labels_count_an_image_for_each_of_its_labels():
    both = replace(MATCH, id="both", labels=("a", "b"))
    rows = of(both, replace(CLEAN, labels=("b",)), replace(UNREADABLE, labels=("b",))).labels
    assert [(row.label, row.rejected.count, row.rejected.of) for row in rows] == [("a", 1, 1), ("b", 1, 2)]


def test_json_has_every_number_and_can_be_read_back():
    found = audit()
    read = json.loads(found.to_json())
    assert read["counts"] == {"accepted": 288, "match": 11, "allowed": 1}
    assert read["rate"]["share"] == pytest.approx(12 / 300)
    assert read["certificate"]["sensitivity"]["rate"]["share"] == pytest.approx(148 / 150)
    assert read["certificate"]["consistency"]["rate"] is None
    assert len(read["samples"]) == 300 and len(read["calibration"]["scores"]) == 999
    assert read["samples"][0]["neighbours"][0]["id"].startswith("patient")


def test_json_refuses_what_is_no_number():
    with pytest.raises(ValueError, match="not JSON compliant"):
        of(replace(CLEAN, score=float("nan"))).to_json()
