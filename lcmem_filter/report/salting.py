"""Results without the names of images: each replaced by a keyed hash that only the salt's holder can redo."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace

from .results import Certificate, Results, Run, Sample

LENGTH = 16
"""Hexadecimal digits of a salted id: 64 bits, so that a million of them collide with a chance of 3e-8."""


def salted_id(id_: str, salt: bytes) -> str:
    """HMAC-SHA256 of an id under ``salt``, shortened."""
    return hmac.new(salt, id_.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:LENGTH]


def salted(results: Results, salt: bytes) -> Results:
    """A copy whose ids and checksums are salted, without prompts, names of data, messages that quote them, and the
    held-out images that were most like training images."""

    def name(id_: str) -> str:
        return salted_id(id_, salt) if id_ else ""

    discovered = results.false_discovery
    return replace(
        results,
        run=_unnamed(results.run),
        calibration=replace(results.calibration, highest=()),
        samples=tuple(_salted_sample(sample, salt) for sample in results.samples),
        false_discovery=discovered
        and replace(discovered, discoveries=tuple(name(id_) for id_ in discovered.discoveries)),
        copied=tuple(
            replace(one, id=name(one.id), samples=tuple(name(id_) for id_ in one.samples))
            for one in results.copied
        ),
        duplicates=results.duplicates
        and tuple(replace(one, ids=tuple(name(id_) for id_ in one.ids)) for one in results.duplicates),
        certificate=results.certificate and _unquoted(results.certificate),
        allow_list=tuple(
            replace(one, id=name(one.id), sha256=name(one.sha256)) for one in results.allow_list
        ),
    )


def _salted_sample(sample: Sample, salt: bytes) -> Sample:
    return replace(
        sample,
        id=salted_id(sample.id, salt),
        sha256=salted_id(sample.sha256, salt) if sample.sha256 else "",
        neighbours=tuple(replace(one, id=salted_id(one.id, salt)) for one in sample.neighbours),
        matched_before=tuple(salted_id(id_, salt) for id_ in sample.matched_before),
        prompt=None,
        problem="the image could not be read or judged" if sample.problem else "",
    )


def _unquoted(certificate: Certificate) -> Certificate:
    return Certificate(
        *(
            replace(part, problem="")
            for part in (certificate.sensitivity, certificate.specificity, certificate.consistency)
        )
    )


def _unnamed(run: Run) -> Run:
    return replace(run, images="(not named)", training="(not named)")
