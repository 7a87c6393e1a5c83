"""What is behind the page: one file judged, one prompt drawn, and how it is said."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lcmem_filter.app import Drawer, Examiner, Finding, render
from lcmem_filter.errors import FilterFailedError
from lcmem_filter.images import ImageRecord, ImageSource
from lcmem_filter.index import MemorizationIndex
from lcmem_filter.types import Decision, Neighbour

from ..generation.material import loaded
from ..tiny import encode_images, picture, write_pictures

HOSTILE = "<img src=x onerror=alert(1)>\"'&.png"
NEAR = (Neighbour(HOSTILE, 0.9, 0.99, 0.98), Neighbour("b.png", 0.2, 0.5, 0.4))
MATCH = Decision(False, 0.9, 0.01, 0.5, NEAR)


def test_a_training_image_matches_and_is_named(examiner, folder):
    found = examiner.examine(folder / "train" / "003.png")
    assert found.status == "match" and found.decision.neighbours[0].id == "003.png"
    assert found.picture.tobytes() == picture(3).tobytes()


def test_decisions_are_those_of_the_filter(examiner, index, folder, tmp_path):
    from lcmem_filter.images import open_images

    source = open_images(write_pictures(tmp_path, [700, 701]))
    latents = encode_images(source, [0, 1], examiner.encoder, index.resolution).latents
    for name, expected in zip(("700.png", "701.png"), examiner.filter.judge(latents), strict=True):
        found = examiner.examine(tmp_path / name).decision
        assert found.accepted == expected.accepted
        assert found.score == pytest.approx(expected.score, abs=1e-5)


def test_a_file_that_is_no_picture_is_not_checked(examiner, tmp_path):
    (tmp_path / "broken.png").write_text("no picture")
    found = examiner.examine(tmp_path / "broken.png")
    assert found.status == "not checked" and found.picture is None
    assert "'broken.png'" in render(found).replace("&#39;", "'") and "Not checked" in render(found)


def drawer_with(folder: Path, threshold: float) -> Drawer:
    """Draws through an index of that threshold."""
    index = MemorizationIndex.load(folder / "index")
    assert index.calibration is not None
    index.calibrations = {"sd": replace(index.calibration, threshold=threshold)}
    return Drawer(loaded(folder), index, max_resamples=2)


def test_an_accepted_draw_is_shown(folder):
    drawer = drawer_with(folder, threshold=2.0)
    found = drawer.draw("a cat", steps=2, seed=0)
    assert drawer.takes_prompt and found.status == "no match" and found.picture is not None
    assert (found.decision.attempts, found.decision.rung) == (1, None)
    assert drawer.draw("a cat", steps=2, seed=0).picture.tobytes() == found.picture.tobytes()
    assert drawer.draw("a cat", steps=2, seed=1).picture.tobytes() != found.picture.tobytes()


def test_what_matches_in_every_draw_is_withheld(folder):
    found = drawer_with(folder, threshold=-2.0).draw("a cat", steps=2, seed=0)
    assert found.status == "withheld" and found.picture is None
    assert found.decision.attempts == 3 and found.decision.rung is not None


def test_what_the_filter_cannot_judge_is_no_picture(folder, monkeypatch):
    drawer = drawer_with(folder, threshold=2.0)

    def fails(self, latents):
        raise FilterFailedError("the latents hold NaN")

    monkeypatch.setattr("lcmem_filter.filter.MemorizationFilter.judge", fails)
    found = drawer.draw("a cat", steps=1, seed=0)
    assert found.status == "not checked" and found.picture is None and "NaN" in render(found)


def test_no_match_says_little_by_a_threshold_that_misses_training_images(folder, monkeypatch, tmp_path):
    index = MemorizationIndex.load(folder / "index")
    assert index.calibration is not None
    write_pictures(tmp_path, [700])
    for found, little in ((8, False), (7, True)):
        monkeypatch.setattr(
            index, "calibrations", {"sd": replace(index.calibration, threshold=2.0, own_found=(found, 16))}
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whoever starts the page is warned once
            examined = Examiner(index).examine(tmp_path / "700.png")
            drawn = Drawer(loaded(folder), index).draw("a cat", steps=2, seed=0)
        for finding in (examined, drawn):
            said = render(finding)
            assert finding.status == "no match" and "<strong>No match</strong>" in said
            assert ("the threshold of 2.000 finds 7" in said) == little
            assert ('class="verdict no-match"' in said) != little


def test_what_is_said_of_a_match():
    said = render(Finding(MATCH, Image.new("RGB", (8, 8))))
    assert "Match" in said and "0.900" in said and "threshold 0.500" in said and "0.01" in said
    assert said.count('class="above"') == 1 and said.count('class="below"') == 1
    assert "draws" not in said and "Named only" in said and "<img" not in said


def test_what_is_said_of_a_drawn_image():
    accepted = replace(MATCH, accepted=True, score=0.1, attempts=2, seed=7, rung="prompt_perturbation")
    said = render(Finding(accepted, drawn=True))
    assert "No match" in said and "prompt perturbation" in said and "seed 7" in said
    assert "the last one accepted" in said
    said = render(Finding(replace(MATCH, attempts=5, rung="new_seed", seed=3), drawn=True))
    assert "Withheld" in said and "Each of 5 draws" in said and "none accepted" in said
    said = render(Finding(replace(accepted, attempts=1, seed=None, rung=None), drawn=True))
    assert "first draw" in said and "the seed that was given" in said


def test_training_images_are_shown_where_they_can_be_read():
    records = [ImageRecord(HOSTILE, "a"), ImageRecord("gone.png", "b")]
    source = ImageSource("train", records, lambda row: b"no picture" if row else _png(), "v1")
    decision = replace(MATCH, neighbours=(*NEAR, Neighbour("gone.png", 0.1, 0.1)))
    said = render(Finding(decision), source.image_of)
    assert said.count('<img src="data:image/jpeg') == 1 and said.count("no picture") == 2
    assert "Named only" not in said


def test_names_are_escaped():
    for finding in (Finding(MATCH), Finding(None, problem=HOSTILE)):
        said = render(finding)
        assert "<img src=x" not in said and "&lt;img src=x" in said


def _png() -> bytes:
    import io

    buffer = io.BytesIO()
    picture(1).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_decision_without_a_verdict_is_not_checked():
    found = Finding(replace(MATCH, accepted=None, reason="partial latents"))
    assert found.status == "not checked" and "partial latents" in render(found)
    assert "Nearest" not in render(found)
