"""Audits of drawn pictures: planted copies are found and counted, innocent ones pass at the promised rate."""

from __future__ import annotations

import shutil
from collections import Counter

import pytest
import torch

from lcmem_filter.audit import audit_images, temporary_index
from lcmem_filter.audit.duplicates import find_duplicates
from lcmem_filter.audit.near_duplicates import (
    generated_near_duplicates_of,
    near_duplicate,
    near_duplicates_of,
)
from lcmem_filter.described import Candidates, Query, describe_parts
from lcmem_filter.errors import CalibrationError, DataError, IncompleteIndexError, LcmemFilterError
from lcmem_filter.filter import MemorizationFilter
from lcmem_filter.index import MemorizationIndex
from lcmem_filter.report import AllowEntry, Results
from lcmem_filter.verification import compare, compared_by, score_latents

from ..tiny import (
    RESOLUTION,
    encode_images,
    fussy_encode,
    picture,
    tiny_pipeline,
    write_pictures,
    write_unjudgeable,
)
from .material import FRESH, HELD_OUT, UNSEEN, encoder, head, material, opened, planted


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("audit")
    material(made)
    return made


@pytest.fixture(scope="module")
def sources(folder):
    return planted(folder / "set")


@pytest.fixture(scope="module")
def results(folder, sources) -> Results:
    return audit(
        folder, training=opened(folder / "train"), unseen=opened(folder / "unseen"), sensitivity_images=5
    )


def audit(folder, images="set", **options) -> Results:
    index = MemorizationIndex.load(folder / "index")
    return audit_images(opened(folder / images), index, progress=False, **options).results


def test_every_planted_copy_is_found_and_its_training_image_named(results, sources):
    found = {one.id: one for one in results.samples}
    assert {id_: found[id_].accepted for id_ in sources} == dict.fromkeys(sources, False)
    assert {id_: found[id_].neighbours[0].id for id_ in sources} == sources
    assert results.exit_code == 1
    assert set(sources) <= set(results.false_discovery.discoveries)  # type: ignore[union-attr]
    assert {one.id: one.count for one in results.copied if one.id in sources.values()} == {
        id_: 1 + sum(one.neighbours[0].id == id_ and one.status == "match" for one in fresh_of(results))
        for id_ in sources.values()
    }


def fresh_of(results: Results):
    return [one for one in results.samples if one.id.startswith("fresh")]


def test_innocent_images_are_rejected_no_more_often_than_promised(results):
    fresh = fresh_of(results)
    assert results.chance is not None
    assert sum(one.accepted is False for one in fresh) <= results.chance.high
    specificity = results.certificate.specificity.rate  # type: ignore[union-attr]
    assert specificity is not None and specificity.of == len(UNSEEN) and specificity.high >= 0.99


def test_decisions_are_those_of_the_filter(folder, results):
    index = MemorizationIndex.load(folder / "index")
    judge, source = MemorizationFilter(index), opened(folder / "set")
    latents = encode_images(source, [0, 35], encoder(folder), index.resolution).latents
    assert latents is not None
    for row, decision in zip([0, 35], judge.judge(latents), strict=True):
        one = results.samples[row]
        assert (one.id, one.accepted) == (source.records[row].id, decision.accepted)
        assert one.score == pytest.approx(decision.score, abs=1e-5)
        assert one.p_value == pytest.approx(decision.p_value, abs=0.011)


def test_labels_are_counted(results):
    counts = {row.label: (row.rejected.count, row.rejected.of) for row in results.labels}
    fresh = sum(one.accepted is False for one in fresh_of(results))
    kinds = dict.fromkeys(("exact", "cropped", "rotated", "jpeg"), (3, 3))
    assert counts == {**kinds, "copied": (12, 12), "fresh": (fresh, len(FRESH))}


