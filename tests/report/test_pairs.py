"""The page of held-out images beside their nearest training images: in a real browser, and as a file."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lcmem_filter.report import write_pairs

from .chromium import chromium, find_chromium
from .made_up import HOSTILE, QUOTED, calibration, pictures

FOUND = replace(
    calibration(99),
    threshold=0.7,
    highest=((QUOTED, "t1.png", 0.9), ("h2.png", HOSTILE, 0.7), ("h3.png", "t1.png", 0.4)),
)


def test_the_page_says_which_set_the_threshold_and_names_what_it_cannot_show(tmp_path):
    page = write_pairs(FOUND, tmp_path / "pairs.html", pictures()).read_text()
    assert page.count("sets the threshold</span>") == 2 and "The first 2 of these 3 set it, at 0.700" in page
    assert HOSTILE not in page and QUOTED not in page
    assert page.count("<img ") == 6 and "not shown" not in page
    page = write_pairs(FOUND, tmp_path / "pairs.html", pictures(training=False)).read_text()
    assert page.count("<img ") == 3 and page.count("not shown") == 3
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.html"]


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium here; with Debian: apt install chromium")
def test_what_is_ticked_is_listed_one_a_line(tmp_path):
    written = write_pairs(FOUND, tmp_path / "pairs.html", pictures())
    with chromium(tmp_path / "profile") as page:
        page.open(written)
        listed = "document.getElementById('ids').value"
        assert page.run(listed) == ""
        for number in (0, 2):
            page.run(f"document.querySelectorAll('label.card')[{number}].click()")
        assert page.run(listed) == f"{QUOTED}\nh3.png\n"
        assert page.run("document.getElementById('ticked-count').textContent") == "2"
        assert page.problems == []
        assert {url for url in page.requests if not url.startswith("data:")} == {written.as_uri()}
