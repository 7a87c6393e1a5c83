"""What freed images are worth: do they show what their caption says, and are they as good as other generated images.

Both by EfficientNet-Lite0's features. The classifier tells the domains apart (faces, X-rays, lesions) and learns them
from real images that the pipeline never saw; finer captions are identities, which a freed image must not show. Quality
is the distance to the nearest held-out real images of the caption's domain, divided by what images of prompts that
are not memorised, drawn without a filter, have in that domain: 1 is as good as those.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import RESOLUTION, Row, read_pictures
from drawing import Drawn, Sample, draw, keep
from stats import mean, share

from lcmem_filter.baselines import Baseline, make_baseline

NEAREST, CLEAN = 5, 32  # real images that a distance is the mean of; clean samples of each domain
CLEAN_SEED = 50_000
STARTS = {"face": "a press photo", "xray": "a chest x-ray", "lesion": "a photo of"}


class Worth:
    """Fixed on real images before any freed image is seen.

    Raises:
        MissingExtraError: EfficientNet-Lite0's packages are not installed.
    """

    def __init__(self, pipe: Any, rows: dict[str, list[Row]], cache: Path) -> None:
        self._network = make_baseline("efficientnet_lite0", side=RESOLUTION)
        real = {
            name: features(self._network, read_pictures(rows[name])) for name in ("calibration", "held_out")
        }
        domains = {name: [row.domain for row in rows[name]] for name in real}
        self._classify = Classifier(real["calibration"], domains["calibration"])
        self._real = {
            domain: real["held_out"][[found == domain for found in domains["held_out"]]] for domain in STARTS
        }
        pipe.without_memorization_filter()
        samples = clean_samples(rows["pipeline"])
        drawn: Drawn = keep(cache / f"clean-{CLEAN}.pt", lambda: draw(pipe, samples))
        self._clean = features(self._network, drawn.images)
        self._clean_domains = [domain_of(sample.prompt) for sample in samples]
        self._scale = {
            domain: self._distances(self._clean, self._clean_domains)[
                [found == domain for found in self._clean_domains]
            ].mean()
            for domain in STARTS
        }
        self._right_on_real = share(self._classify(real["held_out"]) == np.array(domains["held_out"]))
        ratios = self._ratios(real["calibration"], domains["calibration"])
        self._ratio_of_real = mean(ratios, [row.identity for row in rows["calibration"]])

    def reference(self) -> dict[str, Any]:
        """The same figures for real images and for clean prompts."""
        right = self._classify(self._clean) == np.array(self._clean_domains)
        return {
            "features": f"EfficientNet-Lite0 at {RESOLUTION} px",
            "clean_samples": len(self._clean),
            "shows_its_domain": {"clean": share(right), "held_out_real": self._right_on_real},
            "distance_ratio": {"clean": 1.0, "unseen_real": self._ratio_of_real},
            "mean_distance_of_clean": {domain: float(value) for domain, value in self._scale.items()},
        }

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> dict[str, Any]:
        """Of freed images (n, H, W, 3)."""
        if not len(images):
            return {"shows_its_domain": share(np.zeros(0, bool)), "distance_ratio": None}
        found, domains = features(self._network, images), [domain_of(prompt) for prompt in prompts]
        return {
            "shows_its_domain": share(self._classify(found) == np.array(domains)),
            "distance_ratio": mean(self._ratios(found, domains), prompts),
        }

    def _ratios(self, found: torch.Tensor, domains: Sequence[str]) -> np.ndarray:
        return self._distances(found, domains) / np.array([self._scale[domain] for domain in domains])

    def _distances(self, found: torch.Tensor, domains: Sequence[str]) -> np.ndarray:
        distances = [
            torch.cdist(row[None], self._real[domain])[0].topk(NEAREST, largest=False).values.mean()
            for row, domain in zip(found, domains, strict=True)
        ]
        return torch.stack(distances).numpy()


class Classifier:
    """Logistic regression, every domain with the same weight."""

    def __init__(self, found: torch.Tensor, domains: Sequence[str], decay: float = 1e-3) -> None:
        self._names = sorted(set(domains))
        targets = torch.tensor([self._names.index(domain) for domain in domains])
        weight = 1 / torch.bincount(targets).float()
        self._layer = torch.nn.Linear(found.shape[1], len(self._names))
        for parameter in self._layer.parameters():
            torch.nn.init.zeros_(parameter)
        optimiser = torch.optim.LBFGS(self._layer.parameters(), max_iter=200)

        def loss() -> torch.Tensor:
            optimiser.zero_grad()
            value = torch.nn.functional.cross_entropy(self._layer(found), targets, weight)
            value = value + decay * self._layer.weight.square().sum()
            value.backward()
            return value

        optimiser.step(loss)

    @torch.no_grad()
    def __call__(self, found: torch.Tensor) -> np.ndarray:
        return np.array(self._names)[self._layer(found).argmax(1).numpy()]


def features(network: Baseline, images: np.ndarray) -> torch.Tensor:
    """(n, D) of uint8 images (n, H, W, 3)."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.cat([network.embed(pixels[i : i + 32]) for i in range(0, len(pixels), 32)]).clone()


def clean_samples(rows: list[Row]) -> list[Sample]:
    """As many for each domain, of captions as images have them that stand once in the training set."""
    captions = [
        caption
        for domain in STARTS
        for caption in [row.caption for row in rows if row.copies == 1 and row.domain == domain][:CLEAN]
    ]
    return [Sample(caption, CLEAN_SEED + i, False) for i, caption in enumerate(captions)]


def domain_of(prompt: str) -> str:
    """Of a caption of this benchmark."""
    return next(domain for domain, start in STARTS.items() if prompt.startswith(start))
