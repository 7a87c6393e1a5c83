"""What a batch of pairs costs. Row i of ``a`` and row i of ``b`` are of one identity; all in float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from ..errors import TrainingFailedError
from ..matching import alike_deformed, alike_under, all_warps, vote

VERIFICATION_WEIGHT = 0.8
"""Share of binary cross-entropy in the paper's objective (arXiv 2512.14421); NT-Xent has the rest."""


MOST_COSINES = 1 << 26
"""Cosines of tokens that are held at once on a GPU."""

TOKEN_GROUP = 64
"""Rows whose tokens are compared with each other."""

HARDEST = 7
"""Wrong candidates of each sample, those that the vote likes best, that are laid over it."""

NEVER = -1e4
"""Likeness, over temperature, of what is no wrong candidate after all; finite, so that gradients are."""

APART = 0.5
"""Weight of a sample's place among the wrong pairs of the whole group, beside its place among its own."""

MERE_IDENTITY = 0.5
"""Weight of a pair that are two images of one identity, beside a copy's."""


def check_finite(loss: float, step: int) -> None:
    """Let no run go on from a loss that says nothing.

    Args:
        step: The optimiser step that it is of, from 1.

    Raises:
        TrainingFailedError: the loss is infinite or no number.
    """
    if not math.isfinite(loss):
        raise TrainingFailedError(f"the loss is {loss} at step {step}; give a smaller learning rate")


def nt_xent(
    a: torch.Tensor, b: torch.Tensor, identities: torch.Tensor, temperature: float, margin: float = 0.0
) -> torch.Tensor:
    """Normalised temperature-scaled cross-entropy (Chen et al., arXiv 2002.05709), aware of identities.

    Each of the 2P embeddings shall pick its partner out of it and all embeddings of *other* identities;
    further embeddings of its own identity are neither positives nor negatives.

    Args:
        a, b: (P, D), any norm; cosines are taken.
        identities: (P,) integers.
        temperature: Cosines are divided by it; positive.
        margin: Is taken off the partner's cosine first (CosFace; Wang et al., arXiv 1801.09414, equation 4).

    Returns:
        A scalar, at least 0.
    """
    count = len(a)
    embeddings = F.normalize(torch.cat([a, b]).float(), dim=-1)
    partner = torch.arange(2 * count, device=a.device).roll(count)
    logits = (embeddings @ embeddings.T - margin * F.one_hot(partner)) / temperature
    twice = identities.repeat(2)
    excluded = twice[:, None] == twice[None, :]
    excluded[torch.arange(2 * count, device=a.device), partner] = False
    return F.cross_entropy(logits.masked_fill(excluded, -torch.inf), partner)


def copies_nt_xent(
    a: torch.Tensor, b: torch.Tensor, identities: torch.Tensor, copies: torch.Tensor, temperature: float
) -> torch.Tensor:
    """``nt_xent`` of local similarities, for the rows that are two views of one image.

    A batch is compared in groups of ``TOKEN_GROUP`` consecutive rows, which mostly are of one set, so that negatives
    are of one kind and memory stays small.

    Args:
        a, b: (P, T, D) tokens.
        identities: (P,) integers; further rows of a row's identity are no negatives.
        copies: (P,) booleans: which rows are copies. The others are negatives only.
        temperature: Similarities are divided by it; positive.

    Returns:
        A scalar, at least 0; 0 without copies.
    """
    total = a.sum() * 0
    for x, y, who, copy in zip(
        *(given.split(TOKEN_GROUP) for given in (a, b, identities, copies)), strict=True
    ):
        logits = token_similarity(x.float(), y.float()) / temperature
        own = torch.arange(len(x), device=a.device)
        excluded = who[:, None] == who[None, :]
        excluded[own, own] = False
        logits = logits.masked_fill(excluded, -torch.inf)
        for one in (logits, logits.T):
            total = total + F.cross_entropy(one[copy], own[copy], reduction="sum")
    return total / (2 * copies.sum().clamp_min(1))