def test_certificate_is_what_is_counted_by_hand(folder, results):
    training, index = opened(folder / "train"), MemorizationIndex.load(folder / "index")
    again = audit(folder, "unseen", training=training, sensitivity_images=5).certificate
    assert again is not None and results.certificate is not None
    assert again.sensitivity == results.certificate.sensitivity
    assert again.specificity.rate is None and "--unseen" in again.specificity.how
    every_one = audit(
        folder, "unseen", training=training, sensitivity_images=40, sensitivity_seeds=2
    ).certificate
    assert every_one is not None and every_one.sensitivity.rate is not None
    source = near_duplicates_of(training, range(40), 2)
    latents = encode_images(source, range(80), encoder(folder), index.resolution).latents
    assert latents is not None
    rejected = [not one.accepted for one in MemorizationFilter(index).judge(latents)]
    assert every_one.sensitivity.rate.count == sum(rejected)
    same = sum(a == b for a, b in zip(rejected[::2], rejected[1::2], strict=True))
    assert every_one.consistency.rate is not None
    assert (every_one.consistency.rate.count, every_one.consistency.rate.of) == (same, 40)


def test_near_duplicates_can_be_drawn_by_the_pipeline_itself(folder):
    training, index = opened(folder / "train"), MemorizationIndex.load(folder / "index")
    pipe = tiny_pipeline("img2img")
    pipe.vae = encoder(folder).vae
    found = audit(
        folder, "unseen", training=training, image_to_image=pipe, sensitivity_images=3, sensitivity_seeds=2
    ).certificate
    assert found is not None and found.sensitivity.rate is not None and found.sensitivity.rate.of == 6
    assert "image to image, strength 0.3" in found.sensitivity.how and "Left out" not in found.sensitivity.how
    made = generated_near_duplicates_of(training, [4, 7], 2, pipe, index.resolution)
    assert [record.id for record in made.records[1:3]] == ["004.png (1)", "007.png (0)"]
    pixels = [made.image(position).tobytes() for position in (0, 0, 1, 2)]
    assert pixels[0] == pixels[1] and len(set(pixels)) == 3


def test_a_pipeline_that_fails_costs_the_certificate_alone(folder):
    class Failing:
        def __call__(self, **_):
            raise AttributeError("no such part")

    found = audit(folder, "unseen", training=opened(folder / "train"), image_to_image=Failing())
    assert found.samples and found.certificate is not None
    assert found.certificate.sensitivity.rate is None
    assert "the pipeline failed: AttributeError: no such part" in found.certificate.sensitivity.problem


def test_what_a_certificate_leaves_out_is_told(folder, tmp_path):
    write_pictures(tmp_path, UNSEEN)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "again.png").write_bytes((tmp_path / f"{UNSEEN[0]:03d}.png").read_bytes())
    (folder / "train" / "000.png").rename(folder / "kept")
    try:
        (folder / "train" / "000.png").write_bytes(b"no picture")
        found = audit(
            folder,
            "unseen",
            training=opened(folder / "train"),
            unseen=opened(tmp_path),
            sensitivity_images=40,
            sensitivity_seeds=2,
        ).certificate
    finally:
        (folder / "kept").replace(folder / "train" / "000.png")
    assert found is not None and found.specificity.rate is not None and found.sensitivity.rate is not None
    assert "Left out: 1 that" in found.specificity.how and found.specificity.rate.of == len(UNSEEN)
    assert "several times count once: 1." in found.specificity.how
    assert "1 training images are other pictures" in found.sensitivity.how and found.sensitivity.rate.of == 78
    assert found.consistency.rate is not None and found.consistency.rate.of == 39


def test_other_pictures_of_the_same_names_measure_no_sensitivity(folder, sources, tmp_path):
    for i in range(40):
        picture(3000 + i).save(tmp_path / f"{i:03d}.png")
    index = MemorizationIndex.load(folder / "index")
    audit = audit_images(opened(folder / "set"), index, training=opened(tmp_path), progress=False)
    sensitivity = audit.results.certificate.sensitivity
    assert (
        sensitivity.rate is None and "40 of 40 training images that were drawn are other" in sensitivity.how
    )
    assert audit.pictures.training("000.png") is None
    true = audit_images(opened(folder / "set"), index, training=opened(folder / "train"), progress=False)
    assert true.pictures.training("000.png") is not None


