"""The training set in memory, its identity-disjoint validation part, and the pairs that are drawn from it."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader

from ..errors import DataError
from ..images import ImageSource
from .cache import CachePlan, pictures_of, read_plan
from .config import TrainingConfig
from .names import identities_of, names_of_images
from .views import generator_for


@dataclass(frozen=True, slots=True)
class LatentSet:
    """Images as canonical latents, with what is known about them.

    Attributes:
        latents: For each space (N, V, C, grid, grid), float16; V is 1 where views are drawn anew.
        views: What each of the V views is, or of those that are drawn: ``"clean"``, the first, then kinds of
            ``cache.AUGMENTATIONS``.
        identities: (N,) strings; equal where two images are of one identity (``identity_of``).
        sets: (N,) which of ``names`` an image comes from.
        names: One for each source.
        unreadable: Why images were left out, by ``names_of_images``.
        labels: (N,) strings, each image's labels with ``|`` between them; ``None`` where there are none.
        ids: (N,) strings, each image's id (``names_of_images``); ``None`` where nobody asks for them.
        pictures: (N,) strings, equal where the stored bytes are, empty where these are not known; ``None`` likewise.
    """

    latents: Mapping[str, torch.Tensor]
    views: tuple[str, ...]
    identities: np.ndarray
    sets: np.ndarray
    names: tuple[str, ...]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    labels: np.ndarray | None = None
    ids: np.ndarray | None = None
    pictures: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.identities)

    @property
    def spaces(self) -> tuple[str, ...]:
        return tuple(self.latents)

    def counts(self) -> dict[str, tuple[int, int]]:
        """Images and identities of each source."""
        members = {name: self.identities[self.sets == s] for s, name in enumerate(self.names)}
        return {name: (len(of), len(set(of))) for name, of in members.items()}

    def take(self, rows: np.ndarray) -> LatentSet:
        """The images of ``rows`` (integers or booleans)."""
        index = torch.from_numpy(np.flatnonzero(rows) if rows.dtype == bool else rows)
        kept = {space: values[index] for space, values in self.latents.items()}
        known = (self.labels, self.ids, self.pictures)
        labels, ids, pictures = (None if one is None else one[rows] for one in known)
        return replace(
            self,
            latents=kept,
            identities=self.identities[rows],
            sets=self.sets[rows],
            labels=labels,
            ids=ids,
            pictures=pictures,
        )


def load_latents(
    plans: Mapping[str, Sequence[Sequence[CachePlan]]], part: str = "", beside: Sequence[ImageSource] = ()
) -> LatentSet:
    """Read cached latents: for each space, for each source, the plans of its views (the clean one first).

    Args:
        part, beside: See ``identities_of``.

    Raises:
        EmptyDataError: a source has no readable image.
    """
    per_space: dict[str, torch.Tensor] = {}
    readable: list[np.ndarray] = []
    every = next(iter(plans.values()))
    pictures: list[np.ndarray] = []
    names = np.array(names_of_images([views[0].source for views in every]), dtype=object)
    unreadable: dict[str, str] = {}
    for space, sources in plans.items():
        read = [[read_plan(plan) for plan in views] for views in sources]
        per_space[space] = torch.cat([torch.stack([one.latents for one in views], 1) for views in read])
        readable.append(
            np.concatenate([torch.stack([one.readable for one in views]).all(0).numpy() for views in read])
        )
        first = np.cumsum([0, *(len(views[0].source) for views in sources)])
        unreadable |= {
            names[start + row]: why
            for start, views in zip(first, read, strict=False)
            for one in views
            for row, why in one.unreadable.items()
        }
        pictures = pictures or [pictures_of(of[0], one[0]) for of, one in zip(sources, read, strict=True)]
    records = [record for views in every for record in views[0].source.records]
    identities = identities_of([views[0].source for views in every], part, beside)
    whole = LatentSet(
        per_space,
        tuple(plan.kind if plan.view else "clean" for plan in every[0]),
        np.array(identities, dtype=object),
        np.repeat(np.arange(len(every)), [len(views[0].source) for views in every]),
        tuple(views[0].source.name for views in every),
        unreadable,
        np.array([record.labels for record in records], dtype=object),
        names,
        np.concatenate(pictures),
    )
    return whole.take(np.logical_and.reduce(readable)) if unreadable else whole


def digest_of(*sets: LatentSet) -> str:
    """Changes when sets hold other images, or images under other names or identities."""
    named = [[list(one.identities), [] if one.ids is None else list(one.ids)] for one in sets]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Pairs:
    """Rows of pairs: images ``a`` and ``b`` (P,), which view of each (P,), and identity numbers (P,)."""

    a: np.ndarray
    b: np.ndarray
    view_a: np.ndarray
    view_b: np.ndarray
    identities: np.ndarray


CHANGED = ("mild", "strong", "upside-down")
"""Kinds of views that side b of a pair mostly is."""

CHANGED_SHARE = 0.8
"""Of pairs, those whose side b is one of them."""

CHANGED_OTHERS = 0.4
"""The same for pairs of two images in stage 3, which differ enough as they are."""

NEIGHBOURHOOD = 3
"""A group of hard negatives is drawn from so many times its number of nearest identities."""


def check_pairs(identities: Iterable[str], labels: Iterable[str], same_labels: float = 0.0) -> None:
    """Whether there is something to draw pairs from.

    Raises:
        DataError: fewer than two identities, or no labels to go by.
    """
    if (count := len(set(identities))) < 2:
        raise DataError(f"training needs at least two identities, got {count}; give images of more")
    if same_labels and not any(labels):
        raise DataError(
            "same_labels needs a column `labels`, which none of the sets has; add it, or leave it out"
        )


class PairSampler:
    """Draws pairs of one identity; what is drawn depends on the seed and the key alone.

    Identities are drawn in proportion to 1 / sqrt(images of their set), those with two images twice as often.
    A batch comes from ``sets_per_batch`` sets, so that most negatives are of the same kind. An image without
    a partner is paired with itself (another view, augmented otherwise), and so is a share ``same_image`` of
    the rest. Side b is one of ``CHANGED``, where there are any, in four pairs of five, and in a share
    ``others_changed`` of the pairs of two images.

    Once ``mine`` was told where the images lie, a share ``hard_negatives`` of the groups that a batch is made of are
    neighbours of one image, so that each has its hardest negatives beside it. A share ``same_labels`` of the other
    groups have labels in common with one identity, so that a patient is learned and not a disease.

    Raises:
        DataError: fewer than two identities, or no labels to go by.
    """

    def __init__(
        self,
        data: LatentSet,
        *,
        pairs: int,
        sets_per_batch: int,
        same_image: float,
        seed: int,
        hard_negatives: float = 0.0,
        others_changed: float = CHANGED_SHARE,
        same_labels: float = 0.0,
    ) -> None:
        self.pairs, self.sets_per_batch, self.same_image, self.seed = pairs, sets_per_batch, same_image, seed
        self.others_changed = others_changed
        self.same_labels = same_labels
        self.hard_negatives = hard_negatives
        self._embeddings: torch.Tensor | None = None
        self._set = data.sets
        self._changed = np.flatnonzero(np.isin(data.views, CHANGED))
        self._light = len(data.views) - len(self._changed)
        check_pairs(data.identities, () if data.labels is None else data.labels, same_labels)
        self._identity = np.unique(data.identities.astype(str), return_inverse=True)[1]
        self._images = _groups(self._identity)
        self._labels = _label_matrix(data.labels, self._identity) if same_labels else None
        self._sets = [_groups(self._identity, np.flatnonzero(data.sets == s)) for s in range(len(data.names))]
        self._sets = [members for members in self._sets if members]
        self._weights = []
        for members in self._sets:
            size = sum(len(rows) for rows in members.values())
            partnered = np.array([1.0 + (len(self._images[identity]) > 1) for identity in members])
            self._weights.append(partnered / np.sqrt(size))

    def draw(self, *key: int) -> Pairs:
        """The batch of ``key``, for example the step."""
        draw = generator_for(self.seed, "pairs", *key)
        chosen = self._identities(draw)
        a = np.array([draw.choice(self._sets[s][identity]) for s, identity in chosen])
        b = np.array([self._partner(row, draw) for row in a])
        view_a, view_b = (
            draw.integers(0, self._light, len(a)) * (draw.random(len(a)) < 0.6) for _ in range(2)
        )
        if len(self._changed):
            changed = draw.choice(self._changed, len(a))
            share = np.where(a == b, CHANGED_SHARE, self.others_changed)
            view_b = np.where(draw.random(len(a)) < share, changed, view_b)
        return Pairs(a, b, view_a, view_b, self._identity[a])

    def _identities(self, draw: np.random.Generator) -> list[tuple[int, int]]:
        """(set, identity) of each pair, no identity twice while others are left."""
        totals = np.array([weights.sum() for weights in self._weights])
        group = -(-self.pairs // self.sets_per_batch)
        chosen: list[tuple[int, int]] = []
        used: set[int] = set()
        while len(chosen) < self.pairs:
            if len(used) == len(self._images):
                used.clear()
            s = int(draw.choice(len(totals), p=totals / totals.sum()))
            members = np.array(list(self._sets[s]))
            free = ~np.isin(members, list(used))
            take = min(group, self.pairs - len(chosen), int(free.sum()))
            weights = self._weights[s] * free
            if take and self._embeddings is not None and draw.random() < self.hard_negatives:
                first = int(draw.choice(members, p=weights / weights.sum()))
                near = self._neighbourhood(first, take, used, draw)
                chosen += near
                used.update(identity for _, identity in near)
            elif take and self._labels is not None and draw.random() < self.same_labels:
                first = int(draw.choice(members, p=weights / weights.sum()))
                alike = self._with_its_labels(first, members[free], take, draw)
                chosen += [(s, identity) for identity in alike]
                used.update(alike)
            elif take:
                picked = draw.choice(members, take, replace=False, p=weights / weights.sum())
                chosen += [(s, int(identity)) for identity in picked]
                used.update(int(identity) for identity in picked)
        return chosen

    def mine(self, embeddings: torch.Tensor) -> None:
        """Where the images lie now: unit-norm embeddings (N, D) of their clean views."""
        self._embeddings = embeddings

    def _neighbourhood(
        self, identity: int, count: int, used: set[int], draw: np.random.Generator
    ) -> list[tuple[int, int]]:
        """(set, identity) of ``count`` identities near one image of ``identity``, which comes first."""
        assert self._embeddings is not None
        row = int(draw.choice(self._images[identity]))
        order = (self._embeddings @ self._embeddings[row]).argsort(descending=True).numpy()
        order = order[self._identity[order] != identity]
        order = order[~np.isin(self._identity[order], list(used))]
        _, nearest = np.unique(self._identity[order], return_index=True)
        nearest = order[np.sort(nearest)[: NEIGHBOURHOOD * count]]
        picked = draw.choice(nearest, min(count - 1, len(nearest)), replace=False)
        return [(int(self._set[one]), int(self._identity[one])) for one in (row, *picked)]

    def _with_its_labels(
        self, identity: int, among: np.ndarray, count: int, draw: np.random.Generator
    ) -> list[int]:
        """``identity`` and others of ``among``, those with the most labels in common (Jaccard) first."""
        assert self._labels is not None
        own, theirs = self._labels[identity], self._labels[among]
        common = (theirs & own).sum(1) / np.maximum((theirs | own).sum(1), 1)
        order = np.argsort(-(common + 1e-6 * draw.random(len(among))))
        others = [int(one) for one in among[order] if one != identity]
        return [identity, *others[: count - 1]]

    def _partner(self, row: int, draw: np.random.Generator) -> int:
        images = self._images[int(self._identity[row])]
        if len(images) == 1 or draw.random() < self.same_image:
            return int(row)
        return int(draw.choice(images[images != row]))


def sampler_for(data: LatentSet, config: TrainingConfig) -> PairSampler:
    """The pairs of a stage."""
    return PairSampler(
        data,
        pairs=config.batch_pairs,
        sets_per_batch=config.sets_per_batch,
        same_image=config.same_image,
        seed=config.seed,
        hard_negatives=config.hard_negatives if config.stage > 1 else 0.0,
        others_changed=CHANGED_OTHERS if config.stage == 3 else CHANGED_SHARE,
        same_labels=config.same_labels,
    )


def drawn_ahead(sampler: PairSampler, steps: range, workers: int) -> Iterator[Pairs]:
    """The batches of ``steps``, drawn by so many processes while others are trained on; by this one where 0, or where
    processes cannot be forked."""
    if not workers or "fork" not in multiprocessing.get_all_start_methods():
        return map(sampler.draw, steps)
    # without batches, what is collated is one step
    options: Any = {"collate_fn": sampler.draw, "multiprocessing_context": "fork"}
    return iter(DataLoader(cast(Any, steps), batch_size=None, num_workers=workers, **options))


def _label_matrix(labels: np.ndarray | None, identity: np.ndarray) -> np.ndarray | None:
    """Which labels the images of each identity have, (identities, labels) booleans; ``None`` where there are none."""
    split = [str(one).split("|") if one else [] for one in (labels if labels is not None else ())]
    names = {name: column for column, name in enumerate(sorted({name for row in split for name in row}))}
    if not names:
        return None
    matrix = np.zeros((identity.max() + 1, len(names)), dtype=bool)
    for who, row in zip(identity, split, strict=True):
        matrix[who, [names[name] for name in row]] = True
    return matrix


def _groups(identity: np.ndarray, rows: np.ndarray | None = None) -> dict[int, np.ndarray]:
    """Rows of each identity."""
    groups: dict[int, list[int]] = defaultdict(list)
    for row in range(len(identity)) if rows is None else rows:
        groups[int(identity[row])].append(int(row))
    return {key: np.array(value) for key, value in groups.items()}
