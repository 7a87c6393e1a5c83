"""What every benchmark on these images asks."""

from __future__ import annotations

import argparse

import numpy as np
from arguments import open_data
from data import Images
from figures import Judge
from keep import Keeper
from protocol import Design, Task, known_duplicates
from views import View, half_formed, heavy, mild

SEED = 0


def main_tasks(design: Design, keeper: Keeper) -> list[Task]:
    copies = [
        Task(name, design.copied, view.open(keeper.cache))
        for name, view in copies_of(design.test, design.copied, keeper).items()
    ]
    others = Task("same_identity", design.with_others, itself=True)
    return [*copies, others] if len(design.with_others) else copies


def copies_of(images: Images, rows: np.ndarray, keeper: Keeper, prefix: str = "") -> dict[str, View]:
    """The ways of copying ``rows``, by the names of the tasks.

    Args:
        prefix: Of the copies' names, where they are not what is asked.
    """
    by = keeper.encoder.source.sha256
    ways = (
        ("mild_copies", mild(keeper.encoder), by),
        ("half_formed_copies", half_formed(keeper.encoder), by),
        ("heavy_copies", heavy, ""),
    )
    return {
        name: View(prefix + name, images, rows, make, keeper.resolution, SEED, decoder)
        for name, make, decoder in ways
    }


def open_validation(arguments: argparse.Namespace) -> tuple[dict[str, Images], Keeper, Judge]:
    """Images of each split, what reads their latents, and who decides on validation images in an index of training
    images; test images are not touched."""
    splits, keeper = open_data(arguments)
    design = Design(Images("train", splits["train"].sources), splits["validation"], SEED, arguments.copies)
    unseen = ~np.isin(design.strangers, list(known_duplicates(design)))
    return splits, keeper, Judge(design, unseen, arguments.rate, arguments.draws, SEED)