def test_training_data_of_other_names_are_refused_before_anything_is_examined(folder, sources, tmp_path):
    write_pictures(tmp_path / "data" / "other", range(3))
    index = MemorizationIndex.load(folder / "index")
    with pytest.raises(
        DataError, match=r"none of the 3 images of 'data'.*like 'other/000.png', the index's like"
    ):
        audit_images(opened(folder / "set"), index, training=opened(tmp_path / "data"), progress=False)


def test_without_data_nothing_is_certified(folder, sources):
    found = audit(folder).certificate
    assert found is not None
    assert [part.rate for part in (found.sensitivity, found.specificity, found.consistency)] == [None] * 3


def test_images_that_set_the_threshold_prove_no_specificity(folder):
    found = audit(folder, "unseen", unseen=opened(folder / "held-out")).certificate
    assert found is not None and found.specificity.rate is None
    assert f"{len(HELD_OUT)} of the {len(HELD_OUT)} images" in found.specificity.how


def test_training_images_among_the_unseen_do_not_count(folder, tmp_path):
    for image in sorted((folder / "unseen").iterdir()):
        shutil.copy(image, tmp_path)
    alone = audit(folder, "unseen", unseen=opened(tmp_path)).certificate.specificity
    indexed = sorted((folder / "train").iterdir())
    for image in indexed[:2]:
        shutil.copy(image, tmp_path / f"again-{image.name}")
    found = audit(folder, "unseen", unseen=opened(tmp_path)).certificate.specificity
    assert found.rate == alone.rate and "since they are training images: 2." in found.how
    found = audit(folder, "unseen", unseen=opened(folder / "train")).certificate.specificity
    assert found.rate is None and "given as unseen are training images. Give others." in found.how


def test_held_out_images_among_the_unseen_do_not_count(folder, tmp_path):
    write_pictures(tmp_path, UNSEEN)
    alone = audit(folder, "unseen", unseen=opened(tmp_path)).certificate
    write_pictures(tmp_path, HELD_OUT[:10])
    found = audit(folder, "unseen", unseen=opened(tmp_path)).certificate
    assert found is not None and alone is not None and found.specificity.rate == alone.specificity.rate
    assert "scores of held-out images: 10." in found.specificity.how
    assert len(found.specificity.p_values) == len(UNSEEN)


def test_allow_list_changes_the_verdict_and_nothing_else(folder, results, sources):
    sha256 = {one.id: one.sha256 for one in results.samples}
    rejected = [one.id for one in results.samples if one.accepted is False]
    entries = [AllowEntry(id_, "ours", sha256[id_]) for id_ in rejected]
    found = audit(folder, allow_list=entries)
    assert (found.exit_code, found.count("allowed"), found.rate) == (0, len(rejected), results.rate)
    odd = [AllowEntry("exact000.png", "ours", "00"), AllowEntry("gone.png", "ours")]
    odd.append(AllowEntry("fresh2000.png", "ours"))
    effects = audit(folder, allow_list=[*entries[1:], *odd])
    assert effects.exit_code == 1
    assert [one.effect for one in effects.allow_list[-3:]] == ["another file", "no such image", "not needed"]


def test_unreadable_images_are_not_checked(folder, tmp_path):
    write_pictures(tmp_path, [2001, 2002])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    index = MemorizationIndex.load(folder / "index")
    found = audit_images(opened(tmp_path), index, progress=False).results
    assert Counter(one.status for one in found.samples) == {"accepted": 2, "not checked": 1}
    assert found.exit_code == 2
    (tmp_path / "001.png").write_bytes((folder / "train" / "001.png").read_bytes())
    assert audit_images(opened(tmp_path), index, progress=False).results.exit_code == 1


