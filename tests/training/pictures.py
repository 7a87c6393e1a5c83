"""A training set of drawn pictures: identities with several images, each turned a little, and single ones."""

from __future__ import annotations

from PIL import Image

from lcmem_filter.errors import UnreadableImageError
from lcmem_filter.images import ImageRecord
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


class Pictures:
    """Stands for an ``ImageSource``.

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
        self.name, self.each, self.first, self.broken = name, each, first, broken
        self.fingerprint = f"{name}-{identities}-{each}-{first}-{broken}"
        self.records = [ImageRecord(f"{name}/{i}", f"{name}{i // each}") for i in range(identities * each)]

    def __len__(self) -> int:
        return len(self.records)

    def image(self, row: int) -> Image.Image:
        if row in self.broken:
            raise UnreadableImageError(f"row {row}")
        return picture(self.first + row // self.each).rotate(3 * (row % self.each))
