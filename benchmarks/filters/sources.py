"""The benchmark's rows as the package reads them, and the index over them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from data import RESOLUTION, Row, data_folder

import lcmem_filter
from lcmem_filter.verification import STATISTIC

HELD_OUT, RATE = 300, 0.01  # images that calibrate the small index, and the share of them that it may reject


def open_rows(rows: Sequence[Row], path: Path) -> Any:
    """Write the rows into one Parquet file, images as they are, and open it with the package.

    It names no identities, which no filter here is told.
    """
    if not path.exists() or "identity" in pq.read_schema(path).names:  # as earlier versions wrote it
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = {
            name: pq.read_table(data_folder() / f"{name}.parquet", columns=["image"])["image"]
            for name in {row.file for row in rows}
        }
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        images = [{"bytes": columns[row.file][row.position].as_py()["bytes"], "path": None} for row in rows]
        table = pa.table({"image": pa.array(images, kind), "key": [row.key for row in rows]})
        info = '{"info": {"features": {"image": {"_type": "Image"}, "key": {"dtype": "string", "_type": "Value"}}}}'
        pq.write_table(table.replace_schema_metadata({"huggingface": info}), path, row_group_size=256)
    return lcmem_filter.open_images(path, image_column="image", id_column="key")


def small_index(rows: dict[str, list[Row]], encoder: Any, head: str, cache: Path) -> Any:
    """The index of the pipeline's training images alone, calibrated; kept in ``cache``."""
    source = open_rows(rows["pipeline"], cache / "pipeline.parquet")
    index = build_index(source, encoder, head, index_folder(cache, head))
    if index.calibration is None or index.calibration.statistic != STATISTIC:
        held_out = open_rows(rows["calibration"][:HELD_OUT], cache / "calibration.parquet")
        lcmem_filter.calibrate(index, held_out, false_rejection_rate=RATE)
    return index


def build_indexes(source: Any, encoder: Any, heads: Sequence[str], cache: Path) -> dict[str, Any]:
    """The index of ``source`` for each head, by the head's name: the first is built, the others are embedded anew from
    the latents that it keeps."""
    found: dict[str, Any] = {}
    for head in heads:
        output = index_folder(cache, head)
        if found and not (output / "CURRENT").exists():
            first = next(iter(found.values()))
            first.reembed(lcmem_filter.LCMemHead.from_pretrained(head), output)
        found[head_name(head)] = build_index(source, encoder, head, output)
    return found


def head_name(head: str) -> str:
    """What a head is called: its shipped name, or that of its folder."""
    return Path(head).name


def index_folder(cache: Path, head: str) -> Path:
    """Where the index of a head lies."""
    return cache / f"index-{head_name(head)}"


def build_index(source: Any, encoder: Any, head: str, output: Path) -> Any:
    """Build, or finish, the index of ``source``, or use what is there; ``head`` is a shipped name or a folder."""
    network = lcmem_filter.LCMemHead.from_pretrained(head)
    if not (output / "CURRENT").exists():
        return lcmem_filter.MemorizationIndex.build(source, encoder, network, output, resolution=RESOLUTION)
    index = lcmem_filter.MemorizationIndex.load(output)
    space = index.space
    named = any(record.identity is not None for record in index.records)
    if (
        index.head.fingerprint_of(space) != network.fingerprint_of(space)
        or len(index) != len(source)
        or named
    ):
        raise SystemExit(
            f"{output} is an index of other images, of another head, or one that names identities; remove it, or "
            "give another --cache"
        )
    return index