def test_images_that_cannot_be_judged_are_not_checked_and_stop_nothing(folder, tmp_path, monkeypatch):
    write_pictures(tmp_path, [2001, 2002])
    (tmp_path / "z.png").write_bytes((tmp_path / "2001.png").read_bytes())
    index = MemorizationIndex.load(folder / "index")
    alone = audit_images(opened(tmp_path), index, progress=False).results
    bad = write_unjudgeable(tmp_path)
    monkeypatch.setattr("lcmem_filter.latents.encode_pixels", fussy_encode)
    index = MemorizationIndex.load(folder / "index")
    source = opened(tmp_path)
    found = audit_images(source, index, progress=False, unseen=source).results
    assert found.exit_code == 2 and found.rate.of == 3
    problems = {one.id: one.problem for one in found.samples if one.accepted is None}
    assert list(problems) == bad
    assert "'black.png'" in problems["black.png"] and "constant" in problems["black.png"]
    assert "'white.png'" in problems["white.png"] and "NaN" in problems["white.png"]
    assert "no image is returned" not in "".join(problems.values())
    judged = [one for one in found.samples if one.accepted is not None]
    assert [(one.id, one.accepted) for one in judged] == [(one.id, one.accepted) for one in alone.samples]
    assert [one.score for one in judged] == pytest.approx([one.score for one in alone.samples], abs=1e-5)
    assert found.duplicates == alone.duplicates != ()
    (tmp_path / "001.png").write_bytes((folder / "train" / "001.png").read_bytes())
    assert audit_images(opened(tmp_path), index, progress=False).results.exit_code == 1


def test_a_set_without_a_single_readable_image(folder, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    index = MemorizationIndex.load(folder / "index")
    found = audit_images(opened(tmp_path), index, progress=False).results
    assert (found.exit_code, found.rate.of, found.duplicates) == (2, 0, ())


def test_a_second_folder_gives_the_same_as_an_index_of_it(folder, results):
    def fly(**options):
        return temporary_index(
            opened(folder / "train"),
            options.pop("held_out", opened(folder / "held-out")),
            encoder(folder),
            head(),
            resolution=RESOLUTION,
            progress=False,
            **options,
        )

    with fly() as index:
        found = audit_images(opened(folder / "set"), index, encoder=encoder(folder), progress=False).results
        path = index.path
    assert not path.exists()
    assert found.samples == results.samples and found.verdict == results.verdict
    with pytest.raises(CalibrationError, match="at least 99"):
        with fly(held_out=opened(folder / "unseen")):
            pass
    (folder / "train" / "zzz.png").write_bytes(b"no picture")
    try:
        with pytest.raises(IncompleteIndexError, match=r"zzz\.png"):
            with fly():
                pass
        with fly(allow_unindexed=True) as index:
            incomplete = audit_images(
                opened(folder / "unseen"), index, encoder=encoder(folder), progress=False
            )
        assert any("missing from the index" in caution for caution in incomplete.results.cautions)
    finally:
        (folder / "train" / "zzz.png").unlink()


@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0])
def test_rates_that_are_none_are_refused(folder, sources, rate):
    with pytest.raises(LcmemFilterError, match="false-discovery rate"):
        audit(folder, false_discovery_rate=rate)


@pytest.mark.parametrize("name", ["encoder", "training", "unseen"])
def test_a_path_in_place_of_what_lies_there_is_told_at_once(folder, sources, name):
    with pytest.raises(TypeError, match=f"^{name} has to be of .*, got str; .* gives one$"):
        audit(folder, **{name: "a/path"})


def test_near_duplicates_are_alike_differ_by_seed_and_can_be_repeated():
    image = picture(5, 64)
    one, other = near_duplicate(image, 1), near_duplicate(image, 2)
    assert one.size == image.size and one.tobytes() == near_duplicate(image, 1).tobytes()
    assert one.tobytes() != other.tobytes() and one.tobytes() != image.tobytes()


