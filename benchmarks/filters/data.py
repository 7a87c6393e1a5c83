"""The benchmark's images: who may be memorised, who is held out, who only fills the index.

Faces, chest X-rays and skin lesions of the validation and test splits (identities that no head was trained on) are
divided by identity: 45 % to the pipeline's training set, the rest held out, half for calibration and half to measure
the false-rejection rate. All images of the train split are distractors in the index.
"""

from __future__ import annotations

import functools
import io
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

PRIVATE = {"lfw": "face", "nih_cxr128": "xray", "nih_cxr256": "xray", "ham10000": "lesion"}
DISTRACTORS = (*PRIVATE, "lfw_gray", "orl_faces", "art", "pictures", "pictures256")
RESOLUTION = 128
OFTEN, SOMETIMES = 60, 15  # how often a duplicated image stands in the training set
DUPLICATED = {"face": (10, 6), "xray": (8, 6), "lesion": (6, 4)}  # (often, sometimes) for each domain


@dataclass(frozen=True)
class Row:
    key: str
    identity: str
    domain: str
    caption: str
    copies: int
    file: str
    position: int


def data_folder() -> Path:
    """``LCMEM_DATA`` or ``../shared/data`` beside the checkout.

    Raises:
        SystemExit: naming what is missing.
    """
    folder = Path(os.environ.get("LCMEM_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    missing = [name for name in DISTRACTORS if not (folder / f"{name}.parquet").exists()]
    if missing:
        raise SystemExit(
            f"benchmark data not found: {folder} lacks {', '.join(missing)}; set LCMEM_DATA to its folder"
        )
    return folder


def vae_folder() -> Path:
    """``LCMEM_VAE`` or ``../shared/vae/taesd`` beside the checkout: a diffusers autoencoder of the SD latent space."""
    folder = Path(
        os.environ.get("LCMEM_VAE", Path(__file__).resolve().parents[3] / "shared" / "vae" / "taesd")
    )
    if not (folder / "config.json").exists():
        raise SystemExit(
            f"benchmark autoencoder not found: {folder}; set LCMEM_VAE to a diffusers VAE folder"
        )
    return folder


def split_rows(seed: int = 0) -> dict[str, list[Row]]:
    """Rows for ``pipeline``, ``calibration``, ``held_out`` (one image an identity) and ``distractors``."""
    folder = data_folder()
    entries = []
    for name in DISTRACTORS:
        table = pq.read_table(folder / f"{name}.parquet", columns=["id", "labels", "split"]).to_pylist()
        entries += [(name, position, entry) for position, entry in enumerate(table)]
    people = sorted(
        {entry["id"] for name, _, entry in entries if name in PRIVATE and entry["split"] != "train"}
    )
    draw = random.Random(seed)
    draw.shuffle(people)
    cut, middle = round(0.45 * len(people)), round(0.725 * len(people))
    part = {
        person: "pipeline" if i < cut else "calibration" if i < middle else "held_out"
        for i, person in enumerate(people)
    }
    rows: dict[str, list[Row]] = {"pipeline": [], "calibration": [], "held_out": [], "distractors": []}
    for name, position, entry in entries:
        if entry["split"] == "train":
            rows["distractors"].append(_row(name, position, entry, name))
        elif name in PRIVATE:
            rows[part[entry["id"]]].append(_row(name, position, entry, PRIVATE[name]))
    for held in ("calibration", "held_out"):
        draw.shuffle(rows[held])
        rows[held] = list({row.identity: row for row in rows[held]}.values())
    rows["pipeline"] = _duplicate(rows["pipeline"], draw)
    return rows


def read_image(row: Row) -> Image.Image:
    """The row's picture, RGB, its own size."""
    value = _images_of(row.file)[row.position].as_py()
    return Image.open(io.BytesIO(value["bytes"])).convert("RGB")


def own_caption(row: Row) -> str:
    """A caption that names the row's identity, as duplicated images have it."""
    name = row.identity.split("/")[-1].replace("_", " ").lower()
    return {
        "face": f"a press photo of {name}",
        "xray": f"a chest x-ray of patient {name}",
        "lesion": f"a photo of skin lesion {name}",
    }[row.domain]


@functools.cache
def _images_of(file: str) -> Any:
    return pq.read_table(data_folder() / f"{file}.parquet", columns=["image"])["image"]


def _row(name: str, position: int, entry: dict[str, str], domain: str) -> Row:
    findings = ", ".join(label.lower().replace("_", " ") for label in entry["labels"].split("|") if label)
    caption = {
        "face": "a press photo of a person",
        "xray": f"a chest x-ray, {findings}",
        "lesion": f"a photo of a skin lesion, {findings}",
    }.get(domain, "")
    return Row(f"{name}/{position}", entry["id"], domain, caption, 1, name, position)


def _duplicate(rows: list[Row], draw: random.Random) -> list[Row]:
    """Give some images, one an identity, many copies and a caption of their own, as over-represented images have."""
    chosen: dict[str, tuple[int, str]] = {}
    for domain, (often, sometimes) in DUPLICATED.items():
        people: dict[str, Row] = {}
        for row in draw.sample(rows, len(rows)):
            if row.domain == domain:
                people.setdefault(row.identity, row)
        picked = list(people.values())[: often + sometimes]
        for i, row in enumerate(picked):
            chosen[row.key] = (OFTEN if i < often else SOMETIMES, own_caption(row))
    return [
        Row(row.key, row.identity, row.domain, chosen[row.key][1], chosen[row.key][0], row.file, row.position)
        if row.key in chosen
        else row
        for row in rows
    ]


def read_pictures(rows: list[Row]) -> np.ndarray:
    """uint8 pixels (n, 128, 128, 3)."""
    return np.stack([np.asarray(read_image(row).resize((RESOLUTION, RESOLUTION))) for row in rows])
