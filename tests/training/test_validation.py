"""Recall at a false-rejection rate, against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lcmem_filter.described import Candidates, Query
from lcmem_filter.head import LCMemHead
from lcmem_filter.latents import canonical
from lcmem_filter.shortlist import SHORTLIST
from lcmem_filter.training.data import LatentSet
from lcmem_filter.training.validation import Validator, mild_copies, store
from lcmem_filter.training.views import generator_for
from lcmem_filter.verification import compare


def noise_set(identities: list[str], seed: int, sets: int = 1) -> LatentSet:
    torch.manual_seed(seed)
    latents = torch.randn(len(identities), 1, 4, 16, 16)
    return LatentSet(
        {"sd": latents.half()},
        ("clean",),
        np.array(identities, dtype=object),
        np.arange(len(identities)) % sets,
        tuple(f"set{i}" for i in range(sets)),
    )


@pytest.fixture
def head() -> LCMemHead:
    torch.manual_seed(0)
    return LCMemHead.create("micro")


def test_recalls_are_those_of_a_plain_loop(head: LCMemHead) -> None:
    train = noise_set([f"t{i}" for i in range(20)], 0)
    held = noise_set([f"v{i // 2 if i < 20 else i}" for i in range(30)], 1)
    # second images are like the first, more or less
    for i in range(0, 20, 2):
        held.latents["sd"][i + 1] = held.latents["sd"][i] + 0.1 * i * held.latents["sd"][i + 1]
    validator = Validator(train, held, false_rejection_rate=0.2, seed=0)
    found = validator.measure(head)

    every = torch.cat([train.latents["sd"][:, 0], held.latents["sd"][:, 0]]).float()
    moved = mild_copies(every[20:], generator_for(0, "mild"))
    stored = store(head, every, "sd", "tokens", "cpu")

    def scores_of(latents: torch.Tensor, row: int, gallery: list[int]) -> list[float]:
        """The largest score of each row of the gallery, of the shortlists of all ways one after the other."""
        query = Query.of(head, canonical(latents[row : row + 1], 16), "sd", "tokens")
        near = torch.stack([stored.embedding[i] for i in gallery])
        order = [int(i) for way in query.asking for i in (near @ way[0]).argsort(descending=True)[:SHORTLIST]]
        chosen = [gallery[i] for i in order]
        candidates = Candidates(stored.embedding[chosen][None], stored.parts[chosen].float()[None])
        score = compare(query, candidates).score[0]
        return [
            max((float(score[place]) for place, i in enumerate(order) if i == one), default=-math.inf)
            for one in range(len(gallery))
        ]

    names, half = list(held.identities), validator._half
    mild_found, same_found, thresholds = [], [], []
    for side in (0, 1):
        queries = [
            i
            for i in range(30)
            if half[i] == side and names.count(names[i]) > 1 and names.index(names[i]) == i
        ]
        enrolled = [i for i in range(30) if half[i] == side and i not in queries]
        strangers = [i for i in range(30) if half[i] != side and names.index(names[i]) == i]
        gallery = [*range(20), *(20 + i for i in enrolled)]
        scores = sorted((max(scores_of(every, 20 + i, gallery)) for i in strangers), reverse=True)
        thresholds.append(scores[int(0.2 * (len(scores) + 1)) - 1])
        for i in enrolled:
            found_at = scores_of(moved, i, gallery)[gallery.index(20 + i)]
            mild_found.append(found_at > thresholds[-1])
        for i in queries:
            alike = zip(gallery, scores_of(every, 20 + i, gallery), strict=True)
            own = max(s for j, s in alike if j >= 20 and names[j - 20] == names[i])
            same_found.append(own > thresholds[-1])
    assert found.mild_copies.per_set["set0"] == (pytest.approx(np.mean(mild_found)), 20)
    assert found.same_identity.per_set["set0"] == (pytest.approx(np.mean(same_found)), 10)
    assert found.threshold == pytest.approx(np.mean(thresholds), abs=1e-3)
    assert found.score == pytest.approx((np.mean(mild_found) + np.mean(same_found)) / 2)
    assert 0 < found.same_identity.overall < 1  # neither all nor none, or the loop would prove little
    assert (found.strangers, found.index_rows) == (20, 20)


def test_sets_count_alike(head: LCMemHead) -> None:
    held = noise_set([f"v{i}" for i in range(12)], 1, sets=2)
    found = Validator(noise_set(["t"], 0), held, false_rejection_rate=0.1, seed=0).measure(head)
    shares = [share for share, _ in found.mild_copies.per_set.values()]
    assert len(shares) == 2
    assert found.mild_copies.overall == pytest.approx(np.mean(shares))
    assert found.same_identity.overall is None
    assert found.score == found.mild_copies.overall


def test_mild_copies_stay_near_and_move() -> None:
    torch.manual_seed(0)
    latents = torch.nn.functional.interpolate(torch.randn(40, 4, 5, 5), (16, 16), mode="bicubic")
    moved = mild_copies(latents, generator_for("here"))
    alike = torch.cosine_similarity(latents.flatten(1), moved.flatten(1))
    assert alike.min() > 0.7 and alike.max() < 0.9999
