"""Chest scans of patients who do not exist, drawn from numbers: no data set, no licence, nobody's picture.

A patient is an anatomy, a visit is one picture of it: another pose, breath, exposure and perhaps a finding. The same
patient and visit give the same picture.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
from PIL import Image

from ..images import ImageRecord, ImageSource

SIZE = 64
"""Side of a scan in pixels."""

FINDINGS = ("no finding", "left nodule", "right nodule", "left effusion", "right effusion")
DEVICES = ("none", "pacemaker", "port", "wires", "rod", "leads")


@dataclass(frozen=True, slots=True)
class Visit:
    """One picture of one patient: both numbers seed it."""

    patient: int
    number: int = 0

    @property
    def id(self) -> str:
        """Names the picture in an index."""
        return f"patient {self.patient:05d}/visit {self.number}"

    @property
    def finding(self) -> str:
        """What is to be seen, one of ``FINDINGS``."""
        return FINDINGS[int(_draw(2, self.patient, self.number).integers(len(FINDINGS)))]


def draw_scan(visit: Visit) -> Image.Image:
    """The scan of a visit: grey, stored as RGB, ``SIZE`` pixels a side."""
    anatomy, pose = _draw(0, visit.patient), _draw(1, visit.patient, visit.number)
    x, y = _posed_grid(pose)
    breath = float(pose.uniform(-0.04, 0.04))
    dense, lungs, diaphragms = _soft_tissue(x, y, anatomy, breath)
    dense += _bones(x, y, anatomy, lungs)
    dense += _vessels(x, y, anatomy, lungs)
    dense = _with_finding(dense, x, y, pose, visit.finding, lungs, diaphragms)
    dense = _with_device(dense, x, y, anatomy)
    return _exposed(dense, pose)


def scans(name: str, visits: Sequence[Visit]) -> ImageSource:
    """The scans of visits as a source of images, drawn when they are read; identities are patients."""
    visits = list(visits)
    records = [ImageRecord(one.id, f"patient {one.patient:05d}", one.finding) for one in visits]

    def read(row: int) -> bytes:
        buffer = io.BytesIO()
        draw_scan(visits[row]).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    drawn = hashlib.sha256(repr([astuple(one) for one in visits]).encode() + read(0))
    return ImageSource(name, records, read, drawn.hexdigest())


def _draw(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def _posed_grid(pose: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (SIZE, SIZE) in [-1, 1], x to the right and y down, as the patient stands."""
    steps = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
    y, x = np.meshgrid(steps, steps, indexing="ij")
    turn, zoom = np.deg2rad(pose.uniform(-4, 4)), pose.uniform(0.95, 1.05)
    x, y = x - pose.uniform(-0.06, 0.06), y - pose.uniform(-0.06, 0.06)
    cos, sin = np.cos(turn) / zoom, np.sin(turn) / zoom
    return x * cos + y * sin, y * cos - x * sin


def _inside(distance: np.ndarray, edge: float = 0.05) -> np.ndarray:
    """1 where a signed distance is negative, 0 where it is positive, with an edge so wide."""
    return 1 / (1 + np.exp(np.clip(distance * 4 / edge, -60, 60)))


def _line(distance: np.ndarray, width: float) -> np.ndarray:
    """A soft line along the zeros of a distance."""
    return np.exp(-((distance / width) ** 2))


