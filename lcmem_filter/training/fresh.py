"""Views that are augmented and encoded where the head is trained: anew for every batch, or once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from tqdm.auto import tqdm

from ..images import ImageSource, to_pixels
from ..latents import Encoder, canonical
from .cache import TURNED_BACK
from .data import LatentSet
from .names import names_of_images
from .on_device import change

AT_ONCE = 256
"""Pictures of 128 px that are augmented and encoded at once; fewer larger ones."""

READERS = 8
"""Threads that read them."""


class FreshViews:
    """The training images on the device, 3 bytes a pixel (5 GB for 100,000 of 128 px), and their encoders.

    Args:
        data: What is trained on; where a view is clean, its latents are taken.
        sources: Where its images are read from.
        encoders: The encoder of each space, on ``device``.
        resolution: Side in pixels that images are squashed to.
        grid: Side of the canonical latents.
        autocast: Makes the context that pictures are encoded in.

    Raises:
        UnreadableImageError: an image that could be read when its latents were cached no longer can.
    """

    def __init__(
        self,
        data: LatentSet,
        sources: Sequence[ImageSource],
        encoders: Mapping[str, Encoder],
        resolution: int,
        grid: int,
        device: torch.device,
        *,
        autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
        progress: bool = False,
    ) -> None:
        self.data, self.encoders, self.grid, self.autocast = data, encoders, grid, autocast
        rows = ((source, row) for source in sources for row in range(len(source)))
        places = dict(zip(names_of_images(sources), rows, strict=True))
        assert data.ids is not None, "latents were loaded without their images' ids"
        self.at_once = max(int(AT_ONCE * (128 / resolution) ** 2), 1)
        self.pixels = torch.empty((len(data), 3, resolution, resolution), dtype=torch.uint8, device=device)

        def read(name: str) -> torch.Tensor:
            source, row = places[name]
            values = to_pixels(source.image(row), resolution) * 127.5 + 127.5
            return values.round().clamp(0, 255).byte()

        with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as pool:
            found = tqdm(pool.map(read, data.ids), "reading", len(data), unit="image", disable=not progress)
            for place, pixels in enumerate(found):
                self.pixels[place] = pixels

    @torch.no_grad()
    def latents(
        self, space: str, images: np.ndarray, views: np.ndarray, draw: np.random.Generator
    ) -> torch.Tensor:
        """Canonical latents (B, C, grid, grid) of views of images, those that are augmented drawn anew; clean ones in
        place of those that an encoder makes nothing finite of.

        Args:
            images: (B,) rows of the data.
            views: (B,) which of ``data.views`` each is.
            draw: Where the augmentations are drawn from.
        """
        device = self.pixels.device
        kept = self.data.latents[space][torch.from_numpy(images), 0].float().to(device)
        kinds = np.array(self.data.views)[views]
        for kind in dict.fromkeys(self.data.views[1:]):
            chosen = np.flatnonzero(kinds == kind)
            for first in range(0, len(chosen), self.at_once):
                rows = chosen[first : first + self.at_once]
                where = torch.from_numpy(images[rows]).to(device)
                seen = change(self.pixels[where].float() / 255, kind, draw) * 2 - 1
                with self.autocast():
                    encoded = self.encoders[space].encode(seen.contiguous(memory_format=torch.channels_last))
                made = canonical(encoded, self.grid)
                made = made.flip(-2) if kind == TURNED_BACK else made
                finite = made.isfinite().flatten(1).all(1)
                kept[torch.from_numpy(rows).to(device)[finite]] = made[finite]
        return kept


class DeviceViews:
    """Views of all training images in every space, drawn once and kept on the device in float16, 2 KB each of 4
    channels and 16x16 cells.

    Args:
        fresh: Draws and encodes them; its pictures are needed no longer.
        draw: Where the augmentations are drawn from.
    """

    def __init__(self, fresh: FreshViews, draw: np.random.Generator, *, progress: bool = False) -> None:
        data, every = fresh.data, np.arange(len(fresh.data))
        self.kept = {}
        with tqdm(
            total=len(data.spaces) * (len(data.views) - 1), desc="encoding", unit="view", disable=not progress
        ) as bar:
            for space, clean in data.latents.items():
                of_space = clean.to(fresh.pixels.device).repeat(1, len(data.views), 1, 1, 1)
                for view in range(1, len(data.views)):
                    of_space[:, view] = fresh.latents(space, every, np.full(len(every), view), draw)
                    bar.update()
                self.kept[space] = of_space

    def latents(
        self, space: str, images: np.ndarray, views: np.ndarray, draw: np.random.Generator
    ) -> torch.Tensor:
        """Canonical latents (B, C, grid, grid) of views of images; ``draw`` is not used."""
        of_space = self.kept[space]
        where = [torch.from_numpy(one).to(of_space.device) for one in (images, views)]
        return of_space[where[0], where[1]].float()
