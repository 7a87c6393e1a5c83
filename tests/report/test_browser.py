"""The report in a real browser: it opens from disk without a complaint, and its controls work."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lcmem_filter.report import write_report

from .chromium import Page, chromium, find_chromium
from .made_up import HOSTILE, audit, pictures

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium here; with Debian: apt install chromium"
)

CARDS = "Array.from(document.querySelectorAll('.card')).filter(card => !card.hidden)"


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    return write_report(audit(), tmp_path_factory.mktemp("report"), pictures=pictures()).html


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser, report) -> Page:
    browser.problems.clear()
    browser.requests.clear()
    browser.open(report)
    return browser


def choose(page: Page, id_: str, value: str) -> None:
    element = f"document.getElementById('{id_}')"
    page.run(f"{element}.value = {value!r}")
    page.run(f"{element}.dispatchEvent(new Event('input'))")


def ids(page: Page, name: str = "id") -> list[str]:
    return page.run(f"{CARDS}.map(card => card.dataset.{name})")


def test_opens_without_a_complaint_and_asks_for_nothing(page, report):
    assert page.run("document.documentElement.dataset.ready") == "yes"
    assert page.problems == []
    assert {url for url in page.requests if not url.startswith("data:")} == {report.as_uri()}
    assert page.run("Array.from(document.images).every(i => i.complete && i.naturalWidth > 0)")
    assert page.run("document.images.length") == 24 + 2


def test_names_that_are_markup_did_nothing(page):
    assert page.run("document.title") == f"Memorisation report: {HOSTILE}"
    assert page.run("document.querySelectorAll('script').length") == 1
    assert page.run("document.querySelectorAll('[onerror], [src=x]').length") == 0


def test_the_policy_stops_a_script_that_got_in_and_the_browser_tells(page, report, tmp_path):
    changed = tmp_path / "changed.html"
    changed.write_text(report.read_text().replace("</main>", "<script>window.owned = true</script></main>"))
    page.open(changed)
    assert page.run("window.owned") is None
    assert any("Content Security Policy" in problem for problem in page.problems)


def test_matches_can_be_found_by_words_and_by_status(page):
    assert len(ids(page)) == 12
    choose(page, "words", "EFFUSION")
    assert 0 < len(ids(page)) < 12
    labels = page.run(f"{CARDS}.map(card => card.dataset.words.includes('effusion'))")
    assert all(labels) and page.run("document.getElementById('shown-count').textContent").endswith("of 12")
    choose(page, "words", "")
    choose(page, "status", "allowed")
    assert ids(page) == ["known.png"]
    choose(page, "words", "nothing is called this")
    assert ids(page) == [] and not page.run("document.getElementById('nothing').hidden")
    page.run("document.getElementById('clear').click()")
    assert len(ids(page)) == 12 and page.run("document.getElementById('nothing').hidden")


def test_only_those_that_stand_out(page):
    page.run("{const c = document.querySelector('.card'); c.dataset.discovered = 'no'}")
    page.run("document.getElementById('only').click()")
    assert len(ids(page)) == 11


def test_matches_can_be_sorted(page):
    scores = [float(score) for score in ids(page, "score")]
    assert scores == sorted(scores, reverse=True)
    choose(page, "order", "training")
    assert ids(page, "training") == sorted(ids(page, "training"))
    choose(page, "order", "copies")
    copies = [int(count) for count in ids(page, "copies")]
    assert copies == sorted(copies, reverse=True) and len(set(copies)) > 1
    choose(page, "order", "id")
    assert page.run(
        f"{CARDS}.every((card, i, all) => !i || all[i-1].dataset.id.localeCompare(card.dataset.id) <= 0)"
    )


def test_tables_can_be_sorted_by_number_and_by_name(page):
    rows = "Array.from(document.querySelector('table.sortable tbody').rows)"
    column = f"{rows}.map(row => row.cells[1].textContent)"
    page.run("document.querySelectorAll('table.sortable th')[1].firstChild.click()")
    counts = [int(text) for text in page.run(column)]
    assert counts == sorted(counts, reverse=True) and len(set(counts)) > 1
    page.run("document.querySelectorAll('table.sortable th')[1].firstChild.click()")
    assert [int(text) for text in page.run(column)] == counts[::-1]


@pytest.mark.parametrize("width", [1366, 390])
def test_nothing_sticks_out_sideways(page, report, width):
    page.open(report, width=width)
    assert page.run("document.documentElement.scrollWidth") <= width


def test_can_be_looked_at_and_printed(page, tmp_path):
    page.screenshot(tmp_path / "report.png")
    with Image.open(tmp_path / "report.png") as shot:
        assert shot.width == 1366 and shot.height > 3000
        colours = shot.convert("RGB").getcolors(1 << 24)
        assert colours is not None and len(colours) > 1000  # pictures and figures are there
    page.pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
