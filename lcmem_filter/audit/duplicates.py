"""Which samples of a set resemble each other as closely as a match resembles a training image."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..calibration import NEAR_DUPLICATE
from ..described import Candidates, Query, describe_each
from ..index import MemorizationIndex
from ..index.exact import ExactBackend
from ..index.recent import Recent
from ..latents import outlines
from ..report import DuplicateGroup
from ..shortlist import InPlace, candidates_of_each, propose
from ..verification import compare, compared_by

EMBED_BATCH = 64
FEW = 6
"""Others below which a sample's resemblance to them has no background to stand out from; then only near-duplicates,
as they are dropped from held-out images, are linked."""


@torch.inference_mode()
def find_duplicates(
    index: MemorizationIndex,
    space: str,
    threshold: float,
    ids: Sequence[str],
    sha256: Sequence[str],
    canonical: torch.Tensor,
) -> list[DuplicateGroup]:
    """Groups of samples that are linked, directly or through others, the largest first.

    Two samples are linked where their files are the same, or where one would be rejected if the other samples were
    the training set: the same statistic, over the same number of nearest others, with the same ``threshold``. Whose
    images samples are is not known, though the threshold may be of an index that names identities, and so higher.

    Args:
        canonical: Latents (m, C, grid, grid) of the samples, in ``index``'s head's canonical form.
    """
    if len(ids) < 2:
        return []
    links = _same_files(sha256) + _alike(index, space, threshold, canonical)
    groups: list[DuplicateGroup] = []
    for members, weakest in _components(len(ids), links):
        identical = len({sha256[member] for member in members}) == 1
        groups.append(
            DuplicateGroup(tuple(ids[m] for m in members), identical, None if identical else weakest)
        )
    return sorted(groups, key=lambda group: (-len(group.ids), group.ids))


def _same_files(sha256: Sequence[str]) -> list[tuple[int, int, float]]:
    first: dict[str, int] = {}
    return [
        (first[digest], position, 1.0)
        for position, digest in enumerate(sha256)
        if first.setdefault(digest, position) != position
    ]


def _alike(
    index: MemorizationIndex, space: str, threshold: float, canonical: torch.Tensor
) -> list[tuple[int, int, float]]:
    head, kind = index.head, compared_by(index, space)  # as the threshold was calibrated
    batches = [part.to(head.device).float() for part in canonical.split(EMBED_BATCH)]
    embeddings = torch.cat([head.embed(part, space) for part in batches])
    lying = torch.cat([outlines(part) for part in batches])
    links, recent = [], Recent()

    by_embeddings, by_outlines = (ExactBackend(keys.half()).propose for keys in (embeddings, lying))

    def latents(rows: torch.Tensor) -> torch.Tensor:
        return canonical[rows.cpu()].to(head.device).float()

    def described(rows: list[int]) -> torch.Tensor:
        assert kind is not None
        return describe_each(head, latents(torch.tensor(rows)), space, kind)

    for number, part in enumerate(batches):
        query = Query.of(head, part, space, kind)
        in_place = None
        if space == index.space and query.latents is not None:  # as the threshold was calibrated
            in_place = InPlace.of(query.latents, by_outlines, lying.__getitem__)
        count = candidates_of_each(len(query.asking) + (in_place is not None)) + 1  # itself too
        proposed = propose(query.asking, by_embeddings, in_place, count=count)
        for place, near in enumerate(proposed):
            row = number * EMBED_BATCH + place
            others = near[near != row].unique()
            if not len(others):
                continue
            parts = None
            if kind:
                parts = recent.get(others.tolist(), kind, described)[None]
            candidates = Candidates(
                embeddings[others][None], parts, latents=latents(others)[None] if in_place else None
            )
            score = compare(query.of_rows(slice(place, place + 1)), candidates).score[0]
            least = threshold if len(others) >= FEW else max(threshold, NEAR_DUPLICATE)
            links += [(row, int(o), float(s)) for o, s in zip(others, score, strict=True) if s > least]
    return links


def _components(n: int, links: Sequence[tuple[int, int, float]]) -> list[tuple[list[int], float]]:
    """Linked members in ascending order, and the weakest link that it takes to hold them together (of the maximum
    spanning tree: links are joined from the strongest to the weakest, after Kruskal, 1956)."""
    parent = list(range(n))
    weakest: dict[int, float] = {}

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for a, b, score in sorted(links, key=lambda link: -link[2]):
        one, other = root(a), root(b)
        if one != other:
            parent[max(one, other)] = min(one, other)
            weakest[min(one, other)] = score
    members: dict[int, list[int]] = {}
    for node in range(n):
        members.setdefault(root(node), []).append(node)
    return [(found, weakest[first]) for first, found in members.items() if len(found) > 1]