def matched(
    samples: torch.Tensor,
    candidates: torch.Tensor,
    identities: torch.Tensor,
    copies: torch.Tensor,
    temperature: float,
    group: int | None = None,
    deformed: bool = False,
) -> torch.Tensor:
    """How far each sample is from being most like its own image, once both are laid over each other.

    A sample's own candidate and its ``HARDEST`` wrong ones are compared under the warp that the vote gives; through
    that comparison alone gradients flow. The own one shall be above all the sample's wrong ones together (softplus of
    their log-sum-exp less its own likeness), and above the wrong pairs of the whole group, so that one threshold
    serves all samples.

    Args:
        samples: (n, E, g, g) descriptors.
        candidates: (n, E, g, g); row i is of sample i, those of other identities in its group are wrong for it.
        identities: (n,) integers.
        copies: (n,) booleans: of the same image, not of the same identity merely.
        temperature: Likenesses are divided by it; positive.
        deformed: Candidates are deformed too (``matching.alike_deformed``).
        group: Consecutive rows that are compared with each other, which divides n; all by default.

    Returns:
        (n,), at least 0.
    """
    n, group = len(samples), group or len(samples)
    groups = n // group
    with torch.no_grad():
        given = candidates.unflatten(0, (groups, group))[:, None].expand(-1, group, *(-1,) * 4).flatten(0, 1)
        votes, warps = vote(samples, given)
        row = torch.arange(n, device=samples.device)[:, None]
        who = identities.view(groups, group)
        same = (who[:, :, None] == who[:, None]).flatten(0, 1)  # its own among them
        wrong = votes.masked_fill(same, -torch.inf).topk(min(HARDEST, group - 1), 1).indices
        chosen = torch.cat([row % group, wrong], 1)
        where = all_warps(samples.device)[warps.gather(1, chosen)].flatten(0, 1)
    spread = samples[:, None].expand(n, chosen.shape[1], *samples.shape[1:]).flatten(0, 1)
    places = (chosen + row // group * group).flatten()
    theirs = candidates.index_select(0, places)  # its gradient is summed in one order
    if deformed:
        alike = alike_deformed(spread, theirs, where).view_as(chosen) / temperature
    else:
        alike = alike_under(spread, theirs, where[:, None]).view_as(chosen) / temperature
    right, others = alike[:, 0], alike[:, 1:].masked_fill(same.gather(1, wrong), NEVER)
    among_own = F.softplus(others.logsumexp(1) - right)
    hardest = others.unflatten(0, (groups, group)).flatten(1).logsumexp(1)
    among_all = F.softplus(hardest.repeat_interleave(group) - right)
    return (among_own + APART * among_all) * torch.where(copies, 1.0, MERE_IDENTITY)


def token_similarity(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``standing.local_similarity`` of all pairs, in a quarter of the time when gradients are taken.

    Args:
        a: (P, T, D) tokens.
        b: (Q, T, D) tokens.

    Returns:
        (P, Q), in [-1, 1].
    """
    ours, theirs = _BestMatches.apply(F.normalize(a, dim=-1), F.normalize(b, dim=-1))
    weight_a, weight_b = a.norm(dim=-1), b.norm(dim=-1)
    from_a = (ours * weight_a[:, :, None]).sum(1) / weight_a.sum(1)[:, None]
    return (from_a + (theirs * weight_b).sum(2) / weight_b.sum(1)) / 2


def _rows_at_once(a: torch.Tensor, b: torch.Tensor) -> int:
    """Of (P, T, D), how many are compared at once with (Q, T, D)."""
    cosines = a.shape[1] * b.shape[0] * b.shape[1]
    return 1 if a.device.type == "cpu" else max(MOST_COSINES // cosines, 1)


class _BestMatches(torch.autograd.Function):
    """Largest cosine of each token of (P, T, D) in each of (Q, T, D), (P, T, Q), and the other way, (P, Q, T).

    On a CPU one row of P at a time, so that the (T, Q, T) cosines stay in the processor's cache, elsewhere many;
    they are not kept but computed again for the gradient, which goes to the best match alone.
    """

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (p, t, _), q = a.shape, len(b)
        ours, theirs = a.new_empty(p, t, q), a.new_empty(p, q, t)
        at_once = _rows_at_once(a, b)
        for first in range(0, p, at_once):
            some = slice(first, first + at_once)
            cosines = (a[some].flatten(0, 1) @ b.flatten(0, 1).T).view(-1, t, q, t)
            torch.amax(cosines, 3, out=ours[some])
            torch.amax(cosines, 1, out=theirs[some])
        ctx.save_for_backward(a, b, ours, theirs)
        return ours, theirs

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b, ours, theirs = ctx.saved_tensors
        of_ours, of_theirs = gradients
        (p, t, _), q, flat = a.shape, len(b), b.flatten(0, 1)
        to_a, to_b = torch.empty_like(a), torch.zeros_like(flat)
        at_once = _rows_at_once(a, b)
        whole, part = (a.new_empty(min(at_once, p), t, q, t) for _ in range(2))
        for first in range(0, p, at_once):
            some = slice(first, min(first + at_once, p))
            own, n = a[some].flatten(0, 1), some.stop - first
            cosines = (own @ flat.T).view(-1, t, q, t)
            torch.eq(cosines, ours[some][..., None], out=whole[:n]).mul_(of_ours[some][..., None])
            torch.eq(cosines, theirs[some][:, None], out=part[:n]).mul_(of_theirs[some][:, None])
            weights = whole[:n].add_(part[:n]).view(-1, q * t)
            to_a[some] = (weights @ flat).view_as(to_a[some])
            to_b.addmm_(weights.T, own)
        return to_a, to_b.view_as(b)


def spread(a: torch.Tensor, b: torch.Tensor, identities: torch.Tensor) -> torch.Tensor:
    """Negated Kozachenko-Leonenko estimate of entropy between identities (KoLeo): strangers shall not be near.

    After Sablayrolles et al., arXiv 1806.03198; SSCD, arXiv 2202.10261, uses it for copy detection.

    Args:
        a, b: (P, D), any norm.
        identities: (P,) integers.

    Returns:
        A scalar: minus the mean log distance of an embedding from the nearest of another identity; 0 where all rows are
            of one identity.
    """
    embeddings = F.normalize(torch.cat([a, b]).float(), dim=-1)
    twice = identities.repeat(2)
    same = twice[:, None] == twice[None, :]
    similarity, _ = (embeddings @ embeddings.T).masked_fill(same, -torch.inf).max(dim=1)
    distance = (2 - 2 * similarity[similarity.isfinite()]).clamp_min(1e-6).sqrt()
    return -distance.log().mean() if len(distance) else embeddings.sum() * 0


def verification(
    a: torch.Tensor,
    b: torch.Tensor,
    identities: torch.Tensor,
    logit: Callable[[torch.Tensor], torch.Tensor],
    offsets: torch.Tensor,
) -> torch.Tensor:
    """Binary cross-entropy of a verification layer on matched and as many mismatched pairs.

    Args:
        a, b: (P, D) features.
        identities: (P,) integers.
        logit: ``|a - b|`` (P, D) to logits (P, 1).
        offsets: (P,) in [0, 1): which of the rows of another identity row i is mismatched with.

    Returns:
        A scalar, at least 0. Rows that have no other identity in the batch stand in matched pairs only.
    """
    a, b = a.float(), b.float()
    matched = logit((a - b).abs()).squeeze(-1)
    different = identities[:, None] != identities[None, :]
    choices = different.sum(1)
    has_other = choices > 0
    nth = (offsets.to(a) * choices).long().clamp_max((choices - 1).clamp_min(0))
    ordered = different.int().argsort(dim=1, descending=True, stable=True)
    other = ordered.gather(1, nth[:, None]).squeeze(1)
    mismatched = logit((a - b[other]).abs()).squeeze(-1)[has_other]
    logits = torch.cat([matched, mismatched])
    return F.binary_cross_entropy_with_logits(
        logits, torch.cat([torch.ones_like(matched), torch.zeros_like(mismatched)])
    )
