"""The filters that are measured, and why others are not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lcmem_filter
from lcmem_filter.baselines import Baseline, make_baseline
from lcmem_filter.baselines.lcmem import LCMem
from lcmem_filter.baselines.relative import Relative
from lcmem_filter.baselines.siamese import Siamese
from lcmem_filter.errors import ConfigurationError, LcmemFilterError
from lcmem_filter.shipped import shipped_heads

REFERENCE = "lcmem"
"""What has to come out the same where rows are added to a results file."""

ONLY_FROM_PATHS = ("sscd", "packhaeuser", "dar", "dar_unsupervised")
"""What no hub has."""

BY_HEAD = ("verification", "described", "shortlist", "matching", "latents", "baselines.lcmem")
"""Modules, beside those of every method, that say how the filter compares."""

OF_LATENTS, CHANNELS = ("aligned_latents", "random_head"), 4
"""Baselines that are made for latents of so many channels where nothing else is said."""

RELATIVE = "scores relative to each query's background, as the filter's are"


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        options: What the baseline is made with.
        weights: Whether it needs weights that no package ships.
        domains: Domains that it is measured on; all where empty.
        note: What a reader should know.
        relative: Whether its similarities are taken relative to each query's background, as LCMem's are.
        told: Whether the index tells whose images it holds.
        head: The shipped head that it is measured with; that of the command where empty.
    """

    baseline: str
    label: str
    options: dict[str, Any] = field(default_factory=dict)
    weights: bool = False
    domains: tuple[str, ...] = ()
    note: str = ""
    relative: bool = False
    told: bool = False
    head: str = ""

    @property
    def name(self) -> str:
        of_head = f"_{self.head.replace('-', '_')}" * bool(self.head)
        return self.baseline + of_head + "_relative" * self.relative + "_told" * self.told


@dataclass(frozen=True)
class Method:
    """A row that can be measured.

    Attributes:
        kept_key: Changes when what it keeps of an image does.
        key: Changes when that, or how it compares, does.
        fingerprint: Of the head that it is measured with, or of weights that were trained here; empty where neither.
    """

    row: Row
    baseline: Baseline
    kept_key: str
    key: str
    fingerprint: str = ""


NOT_IN_PLACE = "as the filter, if it did not compare latents as they lie"


def _rows_of(head: str, which: str = "", middles: bool = True) -> tuple[Row, ...]:
    """The filter with a shipped head, in an index without and with identities, without comparing latents as they lie,
    and where it asks by middles without."""
    rows = (
        Row("lcmem", f"LCMem, {head}", note=f"as the filter, with that head{which}", head=head),
        Row(
            "lcmem",
            f"LCMem, {head}, told identities",
            note="as the filter, with that head, in an index that names identities",
            told=True,
            head=head,
        ),
        Row("lcmem_not_in_place", f"LCMem, {head}, not in place", note=NOT_IN_PLACE, head=head),
    )
    without = Row(
        "lcmem_without_middles",
        f"LCMem, {head}, without middles",
        note="as the filter, with that head, if it did not ask by samples' middles",
        head=head,
    )
    return (*rows, without) if middles else rows


ROWS = (
    Row(
        "lcmem",
        "LCMem (the filter)",
        note="scores relative to each query's background and runner-up",
    ),
    Row(
        "lcmem",
        "LCMem, told identities",
        note="as the filter, in an index that names identities: no other filter's row is told whose images it holds",
        told=True,
    ),
    Row("lcmem_not_in_place", "LCMem, not in place", note=NOT_IN_PLACE),
    *_rows_of("lcmem-reid"),
    *_rows_of("lcmem-large"),
    *_rows_of("lcmem-xray", ", whose descriptors were trained on X-rays alone", middles=False),
    Row(
        "lcmem_without_warps",
        "LCMem, without warps",
        note="embeddings and parts of pictures as they lie",
    ),
    Row("lcmem_embedding", "LCMem, embedding only"),
    Row("lcmem_embedding", "LCMem, embedding only, relative", note=RELATIVE, relative=True),
    Row("aligned_latents", "raw latents + alignment", note="the package's verifier without a head"),
    Row("raw_latents", "raw latents"),
    Row("raw_latents", "raw latents, relative", note=RELATIVE, relative=True),
    Row("aligned_latents", "raw latents + alignment, relative", note=RELATIVE, relative=True),
    Row("random_head", "random weights"),
    Row("ncc", "NCC", {"side": 32}, note="pictures shrunk to 32 px"),
    Row("ncc", "NCC, relative", {"side": 32}, note=RELATIVE, relative=True),
    Row("mse", "MSE", {"side": 32}, note="pictures shrunk to 32 px"),
    Row(
        "ssim",
        "SSIM",
        {"side": 32, "shortlist": 5},
        note="at 32 px, among the 5 rows of the highest correlation",
    ),
    Row("perceptual_hash", "perceptual hash", note="256 bits"),
    Row(
        "efficientnet_lite0",
        "EfficientNet-Lite0",
        {"side": 128},
        note="trained on 1.3 million pictures of ImageNet; pictures at their own 128 px",
    ),
    Row("efficientnet_lite0", "EfficientNet-Lite0, relative", {"side": 128}, note=RELATIVE, relative=True),
    Row(
        "dlib_faces",
        "dlib faces",
        domains=("faces",),
        note="trained on 3 million faces; index and unseen images of faces alone, which favours it",
    ),
    Row("packhaeuser", "siamese ResNet (Packhaeuser et al., 2022)", weights=True),
    Row("dar", "contrastive siamese (Dar et al., 2023)", weights=True),
    Row("dar", "contrastive siamese (Dar et al., 2023), relative", weights=True, relative=True),
    Row("dar_unsupervised", "contrastive siamese, unsupervised (Dar et al., 2023)", weights=True),
    Row(
        "dar_unsupervised",
        "contrastive siamese, unsupervised (Dar et al., 2023), relative",
        weights=True,
        relative=True,
    ),
    Row("sscd", "SSCD", weights=True),
    Row("clip", "CLIP", weights=True),
    Row("dinov2", "DINOv2", weights=True),
    Row("dinov3", "DINOv3", weights=True),
    Row("mae", "MAE", weights=True),
    Row("data2vec", "data2vec", weights=True),
    Row("convnext", "ConvNeXt", weights=True),
    Row("swav", "SwAV", weights=True),
    Row("byol", "BYOL", weights=True),
    Row("inception", "Inception-v3", weights=True),
)

