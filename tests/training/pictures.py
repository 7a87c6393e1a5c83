"""A training set of drawn pictures: identities with several images, each turned a little, and single ones."""

from __future__ import annotations

import io

from PIL import Image

from lcmem_filter.images import ImageRecord, ImageSource
from lcmem_filter.training import TrainingConfig

from tests.tiny import picture

QUICK = TrainingConfig(
    size="micro",
    resolution=32,
    steps=12,
    batch_pairs=8,
    evaluate_every=4,
    warmup_steps=2,
    validation_fraction=0.3,
)


class Pictures(ImageSource):
    """Drawn when they are read.

    Args:
        name: Of the set, and what its identities' names begin with.
        identities: How many.
        each: Images of each identity.
        first: Seed of the first identity's picture.
        broken: Rows that cannot be read.
    """

    def __init__(
        self, name: str, identities: int, each: int, first: int = 0, broken: tuple[int, ...] = ()
    ) -> None:
        self.each, self.first, self.broken = each, first, broken
        records = [ImageRecord(f"{name}/{i}", f"{name}{i // each}") for i in range(identities * each)]
        super().__init__(name, records, self._png, f"{name}-{identities}-{each}-{first}-{broken}")

    def _png(self, row: int) -> bytes:
        if row in self.broken:
            raise OSError(f"row {row}")
        stored = io.BytesIO()
        self.drawn(row).save(stored, "png", compress_level=0)
        return stored.getvalue()

    def drawn(self, row: int) -> Image.Image:
        return picture(self.first + row // self.each).rotate(3 * (row % self.each))
