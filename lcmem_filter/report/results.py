"""What a report is made of: one tree of frozen values, filled by an audit or by a generation job.

    Results
    |- run            what was examined against what, when, with which versions and fingerprints
    |- verdict        one sentence, and the exit code that goes with it
    |- samples        one for each image: decision, p-value, nearest training images; prompt, seed, rung where known
    |- calibration    scores of unseen real images, and the threshold
    |- rate, chance   how many match, and how many would by chance alone
    |- false_discovery, certificate
    `- labels, copied, duplicates, rungs, allow_list

``results_of`` (``summarise.py``) derives everything that follows from the samples. ``None`` means not measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..types import Calibration, Neighbour

Kind = Literal["audit", "generation"]
Status = Literal["match", "allowed", "withheld", "accepted", "not checked"]


@dataclass(frozen=True, slots=True)
class Rate:
    """A count among ``of``, and the exact (Clopper-Pearson) 95 % interval of the share behind it."""

    count: int
    of: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """``count / of``; 0 where ``of`` is."""
        return self.count / self.of if self.of else 0.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and what was found about it.

    Attributes:
        id: Its path or row.
        accepted: ``False`` where it matches a training image, ``None`` where it was not checked.
        score: Largest combined statistic over the index; ``None`` where not checked.
        p_value: Conformal p-value of ``score``.
        neighbours: The nearest training images, most alike first.
        labels: Classes, diagnoses or findings.
        sha256: Of the stored bytes.
        problem: Why it was not checked, or is rejected although its score is not beyond the threshold.
        allowed: Why it is on the allow-list; empty where it is not.
        delivered: ``False`` for a draw that a generation job withheld.
        prompt, seed, attempts, rung: How a generation job drew it; ``rung`` is the remedy that was in force.
        matched_before: The training image that each earlier draw was nearest to, in their order.
    """

    id: str
    accepted: bool | None
    score: float | None = None
    p_value: float | None = None
    neighbours: tuple[Neighbour, ...] = ()
    labels: tuple[str, ...] = ()
    sha256: str = ""
    problem: str = ""
    allowed: str = ""
    delivered: bool = True
    prompt: str | None = None
    seed: int | None = None
    attempts: int | None = None
    rung: str | None = None
    matched_before: tuple[str, ...] = ()

    @property
    def matched_at_first(self) -> bool:
        """Whether its first draw matched a training image: the others were drawn because of that."""
        return self.accepted is False or (self.attempts or 1) > 1

    @property
    def status(self) -> Status:
        """How the report files it."""
        if self.accepted is None:
            return "not checked"
        if self.accepted:
            return "accepted"
        if not self.delivered:
            return "withheld"
        return "allowed" if self.allowed else "match"


@dataclass(frozen=True, slots=True)
class Run:
    """What was run.

    Attributes:
        kind: ``audit`` of finished images, or a ``generation`` job.
        date: When it ended, ISO 8601.
        images: Name of what was examined.
        training: Name of the index or of the training data.
        training_images: How many training images were compared with.
        training_unreadable: Training images that are missing because they could not be read: copies of them pass.
        resolution: Side in pixels that pictures are squashed to.
        image_size: (w, h) in pixels of images that were judged as they were generated.
        space: Latent space.
        settings: Whatever else was chosen, as text.
        versions: Of the packages and of Python.
        fingerprints: Of index, head and encoder.
        private: Names of settings that a salted report leaves out: they name or quote something, or tell the order of
            the samples.
    """

    kind: Kind
    date: str
    images: str
    training: str
    training_images: int
    training_unreadable: int = 0
    resolution: int | None = None
    image_size: tuple[int, int] | None = None
    space: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    private: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Chance:
    """How many of the checked samples would be rejected if all were unseen real images.

    Attributes:
        expected: On average.
        low, high: In 95 % of cases, over draws of the samples and of the held-out images.
        probability: Of at least as many rejections as there were.
    """

    expected: float
    low: int
    high: int
    probability: float


@dataclass(frozen=True, slots=True)
class FalseDiscovery:
    """Benjamini-Hochberg over all checked samples.

    Attributes:
        rate: Share of false alarms that is allowed among the discoveries, on average.
        tested: Samples that were checked, m.
        held_out: Images that the p-values rest on, n.
        discoveries: Ids of the samples that are discovered.
        smallest_group: The fewest copies that could be discovered at all: ceil(m / (rate (n + 1))).
        held_out_for_one: Held-out images needed so that a single copy could be: ceil(m / rate) - 1.
        conclusion: In words.
    """

    rate: float
    tested: int
    held_out: int
    discoveries: tuple[str, ...]
    smallest_group: int
    held_out_for_one: int
    conclusion: str


