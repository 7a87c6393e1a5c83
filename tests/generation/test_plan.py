"""Prompts to a plan: files that are read, counts, seeds, batches."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lcmem_filter.errors import DataError, EmptyDataError, MissingColumnError
from lcmem_filter.generation import Request, plan_of, read_requests

ROWS = [
    {"prompt": "a cat, sleeping", "label": "7", "seed": None, "count": 2},
    {"prompt": "001", "label": "", "seed": 12, "count": None},
]
REQUESTS = [Request("a cat, sleeping", "7", None, 2), Request("001", "", 12, 1)]


def write(folder, kind):
    path = folder / f"prompts.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        comma = "\t" if kind == "tsv" else ","
        lines = [comma.join(ROWS[0])] + [
            comma.join(
                f'"{value}"' if key == "prompt" else "" if value is None else str(value)
                for key, value in row.items()
            )
            for row in ROWS
        ]
        path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_tables_of_every_kind_say_the_same(tmp_path, kind):
    assert read_requests(write(tmp_path, kind)) == REQUESTS


def test_text_is_a_prompt_a_line(tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\n\n  a dog \n")
    assert read_requests(tmp_path / "prompts.txt") == [Request("a cat"), Request("a dog")]


def test_columns_may_be_named_otherwise(tmp_path):
    (tmp_path / "prompts.csv").write_text("text,finding,prompt\na cat,fur,not this\n")
    found = read_requests(tmp_path / "prompts.csv", prompt_column="text", label_column="finding")
    assert found == [Request("a cat", "fur")]


@pytest.mark.parametrize(
    ("name", "content", "options", "error", "says"),
    [
        ("p.csv", "text\na cat\n", {}, MissingColumnError, "no column 'prompt'; it has text"),
        ("p.jsonl", "\n", {}, MissingColumnError, "no column 'prompt'; it has none"),
        ("p.csv", "prompt\na cat\n", {"seed_column": "s"}, MissingColumnError, "no column 's'"),
        ("p.txt", "a cat\n", {"label_column": "l"}, MissingColumnError, "one prompt a line"),
        ("p.txt", "\n", {}, EmptyDataError, "no prompts"),
        ("p.csv", "prompt,prompt\na cat,a dog\n", {}, DataError, "several columns 'prompt'"),
        ("p.csv", "prompt,count\na cat,0\n", {}, DataError, "at least 1, got 0"),
        (
            "p.csv",
            "prompt,count\na cat,1.5\n",
            {},
            DataError,
            "row 1 has count '1.5', which is no whole number",
        ),
        (
            "p.csv",
            "prompt,count\na cat,inf\n",
            {},
            DataError,
            "row 1 has count 'inf', which is no whole number",
        ),
        ("p.csv", "prompt,count\na cat,99999999999999999999\n", {}, DataError, "a count is below 2"),
        ("p.jsonl", '{"prompt": "a cat", "count": 1e999}\n', {}, DataError, "no whole number"),
        ("p.jsonl", '{"prompt": "a cat", "count": true}\n', {}, DataError, "no whole number"),
        ("p.jsonl", '{"prompt": "a cat", "seed": 1e18}\n', {}, DataError, "no whole number"),
        ("p.jsonl", '{"prompt": "a cat", "seed": 9223372036854775808}\n', {}, DataError, "lies in"),
        ("p.csv", "prompt,seed\na cat,99999999999999999999\n", {}, DataError, "lies in"),
        ("p.csv", "prompt,seed\na cat,-1\n", {}, DataError, "lies in"),
        ("p.jsonl", '{"prompt": "a cat"', {}, DataError, "cannot be read"),
        ("p.jsonl", '{"prompt": null}\n', {}, DataError, "row 1 has no prompt"),
        ("p.jsonl", '{"prompt": ["a cat"]}\n', {}, DataError, "is no text"),
        ("p.docx", "", {}, DataError, "no file of prompts"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, name, content, options, error, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(error, match=says):
        read_requests(tmp_path / name, **options)
    with pytest.raises(DataError):
        read_requests(tmp_path / "missing" / name, **options)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_prompts_in_another_encoding_are_refused(tmp_path, encoding):
    (tmp_path / "p.csv").write_bytes("prompt,Größe\na cat,groß\n".encode(encoding))
    with pytest.raises(DataError, match="cannot be read"):
        read_requests(tmp_path / "p.csv")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_seeds_and_counts_are_read_to_the_last_digit(tmp_path, kind):
    seeds = [2**62 - 1, 2**53 + 1, 7]
    path, rows = tmp_path / f"p.{kind}", [{"prompt": "a cat", "seed": seed} for seed in seeds]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "csv":
        path.write_text("prompt,seed\n" + "".join(f"a cat,{seed}\n" for seed in seeds[:2]) + "a cat,7.0\n")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows).replace(": 7}", ": 7.0}"))
    assert [one.seed for one in read_requests(path)] == seeds


def test_numbers_of_floating_point_are_seeds_as_far_as_none_is_rounded(tmp_path):
    for seeds, read in (([2.0**53, float("nan")], [2**53, None]), ([2.0**60], None), ([float("inf")], None)):
        pq.write_table(pa.table({"prompt": ["a cat"] * len(seeds), "seed": seeds}), tmp_path / "p.parquet")
        if read is None:
            with pytest.raises(DataError, match="no whole number"):
                read_requests(tmp_path / "p.parquet")
        else:
            assert [one.seed for one in read_requests(tmp_path / "p.parquet")] == read
    (tmp_path / "p.csv").write_text("prompt,seed,count\nNA,NA,\n")
    assert read_requests(tmp_path / "p.csv") == [Request("NA")]


def test_columns_may_be_in_capitals_and_labels_may_be_unknown(tmp_path):
    (tmp_path / "p.csv").write_text("PROMPT, Seed\na cat,3\n")
    assert read_requests(tmp_path / "p.csv") == [Request("a cat", seed=3)]
    (tmp_path / "p.csv").write_text("Prompt,prompt\nnot this,a cat\n")
    assert read_requests(tmp_path / "p.csv") == [Request("a cat")]
    (tmp_path / "p.jsonl").write_text('{"prompt": "a cat", "label": ["fur", null, "paw"]}\n')
    assert read_requests(tmp_path / "p.jsonl") == [Request("a cat", "fur|paw")]
    # as pandas writes a column of whole numbers with gaps
    numbers = pa.table({"prompt": ["a cat", "a dog", "a bird"], "label": [3.0, float("nan"), 0.5]})
    pq.write_table(numbers, tmp_path / "p.parquet")
    assert [request.label for request in read_requests(tmp_path / "p.parquet")] == ["3", "", "0.5"]


@pytest.mark.parametrize("name", ["prompt", "label"])
def test_bytes_are_no_text(tmp_path, name):
    pq.write_table(pa.table({"prompt": ["a cat"], "label": [""], name: [b"a cat"]}), tmp_path / "p.parquet")
    with pytest.raises(DataError, match=f"row 1 has b'a cat' for a {name}, which is no text"):
        read_requests(tmp_path / "p.parquet")


def test_a_seed_depends_on_the_job_and_the_place_only():
    plan = plan_of(REQUESTS, seed=1, batch_size=2)
    assert [len(plan.batch(number)) for number in range(plan.batches)] == [2, 1]
    other = plan_of([Request("x", count=2), Request("y", seed=12)], seed=1, batch_size=3)
    assert [item.seed for item in plan.items] == [item.seed for item in other.items]
    assert plan.items[2].seed == 12
    elsewhere = plan_of(REQUESTS, seed=2)
    assert [a.seed == b.seed for a, b in zip(plan.items, elsewhere.items, strict=True)] == [
        False,
        False,
        True,
    ]
    many = plan_of([Request(count=1000), Request(seed=3, count=1000), Request(seed=4, count=1000)])
    assert len({item.seed for item in many.items}) == 3000


def test_a_fingerprint_changes_with_whatever_changes_a_byte():
    plans = [
        plan_of(REQUESTS),
        plan_of(REQUESTS, seed=1),
        plan_of(REQUESTS, batch_size=2),
        plan_of(REQUESTS[::-1]),
        plan_of([Request("a cat, sleeping", "8", None, 2), REQUESTS[1]]),
    ]
    assert len({plan.fingerprint for plan in plans}) == len(plans)
    assert plan_of(REQUESTS).fingerprint == plans[0].fingerprint


def test_nothing_to_do_is_an_error():
    with pytest.raises(EmptyDataError, match="nothing to generate"):
        plan_of([])
    with pytest.raises(DataError, match="batch size of 0"):
        plan_of(REQUESTS, batch_size=0)


def test_a_request_is_what_a_job_can_keep():
    assert Request("a cat", seed=np.int64(7), count=np.int8(2)) == Request("a cat", seed=7, count=2)
    assert type(Request("a cat", seed=np.int64(7)).seed) is int
    for given, says in (
        ({"prompt": "a cat", "label": "caf\ud83d"}, "a label is a text in UTF-8"),
        ({"prompt": None}, "a prompt is a text in UTF-8, got None"),
        ({"prompt": "a cat", "seed": 1.5}, "a seed is an integer, got 1.5"),
        ({"prompt": "a cat", "count": None}, "a count is an integer, got None"),
    ):
        with pytest.raises(DataError, match=says):
            Request(**given)


def test_what_stands_in_a_prompt_or_a_label_stays(tmp_path):
    (tmp_path / "p.txt").write_text("a cat\u2028on a\x0bmat\r\na dog\n", newline="")
    assert [one.prompt for one in read_requests(tmp_path / "p.txt")] == ["a cat\u2028on a\x0bmat", "a dog"]
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "2024-05-01", "label": "2024-05-02"}\n\n{"prompt": "a dog"}\n'
    )
    assert read_requests(tmp_path / "p.jsonl") == [Request("2024-05-01", "2024-05-02"), Request("a dog")]
    for content in ('["a cat"]\n', '{"prompt": 1}\n{"prompt": "a"}\n'):
        (tmp_path / "p.jsonl").write_text(content)
        with pytest.raises(DataError, match="cannot be read"):
            read_requests(tmp_path / "p.jsonl")
