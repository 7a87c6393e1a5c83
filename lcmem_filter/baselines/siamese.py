"""Siamese networks on pictures, trained by ``siamese_training``: a verifier of pairs, and contrastive embeddings."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ResNetConfig, ResNetModel

from ..errors import ArtifactError, ArtifactNotFoundError, CorruptArtifactError
from ..latents import weights_sha256
from ..shortlist import SHORTLIST
from .common import IMAGENET_MEAN, IMAGENET_STD, Cosine, as_network_input, unit
from .registry import Sees

Method = Literal["packhaeuser", "dar", "dar_unsupervised"]

CONFIG, WEIGHTS, RECORD = "config.json", "model.safetensors", "training.json"


class SiameseNetwork(nn.Module):
    """One branch: a ResNet of basic blocks and a projection; to verify pairs, also a layer on their difference.

    Args:
        method: Which baseline it is of. ``"packhaeuser"`` has sigmoid features and the layer ``decision``.
        resolution: Side in pixels that pictures are squashed to.
        widths: Of the stages; (64, 128, 256, 512) with two blocks each is ResNet-18 (He et al., CVPR 2016).
        depths: Blocks of each stage.
        features: What is kept of a picture.
    """

    def __init__(
        self,
        method: Method,
        resolution: int,
        widths: Sequence[int],
        depths: Sequence[int],
        features: int,
    ) -> None:
        super().__init__()
        self.method, self.resolution = method, resolution
        self.shape = {"widths": list(widths), "depths": list(depths), "features": features}
        self.trunk = ResNetModel(
            ResNetConfig(
                embedding_size=widths[0],
                hidden_sizes=list(widths),
                depths=list(depths),
                layer_type="basic",
            )
        )
        self.projection = nn.Linear(widths[-1], features)
        self.decision = _decision(features) if method == "packhaeuser" else None

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features (B, D) of pictures (B, 3, H, W) in [-1, 1]; in (0, 1) where pairs are verified."""
        given = as_network_input(pixels, self.resolution, IMAGENET_MEAN, IMAGENET_STD)
        features = self.projection(self.trunk(given).pooler_output.flatten(1))
        return features if self.decision is None else features.sigmoid()

    def save(self, folder: Path) -> None:
        """Write weights and configuration into ``folder``.

        Raises:
            ArtifactError: they cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        try:
            save_file(weights, folder / WEIGHTS)
        except SafetensorError as error:  # which is no OSError, whatever the system said
            raise ArtifactError(
                f"the network cannot be written to {folder}: {error}; make room there, or have it writable, and do the "
                "same again"
            ) from error
        config = {"baseline": self.method, "resolution": self.resolution, **self.shape}
        (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> SiameseNetwork:
        """The network of a folder that ``save`` wrote, for use.

        Raises:
            CorruptArtifactError: it is not what it should be.
        """
        folder = Path(folder)
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            with torch.random.fork_rng(devices=[]):
                network = cls(config.pop("baseline"), **config)
            network.load_state_dict(load_file(folder / WEIGHTS))
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
            raise CorruptArtifactError(
                f"{folder} holds no network that can be read ({type(error).__name__}: {error}); train it again"
            ) from error
        return network.eval()


def _decision(features: int) -> nn.Linear:
    """A layer that starts as a distance: no difference speaks for a pair, though training may change that."""
    layer = nn.Linear(features, 1)
    nn.init.uniform_(layer.weight, -3 / features**0.5, 0)
    nn.init.constant_(layer.bias, 2)
    return layer


class Siamese:
    """What the trained baselines share.

    Args:
        weights: The folder that ``lcmem-filter train --baseline`` wrote.

    Attributes:
        fingerprint: Of the weights.
        record: How the network was trained (``training.json``); empty where that was not kept.

    Raises:
        ArtifactNotFoundError: no folder was given, or it holds no network.
        ArtifactError: it is another baseline's.
        CorruptArtifactError: it cannot be read.
    """

    sees: Sees = "pixel"
    method: ClassVar[Method]

    def __init__(self, weights: str | os.PathLike[str] | None = None) -> None:
        if weights is None or not (Path(weights) / CONFIG).is_file():
            name = self.method.replace("_", "-")
            raise ArtifactNotFoundError(
                f"no trained {name} network at {weights}: nobody publishes one, so train it on your images with "
                f"lcmem-filter train --baseline {name}, and give its folder with weights=..."
            )
        folder = Path(weights)
        self._network = SiameseNetwork.load(folder)
        if self._network.method != self.method:
            raise ArtifactError(
                f"{folder} holds a {self._network.method} network, not {self.method}; give another folder"
            )
        self.fingerprint = weights_sha256(self._network)
        record = folder / RECORD
        self.record: dict[str, Any] = (
            json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        )

    @property
    def resolution(self) -> int:
        """Side in pixels that pictures are squashed to."""
        return self._network.resolution

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        return self._network.to(images.device)(images)


class Packhaeuser(Siamese):
    """Logit that two pictures are of one identity (Packhaeuser et al., Scientific Reports 2022).

    A linear layer on the absolute difference of sigmoid features, which is no inner product. Training drives sigmoid
    features towards 0 and 1, where the absolute difference is the squared one, and a sum of squared differences with
    any weights w is: -2 w y and the sum of w y^2 on the stored side, x and 1 on the asking side. That proposes
    ``shortlist`` rows, the layer itself decides among them. The logit stands for the probability, which orders pairs
    alike but is rounded to 1 for many of them.

    The paper's ResNet-50, pretrained on ImageNet, is a ResNet-18 from random weights here, and the layer starts as a
    distance: from the usual random weights, half of them positive, a picture's copy ranks behind strangers for long.
    """

    method: ClassVar[Method] = "packhaeuser"
    shortlist = SHORTLIST

    def __init__(self, weights: str | os.PathLike[str] | None = None) -> None:
        super().__init__(weights)
        decision = self._network.decision
        assert decision is not None
        self._weight, self._bias = decision.weight.detach()[0].clone(), decision.bias.detach().clone()

    @torch.inference_mode()
    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return self._features(images).float().cpu()

    def key(self, kept: torch.Tensor) -> torch.Tensor:
        weighted = self._weight * kept
        return torch.cat([-2 * weighted, (weighted * kept).sum(1, keepdim=True)], 1)

    def query(self, kept: torch.Tensor) -> torch.Tensor:
        return F.pad(kept, (0, 1), value=1.0)

    def similarity(self, queries: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
        return (queries[:, None] - stored).abs() @ self._weight + self._bias


class Dar(Siamese, Cosine):
    """Cosine, in [-1, 1], of contrastive embeddings; positives are images of one identity (Dar et al., 2023, 2025).

    "Investigating data memorization in 3D latent diffusion models for medical image synthesis" and "Unconditional
    latent diffusion models memorize patient imaging data" compare embeddings by their correlation. For 2D pictures
    of any kind the encoder is a ResNet-18 from random weights here.
    """

    method: ClassVar[Method] = "dar"

    @torch.inference_mode()
    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return unit(self._features(images))


class DarUnsupervised(Dar):
    """``Dar`` without identities: positives are two augmentations of one image, all others are negatives."""

    method: ClassVar[Method] = "dar_unsupervised"