REFERENCES = tuple(row.name for row in ROWS if row.baseline == "lcmem" and not row.told)
"""What the others are compared with: the filter, with each of the heads."""


def open_methods(
    names: list[str], head: str, space: str, weights: Mapping[str, str], download: bool
) -> tuple[list[Method], dict[str, str]]:
    """The methods that can be measured, and for each of the others why not."""
    trained = lcmem_filter.LCMemHead.from_pretrained(head)
    shipped = head in shipped_heads()
    check_names("--methods", names, [row.name for row in ROWS])
    check_names("--weights", weights, sorted({row.baseline for row in ROWS if row.weights}))
    methods: list[Method] = []
    absent: dict[str, str] = {}
    for row in ROWS:
        if names and row.name not in names:
            absent[row.label] = "left out of this run by --methods"
            continue
        if row.head and (not shipped or row.head == head):
            absent[row.label] = "a shipped head, beside another that ships only"
            continue
        options = dict(row.options)
        of_row = lcmem_filter.LCMemHead.from_pretrained(row.head) if row.head else trained
        if row.name.startswith("lcmem"):
            options |= {"head": of_row, "space": space}
        if row.baseline in OF_LATENTS and (channels := trained.config.spaces[space]) != CHANNELS:
            options |= {"channels": channels}
        if row.weights:
            options |= {"weights": weights.get(row.baseline)}
            if row.baseline not in ONLY_FROM_PATHS:
                options["download"] = download
        try:
            baseline = make_baseline(row.baseline, **options)
        except LcmemFilterError as error:
            if not row.relative:  # the plain row says it
                absent[row.label] = str(error).split("\n")[0]
            continue
        if isinstance(baseline, Siamese):
            row = replace(row, note=_training_of(baseline, row))
        of_head = of_row.fingerprint_of(space)
        used = baseline.fingerprint if isinstance(baseline, Siamese) else weights.get(row.name, "")
        kept = _kept_key(row, baseline, of_head, used)
        by_head = BY_HEAD if row.name.startswith("lcmem") else ()
        compared_by = _code("standing", "alignment", "baselines.search", _module(baseline), *by_head)
        key = f"{row.baseline}-{kept}-{row.relative}-{row.told}-{compared_by}"
        made_with = of_head if row.name.startswith("lcmem") else used if isinstance(baseline, Siamese) else ""
        methods.append(Method(row, Relative(baseline) if row.relative else baseline, kept, key, made_with))
    return methods, absent


def check_names(option: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Whether all that were named are there.

    Raises:
        ConfigurationError: one is not.
    """
    if unknown := [name for name in given if name not in known]:
        raise ConfigurationError(f"{option}: there is no {unknown[0]!r}; there are {', '.join(known)}")


def _training_of(baseline: Siamese, row: Row) -> str:
    """How a baseline was trained, for the results' notes."""
    told = f"ResNet-18 at {baseline.resolution} px, from random weights"
    if record := baseline.record:
        images = sum(count for count, _ in record["data"]["train"].values())
        told += f", trained on {images:,} images; {record['images_seen']:,} augmented pictures seen"
    return f"{told}; {RELATIVE}" if row.relative else told


def _kept_key(row: Row, baseline: Baseline, head: str, weights: str) -> str:
    whole = isinstance(baseline, LCMem)  # without one part or another, the same is kept
    own = "baselines.lcmem" if whole else _module(baseline)
    used = f"{row.options} {weights} {head if row.name.startswith('lcmem') else ''} {_code(own, 'baselines.common')}"
    return f"{'lcmem' if whole else row.baseline}-{hashlib.sha256(used.encode()).hexdigest()[:12]}"


def _module(baseline: Baseline) -> str:
    return type(baseline).__module__.removeprefix("lcmem_filter.")


def _code(*modules: str) -> str:
    """A fingerprint of the package's modules of those names."""
    package = Path(lcmem_filter.__file__).parent
    text = "".join((package / f"{name.replace('.', '/')}.py").read_text() for name in modules)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
