"""Who is enrolled and who is unseen, and what each method finds for every query in the index."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from data import Images, one_per_identity
from keep import Keeper
from methods import Method

from lcmem_filter.baselines import Searcher
from lcmem_filter.baselines.aligned_latents import AlignedLatents, aligned
from lcmem_filter.baselines.lcmem import LCMem
from lcmem_filter.calibration import NEAR_DUPLICATE
from lcmem_filter.errors import DataError
from lcmem_filter.index.identities import numbered

LISTED = Path(__file__).parent / "near_duplicates.csv"
"""Unseen images whose picture, or person, stands in the index under another name, as somebody saw."""
PAIR = ("unseen_set", "unseen", "indexed_set", "indexed", "same")
"""Columns of such a table."""

DEPTH = 20
"""Neighbours of a query that are looked at."""


@dataclass(frozen=True)
class Design:
    """Which images stand in which index.

    Attributes:
        base: Images that always stand in the index: train and validation.
        test: Images of other identities; the identities of half h are enrolled in index h, the others unseen there.
        copies: Test images of each domain that copies are made of, at most.
        indexed: Rows of ``base`` that do stand in the index, ascending; all by default.
    """

    base: Images
    test: Images
    seed: int
    copies: int
    indexed: np.ndarray | None = None

    @cached_property
    def identity(self) -> np.ndarray:
        """A number for the identity of every image, those of the base first."""
        names = np.concatenate([self.base.identities, self.test.identities]).astype(str)
        return np.unique(names, return_inverse=True)[1]

    @cached_property
    def told(self) -> np.ndarray:
        """The same as an index of tables numbers them: negative where an image's identity is not known."""
        records = [*self.base.records, *self.test.records]
        return numbered([record.identity for record in records])

    @cached_property
    def half(self) -> np.ndarray:
        """0 or 1 for each test image, the same for all images of an identity."""
        people, inverse = np.unique(self.test.identities.astype(str), return_inverse=True)
        order = np.random.default_rng(self.seed).permutation(len(people))
        return order[inverse] % 2

    @cached_property
    def strangers(self) -> np.ndarray:
        """One test row an identity: what is unseen where the other half is enrolled."""
        return one_per_identity(self.test, self.seed, in_each_set=False)

    @cached_property
    def copied(self) -> np.ndarray:
        """Test rows that copies are made of: of each domain at most ``copies``, one of each identity in each set."""
        rows = np.random.default_rng(self.seed + 2).permutation(
            one_per_identity(self.test, self.seed + 1, in_each_set=True)
        )
        domains = self.test.domains[rows]
        return np.sort(np.concatenate([rows[domains == d][: self.copies] for d in dict.fromkeys(domains)]))

    @cached_property
    def with_others(self) -> np.ndarray:
        """Test rows whose identity has another image."""
        people, inverse = np.unique(self.test.identities.astype(str), return_inverse=True)
        return np.flatnonzero(np.bincount(inverse, minlength=len(people))[inverse] > 1)

    def index_rows(self, half: int) -> np.ndarray:
        """Rows of base and test together that stand in the index of ``half``."""
        base = np.arange(len(self.base)) if self.indexed is None else self.indexed
        return np.concatenate([base, len(self.base) + np.flatnonzero(self.half == half)])

    def test_identity(self) -> np.ndarray:
        return self.identity[len(self.base) :]


@dataclass(frozen=True)
class Task:
    """Queries of one kind.

    Attributes:
        rows: The test row that each query is, or is a copy of.
        images: The queries; ``rows`` of the test images themselves where ``None``.
        itself: Whether a query's own row is left out, and any other image of its identity is right. Else its own
            row is.
    """

    name: str
    rows: np.ndarray
    images: Images | None = None
    itself: bool = False


@dataclass(frozen=True)
class Answers:
    """What was found for the queries of a task, each in the index of its own half.

    Attributes:
        top: Largest similarity to anything in the index, (Q,).
        own: Largest similarity to what is right, ``-inf`` where it is not among the first ``DEPTH``, (Q,).
    """

    top: np.ndarray
    own: np.ndarray


@dataclass(frozen=True)
class Measured:
    """A method's scores: of the strangers, each against the other half's index, and of each task's queries."""

    strangers: np.ndarray
    tasks: dict[str, Answers]


