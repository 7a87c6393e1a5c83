"""Allow-lists: what is read, and what is refused."""

from __future__ import annotations

import json

import pytest

from lcmem_filter.audit import read_allow_list
from lcmem_filter.audit.allow import apply_allow_list
from lcmem_filter.errors import DataError, MissingColumnError
from lcmem_filter.report import AllowEntry, Sample

ENTRIES = [AllowEntry("007.png", "a test chart, ours", "ab12" * 16), AllowEntry("a/b.png", 'seen by "M"')]


def test_csv_and_json_lines_give_the_same(tmp_path):
    (tmp_path / "allow.csv").write_text(
        f'\ufeffid,reason, SHA256\n007.png,"a test chart, ours",{"AB12" * 16}\na/b.png,"seen by ""M""",\n',
        encoding="utf-8",
    )
    lines = [{"id": one.id, "reason": one.reason, "sha256": one.sha256} for one in ENTRIES]
    (tmp_path / "allow.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert read_allow_list(tmp_path / "allow.csv") == read_allow_list(tmp_path / "allow.jsonl") == ENTRIES


def test_an_entry_for_an_image_that_was_not_checked_says_so():
    """Of one that cannot be read there is no digest, and nobody knows whether it would match."""
    samples = [
        Sample("broken.png", None, problem="cannot be read"),
        Sample("odd.png", None, sha256="cd" * 32),
    ]
    entries = [AllowEntry("broken.png", "ours"), AllowEntry("odd.png", "ours", "cd" * 32)]
    entries.append(AllowEntry("broken.png", "ours", "ab" * 32))
    found, applied = apply_allow_list(samples, entries)
    assert found == samples
    assert [one.effect for one in applied] == ["not checked"] * 3


def test_an_id_may_be_zero(tmp_path):
    (tmp_path / "allow.jsonl").write_text('{"id": 0, "reason": "a test chart"}\n')
    assert read_allow_list(tmp_path / "allow.jsonl") == [AllowEntry("0", "a test chart")]


@pytest.mark.parametrize(("name", "content"), [("a.csv", "id,reason\n"), ("a.csv", ""), ("a.jsonl", "\n")])
def test_a_list_without_entries_is_told(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.warns(UserWarning, match="has no entries, so no match is accepted by it"):
        assert read_allow_list(tmp_path / name) == []


@pytest.mark.parametrize(
    ("name", "content", "error", "says"),
    [
        ("a.csv", "id,why\nx,y\n", MissingColumnError, "no 'reason'"),
        ("a.csv", "id,reason\nx,\n", DataError, "entry 1"),
        ("a.csv", "id,reason\nx\n", DataError, "entry 1"),
        ("a.csv", "id,reason\nx,a\nx,b\n", DataError, "twice"),
        ("a.csv", "id,reason,digest\nx,a,ab12\n", DataError, "has digest; call a column of SHA-256"),
        ("a.csv", "id,reason\nx,a,ab12\n", DataError, "has cells beyond the header"),
        ("a.csv", "id,reason,sha256\nx,a,ab12\n", DataError, "64 hexadecimal digits"),
        ("a.jsonl", '{"id": "x"}\n', MissingColumnError, "no 'reason'"),
        ("a.jsonl", '["x"]\n', DataError, "no object"),
        ("a.jsonl", '{"id": null, "reason": "a"}\n', DataError, "entry 1 .* lacks its id or its reason"),
        (
            "a.jsonl",
            '{"id": "x", "ID": "y", "reason": "a"}\n',
            DataError,
            "has 'id' twice, in id, ID, reason",
        ),
        ("a.csv", "id,reason,sha256,SHA256\nx,a,,\n", DataError, "has 'sha256' twice"),
        ("a.csv", f"id,reason,sha256,sha256\nx,a,{'ab12' * 16},\n", DataError, "several columns 'sha256'"),
        ("a.jsonl", "{\n", DataError, "cannot be read"),
        ("a.jsonl", None, DataError, "cannot be read"),
    ],
)
def test_refusals_say_where(tmp_path, name, content, error, says):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=says):
        read_allow_list(tmp_path / name)
