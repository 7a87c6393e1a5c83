"""What a job knows of each image that was asked for, and the manifest made of it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ..types import Decision, Neighbour
from .plan import Item

Status = Literal["accepted", "flagged", "withheld", "unsafe"]
"""Delivered; delivered although it matches, as was asked for; not delivered because of a match, or because it could
not be judged; not delivered because the pipeline's own safety checker replaced it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One image that was asked for.

    Attributes:
        position, prompt, label, seed: As planned.
        status: What became of it.
        file_name: Relative to the job's folder; ``None`` where it was not delivered.
        accepted, score, p_value, threshold, reason: The decision about its last draw.
        neighbours: The nearest training images, most alike first; the manifest has their ids and scores.
        attempts: Draws, the first included.
        last_seed: Of the last draw, where there was more than one.
        rung: The remedy that the last draw came from; empty for the first.
        rungs: The remedies behind each draw after the first, in order.
        sha256, bytes: Of the file.
        drawn_prompt: What the last draw was asked for, where the remedy put other words into the prompt; else empty.
        matched_before: The training image that each earlier draw was nearest to, in their order; empty in rows of
            before.
    """

    position: int
    prompt: str
    label: str
    seed: int
    status: Status
    file_name: str | None
    accepted: bool | None
    score: float
    p_value: float
    threshold: float
    neighbours: tuple[Neighbour, ...]
    attempts: int
    last_seed: int | None
    rung: str
    rungs: tuple[str, ...]
    reason: str
    sha256: str | None = None
    bytes: int = 0
    drawn_prompt: str = ""
    matched_before: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        item: Item,
        decision: Decision,
        status: Status,
        rungs: tuple[str, ...],
        file_name: str | None,
        sha256: str | None = None,
        size: int = 0,
    ) -> Row:
        """From a decision; ``file_name``, ``sha256`` and ``size`` where the image was written."""
        return cls(
            item.position,
            item.prompt,
            item.label,
            item.seed,
            status,
            file_name,
            decision.accepted,
            decision.score,
            decision.p_value,
            decision.threshold,
            decision.neighbours,
            decision.attempts,
            decision.seed,
            decision.rung or "",
            rungs,
            decision.reason,
            sha256,
            size,
            decision.prompt or "",
            decision.matched_before,
        )

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Row:
        """From JSON."""
        neighbours = tuple(Neighbour(**one) for one in found["neighbours"])
        lists = {name: tuple(found.get(name, ())) for name in ("rungs", "matched_before")}
        return cls(**{**found, **lists, "neighbours": neighbours})

    @property
    def delivered(self) -> bool:
        """Whether there is a file."""
        return self.file_name is not None

    def flat(self) -> dict[str, Any]:
        """As a row of a table."""
        found = asdict(self)
        neighbours, found["rungs"] = found.pop("neighbours"), list(self.rungs)
        found["matched_before"] = list(self.matched_before)
        found["nearest"] = [one["id"] for one in neighbours]
        found["nearest_scores"] = [one["score"] for one in neighbours]
        if self.accepted is None:  # interrupted, it has none
            found["score"] = found["p_value"] = found["threshold"] = None
        return found


def metadata_jsonl(rows: Iterable[Row]) -> bytes:
    """Delivered images, as ``datasets`` reads them; it goes out with them, so it names no training image."""
    left_out = ("file_name", "reason", "bytes", "nearest", "nearest_scores", "matched_before")
    return _jsonl(
        {"file_name": row.file_name}
        | {name: value for name, value in row.flat().items() if name not in left_out}
        for row in rows
        if row.delivered
    )


def manifest_jsonl(rows: Iterable[Row], job: Mapping[str, Any]) -> bytes:
    """Every image that was asked for, each with the versions and fingerprints behind it."""
    return _jsonl(_manifest_rows(rows, job))


def manifest_parquet(rows: Iterable[Row], job: Mapping[str, Any]) -> bytes:
    """The same, with the whole of ``job.json`` in the file's own metadata."""
    schema = _schema(job).with_metadata({b"lcmem_filter": json.dumps(job).encode()})
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(_manifest_rows(rows, job)), schema), buffer)
    return buffer.getvalue()


def _manifest_rows(rows: Iterable[Row], job: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    behind = {"versions": job["fixed"]["versions"], "fingerprints": job["fixed"]["fingerprints"]}
    return (row.flat() | behind for row in rows)


def _schema(job: Mapping[str, Any]) -> pa.Schema:
    def texts(names: Sequence[str]) -> pa.DataType:
        return pa.struct([(name, pa.string()) for name in names])

    return pa.schema(
        [
            ("position", pa.int64()),
            ("prompt", pa.string()),
            ("label", pa.string()),
            ("seed", pa.int64()),
            ("status", pa.string()),
            ("file_name", pa.string()),
            ("accepted", pa.bool_()),
            ("score", pa.float64()),
            ("p_value", pa.float64()),
            ("threshold", pa.float64()),
            ("nearest", pa.list_(pa.string())),
            ("nearest_scores", pa.list_(pa.float64())),
            ("attempts", pa.int64()),
            ("last_seed", pa.int64()),
            ("rung", pa.string()),
            ("rungs", pa.list_(pa.string())),
            ("reason", pa.string()),
            ("sha256", pa.string()),
            ("bytes", pa.int64()),
            ("drawn_prompt", pa.string()),
            ("matched_before", pa.list_(pa.string())),
            ("versions", texts(list(job["fixed"]["versions"]))),
            ("fingerprints", texts(list(job["fixed"]["fingerprints"]))),
        ]
    )


def _jsonl(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(
        "utf-8", "backslashreplace"
    )
