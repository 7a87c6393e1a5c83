"""Pair-level figures, for comparison with the literature: they say little about a filter over a whole index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from data import Images
from figures import interval
from keep import Keeper
from methods import Method
from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve

NEGATIVES = 5
"""Wrong partners of each right pair, of its own domain."""


@dataclass(frozen=True)
class Pairs:
    """Queries with right and wrong partners.

    Attributes:
        queries: The pictures on the left.
        stored: The pictures on the right.
        a: Rows of ``queries``, (P,).
        b: Rows of ``stored``, (P,).
        same: Whether a pair is right, (P,).
        people: The identity of ``a``, (P,).
        domains: (P,).
    """

    queries: Images
    stored: Images
    a: np.ndarray
    b: np.ndarray
    same: np.ndarray
    people: np.ndarray
    domains: np.ndarray


def identity_pairs(images: Images, seed: int, *, same_labels: bool = False) -> Pairs:
    """One right pair of each identity that has two images, and wrong ones of the same domain.

    Args:
        same_labels: Of images with labels alone, and wrong pairs of the very same ones: whether the patient is
            recognised, or only the disease.
    """
    draw = np.random.default_rng(seed)
    names = images.identities.astype(str)
    order = np.argsort(names, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(np.unique(names[order], return_inverse=True)[1])) + 1)
    right = np.array([draw.choice(group, 2, replace=False) for group in groups if len(group) > 1], int)
    labels = np.array([record.labels for record in images.records]) if same_labels else None
    return _with_wrong(images, images, right.reshape(-1, 2), names[right.reshape(-1, 2)[:, 0]], draw, labels)


def copy_pairs(copies: Images, rows: np.ndarray, images: Images, seed: int) -> Pairs:
    """Each copy with the image that it was made of, row ``rows`` of ``images``, and with others of its domain."""
    right = np.stack([np.arange(len(rows)), rows], 1)
    return _with_wrong(
        copies, images, right, images.identities.astype(str)[rows], np.random.default_rng(seed)
    )


def _with_wrong(
    queries: Images,
    stored: Images,
    right: np.ndarray,
    people: np.ndarray,
    draw: np.random.Generator,
    labels: np.ndarray | None = None,
) -> Pairs:
    if labels is not None:
        labelled = labels[right[:, 0]] != ""
        right, people = right[labelled], people[labelled]
    names, domains = stored.identities.astype(str), stored.domains
    a, b, same = list(right[:, 0]), list(right[:, 1]), [True] * len(right)
    whose, where = list(people), list(domains[right[:, 1]])
    for (query, partner), person in zip(right, people, strict=True):
        possible = (domains == domains[partner]) & (names != person)
        others = np.flatnonzero(possible if labels is None else possible & (labels == labels[query]))
        for other in draw.choice(others, min(NEGATIVES, len(others)), replace=False):
            a.append(query)
            b.append(other)
            same.append(False)
            whose.append(person)
            where.append(domains[partner])
    return Pairs(queries, stored, *(np.array(v) for v in (a, b, same, whose, where)))


def score_pairs(method: Method, pairs: Pairs, keeper: Keeper) -> np.ndarray:
    """Similarity of each pair (P,), NaN where the method is not measured on the domain."""
    left, right = keeper.kept(method, pairs.queries), keeper.kept(method, pairs.stored)
    wanted = np.isin(pairs.domains, method.row.domains) if method.row.domains else np.ones(len(pairs.a), bool)
    scores = np.full(len(pairs.a), np.nan)
    with torch.inference_mode():
        for rows in np.array_split(np.flatnonzero(wanted), max(1, wanted.sum() // 64)):
            if len(rows):
                found = method.baseline.similarity(left[pairs.a[rows]], right[pairs.b[rows]][:, None])
                scores[rows] = found[:, 0].numpy()
    return scores


def pair_figures(test: Pairs, scores: np.ndarray, held: Pairs, held_scores: np.ndarray) -> dict[str, Any]:
    """For each domain: AUC and the rest; right and wrong pairs weigh the same."""
    result: dict[str, Any] = {}
    for domain in dict.fromkeys(test.domains):
        of, fixed = (
            (pairs.domains == domain) & ~np.isnan(values)
            for pairs, values in ((test, scores), (held, held_scores))
        )
        if any(same.all() or not same.any() for same in (test.same[of], held.same[fixed])):
            continue  # right pairs or wrong ones are missing
        limit = _best_threshold(held.same[fixed], held_scores[fixed])
        result[str(domain)] = _figures(test.same[of], scores[of], test.people[of], limit)
    if len(result) > 1:
        shared: Mapping[str, Any] = next(iter(result.values()))
        plain = [key for key, value in shared.items() if isinstance(value, float)]
        result["all domains"] = {key: float(np.mean([one[key] for one in result.values()])) for key in plain}
    return result


def _figures(same: np.ndarray, scores: np.ndarray, people: np.ndarray, limit: float) -> dict[str, Any]:
    weights = np.where(same, 1 / same.sum(), 1 / (~same).sum())
    false, true, _ = roc_curve(same, scores, drop_intermediate=False)
    precision, recall, _ = precision_recall_curve(same, scores, sample_weight=weights)
    return {
        "pairs": int(same.sum()),
        "auc": float(roc_auc_score(same, scores)),
        "auc_interval": interval(_drawn_auc(same, scores, people)),
        "accuracy": float(((scores[same] > limit).mean() + (scores[~same] <= limit).mean()) / 2),
        "tpr_at_1_fpr": float(true[false <= 0.01].max()),
        "tpr_at_0.1_fpr": float(true[false <= 0.001].max()),
        "precision_at_95_recall": float(precision[recall >= 0.95].max()),
        "precision_at_99_recall": float(precision[recall >= 0.99].max()),
    }


def _drawn_auc(same: np.ndarray, scores: np.ndarray, people: np.ndarray, draws: int = 200) -> np.ndarray:
    number = np.unique(people, return_inverse=True)[1]
    count = number.max() + 1
    weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), draws)[:, number]
    usable = [w for w in weights if 0 < same[w > 0].sum() < (w > 0).sum()]
    return np.array([roc_auc_score(same[w > 0], scores[w > 0], sample_weight=w[w > 0]) for w in usable])


def _best_threshold(same: np.ndarray, scores: np.ndarray) -> float:
    false, true, limits = roc_curve(same, scores)
    return float(limits[np.argmax(true - false)]) - 1e-9
