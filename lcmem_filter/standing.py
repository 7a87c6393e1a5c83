"""How alike two pictures are, as a whole and part by part, and how far that stands out from other candidates."""

from __future__ import annotations

import torch
import torch.nn.functional as F

EMBEDDING_WEIGHT = 0.4
"""Of the embeddings' cosine in the likeness of two pictures; their parts have the rest."""

BACKGROUND = slice(2, 10)
"""Ranks whose mean likeness is a sample's background: beyond further images of the identity, near enough to be like
it."""

MOST_BACKGROUND = 0.85
"""Cap of the background, for repetitions that are not recognised as such."""

RUNNER_UP_WEIGHT = 0.3
"""Of how far a candidate stands out from the next best one; how far from the background has the rest."""

SAME_IMAGE = 0.97
"""Cosine of stored embeddings from which one image is a repetition of the other."""


def local_similarity(query: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """How well the parts of two pictures find each other: mean cosine of each token's best match, both ways.

    The late interaction of ColBERT (Khattab & Zaharia, arXiv 2004.12832) and the Chamfer similarity of ViSiL
    (Kordopatis-Zilos et al., arXiv 1908.07410), weighted by the tokens' norms. A part may lie anywhere in the other
    picture, so what was shifted, cropped or mirrored still matches.

    Args:
        query: (B, T, D) tokens.
        candidates: (B, K, T, D) of each query, or (1, K, T, D) that all queries are compared with.

    Returns:
        (B, K), in [-1, 1].
    """
    (b, t, d), k = query.shape, candidates.shape[1]
    our_weights, their_weights = query.square().sum(-1).sqrt(), candidates.square().sum(-1).sqrt()
    ours = query / our_weights.clamp_min(1e-12)[..., None]
    theirs = candidates / their_weights.clamp_min(1e-12)[..., None]
    if len(candidates) == 1:
        cosines = ours.reshape(b * t, d) @ theirs.reshape(k * t, d).T
    else:
        cosines = ours @ theirs.reshape(b, k * t, d).transpose(1, 2)
    cosines = cosines.reshape(b, t, k, t)
    ours_found = (cosines.amax(3) * our_weights[:, :, None]).sum(1) / our_weights.sum(1)[:, None]
    theirs_found = (cosines.amax(1) * their_weights).sum(2) / their_weights.sum(2)
    return (ours_found + theirs_found) / 2


def likeness(
    cosine: torch.Tensor, parts: torch.Tensor | None, embedding_weight: float = EMBEDDING_WEIGHT
) -> torch.Tensor:
    """The mean, weighted by ``embedding_weight``, of the embeddings' cosine and of how alike the parts are."""
    alike = cosine if parts is None else embedding_weight * cosine + (1 - embedding_weight) * parts
    return alike.clamp_max(1)


def background_of(
    alike: torch.Tensor,
    repeated: torch.Tensor | None = None,
    ranks: slice = BACKGROUND,
    identities: torch.Tensor | None = None,
) -> torch.Tensor:
    """How alike a sample's further neighbours are in the mean, so that one threshold fits both domains whose images
    resemble each other and domains whose images do not (after the score normalisation of SSCD, Pizzi et al., arXiv
    2202.10261, and the ratio of distances of Carlini et al., arXiv 2301.13188).

    Args:
        alike: (B, K), at most 1.
        repeated: (B, K) booleans: what is no background since it repeats another candidate.
        ranks: Which neighbours count, the most alike being 0.
        identities: (B, K) integers, as of ``stand_out``: of each identity the most alike counts alone.

    Returns:
        (B, 1); 0 where nothing is left for a background, in an index of a few pictures.
    """
    different = _one_of_each(alike, repeated, identities)
    ordered = different.sort(dim=1, descending=True)[0][:, ranks]
    counted = ordered.isfinite()
    return ordered.where(counted, 0).sum(1, keepdim=True) / counted.sum(1, keepdim=True).clamp_min(1)


def stand_out(
    alike: torch.Tensor,
    background: torch.Tensor,
    repeated: torch.Tensor | None = None,
    runner_up_weight: float = RUNNER_UP_WEIGHT,
    identities: torch.Tensor | None = None,
) -> torch.Tensor:
    """How far candidates stand out from the background and from the next best one, (B, K); 1 for an exact copy.

    Both are (s - b) / (1 - b), the distance covered from b to 1, and weighted. What repeats a candidate is not its
    runner-up.

    Args:
        alike: (B, K), at most 1.
        background: (B, 1).
        repeated: (B, K) booleans, as of ``background_of``.
        identities: (B, K) integers, equal for candidates of one identity, where that is known: a further image of a
            candidate's identity is not its runner-up.
    """
    different = _one_of_each(alike, repeated, identities)
    values, places = F.pad(different, (0, 1), value=0.0).topk(2, 1)
    first, second = values.clamp_min(0).split(1, 1)
    at_the_top = alike >= first if repeated is None else (alike >= first) | repeated
    if identities is not None:
        nobody = torch.iinfo(identities.dtype).min
        at_the_top |= identities == F.pad(identities, (0, 1), value=nobody).gather(1, places[:, :1])
    runner_up = torch.where(at_the_top, second, first)
    return (1 - runner_up_weight) * beyond(alike, background) + runner_up_weight * beyond(alike, runner_up)


def _one_of_each(
    alike: torch.Tensor, repeated: torch.Tensor | None, identities: torch.Tensor | None
) -> torch.Tensor:
    """``alike`` (B, K), ``-inf`` for what repeats a candidate, and for all of an identity but the most alike."""
    different = alike if repeated is None else alike.masked_fill(repeated, -torch.inf)
    if identities is None:
        return different
    order = different.argsort(dim=1, descending=True, stable=True)
    sorted_identities = identities.gather(1, order)
    further = (sorted_identities[:, :, None] == sorted_identities[:, None]).tril(-1).any(2)
    return different.masked_fill(further.gather(1, order.argsort(dim=1)), -torch.inf)


def relative_similarity(similarity: torch.Tensor, repeated: torch.Tensor | None = None) -> torch.Tensor:
    """How far each candidate stands out from the sample's background alone: (s - b) / (1 - b), 1 for an exact copy.

    Args:
        similarity: (B, K), at most 1.
        repeated: (B, K) booleans, as of ``background_of``.
    """
    return beyond(similarity, background_of(similarity, repeated))


def combine(
    cosine: torch.Tensor, parts: torch.Tensor | None, repeated: torch.Tensor | None = None
) -> torch.Tensor:
    """How far candidates stand out by embeddings and parts as they lie: (B, K), at most 1.

    Args:
        cosine: Of each sample's shortlist, (B, K).
        parts: How alike their parts are, (B, K), or ``None``.
        repeated: (B, K) booleans, as of ``background_of``.
    """
    alike = likeness(cosine, parts)
    return stand_out(alike, background_of(alike, repeated), repeated)


def beyond(alike: torch.Tensor, background: torch.Tensor) -> torch.Tensor:
    """How much of the way from the background (at most ``MOST_BACKGROUND``) to 1 is covered: (s - b) / (1 - b)."""
    background = background.clamp_max(MOST_BACKGROUND)
    return (alike - background) / (1 - background)


def told_apart(identities: torch.Tensor, least: int) -> torch.Tensor:
    """``identities`` (B, K), and as if nothing were known of them where a shortlist holds fewer than ``least``: there
    would be next to nothing that a candidate could stand out from.

    Args:
        identities: Integers, equal for candidates of one identity.
    """
    ordered = identities.sort(dim=1).values
    several = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1, keepdim=True) >= least
    return torch.where(several, identities, torch.arange(identities.shape[1], device=identities.device))


