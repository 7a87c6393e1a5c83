"""The figure that decides: what is found at a fixed rate of false rejections, against the whole index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..described import Candidates, Parts, Query, describe_parts, parts_between
from ..head import LCMemHead
from ..index.exact import ExactBackend
from ..latents import canonical, outlines
from ..shortlist import InPlace, propose
from ..verification import compare
from .config import TrainingConfig
from .data import LatentSet
from .views import generator_for, half_formed

MOST_INDEX_ROWS = 20_000
MOST_VALIDATION_ROWS = 5_000
MOST_QUERIES = 300
"""Of each kind and half, where images are laid over each other, which takes long."""

COPIES = ("mild", "strong", "half")


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
        mild_copies: Of enrolled images as a memorising model returns them: mild views, or in stage 1 latents zoomed to
            6 %, shifted to 3 %, with noise to 0.1.
        same_identity: Of images whose identity has another image in the index.
        transformed_copies: Of enrolled images strongly augmented before they were encoded; no queries in stage 1.
        half_formed_copies: Of enrolled images of which a model returns no more than the outlines
            (``views.half_formed``); no queries in stage 1.
        threshold: Mean score (``verification.compare``) above which a query counts as found, over the two halves.
        strangers: Identities that the threshold was set on, both halves together.
        stranger_median: Median cosine of an unseen identity's nearest neighbour.
    """

    score: float
    mild_copies: Recall
    same_identity: Recall
    transformed_copies: Recall
    half_formed_copies: Recall
    threshold: float
    strangers: int
    stranger_median: float
    index_rows: int
    false_rejection_rate: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def validator_for(
    train: LatentSet, validation: LatentSet, config: TrainingConfig, *, laid_over: bool
) -> Validator:
    """What measures the heads of a stage: laying pictures over each other, or not, since that says nothing of the
    trunk."""
    return Validator(
        train,
        validation,
        false_rejection_rate=config.false_rejection_rate,
        seed=config.seed,
        most_queries=MOST_QUERIES if laid_over else None,
        laid_over=laid_over,
    )


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


@dataclass(frozen=True, slots=True)
class Stored:
    """Images as an index holds them, on the CPU: embeddings (N, D); parts (N, ...) and canonical latents (N, C, g, g)
    in float16."""

    embedding: torch.Tensor
    parts: torch.Tensor
    latents: torch.Tensor

    def of_rows(self, rows: np.ndarray) -> Stored:
        """Some of the images."""
        where = torch.from_numpy(rows)
        return Stored(self.embedding[where], self.parts[where], self.latents[where])

    def and_(self, other: Stored) -> Stored:
        """These images and then ``other``'s."""
        return Stored(
            torch.cat([self.embedding, other.embedding]),
            torch.cat([self.parts, other.parts]),
            torch.cat([self.latents, other.latents]),
        )


@dataclass(frozen=True, slots=True)
class _Half:
    """One half's index: its threshold, the strangers' largest cosines, and which rows of each kind were found."""

    threshold: float
    nearest: np.ndarray
    found: Mapping[str, tuple[np.ndarray, np.ndarray]]


