"""White-box attacks: how little must somebody who has the head change a copy, for the filter to pass it?

    python benchmarks/attacks/run.py --cache CACHE --latents LATENTS
    python benchmarks/attacks/run.py --cache CACHE --latents LATENTS --head lcmem-reid --bounds 4 \
        --output benchmarks/results/attacks-reid.json

Projected gradient descent (Madry et al., arXiv 1706.06083) on copies of indexed images, against what the filter
compares: the cosine of embeddings and the likeness of descriptors, or else tokens, with the original. ``image``:
pixels are changed by at most the bound, before they are encoded. ``latent``: latents are changed as they would reach
the gate, so that what the decoder makes of them moves by at most the bound, root mean square. Beside each stands
random noise of the same size. Index, unseen images and thresholds are those of ``benchmarks/detection``. Nobody who
only writes prompts can do this; who serves the model can, and could leave the filter out as well. Writes
``benchmarks/results/attacks.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "detection"))

from arguments import add_data_arguments, add_rate_argument, open_data, run_command
from data import Images
from figures import Judge
from methods import open_methods
from protocol import Design, known_duplicates, measure
from provenance import provenance
from tasks import SEED

from lcmem_filter.baselines import Searcher
from lcmem_filter.head import LCMemHead
from lcmem_filter.images import to_pixels
from lcmem_filter.latents import Encoder
from lcmem_filter.matching import alike_under
from lcmem_filter.report.statistics import rate_of
from lcmem_filter.standing import local_similarity

RESULTS = Path(__file__).resolve().parents[1] / "results" / "attacks.json"
BATCH = 16
HALF = 0
"""Which half of the test identities is enrolled."""


def main() -> None:
    arguments = _parse()
    splits, keeper = open_data(arguments)
    keeper.encoder.vae.requires_grad_(False)
    (method,), _ = open_methods(["lcmem"], arguments.head, arguments.space, {}, False)
    baseline, head = method.baseline, method.baseline.head.requires_grad_(False)
    base = Images("base", splits["train"].sources + splits["validation"].sources)
    design = Design(base, splits["test"], SEED, 1000)
    unseen = ~np.isin(design.strangers, list(known_duplicates(design)))
    judge = Judge(design, unseen, arguments.rate, 1, SEED)
    threshold = float(judge.thresholds(measure(method, design, [], keeper))[HALF])
    rows = design.copied[design.half[design.copied] == HALF]
    rows = np.sort(np.random.default_rng(SEED).permutation(rows)[: arguments.images])
    every = torch.cat([keeper.kept(method, design.base), keeper.kept(method, design.test)])
    indexed = design.index_rows(HALF)
    searcher = Searcher(baseline, every[indexed])
    own = np.searchsorted(indexed, len(design.base) + rows)
    pixels = torch.stack([_pixels(design.test, int(row), arguments.resolution) for row in rows])
    attack = Attack(head, arguments.space, keeper.encoder, arguments.steps)

    def found(changed: torch.Tensor) -> list[float]:
        scores = searcher.search(baseline.embed(head.canonical(changed, arguments.space)), baseline.shortlist)
        hit = (scores.rows.numpy() == own[:, None]) & (scores.similarity.numpy() > threshold)
        found = rate_of(int(hit.any(1).sum()), len(rows))
        return [found.share, found.low, found.high]

    table: dict[str, Any] = {"unchanged": found(attack.each(pixels, attack.encode))}
    for kind, make in (("image", attack.image), ("latent", attack.latent)):
        for bound in arguments.bounds:
            for how in ("noise", "attack"):
                changed = attack.each(
                    pixels, lambda some, m=make, b=bound, h=how: m(some, b / 255, h == "attack")
                )
                table.setdefault(kind, {}).setdefault(f"{bound:g}/255", {})[how] = found(changed)
            print(kind, bound, table[kind][f"{bound:g}/255"], flush=True)
    results = {
        "about": f"share of {len(rows)} copies of indexed images, one an identity, that are still found when "
        f"{100 * arguments.rate:.3g}% of unseen images are rejected, with 95 % intervals; "
        f"{arguments.steps} steps of projected gradient descent; an index of {len(indexed):,} images.",
        "found": table,
        **provenance(arguments, design, keeper),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")


class Attack:
    """Changes copies so that they seem less like their originals to a head.

    Args:
        steps: Gradient steps.
    """

    def __init__(self, head: LCMemHead, space: str, encoder: Encoder, steps: int) -> None:
        self.head, self.space, self.encoder, self.steps = head, space, encoder, steps

    def each(self, pixels: torch.Tensor, make: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """``make`` of every few of ``pixels``."""
        return torch.cat([make(some) for some in pixels.split(BATCH)])

    def image(self, pixels: torch.Tensor, bound: float, attack: bool) -> torch.Tensor:
        """Latents of pixels (B, 3, H, W) in [-1, 1], each changed by at most ``bound`` of the range.

        Args:
            attack: Follow the gradient; else random signs.
        """
        bound, draw = 2 * bound, torch.Generator().manual_seed(SEED)
        moved = bound * torch.randn(pixels.shape, generator=draw).sign()
        if attack:
            wanted = self.described(self.encode(pixels))
            moved = moved / 2
            for _ in range(self.steps):
                moved.requires_grad_(True)
                (gradient,) = torch.autograd.grad(self._likeness(self.encode(pixels + moved), wanted), moved)
                moved = (moved.detach() - bound / 8 * gradient.sign()).clamp(-bound, bound)
                moved = (pixels + moved).clamp(-1, 1) - pixels
        with torch.no_grad():
            return self.encode((pixels + moved).clamp(-1, 1))

    def latent(self, pixels: torch.Tensor, bound: float, attack: bool) -> torch.Tensor:
        """Latents changed so that what is decoded of them moves by at most ``bound`` of the range, root mean square."""
        with torch.no_grad():
            latents = self.encode(pixels)
            decoded, wanted = self.decode(latents), self.described(latents)
        scale = latents.std((1, 2, 3), keepdim=True)
        moved = torch.randn(latents.shape, generator=torch.Generator().manual_seed(SEED)) * scale
        moved = self._within(latents, moved, decoded, 2 * bound)
        for _ in range(self.steps if attack else 0):
            moved.requires_grad_(True)
            (gradient,) = torch.autograd.grad(self._likeness(latents + moved, wanted), moved)
            size = moved.detach().square().mean((1, 2, 3), keepdim=True).sqrt()
            step = gradient / gradient.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
            moved = self._within(latents, moved.detach() - 0.3 * size * step, decoded, 2 * bound)
        return latents + moved

    @torch.no_grad()
    def _within(
        self, latents: torch.Tensor, moved: torch.Tensor, decoded: torch.Tensor, bound: float
    ) -> torch.Tensor:
        """``moved``, scaled so that decoded pictures differ by ``bound``; so near by, the decoder is almost linear."""
        for _ in range(3):
            apart = (self.decode(latents + moved) - decoded).square().mean((1, 2, 3), keepdim=True).sqrt()
            moved = moved * bound / apart.clamp_min(1e-6)
        return moved * 0.98

    def described(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embedding, and descriptors or else tokens, where the head has them: what the filter compares."""
        if self.head.has_descriptors(self.space):
            return self.head.embed(latents, self.space), self.head.descriptors(latents, self.space)
        description = self.head.describe(latents, self.space)
        return description.embedding, description.tokens

    def _likeness(
        self, latents: torch.Tensor, wanted: tuple[torch.Tensor, torch.Tensor | None]
    ) -> torch.Tensor:
        """Of embeddings, and of descriptors as they lie or tokens wherever, added over the batch."""
        embedding, parts = self.described(latents)
        alike = F.cosine_similarity(embedding, wanted[0]).sum()
        if parts is None or wanted[1] is None:
            return alike
        if parts.ndim == 3:
            return alike + local_similarity(parts, wanted[1][:, None]).sum()
        still = torch.eye(2, 3).expand(len(latents), 1, 2, 3)
        return alike + alike_under(parts, wanted[1], still).sum()

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """As ``encode_pixels``, with gradients."""
        encoded = self.encoder.vae.encode(pixels)
        return encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.encoder.vae.decode(latents).sample.clamp(-1, 1)


def _pixels(images: Images, row: int, side: int) -> torch.Tensor:
    source, place = images.place(row)
    return to_pixels(source.image(place), side)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data_arguments(parser)
    add_rate_argument(parser)
    parser.add_argument("--images", type=int, default=150, help="copies")
    parser.add_argument("--steps", type=int, default=20, help="of gradient descent")
    parser.add_argument("--bounds", type=float, nargs="+", default=[2, 4, 8], help="of 255")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
