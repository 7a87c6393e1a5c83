"""Who is in which set of the demo: the pipeline's training set, the head's, the held-out patients.

No patient stands in two of them. Most of the pipeline's training pictures come once, under a caption that they share
with hundreds of others. Two kinds were collected many times over, as happens with real data, and are memorised:

- some patients have a caption of their own,
- one picture each of some findings stands under the caption that all pictures of the finding share.
"""

from __future__ import annotations

from dataclasses import dataclass

from .phantoms import FINDINGS, Visit

ONCE = [Visit(patient, number) for patient in range(400) for number in range(3)]
NAMED = [Visit(patient) for patient in range(400, 406)]
FAVOURED_FINDINGS = ("left nodule", "right nodule", "right effusion")
NAMED_TIMES, FAVOURED_TIMES = 80, 160

HEAD_TRAINING = [Visit(patient, number) for patient in range(1_000, 2_000) for number in range(3)] + [
    Visit(patient) for patient in range(2_000, 3_000)
]
HELD_OUT = [Visit(patient) for patient in range(5_000, 5_300)]
VAE_TRAINING = [Visit(patient) for patient in range(10_000, 14_096)]


@dataclass(frozen=True, slots=True)
class Lesson:
    """A picture that the pipeline is trained on: its caption, and how many times it lies in the training set."""

    visit: Visit
    caption: str
    times: int = 1


def caption_of(finding: str) -> str:
    """The caption that all pictures of a finding share."""
    return "a chest scan" if finding == FINDINGS[0] else f"a chest scan, {finding}"


def caption_of_patient(visit: Visit) -> str:
    """The caption of a patient who has one alone."""
    return f"chest scan of patient {visit.patient}"


def lessons() -> list[Lesson]:
    """The pipeline's training set, each picture once."""
    once = [Lesson(visit, caption_of(visit.finding)) for visit in ONCE]
    named = [Lesson(visit, caption_of_patient(visit), NAMED_TIMES) for visit in NAMED]
    favoured = [
        Lesson(_first_with(finding), caption_of(finding), FAVOURED_TIMES) for finding in FAVOURED_FINDINGS
    ]
    return [*once, *named, *favoured]


def _first_with(finding: str) -> Visit:
    """A visit with ``finding`` of a patient who comes nowhere else."""
    patient = 500 + FINDINGS.index(finding)
    return next(
        visit for visit in (Visit(patient, number) for number in range(1_000)) if visit.finding == finding
    )
