"""Structural similarity, by torchmetrics."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..errors import MissingExtraError
from .common import small
from .registry import Sees


class StructuralSimilarity:
    """SSIM (Wang et al., IEEE TIP 2004), in [-1, 1], of pictures shrunk to ``side`` px.

    It is no inner product: correlation of pixels proposes ``shortlist`` rows, SSIM decides among them.

    Raises:
        MissingExtraError: torchmetrics is not installed.
    """

    sees: Sees = "pixel"

    def __init__(self, side: int = 64, shortlist: int = 20) -> None:
        try:
            from torchmetrics.functional.image import structural_similarity_index_measure
        except ImportError as error:
            raise MissingExtraError(
                f"the ssim baseline needs torchmetrics ({error}); run: pip install 'lcmem-filter[bench]'"
            ) from error
        self.side, self.shortlist, self._ssim = side, shortlist, structural_similarity_index_measure

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return small(images, self.side).flatten(1)

    def key(self, kept: torch.Tensor) -> torch.Tensor:
        pixels = kept.unflatten(1, (3, -1))
        return F.normalize((pixels - pixels.mean(2, keepdim=True)).flatten(1), dim=1)

    def query(self, kept: torch.Tensor) -> torch.Tensor:
        return self.key(kept)

    def similarity(self, queries: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
        shape = (-1, 3, self.side, self.side)
        asked = queries[:, None].expand_as(stored).reshape(shape)
        each = self._ssim(asked, stored.reshape(shape), data_range=1.0, reduction="none")
        return each.reshape(stored.shape[:2])