def taken_together(identities: torch.Tensor, places: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """``identities``, in which candidates that are found to be of one, and all that share their numbers, have the same:
    they would hide each other, as images of an identity that is known do not.

    Of known identities among them the first is believed, and others stay what they are.

    Args:
        identities: (B, K) integers; negative, and each another, where an identity is not known.
        places: (B, M) candidates.
        found: (B, M): whether they are of one identity.
    """
    theirs = identities.gather(1, places)
    known = found & (theirs >= 0)
    first = torch.where(known.any(1, keepdim=True), known, found).byte().argmax(1, keepdim=True)
    one = theirs.gather(1, first)
    together = found & ((theirs < 0) | (theirs == one))
    taken = ((identities[:, :, None] == theirs[:, None]) & together[:, None]).any(2)
    return one.where(taken, identities)


def repeats(embeddings: torch.Tensor) -> torch.Tensor:
    """Which of each shortlist's unit-norm embeddings (B, K, D) repeat an earlier one; booleans (B, K).

    Images that stand in a training set many times over are those that models memorise. Their repetitions must not
    pass for a background that a copy fails to stand out from.
    """
    alike = torch.einsum("bkd,bjd->bkj", embeddings, embeddings) >= SAME_IMAGE
    return alike.tril(-1).any(2)
