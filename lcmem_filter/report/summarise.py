"""Samples and a calibration to everything that follows from them: counts, verdict, tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..types import OWN_FOUND_AT_LEAST, Calibration
from .results import (
    AllowEntry,
    Certificate,
    CopiedTraining,
    DuplicateGroup,
    FalseDiscovery,
    LabelRow,
    Results,
    Run,
    RungRow,
    Sample,
)
from .statistics import benjamini_hochberg, chance_of, held_out_for, rate_of, smallest_group

NO_MATCH, MATCHES, NOT_CHECKED = 0, 1, 2
GOOD_SENSITIVITY = 0.9
"""Share of near-duplicates that must be found, beyond doubt, for the report to say nothing of it beside the verdict."""
UNSEEN, NONE_GIVEN = "unseen images", "none given"
"""A setting of audits, and what it is without any."""
STOPPED = "stopped early"
"""A setting of jobs that one of their limits ended: when, and which."""
FALSE_DISCOVERY_RATE = 0.1
"""Share of false alarms that is allowed among discoveries where nothing else is chosen."""


def results_of(
    run: Run,
    samples: Iterable[Sample],
    calibration: Calibration,
    *,
    false_discovery_rate: float = FALSE_DISCOVERY_RATE,
    certificate: Certificate | None = None,
    duplicates: Sequence[DuplicateGroup] | None = None,
    rungs: Sequence[RungRow] = (),
    allow_list: Sequence[AllowEntry] = (),
) -> Results:
    """Everything that a report shows, from what was found about each sample.

    Args:
        run: What was run.
        samples: One for each image; a generation job may add the draws that it withheld.
        calibration: What the decisions rest on.
        false_discovery_rate: Share of false alarms allowed among the discoveries, in (0, 1).
        certificate: How far the check itself can be trusted.
        duplicates: Groups of samples that resemble each other; ``None`` where they were not looked for.
        rungs: Remedies that a generation job tried.
        allow_list: Every entry, with what came of it.
    """
    samples = tuple(samples)
    checked = [sample for sample in samples if sample.accepted is not None]
    matched = sum(sample.matched_at_first for sample in checked)
    exit_code = _exit_code(run, samples, calibration)
    found = false_discovery(checked, calibration, false_discovery_rate) if checked else None
    chance = chance_of(calibration, len(checked), matched) if checked else None
    return Results(
        run=run,
        verdict=_verdict(run, samples, 0 if chance is None else chance.expected, calibration),
        exit_code=exit_code,
        samples=samples,
        calibration=calibration,
        rate=rate_of(matched, len(checked)),
        chance=chance,
        false_discovery=found,
        certificate=certificate,
        labels=tuple(_labels(checked)),
        copied=tuple(_copied(samples)),
        duplicates=None if duplicates is None else tuple(duplicates),
        rungs=tuple(rungs),
        allow_list=tuple(allow_list),
        cautions=(*_cautions(run, certificate, calibration), *_cautions_of_allow_list(allow_list)),
    )


def false_discovery(checked: Sequence[Sample], calibration: Calibration, rate: float) -> FalseDiscovery:
    """Benjamini-Hochberg over the whole set, and what it could have seen at all."""
    p_values = [1.0 if sample.p_value is None else sample.p_value for sample in checked]
    ids = tuple(checked[position].id for position in benjamini_hochberg(p_values, rate))
    m, n = len(checked), calibration.n
    fewest, needed = smallest_group(m, n, rate), held_out_for(1, m, rate)
    if ids:
        conclusion = (
            f"{_images(len(ids))} stand out from the whole set; on average at most {100 * rate:.3g}% of such a "
            "list are false alarms."
        )
        if len(ids) == 1:
            conclusion = conclusion.replace("stand out", "stands out")
        if fewest > 1:
            conclusion += f" Groups of fewer than {fewest} copies could not have been told from chance."
    elif fewest > m:
        conclusion = (
            f"Cannot be certified: with {n} held-out images no number of copies among {m} images could be "
            f"told from chance; that a single copy could be takes about {needed:,} held-out images."
        )
    elif fewest > 1:
        conclusion = (
            f"Cannot be certified: with {n} held-out images fewer than {fewest} copies among {m} images cannot "
            f"be told from chance, so their absence cannot be shown; about {needed:,} held-out images would do."
        )
    else:
        conclusion = (
            f"No image stands out from the whole set, and a single copy could have (rate {100 * rate:.3g}%)."
        )
    return FalseDiscovery(rate, m, n, ids, fewest, needed, conclusion)


def _exit_code(run: Run, samples: Sequence[Sample], calibration: Calibration) -> int:
    statuses = {sample.status for sample in samples}
    if "match" in statuses:
        return MATCHES
    nothing_delivered = run.kind == "generation" and statuses <= {"withheld", "not checked"}
    checked = (
        "not checked" not in statuses
        and not calibration.doubt(OWN_FOUND_AT_LEAST)
        and STOPPED not in run.settings
    )
    return NO_MATCH if checked and not nothing_delivered else NOT_CHECKED


def _verdict(run: Run, samples: Sequence[Sample], expected: float, calibration: Calibration) -> str:
    count = {
        status: sum(sample.status == status for sample in samples)
        for status in ("match", "allowed", "withheld", "not checked")
    }
    given = sum(sample.delivered for sample in samples)
    checked = sum(sample.delivered and sample.accepted is not None for sample in samples)
    subject = "delivered image" if run.kind == "generation" else "image"
    if count["match"]:
        verb = "matches" if count["match"] == 1 else "match"
        all_checked = "" if checked == given else "checked "
        text = f"{count['match']:,} of {checked:,} {all_checked}{subject}s {verb} a training image"
    elif not samples:
        return "Nothing was delivered."
    elif run.kind == "generation" and not given:
        why = {
            "withheld": f"matched a training image and {_was(count['withheld'])} withheld",
            "not checked": "could not be checked",
        }
        told = (f"{_images(count[status])} {text}" for status, text in why.items() if count[status])
        return f"Nothing was delivered: {', '.join(told)}."
    elif count["not checked"] == len(samples):
        return f"None of the {given:,} {subject}s could be checked, so nothing is known about them."
    else:
        text = f"No match was found among {checked:,} checked {subject}s"
    if count["withheld"]:
        text += f"; {_images(count['withheld'])} that matched {_was(count['withheld'])} withheld"
    if run.kind == "audit" and count["match"]:
        text += f"; among so many, about {_roughly(expected)} would by chance alone"
    if count["allowed"]:
        known = "a known false alarm" if count["allowed"] == 1 else "known false alarms"
        more = " more" if count["match"] else " that would match"
        text += f"; {count['allowed']:,}{more} {_was(count['allowed'])} accepted as {known}"
    if count["not checked"]:
        text += f"; {_images(count['not checked'])} could not be checked"
    if not count["match"] and calibration.doubt(OWN_FOUND_AT_LEAST):
        text += "; the threshold misses most training images themselves, so that says little"
    return text + "."


def _cautions(run: Run, certificate: Certificate | None, calibration: Calibration) -> Iterable[str]:
    if STOPPED in run.settings:
        yield "The job was stopped before it was done: this is about the images that it had drawn by then."
    sensitivity = certificate.sensitivity.rate if certificate else None
    specificity = certificate.specificity.rate if certificate else None
    if sensitivity is None or not sensitivity.of:
        if run.kind == "audit":
            yield "How many copies this check would miss was not measured."
    elif sensitivity.low < GOOD_SENSITIVITY <= sensitivity.share:
        yield (
            f"Of near-duplicates of training images that were made for this purpose, the check found "
            f"{sensitivity.count:,} of {sensitivity.of:,} ({sensitivity.share:.0%}), of too few training images to "
            f"show that it finds more than {sensitivity.low:.0%} of such copies."
        )
    elif sensitivity.low < GOOD_SENSITIVITY:
        yield (
            f"Of near-duplicates of training images that were made for this purpose, the check found "
            f"{sensitivity.count:,} of {sensitivity.of:,} ({sensitivity.share:.0%}): copies that were changed so much "
            "can be missed."
        )
    if specificity is not None and specificity.high < 1 - calibration.false_rejection_rate:
        yield (
            f"Of real images that the model never saw, {specificity.of - specificity.count:,} of {specificity.of:,} "
            f"match, more than the {calibration.false_rejection_rate:.2g} that was promised: matches prove less."
        )
    unseen = run.settings.get(UNSEEN, NONE_GIVEN)
    if certificate and specificity is None and unseen != NONE_GIVEN:
        yield f"How many real images this check would reject was not measured: {certificate.specificity.how}"
    if doubt := calibration.doubt():
        yield doubt
    if run.image_size and run.image_size != (run.resolution, run.resolution):
        yield (
            f"The images are {run.image_size[0]}x{run.image_size[1]} pixels, and the index was built at "
            f"{run.resolution}: encodings of another size differ, so copies can be missed, and more or fewer images "
            "than promised may match by chance."
        )
    if run.training_unreadable:
        yield f"Copies of {_images(run.training_unreadable)} missing from the index would not be found."


def _cautions_of_allow_list(entries: Sequence[AllowEntry]) -> Iterable[str]:
    if unknown := [entry.id for entry in entries if entry.effect == "no such image"]:
        yield f"{len(unknown):,} of {len(entries):,} entries of the allow-list name no image of the set."


def _labels(checked: Sequence[Sample]) -> list[LabelRow]:
    by_label: dict[str, list[Sample]] = {}
    for sample in checked:
        for label in sample.labels:
            by_label.setdefault(label, []).append(sample)
    return [
        LabelRow(
            label,
            rate_of(sum(one.matched_at_first for one in found), len(found)),
            sum(one.status == "allowed" for one in found),
        )
        for label, found in sorted(by_label.items())
    ]


def _copied(samples: Sequence[Sample]) -> list[CopiedTraining]:
    by_id: dict[str, list[str]] = {}
    for sample in samples:
        last = sample.neighbours[:1] if sample.accepted is False else ()
        for id_ in dict.fromkeys((*sample.matched_before, *(near.id for near in last))):
            by_id.setdefault(id_, []).append(sample.id)
    found = [CopiedTraining(id_, tuple(ids)) for id_, ids in by_id.items()]
    return sorted(found, key=lambda one: (-one.count, one.id))


def _images(count: int) -> str:
    return f"{count:,} image" if count == 1 else f"{count:,} images"


def _was(count: int) -> str:
    return "was" if count == 1 else "were"


def _roughly(value: float) -> str:
    return f"{value:.0f}" if value >= 2 else f"{value:.1g}"
