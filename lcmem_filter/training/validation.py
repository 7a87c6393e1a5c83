"""The figure that decides: what is found at a fixed rate of false rejections, against the whole index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..head import LCMemHead
from ..latents import canonical
from .data import LatentSet
from .views import generator_for

MOST_INDEX_ROWS = 20_000
MOST_VALIDATION_ROWS = 5_000


@dataclass(frozen=True, slots=True)
class Recall:
    """Share of queries found, overall and for each data set, with the number of queries.

    Attributes:
        overall: Mean over data sets; ``None`` without queries.
        per_set: (share, queries) of each data set that has queries.
    """

    overall: float | None
    per_set: Mapping[str, tuple[float, int]]


@dataclass(frozen=True, slots=True)
class Validation:
    """Recall on unseen identities at a false-rejection rate; half of them stand in the index.

    Attributes:
        score: Mean of the recalls there are; what checkpoints are chosen by.
        mild_copies: Of enrolled images zoomed to 6 %, shifted to 3 %, with latent noise to 0.1.
        same_identity: Of images whose identity has another image in the index.
        transformed_copies: Of enrolled images strongly augmented before they were encoded; no queries in stage 1.
        threshold: Mean cosine above which a query counts as found, over the two halves.
        strangers: Identities that the threshold was set on, both halves together.
        stranger_median: Median cosine of an unseen identity's nearest neighbour.
    """

    score: float
    mild_copies: Recall
    same_identity: Recall
    transformed_copies: Recall
    threshold: float
    strangers: int
    stranger_median: float
    index_rows: int
    false_rejection_rate: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def mild_copies(latents: torch.Tensor, draw: np.random.Generator) -> torch.Tensor:
    """What a memorising model emits: latents (B, C, g, g) zoomed to 6 %, shifted to 3 %, noise to 0.1."""
    b = len(latents)
    zoom, level = draw.uniform(0.94, 1.0, b), draw.uniform(0, 0.1, b)
    theta = np.zeros((b, 2, 3), dtype=np.float32)
    theta[:, 0, 0] = theta[:, 1, 1] = zoom
    theta[:, :, 2] = draw.uniform(-0.06, 0.06, (b, 2))  # the picture is 2 wide
    where = F.affine_grid(torch.from_numpy(theta).to(latents), list(latents.shape), align_corners=False)
    moved = F.grid_sample(latents, where, mode="bilinear", padding_mode="reflection", align_corners=False)
    noise = torch.from_numpy(draw.standard_normal(latents.shape, dtype=np.float32)).to(latents)
    return moved + noise * torch.from_numpy(level).to(latents)[:, None, None, None]


class Validator:
    """Measures a head on identities that it was not trained on.

    The validation identities are divided in two halves that take turns: one is enrolled in the index beside
    the training images, the other are the strangers whose rejection is false.

    Args:
        train: Images that the head is trained on: the index.
        validation: Images of other identities.
        strong: Whether their last view is a strongly augmented one, to be found too.
    """

    def __init__(
        self,
        train: LatentSet,
        validation: LatentSet,
        *,
        false_rejection_rate: float,
        seed: int,
        strong: bool = False,
    ) -> None:
        self.rate, self.seed, self.strong = false_rejection_rate, seed, strong
        self.index = _at_most(train, MOST_INDEX_ROWS, seed)
        self.validation = _at_most(validation, MOST_VALIDATION_ROWS, seed)
        self._number = np.unique(self.validation.identities.astype(str), return_inverse=True)[1]
        order = generator_for(seed, "halves").permutation(self._number.max() + 1)
        self._half = order[self._number] % 2

    @torch.inference_mode()
    def measure(self, head: LCMemHead, device: torch.device | str = "cpu") -> Validation:
        """Recall of ``head``, averaged over the spaces."""
        found = [self._measure_space(head, space, torch.device(device)) for space in self.validation.spaces]
        return min(found, key=lambda one: one.score)  # a head is as good as its worst space

    def _measure_space(self, head: LCMemHead, space: str, device: torch.device) -> Validation:
        index = embed_all(head, self.index.latents[space][:, 0], space, device)
        clean_latents = self.validation.latents[space][:, 0].float()
        clean = embed_all(head, clean_latents, space, device)
        mild = embed_all(head, mild_copies(clean_latents, generator_for(self.seed, "mild")), space, device)
        copies = [(mild * clean).sum(1).numpy()]
        if self.strong:
            strong = embed_all(head, self.validation.latents[space][:, -1].float(), space, device)
            copies.append((strong * clean).sum(1).numpy())
        return self._recalls((clean @ index.T).amax(1).numpy(), (clean @ clean.T).numpy(), copies)

    def _recalls(self, to_index: np.ndarray, clean: np.ndarray, copies: list[np.ndarray]) -> Validation:
        """Recalls from each image's best cosine with the index, cosines of images, and of copies with their own."""
        found_same, *found_copies = (np.full(len(to_index), np.nan) for _ in range(3))
        thresholds, nearest = [], []
        for half in (0, 1):
            enrolled, query = self._enrol(half)
            strangers = _first_of_each(self._number, self._half != half)
            scores = np.maximum(to_index[strangers], clean[np.ix_(strangers, enrolled)].max(1, initial=-1.0))
            threshold = (
                np.sort(scores)[::-1][max(int(self.rate * (len(scores) + 1)), 1) - 1] if len(scores) else 1.0
            )
            thresholds.append(threshold)
            nearest.append(scores)
            for found, own_copy in zip(found_copies, copies, strict=False):
                found[enrolled] = own_copy[enrolled] > threshold
            same = self._number[query][:, None] == self._number[enrolled][None, :]
            own = np.where(same, clean[np.ix_(query, enrolled)], -1.0).max(1, initial=-1.0)
            found_same[query] = own > threshold
        mild, same_identity, transformed = map(self._per_set, (found_copies[0], found_same, found_copies[1]))
        shares = [one.overall for one in (mild, same_identity, transformed) if one.overall is not None]
        every = np.concatenate(nearest)
        return Validation(
            score=float(np.mean(shares)) if shares else 0.0,
            mild_copies=mild,
            same_identity=same_identity,
            transformed_copies=transformed,
            threshold=float(np.mean(thresholds)),
            strangers=len(every),
            stranger_median=float(np.median(every)),
            index_rows=len(self.index),
            false_rejection_rate=self.rate,
        )

    def _enrol(self, half: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of ``half`` in the index, and a query row of each identity that has another image there."""
        rows = np.flatnonzero(self._half == half)
        count = np.bincount(self._number[rows], minlength=self._number.max() + 1)
        query = _first_of_each(self._number, (self._half == half) & (count[self._number] > 1))
        return np.setdiff1d(rows, query), query

    def _per_set(self, found: np.ndarray) -> Recall:
        per_set = {}
        for s, name in enumerate(self.validation.names):
            values = found[(self.validation.sets == s) & ~np.isnan(found)]
            if len(values):
                per_set[name] = (float(values.mean()), len(values))
        return Recall(float(np.mean([share for share, _ in per_set.values()])) if per_set else None, per_set)


@torch.inference_mode()
def embed_all(
    head: LCMemHead, latents: torch.Tensor, space: str, device: torch.device, batch: int = 256
) -> torch.Tensor:
    """Canonical latents (N, C, g, g) to unit-norm embeddings (N, D), float32, on the CPU."""
    parts = [head.embed(canonical(part.to(device), head.grid), space).cpu() for part in latents.split(batch)]
    return torch.cat(parts)


def _at_most(data: LatentSet, rows: int, seed: int) -> LatentSet:
    if len(data) <= rows:
        return data
    return data.take(np.sort(generator_for(seed, "at most", rows).permutation(len(data))[:rows]))


def _first_of_each(number: np.ndarray, where: np.ndarray) -> np.ndarray:
    """First row of each number among the rows where ``where`` holds."""
    rows = np.flatnonzero(where)
    return np.sort(rows[np.unique(number[rows], return_index=True)[1]])
