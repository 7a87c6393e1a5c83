"""The page and the JSON: alone, escaped, salted, the same for the same results."""

from __future__ import annotations

import base64
import errno
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from lcmem_filter.report import AllowEntry, DuplicateGroup, Run, results_of, write_report
from lcmem_filter.report import write as writing
from lcmem_filter.report.pictures import thumbnails
from lcmem_filter.report.salting import salted_id

from .made_up import HOSTILE, QUOTED, audit, calibration, pictures, sample


class Elements(HTMLParser):
    """Every element with its attributes, and all text that is neither script nor style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.text.append(data)


def page_of(folder, results=None, **options) -> str:
    return write_report(results or audit(), folder, **options).html.read_text()


def test_page_needs_no_other_file_and_no_network(tmp_path):
    page = page_of(tmp_path, pictures=pictures())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]
    elements = Elements(page).found
    for _, attributes in elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:"), value
    assert {tag for tag, _ in elements} & {"link", "iframe", "object", "embed", "form", "base"} == {"link"}
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", page)


def test_names_and_prompts_are_text_never_markup(tmp_path):
    page = page_of(tmp_path, pictures=pictures())
    assert HOSTILE not in page and QUOTED not in page
    parsed = Elements(page)
    assert [tag for tag, _ in parsed.found].count("script") == 1
    assert not any("onerror" in attributes for _, attributes in parsed.found)
    text = " ".join(parsed.text)
    assert HOSTILE in text and QUOTED in text and "a test chart <b>of ours</b>" in text
    assert any(attributes.get("data-id") == QUOTED for _, attributes in parsed.found)


def test_policy_lets_nothing_run_but_the_pages_own_script(tmp_path):
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page_of(tmp_path))
    scripts = next(part for part in policy.split("; ") if part.startswith("script-src"))
    assert "default-src 'none'" in policy and "unsafe" not in scripts
    assert re.fullmatch(r"script-src (&#39;|')sha256-[\w+/=]+(&#39;|')", scripts)


def test_same_results_give_the_same_bytes(tmp_path):
    one, other = (write_report(audit(), tmp_path / name, pictures=pictures()) for name in "ab")
    assert one.html.read_bytes() == other.html.read_bytes()
    assert one.json.read_bytes() == other.json.read_bytes()


def test_training_images_are_shown_only_where_a_source_of_them_is_given(tmp_path):
    images = [
        Elements(page_of(tmp_path, pictures=given)).found for given in (pictures(), pictures(False), None)
    ]
    shown = [
        sum(a.get("src", "").startswith("data:image/jpeg") for t, a in one if t == "img") for one in images
    ]
    assert shown == [24, 12, 0]


def test_salted_report_has_no_name_prompt_or_checksum(tmp_path):
    held_out = replace(audit().calibration, highest=(("held-out-scan", "training-scan", 0.5),))
    told = audit().certificate
    assert told is not None
    results = replace(
        audit(),
        samples=tuple(
            replace(one, sha256="f00d" * 16, prompt="Ms Doe", matched_before=("first-match",))
            for one in audit().samples
        ),
        calibration=held_out,
        certificate=replace(told, specificity=replace(told.specificity, problem="image 'doe.png' is broken")),
        duplicates=tuple(DuplicateGroup((f"twin-{i}-a", f"twin-{i}-b"), True, None) for i in range(8)),
        allow_list=tuple(AllowEntry(f"known-{i}", "seen") for i in range(8)),
    )
    assert "doe.png" in write_report(results, tmp_path).html.read_text()
    written = write_report(results, tmp_path, pictures=pictures(), salt=b"a secret salt")
    names = (
        {one.id for one in results.samples} | {one.id for one in results.copied} | {"f00d", "Ms Doe", HOSTILE}
    )
    names |= {"held-out-scan", "training-scan", "doe.png", "first-match"}
    names |= {id_ for group in results.duplicates or () for id_ in group.ids if len(id_) > 1}
    for path in (written.html, written.json):
        content = path.read_text()
        assert [name for name in names if name in content or name.split("/")[0] in content] == []
    page = written.html.read_text()
    known = salted_id("known.png", b"a secret salt")
    assert page.count(f'data-id="{known}"') == 1 and page.count("data:image/jpeg") == 24
    assert salted_id("known.png", b"another salt") not in page
    read = json.loads(written.json.read_text())
    assert read["counts"] == json.loads(results.to_json())["counts"]
    assert set(read["false_discovery"]["discoveries"]) <= {one["id"] for one in read["samples"]}
    ids = [one["id"] for one in read["samples"]]
    assert ids == sorted(ids) and ids[0] in {salted_id(one.id, b"a secret salt") for one in results.samples}
    # nor does the order of anything tell that of the names
    groups = [one["ids"] for one in read["duplicates"]]
    assert groups == sorted((sorted(ids) for ids in groups), key=lambda ids: (-len(ids), ids))
    allowed = [one["id"] for one in read["allow_list"]]
    assert allowed == sorted(allowed)
    assert {one["seed"] for one in read["samples"]} == {None} != {one.seed for one in results.samples}
    p_values = read["certificate"]["specificity"]["p_values"]
    assert p_values == sorted(p_values) != list(told.specificity.p_values)
    # whoever knows the names of the samples learns none of the training images, were they called alike
    nearest = {near["id"] for one in read["samples"] for near in one["neighbours"]} | {
        one["id"] for one in read["copied"]
    }
    theirs = {near.id for one in results.samples for near in one.neighbours} | {
        one.id for one in results.copied
    }
    assert nearest == {salted_id(id_, b"a secret salt", "training") for id_ in theirs}
    assert not nearest & {salted_id(id_, b"a secret salt") for id_ in theirs}


@pytest.mark.parametrize("kind", ["JPEG", "GIF"])
def test_a_thumbnail_holds_the_picture_and_nothing_that_its_file_says(kind):
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x010E] = "Jane Doe"
    pictures(False).sample("a").save(file, kind, comment=b"Jane Doe", exif=exif)
    found = thumbnails(["a"], lambda _: Image.open(file))["a"]
    written = base64.b64decode(found.partition(",")[2])
    assert b"Jane" not in written and not {"comment", "exif"} & Image.open(io.BytesIO(written)).info.keys()


def test_a_salted_report_tells_what_was_not_judged_from_what_was_judged_more_strictly(tmp_path):
    why = "the nearest training image is scan.png again, which an earlier draw was rejected for"
    samples = [
        sample(0, 0.5),
        sample(1, 0.5, accepted=False, delivered=False, attempts=2, problem=why),
        replace(sample(2, 0.5), accepted=None, score=None, p_value=None, delivered=False, problem="scan.png"),
    ]
    results = results_of(replace(audit().run, kind="generation"), samples, calibration())
    written = write_report(results, tmp_path, salt=b"a secret salt").json.read_text()
    assert {one["status"]: one["problem"] for one in json.loads(written)["samples"]} == {
        "accepted": "",
        "withheld": "drawn again, it was judged more strictly",
        "not checked": "the image could not be read or judged",
    }
    assert "scan.png" not in written


def test_settings_that_name_something_stay_out_of_a_salted_report(tmp_path):
    settings = {"pipeline": "/data/icu/model", "texts of its call": "not Ms Doe", "seed": "77", "steps": "30"}
    run = replace(audit().run, settings=settings, private=("pipeline", "texts of its call", "seed"))
    results = replace(audit(), run=run)
    assert json.loads(write_report(results, tmp_path).json.read_text())["run"]["settings"] == settings
    written = write_report(results, tmp_path, salt=b"a secret salt")
    assert json.loads(written.json.read_text())["run"]["settings"] == {"steps": "30"}
    assert not any(text in written.html.read_text() for text in ("icu", "Ms Doe", "<dt>seed"))


def test_each_labels_share_and_interval_are_drawn_beside_its_name(tmp_path):
    names = ("結節", "nodule $", "<i>rare</i>")
    samples = [sample(i, 0.9 if i % 4 else 0.5, labels=names[: 1 + i % 3]) for i in range(12)]
    results = results_of(audit().run, samples, calibration())
    parsed = Elements(page_of(tmp_path, results))
    assert set(names) <= set(parsed.text)
    assert len({row.rejected.high for row in results.labels}) == 3
    most = max(row.rejected.high for row in results.labels)
    circles = [float(attributes["cx"]) for tag, attributes in parsed.found if tag == "circle"]
    assert circles == [pytest.approx(5 + 150 * row.rejected.share / most) for row in results.labels]
    drawn = [attributes["d"] for tag, attributes in parsed.found if attributes.get("class") == "interval"]
    for path, row in zip(drawn, results.labels, strict=True):
        ends = [float(number) for number in re.fullmatch(r"M(\S+) 6H(\S+)", path).groups()]
        assert ends == [pytest.approx(5 + 150 * end / most) for end in (row.rejected.low, row.rejected.high)]


def test_what_stands_out_below_the_threshold_is_named(tmp_path):
    results = audit()
    below = next(one for one in results.samples if one.status == "accepted")
    found = replace(results.false_discovery, discoveries=(*results.false_discovery.discoveries, below.id))
    sentence = r"Below the threshold, and so not among the matches: [^.]*" + re.escape(below.id)
    assert re.search(
        sentence, re.sub(r"<[^>]+>", "", page_of(tmp_path, replace(results, false_discovery=found)))
    )
    assert "not among the matches" not in page_of(tmp_path, results)


def test_what_could_not_be_written_leaves_no_half_of_itself(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(audit(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_where_there_was_no_room_for_a_report_is_told(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(OSError) as error:
            write_report(audit(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.errno == errno.EFBIG and str(tmp_path / "report.html") in str(error.value)
    assert not list(tmp_path.iterdir())


def test_file_names_that_are_no_text_can_be_written(tmp_path):
    odd = b"\xff\xfe.png".decode("utf-8", "surrogateescape")
    results = results_of(audit().run, [sample(0, 0.9, id=odd)], calibration())
    page = page_of(tmp_path, results)
    assert r"\udcff\udcfe.png" in page
    assert json.loads((tmp_path / "report.json").read_text())["samples"][0]["id"] == odd


def test_large_sets_stay_small_and_say_what_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "GALLERY", 20)
    results = audit(images=2000, copies=60, duplicates=None)
    page = page_of(tmp_path, results, pictures=pictures())
    assert page.count('class="card"') == 20 and "of 60; report.json has all" in page
    scores = [float(score) for score in re.findall(r'data-score="([\d.]+)"', page)]
    best = sorted((one.score for one in results.samples if one.accepted is False), reverse=True)
    assert scores == pytest.approx(best[:20])


def test_full_gallery_is_a_few_megabytes(tmp_path):
    page_of(tmp_path, audit(images=400, copies=250), pictures=pictures())
    assert (tmp_path / "report.html").stat().st_size < 4_000_000


def test_a_generation_job_fills_the_same(tmp_path):
    run = Run("generation", "2026-01-31T12:00:00+00:00", "job 7", "index", 100)
    samples = [
        sample(0, 0.5, prompt="a cat", seed=3, attempts=2, rung="new seed"),
        sample(1, 0.9, prompt="a <dog>", seed=4, attempts=1, delivered=False),
    ]
    page = page_of(tmp_path, results_of(run, samples, calibration()))
    assert "Generation job" in page and "1 image that matched was withheld" in page
    assert "a &lt;dog&gt;" in page and 'data-status="withheld"' in page and 'data-exit-code="0"' in page


def test_the_page_says_that_redraws_are_judged_more_strictly_and_why_each_was_rejected(tmp_path):
    run = replace(audit().run, kind="generation")
    again = sample(
        1, 0.5, accepted=False, delivered=False, attempts=2, problem="the nearest is <a.png> again"
    )
    page, plain = (
        page_of(tmp_path / str(len(rest)), results_of(run, [sample(0, 0.9), *rest], calibration()))
        for rest in ([again], [])
    )
    assert "Images that were drawn again are judged more strictly" in page and "drawn again" not in plain
    assert "Rejected: the nearest is &lt;a.png&gt; again" in page and "Rejected:" not in plain


def test_nothing_checked_and_nothing_found_can_be_shown(tmp_path):
    nothing = results_of(
        audit().run, [replace(sample(0, 0.5), accepted=None, score=None, p_value=None)], calibration()
    )
    assert 'data-exit-code="2"' in page_of(tmp_path / "nothing", nothing)
    none = results_of(audit().run, [sample(0, 0.5)], calibration(), duplicates=[])
    page = page_of(tmp_path / "none", none)
    assert 'data-exit-code="0"' in page and "There are none." in page and "no two images resemble" in page


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0%"),
        (1, "100%"),
        (0.04, "4%"),
        (0.0234, "2.3%"),
        (0.0002, "0.02%"),
        (0.9996, "99.96%"),
        (1e-9, "< 0.001%"),
    ],
)
def test_shares_are_never_rounded_to_none_or_all(share, text):
    assert writing._percent(share) == text
