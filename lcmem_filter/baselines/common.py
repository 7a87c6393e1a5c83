"""Ways of comparing that several baselines share, and pictures as networks take them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Cosine:
    """Compares unit-norm rows by their inner product, in [-1, 1]."""

    shortlist = 1

    def key(self, kept: torch.Tensor) -> torch.Tensor:
        return kept

    def query(self, kept: torch.Tensor) -> torch.Tensor:
        return kept

    def similarity(self, queries: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bd,bkd->bk", queries, stored)


class Euclidean:
    """Compares rows by their negative mean squared difference, at most 0.

    The nearest row is that of the largest inner product of [y, 1] with [x, -|x|^2 / 2] (Bachrach et al., RecSys 2014).
    """

    shortlist = 1

    def key(self, kept: torch.Tensor) -> torch.Tensor:
        return torch.cat([kept, -kept.square().sum(1, keepdim=True) / 2], 1)

    def query(self, kept: torch.Tensor) -> torch.Tensor:
        return F.pad(kept, (0, 1), value=1.0)

    def similarity(self, queries: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
        return -(queries[:, None] - stored).square().mean(-1)


def small(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] as (B, 3, side, side) in [0, 1], antialiased, float32, on the CPU."""
    given = pixels.float().cpu() / 2 + 0.5
    if given.shape[-2:] == (side, side):
        return given
    return F.interpolate(given, (side, side), mode="bilinear", antialias=True, align_corners=False).clamp(
        0, 1
    )


def as_network_input(
    pixels: torch.Tensor, side: int, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] squashed to (B, 3, side, side), standardised by ``mean`` and ``std``."""
    given = pixels.float() / 2 + 0.5
    if given.shape[-2:] != (side, side):
        given = F.interpolate(given, (side, side), mode="bicubic", antialias=True, align_corners=False)
    shape = (1, 3, 1, 1)
    centre, spread = (torch.tensor(list(v), device=given.device).view(shape) for v in (mean, std))
    return (given.clamp(0, 1) - centre) / spread


def unit(features: torch.Tensor) -> torch.Tensor:
    """Features (B, ...) as unit-norm rows (B, D), float32, on the CPU."""
    return F.normalize(features.flatten(1).float(), dim=1).cpu()