@dataclass(frozen=True, slots=True)
class Measured:
    """One part of the certificate: a rate, how it was measured, or why it was not.

    Attributes:
        rate: ``None`` where it was not measured.
        how: What was done, or what to do to have it measured.
        details: Further rates, by what they are of.
        p_values: Of the images behind the rate, where they were scored like samples.
        problem: What was wrong with the first image that could not be read or judged; may name it.
    """

    rate: Rate | None
    how: str
    details: Mapping[str, Rate] = field(default_factory=dict)
    p_values: tuple[float, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Certificate:
    """How far the check itself can be trusted, in three parts (Koeken et al., arXiv 2510.01793).

    Attributes:
        sensitivity: Near-duplicates of training images that are found.
        specificity: Unseen real images that are accepted.
        consistency: Training images whose near-duplicates get the same decision whatever the seed.
    """

    sensitivity: Measured
    specificity: Measured
    consistency: Measured


@dataclass(frozen=True, slots=True)
class LabelRow:
    """Checked samples of one label, and of how many the first draw matched (allowed ones included)."""

    label: str
    rejected: Rate
    allowed: int = 0


@dataclass(frozen=True, slots=True)
class CopiedTraining:
    """A training image that is the nearest of rejected samples, or of draws that were rejected before theirs."""

    id: str
    samples: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many samples."""
        return len(self.samples)


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Samples that resemble each other as closely as a match resembles a training image.

    Attributes:
        ids: Two or more.
        identical: Whether their files are the same to the byte.
        weakest: The smallest statistic of a link that holds the group together; ``None`` where ``identical``.
    """

    ids: tuple[str, ...]
    identical: bool
    weakest: float | None = None


@dataclass(frozen=True, slots=True)
class RungRow:
    """A remedy for rejected samples: how often it was tried, and how often the new draw was accepted."""

    rung: str
    tried: int
    accepted: int


@dataclass(frozen=True, slots=True)
class AllowEntry:
    """A known false alarm.

    Attributes:
        id: Of the sample.
        reason: Why it is accepted.
        sha256: Of the file it was accepted for; empty where the entry holds for any file of that id.
        effect: What came of it: ``allowed``, ``not needed`` (the sample is no match), ``no such image``, ``not
            checked`` (neither was the sample), ``another file`` (its SHA-256 is another, so the entry was ignored).
    """

    id: str
    reason: str
    sha256: str = ""
    effect: str = ""


@dataclass(frozen=True, slots=True)
class Results:
    """Everything in a report.

    Attributes:
        run: What was run.
        verdict: In one sentence.
        cautions: Sentences that the verdict must be read with: what the check would miss, or was not measured.
        exit_code: 0 no match, 1 matches, 2 not everything could be checked, the job was stopped early, or nothing was
            delivered.
        samples: One for each image, in their order.
        calibration: Scores of unseen real images, and the threshold.
        rate: Checked samples of which the first draw matched, allowed and withheld ones included.
        chance: For how many it would by chance alone; ``None`` where nothing was checked.
        false_discovery: ``None`` where nothing was checked.
        certificate: ``None`` where it was not asked for.
        labels: Where samples have labels.
        copied: Training images that are nearest to rejected samples, or to draws that others took the place of; the
            most copied first.
        duplicates: Within the set; ``None`` where they were not looked for.
        rungs: Of a generation job.
        allow_list: Every entry, with what came of it.
    """

    run: Run
    verdict: str
    exit_code: int
    samples: tuple[Sample, ...]
    calibration: Calibration
    rate: Rate
    chance: Chance | None
    false_discovery: FalseDiscovery | None
    certificate: Certificate | None = None
    labels: tuple[LabelRow, ...] = ()
    copied: tuple[CopiedTraining, ...] = ()
    duplicates: tuple[DuplicateGroup, ...] | None = None
    rungs: tuple[RungRow, ...] = ()
    allow_list: tuple[AllowEntry, ...] = ()
    cautions: tuple[str, ...] = ()

    def count(self, status: Status) -> int:
        """How many samples have that status."""
        return sum(sample.status == status for sample in self.samples)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy, with each sample's status, each rate's share and the counts spelled out."""
        found = asdict(self)
        counts: dict[Status, int] = {}
        for one, sample in zip(found["samples"], self.samples, strict=True):
            one["status"] = sample.status
            counts[sample.status] = counts.get(sample.status, 0) + 1
        _spell_out_shares(found)
        return {"format": 1, "counts": counts, **found}

    def to_json(self) -> str:
        """``to_dict`` as text; refuses numbers that are not finite."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"


def _spell_out_shares(value: Any) -> None:
    if isinstance(value, dict):
        if value.keys() == {"count", "of", "low", "high"}:
            value["share"] = value["count"] / value["of"] if value["of"] else 0.0
        for one in list(value.values()):
            _spell_out_shares(one)
    elif isinstance(value, list | tuple):
        for one in value:
            _spell_out_shares(one)
