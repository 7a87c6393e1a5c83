"""Results without the names of images: each replaced by a keyed hash that only the salt's holder can redo."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from typing import Literal, TypeAlias

from .results import Certificate, Results, Run, Sample

Kind: TypeAlias = Literal["sample", "training", "bytes"]

LENGTH = 16
"""Hexadecimal digits of a salted id: 64 bits, so that a million of them collide with a chance of 3e-8."""


def salted_id(id_: str, salt: bytes, kind: Kind = "sample") -> str:
    """HMAC-SHA256 of an id under ``salt``, shortened. A training image and a sample of one name have different ones:
    else whoever knows the samples' names would know the training images'.

    Args:
        salt: Of a file, all that it holds but the white space around that.
        kind: What the id is of: an examined image, a training image, or an image's bytes.
    """
    text = f"{kind}\0{id_}".encode("utf-8", "surrogatepass")
    return hmac.new(salt, text, hashlib.sha256).hexdigest()[:LENGTH]


def salted(results: Results, salt: bytes) -> Results:
    """A copy whose ids and checksums are salted, and in the order of what they are now, without prompts, names of data,
    messages that quote them, private settings, the held-out images that were most like training images, and seeds, from
    which each sample's place could be told."""

    def sample(id_: str) -> str:
        return salted_id(id_, salt) if id_ else ""

    discovered = results.false_discovery
    copied = (
        replace(one, id=salted_id(one.id, salt, "training"), samples=tuple(sorted(map(sample, one.samples))))
        for one in results.copied
    )
    duplicates = (replace(one, ids=tuple(sorted(map(sample, one.ids)))) for one in results.duplicates or ())
    allowed = (
        replace(one, id=sample(one.id), sha256=_salted_bytes(one.sha256, salt)) for one in results.allow_list
    )
    return replace(
        results,
        run=_unnamed(results.run),
        calibration=replace(results.calibration, highest=()),
        samples=tuple(sorted((_salted_sample(one, salt) for one in results.samples), key=lambda one: one.id)),
        false_discovery=discovered
        and replace(discovered, discoveries=tuple(sorted(map(sample, discovered.discoveries)))),
        copied=tuple(sorted(copied, key=lambda one: (-len(one.samples), one.id))),
        duplicates=results.duplicates and tuple(sorted(duplicates, key=lambda one: (-len(one.ids), one.ids))),
        certificate=results.certificate and _unquoted(results.certificate),
        allow_list=tuple(sorted(allowed, key=lambda one: (one.id, one.sha256))),
    )


def _salted_bytes(sha256: str, salt: bytes) -> str:
    return salted_id(sha256, salt, "bytes") if sha256 else ""


def _salted_sample(sample: Sample, salt: bytes) -> Sample:
    def training(id_: str) -> str:
        return salted_id(id_, salt, "training")

    return replace(
        sample,
        id=salted_id(sample.id, salt),
        sha256=_salted_bytes(sample.sha256, salt),
        neighbours=tuple(replace(one, id=training(one.id)) for one in sample.neighbours),
        matched_before=tuple(map(training, sample.matched_before)),
        prompt=None,
        seed=None,
        problem=_unnamed_problem(sample),
    )


def _unnamed_problem(sample: Sample) -> str:
    """Why a sample was not checked, or matches below the threshold, in words that name nothing."""
    if not sample.problem:
        return ""
    if sample.accepted is None:
        return "the image could not be read or judged"
    return "drawn again, it was judged more strictly"


def _unquoted(certificate: Certificate) -> Certificate:
    return Certificate(
        *(
            replace(part, problem="", p_values=tuple(sorted(part.p_values)))
            for part in (certificate.sensitivity, certificate.specificity, certificate.consistency)
        )
    )


def _unnamed(run: Run) -> Run:
    settings = {name: value for name, value in run.settings.items() if name not in run.private}
    return replace(run, images="(not named)", training="(not named)", settings=settings, private=())
