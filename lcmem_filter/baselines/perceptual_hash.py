"""Perceptual hash, by imagehash."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image

from ..errors import MissingExtraError
from .common import Cosine
from .registry import Sees


class PerceptualHash(Cosine):
    """DCT hash of ``bits``^2 bits (imagehash's ``phash``), kept as +-1 / bits.

    Their inner product is 1 - 2 h / bits^2, h the Hamming distance of two hashes.

    Raises:
        MissingExtraError: imagehash is not installed.
    """

    sees: Sees = "pixel"

    def __init__(self, bits: int = 16) -> None:
        try:
            import imagehash
        except ImportError as error:
            raise MissingExtraError(
                f"the perceptual_hash baseline needs imagehash ({error}); run: pip install 'lcmem-filter[bench]'"
            ) from error
        self.bits, self._hash = bits, imagehash.phash

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        pixels = (
            ((images.float().cpu() / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        )
        hashes = np.stack(
            [self._hash(Image.fromarray(one), hash_size=self.bits).hash.ravel() for one in pixels]
        )
        signs = torch.from_numpy(hashes).float() * 2 - 1
        return signs / math.sqrt(signs.shape[1])
