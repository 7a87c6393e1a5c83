"""What a head is made of beside its trunk: stems of latent spaces, tokens of parts, descriptors of cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from .errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Description:
    """What a head says of latents.

    Attributes:
        embedding: (B, embedding_dim), unit norm: what an index is searched by.
        tokens: (B, T, token_dim): what the parts of a picture look like, for a second opinion on two pictures; a
            token's norm, in (0, 1), is its weight. ``None`` from a head that was trained without.
    """

    embedding: torch.Tensor
    tokens: torch.Tensor | None


class ChannelsFirstNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W)."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Stem(nn.Module):
    """Latents of one space to the trunk's token grid: an optional 3x3 convolution, then patches and a norm."""

    def __init__(self, channels: int, width: int, patch_size: int, hidden: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, hidden, 3, padding=1) if hidden else None
        self.patch_embeddings = nn.Conv2d(hidden or channels, width, patch_size, stride=patch_size)
        self.layernorm = ChannelsFirstNorm(width, eps=1e-6)

    def forward(self, latents: torch.Tensor, dense: bool = False) -> torch.Tensor:
        """Latents (B, C, g, g) to a token a patch; where ``dense``, one a cell, each of the patch that starts there."""
        if self.convolution is not None:
            latents = F.gelu(self.convolution(latents))
        if not dense:
            return self.layernorm(self.patch_embeddings(latents))
        patches = self.patch_embeddings
        beyond = patches.kernel_size[0] - 1
        wide = F.pad(latents, (0, beyond, 0, beyond), mode="replicate")
        return self.layernorm(F.conv2d(wide, patches.weight, patches.bias))


class Halving(nn.Module):
    """Normalised latents of one space to those of the picture at half the size, as its encoder would give them.

    It starts as the mean of four cells, and learns what else they say: what an encoder writes into a cell depends on
    how fine the picture is there.
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        around: dict[str, Any] = {"kernel_size": 6, "stride": 2, "padding": 2, "padding_mode": "replicate"}
        beside: dict[str, Any] = {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"}
        self.linear = nn.Conv2d(channels, channels, **around)
        self.first = nn.Conv2d(channels, width, **around)
        self.second = nn.Conv2d(width, width, **beside)
        self.last = nn.Conv2d(width, channels, **beside)
        with torch.no_grad():
            self.linear.weight.zero_()[:, :, 2:4, 2:4] = torch.eye(channels)[:, :, None, None] / 4
            for zero in (self.linear.bias, self.last.weight, self.last.bias):
                cast(torch.Tensor, zero).zero_()

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) to (B, C, h // 2, w // 2)."""
        features = F.gelu(self.first(latents))
        features = features + F.gelu(self.second(features))
        return cast(torch.Tensor, self.linear(latents) + self.last(features))


class LocalBranch(nn.Module):
    """Every stage of the trunk to one token for each cell of its first (a feature pyramid, Lin et al., 2017)."""

    def __init__(self, hidden_sizes: tuple[int, ...], token_dim: int) -> None:
        super().__init__()
        width = hidden_sizes[0]
        self.lateral = nn.ModuleList(nn.Conv2d(size, width, 1) for size in hidden_sizes)
        self.norms = nn.ModuleList(ChannelsFirstNorm(width, eps=1e-6) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.tokens = nn.Conv2d(width, token_dim, 1)
        self.weight = nn.Conv2d(width, 1, 1)

    def forward(self, stages: Sequence[torch.Tensor]) -> torch.Tensor:
        """Stages (B, C_s, H_s, W_s), the finest first, to tokens (B, H_0 W_0, token_dim)."""
        size = stages[0].shape[-2:]
        features = torch.stack(
            [F.interpolate(one(s), size) for one, s in zip(self.lateral, stages, strict=True)]
        ).sum(0)
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            features = features + F.gelu(convolution(norm(features)))
        tokens = F.normalize(self.tokens(features), dim=1) * torch.sigmoid(self.weight(features))
        return tokens.flatten(2).transpose(1, 2)


class DenseBranch(nn.Module):
    """A stem's tokens, one a cell, to a descriptor of what lies there, by which ``matching`` lays pictures over each
    other. It sees a few cells around and no more: what the trunk knows of the whole picture makes strangers alike."""

    def __init__(self, given: int, dim: int, width: int) -> None:
        super().__init__()
        self.lateral = nn.Conv2d(given, width, 1)
        self.norms = nn.ModuleList(ChannelsFirstNorm(width, eps=1e-6) for _ in range(3))
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.descriptors = nn.Conv2d(width, dim, 1)
        self.weight = nn.Conv2d(width, 1, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, given, g, g) to (B, dim, g, g)."""
        features = self.lateral(features)
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            features = features + F.gelu(convolution(norm(features)))
        return F.normalize(self.descriptors(features), dim=1) * torch.sigmoid(self.weight(features))


class MeanPooling(nn.Module):
    """(B, width, h, w) to the mean of its cells (B, width), as ConvNeXt takes it."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        return cells.mean((-2, -1))


class GeneralizedMeanPooling(nn.Module):
    """(B, width, h, w) to (B, width): GeM (Radenovic et al., arXiv 1711.02512, equation 3), its exponent learned."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.exponent = nn.Parameter(torch.tensor([3.0]))

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        # with a larger one, powers of cells that are all but 0 are no longer told from 0
        exponent = self.exponent.clamp(1, 6)
        return cells.clamp_min(1e-6).pow(exponent).mean((-2, -1)).pow(1 / exponent)


class AttentionPooling(nn.Module):
    """(B, width, h, w) to (B, width): a mean weighted by the softmax of a learned logit of each cell."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.logit = nn.Conv2d(width, 1, 1)

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        weights = self.logit(cells).flatten(2).softmax(-1)
        return (cells.flatten(2) * weights).sum(-1)


POOLINGS: dict[str, Callable[[int], nn.Module]] = {
    "mean": MeanPooling,
    "gem": GeneralizedMeanPooling,
    "attention": AttentionPooling,
}


def in_float32(module: nn.Module, *given: Any) -> Any:
    """What ``module`` makes of ``given``, whatever precision its weights are kept in."""
    state = module.state_dict()
    other = {n: v.float() for n, v in state.items() if v.is_floating_point() and v.dtype != torch.float32}
    return torch.func.functional_call(module, other, given) if other else module(*given)


def check_space_name(name: str) -> None:
    """Whether a latent space can be called so: as a module's name, which is part of its weights' names.

    Raises:
        ConfigurationError: it cannot.
    """
    if not name or "." in name or hasattr(nn.ModuleDict(), name):
        raise ConfigurationError(f"a latent space cannot be called {name!r}; name it by letters and digits")