def test_near_duplicates_stand_in_order_of_their_pictures(tmp_path):
    source = opened(write_pictures(tmp_path, range(4)))
    made = near_duplicates_of(source, [3, 1], 2)
    assert [record.id for record in made.records] == [
        "003.png (0)",
        "003.png (1)",
        "001.png (0)",
        "001.png (1)",
    ]
    for position, (row, seed) in enumerate([(3, 3000), (3, 3001), (1, 1000), (1, 1001)]):
        assert made.image(position).tobytes() == near_duplicate(source.image(row), seed).tobytes()


def test_duplicates_within_the_set(folder, tmp_path):
    write_pictures(tmp_path, range(4000, 4030))
    (tmp_path / "twin.png").write_bytes((tmp_path / "4000.png").read_bytes())
    picture(4001).save(tmp_path / "again.jpg", quality=90)
    picture(4001).save(tmp_path / "once more.jpg", quality=80)
    index = MemorizationIndex.load(folder / "index")
    found = audit_images(opened(tmp_path), index, progress=False).results.duplicates
    assert found is not None
    by_size = {frozenset(group.ids): group for group in found}
    assert by_size[frozenset({"4000.png", "twin.png"})].identical
    three = by_size[frozenset({"4001.png", "again.jpg", "once more.jpg"})]
    assert not three.identical and three.weakest is not None and three.weakest > index.calibration.threshold  # type: ignore[union-attr]
    assert found[0] == three


def test_duplicates_are_those_of_every_pair_compared(folder):
    """Against the definition: link every pair that the statistic links, then walk."""
    index, source = MemorizationIndex.load(folder / "index"), opened(folder / "unseen")
    encoded = encode_images(source, range(30), encoder(folder), index.resolution)
    assert encoded.latents is not None
    canonical = index.head.canonical(encoded.latents, index.space)
    embedding, kind = index.head.embed(canonical, "sd"), compared_by(index, "sd")
    query = Query.of(index.head, canonical, "sd", kind)
    parts = describe_parts(index.head, canonical, "sd", kind)
    scores = torch.full((30, 30), -torch.inf)
    for row in range(30):
        others = [other for other in range(30) if other != row]
        candidates = Candidates(embedding[others][None], parts[others][None], latents=canonical[others][None])
        scores[row, others] = compare(query.of_rows(slice(row, row + 1)), candidates).score[0]
    largest = scores.flatten().sort().values[-20:-4]
    gap = int(largest.diff().argmax())  # where rounding cannot matter
    threshold = float(largest[gap : gap + 2].mean())
    linked = (scores > threshold) | (scores > threshold).T
    groups = set()
    for start in range(30):
        group, todo = {start}, [start]
        while todo:
            new = set(linked[todo.pop()].nonzero().flatten().tolist()) - group
            group |= new
            todo += new
        groups |= {frozenset(group)} if len(group) > 1 else set()
    names = [str(row) for row in range(30)]
    found = find_duplicates(index, "sd", threshold, names, names, canonical)
    assert {frozenset(map(int, group.ids)) for group in found} == groups and groups


def test_two_images_alone_are_duplicates_only_where_they_are_nearly_the_same(folder, tmp_path):
    write_pictures(tmp_path, [4000, 4001])
    index = MemorizationIndex.load(folder / "index")
    assert audit_images(opened(tmp_path), index, progress=False).results.duplicates == ()
    picture(4000).save(tmp_path / "the same.bmp")
    (group,) = audit_images(opened(tmp_path), index, progress=False).results.duplicates or ()
    assert group.ids == ("4000.png", "the same.bmp") and not group.identical


def test_scores_do_not_depend_on_the_batch(folder):
    index, source = MemorizationIndex.load(folder / "index"), opened(folder / "unseen")
    latents = encode_images(source, range(4), encoder(folder), index.resolution).latents
    assert latents is not None
    alone = [score_latents(index, one[None], "sd")[0].score for one in latents]
    assert [one.score for one in score_latents(index, latents, "sd")] == pytest.approx(alone, abs=1e-5)