def _soft_tissue(
    x: np.ndarray, y: np.ndarray, anatomy: np.random.Generator, breath: float
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Density of body, lungs and heart; where the lungs are; and the height above each diaphragm, left, right."""
    u = anatomy.uniform
    width, slope, neck = u(0.74, 0.98), u(0.25, 0.7), u(0.2, 0.32)
    shoulders = -0.78 + u(-0.06, 0.1) + slope * np.maximum(np.abs(x) - neck, 0) ** 1.5
    trunk = np.abs(x) - width * (1 - 0.1 * u(-0.5, 1) * y)
    body = np.maximum(_inside(np.maximum(trunk, shoulders - y)), _inside(np.abs(x) - neck) * (y < 0))
    lungs, diaphragms = np.zeros_like(x), []
    for side in (1, -1):  # the patient's left is on the right of the picture
        centre, half = u(0.36, 0.48), u(0.24, 0.34)
        top, base, dome, tilt = u(-0.72, -0.52), u(0.3, 0.62) + breath * 2, u(0.05, 0.25), u(-0.12, 0.2)
        along = side * x - centre - tilt * y
        power = u(2.0, 3.2)
        height = (base + 0.35 - top) / 2
        radius = (np.abs(along / half) ** power + np.abs((y - top - height) / height) ** power) ** (1 / power)
        above = base - dome * np.cos(np.clip(along / half, -1.5, 1.5) * 1.2) - y
        diaphragms.append(above)
        lungs = np.maximum(lungs, _inside((radius - 1) * half, 0.07) * _inside(-above, 0.06))
    cx, cy, size, stretch, angle = u(0.06, 0.22), u(0.2, 0.4), u(0.24, 0.4), u(1.05, 1.5), u(0.3, 1.0)
    along = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
    across = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
    heart = _inside(np.hypot(along / stretch, across) - size, 0.08)
    knob = _inside(np.hypot(x - u(0.1, 0.2), y + u(0.2, 0.4)) - u(0.08, 0.16), 0.08)
    air = lungs * (1 - 0.92 * np.maximum(heart, 0.8 * knob))
    dense = 0.04 + body * (0.56 + u(-0.05, 0.05) + 0.1 * (y + 0.2)) - air * u(0.4, 0.5)
    return dense, air, diaphragms


def _bones(x: np.ndarray, y: np.ndarray, anatomy: np.random.Generator, lungs: np.ndarray) -> np.ndarray:
    """Density of spine, ribs, clavicles, shoulder blades."""
    u, hard = anatomy.uniform, anatomy.uniform(0.75, 1.3)
    bend = u(-0.1, 0.1) * np.sin(u(1.5, 3.5) * y + u(0, 6.3))
    spine = _inside(np.abs(x - bend) - u(0.07, 0.12), 0.06)
    bones = spine * (0.16 + 0.05 * np.cos(y * u(22, 32) + u(0, 6.3)))
    gap, phase, drop, bow, thick = u(0.16, 0.25), u(0, 1), u(0.1, 0.55), u(0.2, 0.75), u(0.03, 0.05)
    wave = (y - drop * np.abs(x) - bow * (np.abs(x) - 0.35) ** 2 + u(-0.05, 0.05) * np.sign(x)) / gap + phase
    offset = (wave - np.round(wave)) * gap
    bones += _line(offset, thick) * (0.06 + 0.12 * lungs) * _inside(np.abs(x) - 0.8, 0.2) * (y > -0.75)
    for side in (1, -1):
        height, rise, curve = u(-0.66, -0.5), u(-0.35, 0.15), u(-0.4, 0.4)
        line = y - height - rise * (side * x - 0.2) - curve * (side * x - 0.45) ** 2
        reach = _inside(np.abs(side * x - 0.46) - 0.34, 0.1)
        bones += _line(line, u(0.03, 0.05)) * reach * 0.24
        blade = (side * x - u(0.7, 0.85)) * np.cos(u(-0.4, 0.4)) + (y + 0.2) * u(-0.3, 0.3)
        bones += _line(blade, 0.06) * _inside(np.abs(y + 0.25) - 0.35, 0.2) * u(0, 0.14)
    return bones * hard


def _vessels(x: np.ndarray, y: np.ndarray, anatomy: np.random.Generator, lungs: np.ndarray) -> np.ndarray:
    """Density of the vessels that fan out from each hilum: every patient has their own tree."""
    vessels = np.zeros_like(x)
    for side in (1, -1):
        hx, hy = side * anatomy.uniform(0.16, 0.26), anatomy.uniform(-0.12, 0.12)
        vessels += 0.14 * np.exp(-((x - hx) ** 2 + (y - hy) ** 2) / anatomy.uniform(0.008, 0.02))
        for _ in range(6):
            angle, curl, reach = (
                anatomy.uniform(-1.5, 1.5),
                anatomy.uniform(-0.9, 0.9),
                anatomy.uniform(0.25, 0.6),
            )
            out = (x - hx) * side * np.cos(angle) + (y - hy) * np.sin(angle)
            across = (y - hy) * np.cos(angle) - (x - hx) * side * np.sin(angle) - curl * out**2
            fade = _inside(-out, 0.05) * _inside(out - reach, 0.2)
            vessels += 0.15 * _line(across, anatomy.uniform(0.03, 0.05)) * fade
    return vessels * lungs


def _with_finding(
    dense: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    pose: np.random.Generator,
    finding: str,
    lungs: np.ndarray,
    diaphragms: list[np.ndarray],
) -> np.ndarray:
    side = 1 if finding.startswith("left") else -1
    across, up, size, level = pose.uniform(0.32, 0.55), pose.uniform(-0.4, 0.2), *pose.uniform(0, 1, 2)
    if finding.endswith("nodule"):
        spot = _inside(np.hypot(side * x - across, y - up) - (0.07 + 0.05 * size), 0.06)
        return dense + 0.4 * spot * _inside(0.5 - lungs, 1.0)
    if finding.endswith("effusion"):
        above = diaphragms[0 if side > 0 else 1]
        fluid = _inside(above - (0.16 + 0.2 * level) - 0.5 * np.abs(x) ** 2 + 0.1, 0.1) * (side * x > 0)
        return dense + 0.34 * fluid * lungs
    return dense


def _with_device(dense: np.ndarray, x: np.ndarray, y: np.ndarray, anatomy: np.random.Generator) -> np.ndarray:
    device = DEVICES[int(anatomy.integers(len(DEVICES)))]
    side, u = (1 if anatomy.random() < 0.5 else -1), anatomy.uniform
    px, py = side * u(0.42, 0.62), u(-0.5, -0.25)
    if device in ("pacemaker", "port"):
        size = u(0.09, 0.13) if device == "pacemaker" else u(0.05, 0.08)
        body = _inside(np.hypot((x - px) * u(0.8, 1.3), y - py) - size, 0.04)
        tx, ty = u(0.05, 0.25), u(0.15, 0.4)
        along = np.clip((y - py) / (ty - py), 0, 1)
        lead = _line(x - px - (tx - px) * along**0.6, 0.042) * ((y > py) & (y < ty))
        return np.maximum(dense, np.maximum(body * 0.98, lead * 0.8))
    if device == "wires":
        gap, first = u(0.13, 0.2), u(-0.45, -0.3)
        rings = [np.hypot(x - u(-0.03, 0.03), (y - first - i * gap) * 1.4) - 0.04 for i in range(4)]
        return np.maximum(dense, 0.95 * _line(np.min(np.abs(rings), axis=0), 0.04))
    if device == "rod":
        rods = np.abs(np.abs(x - u(-0.02, 0.02)) - u(0.08, 0.12))
        return np.maximum(
            dense, 0.95 * _line(rods, 0.035) * _inside(np.abs(y - u(-0.1, 0.3)) - u(0.25, 0.5), 0.04)
        )
    if device == "leads":
        spots = [np.hypot(x - u(-0.7, 0.7), y - u(-0.5, 0.7)) - 0.06 for _ in range(3)]
        return np.maximum(dense, 0.95 * _inside(np.min(spots, axis=0), 0.04))
    return dense


def _exposed(dense: np.ndarray, pose: np.random.Generator) -> Image.Image:
    grey = np.clip(dense, 0, 1) ** pose.uniform(0.85, 1.2) * pose.uniform(0.9, 1.08)
    grey = grey + pose.standard_normal(grey.shape) * 0.008
    return Image.fromarray((grey.clip(0, 1) * 255).round().astype(np.uint8)).convert("RGB")