def measure(method: Method, design: Design, tasks: Sequence[Task], keeper: Keeper) -> Measured:
    """Search every query of every task; what was found before is read."""
    store = keeper.cache / f"{keeper.encoder.source.sha256[:8]}-{keeper.resolution}" / "scores"
    store = store / f"{method.key}-{keeper.grid}"
    plan = [Task("strangers", design.strangers), *tasks]
    files = [store / f"{task.name.replace('/', '-')}-{_key(design, task)}.npz" for task in plan]
    todo = [(task, file) for task, file in zip(plan, files, strict=True) if not file.exists()]
    if todo:
        _search(method, design, todo, keeper)
    read = [np.load(file, allow_pickle=False) for file in files]
    answers = [Answers(one["top"], one["own"]) for one in read]
    return Measured(
        answers[0].top, {task.name: found for task, found in zip(tasks, answers[1:], strict=True)}
    )


def _key(design: Design, task: Task) -> str:
    images = "" if task.images is None else task.images.fingerprint
    key = f"{design.base.fingerprint} {design.test.fingerprint} {design.seed} {images} {task.rows.tolist()} {DEPTH}"
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _search(method: Method, design: Design, todo: list[tuple[Task, Path]], keeper: Keeper) -> None:
    test = keeper.kept(method, design.test)
    every = torch.cat([keeper.kept(method, design.base), test])
    if method.row.told:
        assert isinstance(method.baseline, LCMem), method.row.label
        every = method.baseline.told(every, torch.from_numpy(design.told))
    domains = np.concatenate([design.base.domains, design.test.domains])
    measured = np.isin(domains, method.row.domains) if method.row.domains else np.ones(len(domains), bool)
    found = search_tasks(
        lambda rows: Searcher(method.baseline, every[rows]),
        design,
        [task for task, _ in todo],
        lambda task: test[task.rows] if task.images is None else keeper.kept(method, task.images),
        measured,
    )
    for task, file in todo:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, top=found[task.name][0], own=found[task.name][1])


