"""What every benchmark on these images asks."""

from __future__ import annotations

from keep import Keeper
from protocol import Design, Task
from views import View, heavy, mild

SEED = 0


def main_tasks(design: Design, keeper: Keeper) -> list[Task]:
    made = {"mild_copies": mild(keeper.encoder), "heavy_copies": heavy}
    copies = [
        Task(
            name,
            design.copied,
            View(name, design.test, design.copied, make, keeper.resolution, SEED).open(keeper.cache),
        )
        for name, make in made.items()
    ]
    others = Task("same_identity", design.with_others, itself=True)
    return [*copies, others] if len(design.with_others) else copies
