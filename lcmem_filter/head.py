"""LCMemHead: canonical latents of a known space to one embedding, and two embeddings to a score."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError
from torch import nn

from .branches import POOLINGS, DenseBranch, Description, Halving, LocalBranch, Stem, in_float32
from .configuration import LATER, check_class, check_configuration, check_options
from .errors import (
    ArtifactError,
    ArtifactNotFoundError,
    CorruptArtifactError,
    LatentSpaceError,
    told_where,
)
from .hub import check_reachable
from .latents import canonical, channel_agreement, check_latents, normalise, probe_latents, weights_sha256
from .shipped import folder_of, shipped_heads
from .space_match import MINIMUM_AGREEMENT, SpaceMatch
from .trunks import TRUNKS

Size = Literal["tiny", "small", "small32", "resnet", "micro"]
Score = Literal["cosine", "verification"]

_SMALL: dict[str, Any] = {
    "grid": 16,
    "patch_size": 2,
    "stem_channels": 32,
    "hidden_sizes": (64, 128, 256),
    "depths": (1, 2, 2),
    "embedding_dim": 256,
    "token_dim": 32,
    "activation": "none",
    "layer_scale": 0.1,
}

SIZES: dict[str, dict[str, Any]] = {
    # The paper's network: ConvNeXt-Tiny (Liu et al., 2022), sigmoid features, 512-d (arXiv 2512.14421).
    "tiny": {
        "grid": 32,
        "patch_size": 4,
        "stem_channels": 0,
        "hidden_sizes": (96, 192, 384, 768),
        "depths": (3, 3, 9, 3),
        "embedding_dim": 512,
        "token_dim": 0,
        "activation": "sigmoid",
        "layer_scale": 1e-6,
    },
    # For CPUs: 1.7 M parameters, 1.9 M with descriptors.
    "small": _SMALL,
    # The same on a finer grid, in as many tokens.
    "small32": {**_SMALL, "grid": 32, "patch_size": 4},
    # A trunk that looks at every cell: 2.9 M parameters.
    "resnet": {**_SMALL, "trunk_type": "resnet", "depths": (2, 2, 2), "token_dim": 0},
    # For demonstrations and tests: 0.2 M parameters.
    "micro": {
        "grid": 16,
        "patch_size": 2,
        "stem_channels": 16,
        "hidden_sizes": (32, 64, 96),
        "depths": (1, 1, 1),
        "embedding_dim": 64,
        "token_dim": 16,
        "activation": "none",
        "layer_scale": 0.1,
    },
}


class LCMemHead(ModelMixin, ConfigMixin):
    """One stem per latent space over one shared trunk and projection (after LCMem, arXiv 2512.14421).

    Args:
        spaces: Latent channels of each space, by name.
        grid: Latents are resized to (grid, grid) before they are normalised.
        patch_size: Side of what a token shows, in canonical latents.
        stem_channels: Width of a stem's 3x3 convolution; 0 for none.
        hidden_sizes: Width of each trunk stage.
        depths: Blocks of each trunk stage.
        embedding_dim: Length of an embedding.
        activation: ``"sigmoid"`` for the paper's features, ``"none"`` for heads trained for cosine alone.
        layer_scale: Initial residual scale of a block.
        score: Which score the head was trained for.
        token_dim: Length of a token of the local branch; 0 for none, as in the paper.
        match_dim: Length of a descriptor of the dense branch; 0 for none.
        match_width: Width of the dense branch; 0 for that of the trunk's first stage.
        match_deformed: Whether pictures are deformed when they are laid over each other (``matching.alike_deformed``).
        same_identity: Likeness under the best warp, in (0, 1), from which two training images are taken for images of
            one identity, unless the index names both their identities; 0 where that is never concluded.
        match_spaces: Spaces whose stems the dense branch describes well; it need not have been trained on all of them.
        halved_spaces: Spaces whose larger latents are halved by a network; those of others are averaged over areas.
        pooling: How the trunk's cells become one vector (``branches.POOLINGS``).
        trunk_type: Kind of the trunk (``trunks.TRUNKS``).
        embedding_weight: Of the embeddings' cosine in the likeness of pictures that are laid over each other, 0 to 1.
        middles: Whether samples ask an index by their middles too (``shortlist.middles``), for less of each.

    Raises:
        ConfigurationError: an entry is out of range, or does not go with the others.
    """

    config_name = "config.json"
    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        spaces: dict[str, int],
        grid: int = 16,
        patch_size: int = 2,
        stem_channels: int = 32,
        hidden_sizes: tuple[int, ...] = (64, 128, 256),
        depths: tuple[int, ...] = (1, 2, 2),
        embedding_dim: int = 256,
        activation: str = "none",
        layer_scale: float = 0.1,
        score: str = "cosine",
        token_dim: int = 0,
        match_dim: int = 0,
        match_width: int = 0,
        match_deformed: bool = False,
        same_identity: float = 0.0,
        match_spaces: tuple[str, ...] = (),
        halved_spaces: tuple[str, ...] = (),
        pooling: str = "mean",
        trunk_type: str = "convnext",
        embedding_weight: float = 0.0,
        middles: bool = False,
    ) -> None:
        super().__init__()
        check_configuration(self.config)
        width = hidden_sizes[0]
        self.stems = nn.ModuleDict(
            {name: Stem(c, width, patch_size, stem_channels) for name, c in spaces.items()}
        )
        self.halvings = nn.ModuleDict({name: Halving(spaces[name]) for name in halved_spaces})
        self.trunk = TRUNKS[trunk_type].make(tuple(hidden_sizes), tuple(depths), layer_scale)
        self.pool = POOLINGS[pooling](hidden_sizes[-1])
        self.projection = nn.Linear(hidden_sizes[-1], embedding_dim)
        self.fc_end = nn.Linear(embedding_dim, 1)
        self.local = LocalBranch(tuple(hidden_sizes), token_dim) if token_dim else None
        self.dense = DenseBranch(width, match_dim, match_width or width) if match_dim else None
        self.probes = nn.ParameterDict(
            {
                name: nn.Parameter(torch.zeros(12, c, grid, grid), requires_grad=False)
                for name, c in spaces.items()
            }
        )

    @classmethod
    def create(
        cls, size: Size = "small", spaces: Mapping[str, int] | None = None, **changes: Any
    ) -> LCMemHead:
        """An untrained head of a named size; ``changes`` override single values of its configuration."""
        if size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
        return cls(spaces=dict(spaces or {"sd": 4}), **{**SIZES[size], **changes}).eval()

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str], **options: Any) -> LCMemHead:
        """Load a head from a folder or a hub id, or one that ships with this package by its name, which goes before a
        folder of that name (that is ``"./NAME"``, or ``Path("NAME")``); in float32.

        Raises:
            ArtifactNotFoundError: nothing lies there.
            CorruptArtifactError: what lies there is no head, or its weights are not finite.
            ConfigurationError: an option that there is not.
        """
        check_options(options, list(inspect.signature(cls.__init__).parameters)[1:])
        local = (where := folder_of(name_or_path)).exists()
        if local and not (where / cls.config_name).exists():
            raise ArtifactNotFoundError(f"{where} holds no head: it has no {cls.config_name}")
        options = {"torch_dtype": torch.float32, "use_safetensors": True, **options}  # nothing is unpickled
        try:
            check_reachable(where)
            check_class(where / cls.config_name, LCMemHead.__name__)
            head, loaded = super().from_pretrained(str(where), output_loading_info=True, **options)
            if wrong := [name for kind in ("missing_keys", "unexpected_keys") for name in loaded[kind]]:
                raise ValueError(f"configuration and weights do not go together ({wrong[0]})")
            if bad := [name for name, value in head.state_dict().items() if not value.isfinite().all()]:
                raise ValueError(f"weights are not finite ({bad[0]})")
        except Exception as error:
            kind = CorruptArtifactError if local else ArtifactNotFoundError
            shipped_names = ", ".join(shipped_heads()) or "none"
            raise kind(
                f"no head can be loaded from {os.fspath(name_or_path)!r}: {type(error).__name__}: {error}; "
                f"give a folder written by `lcmem-filter train`, or a shipped head ({shipped_names})"
            ) from error
        config = {key: value for key, value in dict(head.config).items() if key != "_name_or_path"}
        head._internal_dict = FrozenDict(config)  # where it lay must not travel with what is saved from it
        return head.eval()

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> None:
        """As of diffusers; its weights for whoever may read its configuration, not for their owner alone.

        Raises:
            ArtifactError: they cannot be written.
        """
        if (where := Path(save_directory)).is_file():  # of which diffusers says nothing but in its log
            raise ArtifactError(f"{where} is a file; give a folder to save the head in")
        try:
            with told_where(where):
                super().save_pretrained(save_directory, **options)
        except SafetensorError as error:  # which is no OSError, whatever the system said
            raise ArtifactError(
                f"the head cannot be written to {where}: {error}; make room there, or have it "
                "writable, and do the same again"
            ) from error
        for weights in where.glob("*.safetensors"):
            shutil.copymode(where / self.config_name, weights)

    @property
    def spaces(self) -> tuple[str, ...]:
        """Names of the latent spaces that the head has a stem for."""
        return tuple(self.stems.keys())

    @property
    def grid(self) -> int:
        """Side of the canonical grid."""
        return int(self.config.grid)

    @property
    def embedding_dim(self) -> int:
        return int(self.config.embedding_dim)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of configuration and weights, in hexadecimal."""
        return weights_sha256(self, json.dumps(self._described_config(), sort_keys=True).encode())

    def fingerprint_of(self, space: str) -> str:
        """SHA-256 of what decides on latents of ``space``; spaces that are added later do not change it."""
        config = self._described_config()
        config["spaces"] = {space: config["spaces"][space]}
        if "match_spaces" in config:
            config["match_spaces"] = [name for name in config["match_spaces"] if name == space]
        if space in config.pop("halved_spaces", ()):
            config["halved_spaces"] = [space]
        kinds = ("stems", "probes", "halvings")
        others = tuple(f"{kind}.{name}" for kind in kinds for name in self.spaces if name != space)
        prefix = json.dumps(config, sort_keys=True).encode()
        return weights_sha256(self, prefix, but=others)

    def _described_config(self) -> dict[str, Any]:
        """Configuration without what says nothing: private entries, and branches that are not there."""
        given = {key: value for key, value in dict(self.config).items() if not key.startswith("_")}
        plain = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
        return {key: value for key, value in given.items() if key not in LATER or plain[key] != LATER[key]}

    def canonical(self, latents: torch.Tensor, space: str) -> torch.Tensor:
        """Latents (B, C, h, w) of ``space`` resized to the head's grid and normalised, float32.

        As long as both sides are at least twice the grid's, they are halved by the network of ``halved_spaces``, if
        there is one for ``space``; the rest is ``latents.canonical``.
        """
        with torch.autocast(latents.device.type, enabled=False):
            if space in self.halvings and min(latents.shape[-2:]) >= 2 * self.grid:
                latents = normalise(latents)
                while min(latents.shape[-2:]) >= 2 * self.grid:
                    latents = normalise(in_float32(self.halvings[space], latents))
            return canonical(latents, self.grid)

    @property
    def has_tokens(self) -> bool:
        """Whether the head describes parts of a picture too; see ``Description``."""
        return self.local is not None

    @property
    def token_side(self) -> int:
        """Side of the grid that its trunk works on, and its tokens lie on."""
        by_cells = TRUNKS[self.config.trunk_type].by_cells
        return self.grid if by_cells else self.grid // int(self.config.patch_size)

    def has_descriptors(self, space: str) -> bool:
        """Whether the head describes every cell of latents of ``space``; see ``descriptors``."""
        return self.dense is not None and space in self.config.match_spaces

    def features(self, latents: torch.Tensor, space: str) -> torch.Tensor:
        """Latents (B, C, h, w) of ``space`` to features (B, embedding_dim), float32, outside any autocast.

        Raises:
            LatentSpaceError: no stem for ``space``, or latents of another shape.
        """
        return self._checked(latents, space)[0]

    def forward(self, latents: torch.Tensor, space: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Canonical latents (B, C, grid, grid) of ``space`` to features (B, embedding_dim) and tokens, if any."""
        given = self.stems[space](latents, TRUNKS[self.config.trunk_type].by_cells)
        found = self.trunk(given, output_hidden_states=self.has_tokens)
        features = self.projection(self.trunk.layernorm(self.pool(found.last_hidden_state)))
        if self.config.activation == "sigmoid":
            features = torch.sigmoid(features)
        return features, None if self.local is None else self.local(found.hidden_states[1:])

    def describe(self, latents: torch.Tensor, space: str) -> Description:
        """Latents (B, C, h, w) of ``space`` to embedding and tokens, float32; see ``features``."""
        features, tokens = self._checked(latents, space)
        return Description(F.normalize(features, dim=-1), tokens)

    def embed(self, latents: torch.Tensor, space: str) -> torch.Tensor:
        """Latents (B, C, h, w) of ``space`` to unit-norm embeddings (B, embedding_dim); see ``features``."""
        return self.describe(latents, space).embedding

    def descriptors(self, latents: torch.Tensor, space: str) -> torch.Tensor:
        """Latents (B, C, h, w) of ``space`` to a descriptor of each cell, (B, match_dim, grid, grid), float32.

        A descriptor's norm, in (0, 1), is its weight.

        Raises:
            LatentSpaceError: no stem for ``space``, or latents of another shape.
            ValueError: ``space`` is not among ``match_spaces``.
        """
        with torch.autocast(latents.device.type, enabled=False):
            given = self._given(latents, space)
            if self.dense is None or not self.has_descriptors(space):
                raise ValueError(f"the head has no descriptors of latent space {space!r}")
            return in_float32(self.dense, in_float32(self.stems[space], given, True))

    def _checked(self, latents: torch.Tensor, space: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        with torch.autocast(latents.device.type, enabled=False):
            return in_float32(self, self._given(latents, space), space)

    def _given(self, latents: torch.Tensor, space: str) -> torch.Tensor:
        """Checked and canonical."""
        if space not in self.stems:
            raise LatentSpaceError(
                f"the head has no stem for latent space {space!r}; it has {', '.join(self.spaces)}"
            )
        check_latents(latents, int(self.config.spaces[space]), space)
        return self.canonical(latents, space)

    def verification_score(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """The paper's score: the probability in [0, 1] that two features (..., embedding_dim) are of one identity.

        ``sigmoid(Linear(|a - b|))`` on the features of ``features``, after arXiv 2512.14421.
        """
        return torch.sigmoid(in_float32(self.fc_end, (a - b).abs().float())).squeeze(-1)

    @torch.no_grad()
    def add_probes(self, space: str, vae: Any) -> None:
        """Remember how ``vae`` encodes the probe images, so that ``identify_space`` knows ``space`` by behaviour.

        Raises:
            LatentSpaceError: its latents have another number of channels.
        """
        latents = probe_latents(vae, self.grid)
        if (given := latents.shape[1]) != (wanted := int(self.config.spaces[space])):
            raise LatentSpaceError(
                f"latents of this {type(vae).__name__} have {given} channels, and those of {space!r} {wanted}; give an "
                "encoder of that space"
            )
        self.probes[space].copy_(latents.to(self.probes[space]))

    def identify_space(self, vae: Any) -> SpaceMatch:
        """Which of the head's latent spaces ``vae`` encodes into, by its latents of the probe images.

        Raises:
            LatentSpaceError: none of them; says how well each agrees.
        """
        latents = probe_latents(vae, self.grid)
        agreements = {
            name: channel_agreement(probes.detach().float().cpu(), latents)
            for name, probes in self.probes.items()
        }
        space = max(agreements, key=lambda name: agreements[name])
        if not agreements[space] >= MINIMUM_AGREEMENT:
            found = ", ".join(f"{name} {value:.2f}" for name, value in agreements.items())
            raise LatentSpaceError(
                f"this {type(vae).__name__} ({latents.shape[1]} channels) speaks none of the head's latent spaces "
                f"(agreement on probe images: {found}; {MINIMUM_AGREEMENT} is needed); use another head, or teach one: "
                "lcmem-filter train DATA --vae VAE --add-space --initial HEAD --reference-vae KNOWN --output head/"
            )
        return SpaceMatch(space, agreements[space], agreements)