def search_tasks(
    searcher: Callable[[np.ndarray], Searcher],
    design: Design,
    tasks: Sequence[Task],
    queries: Callable[[Task], torch.Tensor],
    measured: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """What is found for each task's queries, (2, Q): see ``Answers``.

    Args:
        searcher: Rows of base and test to an index of them.
        queries: A task to what is kept of its queries.
        measured: Which rows of base and test are measured; all by default.
    """
    if measured is None:
        measured = np.ones(len(design.base) + len(design.test), bool)
    found = {task.name: np.full((2, len(task.rows)), np.nan, dtype=np.float32) for task in tasks}
    for half in (0, 1):
        rows = design.index_rows(half)
        rows = rows[measured[rows]]
        search = searcher(rows)
        for task in tasks:
            side = half if task.name != "strangers" else 1 - half
            which = np.flatnonzero((design.half[task.rows] == side) & measured[len(design.base) + task.rows])
            found[task.name][:, which] = _answer(search, rows, queries(task)[which], task, which, design)
    return found


def _answer(
    search: Searcher, rows: np.ndarray, queries: torch.Tensor, task: Task, which: np.ndarray, design: Design
) -> np.ndarray:
    """(2, Q): the largest similarity to anything, and to what is right."""
    if not len(which):
        return np.empty((2, 0), dtype=np.float32)
    own_row = len(design.base) + task.rows[which]
    own_place = np.searchsorted(rows, own_row)
    but = torch.from_numpy(own_place) if task.itself else None
    given = search.baseline.shortlist  # where the shortlist is short, it is all that is compared
    depth = min(DEPTH if given == 1 else min(DEPTH, given), len(rows) - 1)
    found = search.search(queries, depth, but=but)
    hits, similarity = rows[found.rows.numpy()], found.similarity.numpy()
    found_of, asked_of = (design.identity[hits], design.identity[own_row]) if task.itself else (hits, own_row)
    right = found_of == asked_of[:, None]
    return np.stack([similarity[:, 0], np.where(right, similarity, -np.inf).max(1)])


def known_duplicates(design: Design, listed: Path = LISTED) -> dict[int, tuple[int, str]]:
    """Test rows among the strangers that are not unseen: which row of base and test shows the same picture or person.

    Args:
        listed: A table as ``look.py`` helps to fill; what other data sets have is passed over.

    Returns:
        For each test row, the row of base and test, and what is the same: ``"picture"`` or ``"person"``.

    Raises:
        DataError: it cannot be read, or does not say what is the same.
    """
    place = {
        (str(name), record.id): row
        for images, first in ((design.base, 0), (design.test, len(design.base)))
        for row, (name, record) in enumerate(zip(images.sets, images.records, strict=True), first)
    }
    strangers = set(design.strangers.tolist())
    found = {}
    for line in _read_pairs(listed):
        row = place.get((line["unseen_set"], line["unseen"]), -1) - len(design.base)
        if row in strangers and (line["indexed_set"], line["indexed"]) in place:
            found[row] = place[line["indexed_set"], line["indexed"]], line["same"]
    return found


def _read_pairs(listed: Path) -> list[dict[str, str]]:
    try:
        with listed.open(newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{listed} cannot be read: {error}; give a table as look.py writes it") from error
    for number, line in enumerate(lines, start=1):
        if missing := [name for name in PAIR if name not in line]:
            raise DataError(f"{listed} has no column {missing[0]!r}; give a table as look.py writes it")
        if line["same"] not in ("picture", "person"):
            raise DataError(
                f"pair {number} of {listed} has {line['same']!r} for what is the same: picture or person"
            )
    return lines


def near_duplicates(design: Design, embedding: Method, keeper: Keeper) -> dict[int, tuple[float, int]]:
    """For each stranger (a test row), how alike its most alike image of the index is, and which that is.

    Candidates are proposed by raw latents and by the head; aligned correlation of latents decides, as in calibration.
    The same file in the index counts as 1.
    """
    store = (
        keeper.cache / f"{keeper.encoder.source.sha256[:8]}-{keeper.resolution}" / "scores" / embedding.key
    )
    kept_file = store / f"near-duplicates-{_key(design, Task('', design.strangers))}.json"
    if kept_file.exists():
        return {int(row): (alike, which) for row, (alike, which) in json.loads(kept_file.read_text()).items()}
    result = _near_duplicates(design, embedding, keeper)
    kept_file.parent.mkdir(parents=True, exist_ok=True)
    kept_file.write_text(json.dumps(result))
    return result


def _near_duplicates(design: Design, embedding: Method, keeper: Keeper) -> dict[int, tuple[float, int]]:
    test, base = keeper.latents(design.test), keeper.latents(design.base)
    every = torch.cat([base, test]).flatten(1).float()
    kept = torch.cat([keeper.kept(embedding, design.base), keeper.kept(embedding, design.test)])
    channels = test.shape[1]
    files = _digests(design)
    result: dict[int, tuple[float, int]] = {}
    for half in (0, 1):
        rows = design.index_rows(half)
        unseen = design.strangers[design.half[design.strangers] != half]
        at = len(design.base) + unseen
        by_raw = Searcher(AlignedLatents(channels), every[rows]).search(every[at], 1)
        by_head = Searcher(embedding.baseline, kept[rows]).search(kept[at], DEPTH)
        indexed = every[rows]
        again = torch.cat(
            [
                aligned(every[at[i : i + 64]], indexed[by_head.rows[i : i + 64]], channels)
                for i in range(0, len(at), 64)
            ]
        )
        stored = {files[row]: row for row in rows}
        for place, row in enumerate(unseen):
            raw, headed = float(by_raw.similarity[place, 0]), float(again[place].max())
            nearest = by_raw.rows[place, 0] if raw >= headed else by_head.rows[place, again[place].argmax()]
            result[int(row)] = (max(raw, headed), int(rows[nearest]))
            if files[at[place]] in stored:
                result[int(row)] = (1.0, int(stored[files[at[place]]]))
    return result


def _digests(design: Design) -> list[str]:
    sources = (*design.base.sources, *design.test.sources)
    return [hashlib.sha256(s.encoded(row)).hexdigest() for s in sources for row in range(len(s))]


def is_near_duplicate(alike: float) -> bool:
    return alike >= NEAR_DUPLICATE
