"""How far what a head makes of latents is from what it makes of others of the same pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..head import LCMemHead


def apart(
    head: LCMemHead, given: torch.Tensor, space: str, wanted: torch.Tensor, wanted_space: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Whether embedding, tokens and descriptors of ``given`` are those of ``wanted``, which gets no gradient.

    Args:
        given: (B, C, grid, grid) canonical latents of ``space``.
        wanted: (B, C', grid, grid) canonical latents of ``wanted_space``; row i shows what row i of ``given`` shows.

    Returns:
        A scalar, 0 where all is the same, and the features of both, (B, embedding_dim).
    """
    dense = head.has_descriptors(space) and head.has_descriptors(wanted_space)
    with torch.no_grad():
        features_wanted, *parts_wanted = _described(head, wanted, wanted_space, dense)
    features, *parts = _described(head, given, space, dense)
    loss = (1 - F.cosine_similarity(features, features_wanted)).mean()
    for ours, theirs in zip(parts, parts_wanted, strict=True):
        loss = loss + (1 - F.cosine_similarity(ours, theirs, dim=-1)).mean()
        loss = loss + (ours.norm(dim=-1) - theirs.norm(dim=-1)).square().mean()
    return loss, features, features_wanted


def _described(head: LCMemHead, latents: torch.Tensor, space: str, dense: bool) -> tuple[torch.Tensor, ...]:
    """Features, and what describes parts: tokens (B, T, E), descriptors (B, cells, E), as far as there are any."""
    features, tokens = head(latents, space)
    parts = [] if tokens is None else [tokens]
    if dense and head.dense is not None:
        parts.append(head.dense(head.stems[space](latents, True)).flatten(2).transpose(1, 2))
    return features, *parts
