"""What sees the whole picture: tokens of a stem to cells that know of their neighbours, stage by stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn
from transformers import ConvNextConfig, ConvNextModel, ResNetConfig, ResNetModel


class Trunk(NamedTuple):
    """A kind of trunk.

    Attributes:
        make: Widths and depths of its stages, and the initial residual scale of a block where it has one, to a model
            of transformers that takes tokens (B, hidden_sizes[0], h, w) and has a ``layernorm`` for what is pooled.
        by_cells: It takes a token of each cell of the latents, not one of each patch.
    """

    make: Callable[[tuple[int, ...], tuple[int, ...], float], Any]
    by_cells: bool


def _convnext(hidden_sizes: tuple[int, ...], depths: tuple[int, ...], layer_scale: float) -> ConvNextModel:
    """Liu et al., "A ConvNet for the 2020s" (arXiv 2201.03545), as the paper's network has it."""
    trunk = ConvNextModel(
        ConvNextConfig(
            num_channels=hidden_sizes[0],
            patch_size=1,
            num_stages=len(hidden_sizes),
            hidden_sizes=list(hidden_sizes),
            depths=list(depths),
            layer_norm_eps=1e-6,
            layer_scale_init_value=layer_scale,
        )
    )
    trunk.embeddings = nn.Identity()  # the stems stand in its place
    return trunk


def _resnet(hidden_sizes: tuple[int, ...], depths: tuple[int, ...], layer_scale: float) -> ResNetModel:
    """He et al., "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), of basic blocks; each stage but the
    first halves the grid."""
    trunk = ResNetModel(
        ResNetConfig(
            num_channels=hidden_sizes[0],
            embedding_size=hidden_sizes[0],
            hidden_sizes=list(hidden_sizes),
            depths=list(depths),
            layer_type="basic",
        )
    )
    trunk.embedder = nn.Identity()  # the stems stand in its place
    trunk.pooler = nn.Identity()  # and the head's pooling in this one's
    trunk.layernorm = nn.LayerNorm(hidden_sizes[-1], eps=1e-6)
    return trunk


TRUNKS: dict[str, Trunk] = {
    "convnext": Trunk(_convnext, by_cells=False),
    "resnet": Trunk(_resnet, by_cells=True),
}