class Validator:
    """Measures a head on identities that it was not trained on.

    The validation identities are divided in two halves that take turns: one is enrolled in the index beside
    the training images, the other are the strangers whose rejection is false.

    Args:
        train: Images that the head is trained on: the index.
        validation: Images of other identities. A mild or strong view is a copy to be found; without a mild one,
            latents are moved (``mild_copies``).
        most_queries: Of each kind and half; all by default. Strangers are always all asked for.
        laid_over: Whether pictures are laid over each other where the head has descriptors.
    """

    def __init__(
        self,
        train: LatentSet,
        validation: LatentSet,
        *,
        false_rejection_rate: float,
        seed: int,
        most_queries: int | None = None,
        laid_over: bool = True,
    ) -> None:
        self.laid_over = laid_over
        self.rate, self.seed, self.most_queries = false_rejection_rate, seed, most_queries
        self.index = _at_most(train, MOST_INDEX_ROWS, seed)
        self.validation = _at_most(validation, MOST_VALIDATION_ROWS, seed)
        self._number = np.unique(self.validation.identities.astype(str), return_inverse=True)[1]
        order = generator_for(seed, "halves").permutation(self._number.max() + 1)
        self._half = order[self._number] % 2

    @property
    def strangers(self) -> int:
        """Identities that a threshold rests on, in the smaller half."""
        return min(len(set(self._number[self._half == half])) for half in (0, 1))

    @torch.inference_mode()
    def measure(self, head: LCMemHead, device: torch.device | str = "cpu") -> Validation:
        """Recall of ``head``; a head is as good as its worst space."""
        spaces = self.validation.spaces
        found = [self.measure_between(head, space, space, device) for space in spaces]
        return min(found, key=lambda one: one.score)

    @torch.inference_mode()
    def measure_between(
        self, head: LCMemHead, space: str, index_space: str, device: torch.device | str = "cpu"
    ) -> Validation:
        """Recall of samples of ``space`` in an index of ``index_space``."""
        device = torch.device(device)
        kind = parts_between(head, space, index_space, laid_over=self.laid_over)
        asked, kept = self.validation.latents[space], self.validation.latents[index_space]
        views = self.validation.views
        queries: dict[str, torch.Tensor] = {
            name: asked[:, views.index(name)].float() for name in ("clean", "mild", "strong") if name in views
        }
        queries.setdefault("mild", mild_copies(queries["clean"], generator_for(self.seed, "mild")))
        if "strong" in queries:
            queries["half"] = half_formed(queries["clean"], generator_for(self.seed, "half-formed"))
        index = store(head, self.index.latents[index_space][:, 0], index_space, kind, device)
        stored = store(head, kept[:, 0], index_space, kind, device)
        halves = []
        for half in (0, 1):
            enrolled, query = self._enrol(half)
            enrolled_too = index.and_(stored.of_rows(enrolled))
            search = _Search(head, space, kind, enrolled_too, device, in_place=space == index_space)
            halves.append(self._measure_half(half, search, queries, enrolled, query))
        return self._recalls(halves)

    def _measure_half(
        self,
        half: int,
        search: _Search,
        queries: Mapping[str, torch.Tensor],
        enrolled: np.ndarray,
        query: np.ndarray,
    ) -> _Half:
        """The threshold that ``half``'s index sets, and what is found there."""
        strangers = _first_of_each(self._number, self._half != half)
        number = np.concatenate([np.full(len(self.index), -1), self._number[enrolled]])
        unseen = search(queries["clean"][strangers])[0].amax(1).numpy() if len(strangers) else np.empty(0)
        rank = max(int(self.rate * (len(unseen) + 1)), 1) - 1
        threshold = float(np.sort(unseen)[::-1][rank]) if len(unseen) else 1.0
        found = {}
        for name, every in (*((kind, enrolled) for kind in COPIES), ("clean", query)):
            rows = self._some(every, name)
            if name in queries and len(rows):
                scores, hits = search(queries[name][rows])
                right = number[hits.numpy()] == self._number[rows][:, None]
                if name != "clean":
                    place = len(self.index) + np.searchsorted(enrolled, rows)
                    right = hits.numpy() == place[:, None]
                found[name] = (rows, np.where(right, scores.numpy(), -np.inf).max(1) > threshold)
        nearest = search.nearest(queries["clean"][strangers]) if len(strangers) else unseen
        return _Half(threshold, nearest, found)

    def _some(self, rows: np.ndarray, name: str) -> np.ndarray:
        """At most ``most_queries`` of ``rows``, in order."""
        if self.most_queries is None or len(rows) <= self.most_queries:
            return rows
        return np.sort(generator_for(self.seed, "queries", name).permutation(rows)[: self.most_queries])

    def _recalls(self, halves: Sequence[_Half]) -> Validation:
        shares = {}
        for name in (*COPIES, "clean"):
            found = np.full(len(self._number), np.nan)
            for half in halves:
                if name in half.found:
                    rows, hit = half.found[name]
                    found[rows] = hit
            shares[name] = self._per_set(found)
        overall = [one.overall for one in shares.values() if one.overall is not None]
        nearest = np.concatenate([half.nearest for half in halves])
        return Validation(
            score=float(np.mean(overall)) if overall else 0.0,
            mild_copies=shares["mild"],
            same_identity=shares["clean"],
            transformed_copies=shares["strong"],
            half_formed_copies=shares["half"],
            threshold=float(np.mean([half.threshold for half in halves])),
            strangers=len(nearest),
            stranger_median=float(np.median(nearest)) if len(nearest) else 0.0,
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


class _Search:
    """Asks an index as the filter does."""

    def __init__(
        self,
        head: LCMemHead,
        space: str,
        kind: Parts | None,
        index: Stored,
        device: torch.device,
        *,
        in_place: bool,
        batch: int = 32,
    ) -> None:
        self.head, self.space, self.kind = head, space, kind
        self.index, self.device, self.batch = index, device, batch
        self.outlines = outlines(index.latents.float()) if in_place else None

    def __call__(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents (Q, C, g, g) to scores (``verification.compare``) and rows of their candidates, both (Q, K)."""
        found = [self._few(part.to(self.device)) for part in latents.split(self.batch)]
        return torch.cat([scores for scores, _ in found]), torch.cat([rows for _, rows in found])

    def nearest(self, latents: torch.Tensor) -> np.ndarray:
        """The largest cosine of each of (Q, C, g, g) to an embedding of the index, (Q,)."""
        embeddings = embed_all(self.head, latents, self.space, self.device)
        return (embeddings @ self.index.embedding.T).amax(1).numpy()

    def _few(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        query = Query.of(self.head, canonical(latents, self.head.grid), self.space, self.kind)

        def kept(what: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            return what[rows.cpu()].to(self.device).float()

        in_place = None
        if self.outlines is not None and query.latents is not None:
            by_outlines = ExactBackend(self.outlines).propose
            in_place = InPlace.of(query.latents.cpu(), by_outlines, self.outlines.__getitem__)
        rows = propose(query.asking.cpu(), ExactBackend(self.index.embedding).propose, in_place)
        candidates = Candidates(
            kept(self.index.embedding, rows),
            kept(self.index.parts, rows) if self.kind else None,
            latents=kept(self.index.latents, rows) if in_place else None,
        )
        return compare(query, candidates).score.cpu(), rows


@torch.inference_mode()
def store(
    head: LCMemHead,
    latents: torch.Tensor,
    space: str,
    kind: Parts | None,
    device: torch.device | str,
    batch: int = 256,
) -> Stored:
    """Canonical latents (N, C, g, g) as an index would hold them."""
    embeddings, parts, kept = [], [], []
    for some in latents.split(batch):
        given = canonical(some.to(device), head.grid)
        embeddings.append(head.embed(given, space).cpu())
        parts.append(describe_parts(head, given, space, kind or "latents").half().cpu())
        kept.append(given.half().cpu())
    return Stored(torch.cat(embeddings), torch.cat(parts), torch.cat(kept))


@torch.inference_mode()
def embed_all(
    head: LCMemHead, latents: torch.Tensor, space: str, device: torch.device | str, batch: int = 256
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
