"""Scores of real images that the pipeline never saw, against the whole index, to p-values and a threshold."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from tqdm.auto import tqdm

from .encoding import encode_batches
from .errors import CalibrationError, EmptyDataError, FilterFailedError, check_kind
from .images import ImageSource
from .index import MemorizationIndex
from .index.folder import locked
from .index.identities import classes_of
from .latents import Encoder
from .types import Calibration, rejectable
from .verification import STATISTIC, Scored, score_latents

BATCH = 16
OWN = 32
"""Training images that a threshold is tried on."""
LOOKED_AT = 20
"""Held-out images, the most like training images, that somebody is asked to look at."""
NEAR_DUPLICATE = 0.98
"""Similarity by parts (cosine of embeddings where the index keeps no latents) from which an unseen image is taken
for a copy of one in the index. Saved again as JPEG of quality 95 a picture keeps 0.999 with the shipped head."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One image of a source, scored against an index.

    Attributes:
        row: In the source.
        scored: ``None`` where the image could not be read, encoded, or judged.
        sha256: Of its stored bytes; empty where it could not be read or encoded.
        problem: What was wrong with it.
        latent: What was scored, (C, h, w), float32, on the CPU; ``None`` where ``scored`` is.
    """

    row: int
    scored: Scored | None
    sha256: str = ""
    problem: str = ""
    latent: torch.Tensor | None = field(default=None, repr=False, compare=False)


def calibrate(
    index: MemorizationIndex | str | os.PathLike[str],
    held_out: ImageSource,
    *,
    false_rejection_rate: float = 0.01,
    encoder: Encoder | None = None,
    leave_out: Collection[str] = (),
    progress: bool = True,
) -> Calibration:
    """Set the threshold of an index so that about ``false_rejection_rate`` of unseen real images are rejected.

    Split conformal prediction (Vovk et al., 2005), on each image's largest score over the whole index: the promise
    holds for images exchangeable with ``held_out``. Left out, and counted, are images that cannot be read or judged,
    further images of an identity, and images whose identity or near-duplicate stands in the index. A near-duplicate
    that is not recognised as one, the same picture cropped or retouched, makes the threshold too high: look at the
    ``highest`` of what is returned, and name those in ``leave_out``.

    Args:
        index: An index, or its folder; the calibration is kept there.
        held_out: Real images that the pipeline never saw.
        false_rejection_rate: In (0, 1).
        encoder: Of the pipeline's latent space; the index's own by default.
        leave_out: Ids of held-out images that somebody saw to show a picture of the index.
        progress: Show progress on stderr.

    Raises:
        CalibrationError: too few held-out images for the rate, with how many are needed; or no such image to leave out.
        EmptyDataError: none of the held-out images can be used.
        LatentSpaceError: the head does not know the encoder's latent space.
        ArtifactError: the index's folder cannot be written to, or holds another index by now.
    """
    if not 0 < false_rejection_rate < 1:
        raise CalibrationError(f"a false-rejection rate lies between 0 and 1, got {false_rejection_rate}")
    check_kind("held_out", held_out, ImageSource, "open_images(PATH)")
    index = index if isinstance(index, MemorizationIndex) else MemorizationIndex.load(index)
    encoder = index.load_encoder() if encoder is None else encoder
    check_kind("encoder", encoder, Encoder, "load_encoder(PATH)")
    space = index.head.identify_space(encoder.vae).told()
    rows, dropped = _usable_rows(index, held_out, leave_out)
    rows = _new_files(index, held_out, rows, dropped)
    _check_number(len(rows), false_rejection_rate, dropped)  # before the hours that encoding may take
    with locked(index.path):  # nor should a folder that cannot be written to come to light only after them
        pass
    used, size = [], index.latent_size
    for judged in judge_images(index, held_out, rows, encoder, space, progress=progress):
        if reason := _reason_to_drop(judged):
            dropped[reason] += 1
        elif judged.scored is not None and judged.latent is not None:
            size = (int(judged.latent.shape[-2]), int(judged.latent.shape[-1]))
            nearest = judged.scored.neighbours[0].id
            used.append((held_out.records[judged.row].id, nearest, judged.scored.score))
    used.sort(key=lambda one: -one[2])
    scores = [score for _, _, score in used]
    calibration = fit(scores, false_rejection_rate, space, len(held_out), dropped)
    highest = used[: max(rejectable(len(used), false_rejection_rate), LOOKED_AT)]
    calibration = replace(
        calibration,
        highest=tuple(highest),
        latent_size=size,
        own_found=_own_found(index, space, calibration.threshold),
    )
    index.set_calibration(calibration)
    return calibration


def fit(
    scores: Sequence[float], rate: float, space: str, given: int, dropped: Counter[str] | None = None
) -> Calibration:
    """The threshold that rejects at most ``rate`` of images exchangeable with those of ``scores``.

    Raises:
        CalibrationError: too few scores.
    """
    dropped = dropped or Counter()
    allowed = _check_number(len(scores), rate, dropped)
    ordered = sorted(scores)
    return Calibration(
        scores=tuple(ordered),
        false_rejection_rate=rate,
        threshold=ordered[-allowed],
        query_space=space,
        given=given,
        dropped=dict(dropped),
        realised_rate=realised_rate(len(ordered), rate),
        statistic=STATISTIC,
    )


def realised_rate(n: int, rate: float, mass: float = 0.95) -> tuple[float, float]:
    """The central ``mass`` of the rate that a threshold from ``n`` scores comes out at: Beta(k, n + 1 - k), with
    k = floor(rate (n + 1)) (Vovk, 2012, "Conditional validity of inductive conformal predictors")."""
    k = rejectable(n, rate)
    return _beta_quantile((1 - mass) / 2, k, n), _beta_quantile((1 + mass) / 2, k, n)


def judge_images(
    index: MemorizationIndex,
    source: ImageSource,
    rows: Sequence[int],
    encoder: Encoder,
    space: str,
    *,
    progress: bool = True,
    description: str = "scoring",
) -> Iterator[Judged]:
    """Encode and score ``rows`` of ``source`` as the index's own images were encoded, in their order.

    An image that cannot be read, encoded or judged stops nothing: it comes without a score, and with its problem.
    """
    index.to(next(iter(encoder.vae.parameters())).device)
    with tqdm(total=len(rows), desc=description, unit="image", disable=not progress) as bar:
        for batch, encoded in encode_batches(source, rows, encoder, index.resolution, BATCH):
            found = {row: Judged(row, None, problem=why) for row, why in encoded.unreadable.items()}
            if encoded.latents is not None:
                scored = _score_each(index, encoded.latents.to(index.head.device), space)
                for row, one, digest, latent in zip(
                    encoded.rows, scored, encoded.sha256, encoded.latents, strict=True
                ):
                    found[row] = (
                        Judged(row, None, digest, _unjudgeable(source, row, one))
                        if isinstance(one, FilterFailedError)
                        else Judged(row, one, digest, latent=latent)
                    )
            yield from (found[row] for row in batch)
            bar.update(len(batch))


def _score_each(
    index: MemorizationIndex, latents: torch.Tensor, space: str
) -> list[Scored | FilterFailedError]:
    """A score for each of ``latents`` (B, C, h, w), or why it has none: one bad row must not cost the others theirs."""
    try:
        return list(score_latents(index, latents, space))
    except FilterFailedError as error:
        if len(latents) == 1:
            return [error]
    return [one for latent in latents for one in _score_each(index, latent[None], space)]


def _unjudgeable(source: ImageSource, row: int, error: FilterFailedError) -> str:
    why = str(error).removesuffix("; no image is returned")  # which is said to pipelines
    return f"image {source.records[row].id!r} of {source.name!r} cannot be judged: {why}; look at it, or leave it out"


def _own_found(index: MemorizationIndex, space: str, threshold: float) -> tuple[int, int] | None:
    """How many of some images of the index score more than ``threshold`` once their latents are mirrored and shifted by
    a cell, and of how many: where that is not nearly all, copies are likely to have set the threshold."""
    if not index.has_latents or space != index.space:
        return None
    rows = torch.linspace(0, len(index) - 1, min(OWN, len(index))).long()
    moved = index.latents(rows).float().flip(-1).roll((1, 1), (-2, -1)).to(index.head.device)
    scored = [one for one in _score_each(index, moved, space) if isinstance(one, Scored)]
    return sum(one.score > threshold for one in scored), len(scored)


def _usable_rows(
    index: MemorizationIndex, held_out: ImageSource, leave_out: Collection[str]
) -> tuple[list[int], Counter[str]]:
    """One image an identity, of identities that are not in the index, without those of ``leave_out`` and further images
    of theirs. What is a class of images in the index is no identity; what is one here (``classes_of``), where nobody is
    named beside it."""
    if unknown := set(leave_out) - {record.id for record in held_out.records}:
        raise CalibrationError(
            f"no held-out image {min(unknown)!r} to leave out ({len(unknown)} such); give ids as printed"
        )
    # people so called in the index are people here too, however many images show them
    indexed = {record.identity for record in index.records} - {None, *index.classes}
    named = [None if one.identity in index.classes else one.identity for one in held_out.records]
    if set(named) <= {None, *(classes_of(held_out) - indexed)}:
        named = [None] * len(named)
    left_out = {
        one for record, one in zip(held_out.records, named, strict=True) if record.id in leave_out
    } - {None}
    seen: set[str | None] = set()
    rows, dropped = [], Counter[str]()
    for row, (record, identity) in enumerate(zip(held_out.records, named, strict=True)):
        if record.id in leave_out:
            dropped["left out by name"] += 1
        elif identity in left_out:
            dropped["further image of what was left out by name"] += 1
        elif identity in indexed:
            dropped["identity is in the index"] += 1
        elif identity is not None and identity in seen:
            dropped["further image of an identity"] += 1
        else:
            rows.append(row)
            seen.add(identity)
    if not rows:
        raise EmptyDataError(
            f"none of the {len(held_out)} held-out images can be used ({_listed(dropped)}); "
            "give images of identities that the index does not hold; where names are of classes and not of people, "
            "give the images in one folder, or a table that does not name them"
        )
    return rows, dropped


def _new_files(
    index: MemorizationIndex, held_out: ImageSource, rows: Sequence[int], dropped: Counter[str]
) -> list[int]:
    """``rows`` without files that the index holds, and each file once; what cannot be read is told with its reason when
    it is encoded."""
    seen: set[str | None] = set()
    new = []
    for row in rows:
        file = held_out.digest(row)
        if file is not None and file in index.sha256_set:
            dropped["same file in the index"] += 1
        elif file is not None and file in seen:
            dropped["same file again"] += 1
        else:
            new.append(row)
            seen.add(file)
    return new


def _reason_to_drop(judged: Judged) -> str:
    if judged.scored is None:
        return "cannot be judged" if judged.sha256 else "unreadable"
    for near in judged.scored.neighbours:
        alike = near.embedding_similarity if near.latent_similarity is None else near.latent_similarity
        if alike >= NEAR_DUPLICATE:
            return "near-duplicate in the index"
    return ""


def held_out_needed(rate: float) -> int:
    """How many unseen images a threshold that rejects this share of them rests on, at least."""
    return math.ceil(1 / rate - 1e-9) - 1


def check_held_out(n: int, rate: float) -> None:
    """
    Raises:
        CalibrationError: ``n`` held-out images are too few for the rate, however many of them can be used.
    """
    _check_number(n, rate, Counter())


def _check_number(n: int, rate: float, dropped: Counter[str]) -> int:
    """How many of ``n`` scores may lie above the threshold."""
    allowed = rejectable(n, rate)
    if allowed >= 1:
        return allowed
    needed = held_out_needed(rate)
    low, high = realised_rate(needed, rate)
    better = 10 * (needed + 1) - 1
    low_better, high_better = realised_rate(better, rate)
    left_out = f" ({_listed(dropped)})" if dropped else ""
    if dropped["identity is in the index"] or dropped["further image of an identity"]:
        left_out += (
            "; where names are of classes and not of people, give the images in one folder, or a table that does not "
            "name them"
        )
    enough = f" ({n} allow {math.ceil(1e3 / (n + 1)) / 1e3:g} and more)" if n else ""
    raise CalibrationError(
        f"a false-rejection rate of {rate:g} needs at least {needed} held-out images, got {n} usable"
        f"{left_out}{enough}; with {needed} the rate comes out between {low:.2%} and {high:.2%}, "
        f"with {better} between {low_better:.2%} and {high_better:.2%}"
    )


def _listed(dropped: Counter[str]) -> str:
    return ", ".join(f"{count} left out: {reason}" for reason, count in dropped.items())


def _beta_quantile(level: float, k: int, n: int) -> float:
    """Quantile of Beta(k, n + 1 - k), by bisection: its CDF at x is P(Binomial(n, x) >= k)."""
    counts = torch.arange(0, k, dtype=torch.float64)
    n_ = torch.tensor(float(n), dtype=torch.float64)
    choose = torch.lgamma(n_ + 1) - torch.lgamma(counts + 1) - torch.lgamma(n_ - counts + 1)
    low, high = 0.0, 1.0
    for _ in range(60):
        x = (low + high) / 2
        below = torch.logsumexp(choose + counts * math.log(x) + (n_ - counts) * math.log1p(-x), 0).exp()
        low, high = (x, high) if 1 - float(below) < level else (low, x)
    return (low + high) / 2
