"""What a head's configuration may say."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from .branches import POOLINGS
from .errors import ConfigurationError
from .trunks import TRUNKS

CHOICES = {
    "activation": ("none", "sigmoid"),
    "score": ("cosine", "verification"),
    "pooling": tuple(POOLINGS),
    "trunk_type": tuple(TRUNKS),
}

LOADING = {
    "cache_dir",
    "device_map",
    "disable_mmap",
    "dtype",
    "force_download",
    "ignore_mismatched_sizes",
    "local_files_only",
    "low_cpu_mem_usage",
    "max_memory",
    "offload_folder",
    "offload_state_dict",
    "proxies",
    "quantization_config",
    "revision",
    "subfolder",
    "token",
    "torch_dtype",
    "use_safetensors",
    "variant",
}
"""Options of ``from_pretrained`` that are of diffusers, and not of a head's configuration."""

LATER: dict[str, Any] = {
    "token_dim": 0,
    "match_dim": 0,
    "match_width": 0,
    "match_deformed": False,
    "same_identity": 0.0,
    "match_spaces": (),
    "halved_spaces": (),
    "pooling": "mean",
    "trunk_type": "convnext",
    "embedding_weight": 0.0,
    "middles": False,
}
"""Entries of the configuration that heads of before lack; with these values, they change no fingerprint."""


def check_configuration(config: Mapping[str, Any]) -> None:
    """Whether a head can be made by a configuration.

    Raises:
        ConfigurationError: an entry is not one of the choices that there are, or does not go with the others.
    """
    for name, known in CHOICES.items():
        if config[name] not in known:
            raise ConfigurationError(f"{name} must be one of {', '.join(known)}, got {config[name]!r}")
    for name in ("match_deformed", "middles"):
        if type(config[name]) is not bool:
            raise ConfigurationError(f"{name} must be true or false, got {config[name]!r}")
    for name in ("same_identity", "embedding_weight"):
        if not (isinstance(config[name], int | float) and 0 <= config[name] <= 1):
            raise ConfigurationError(f"{name} lies between 0 and 1, got {config[name]!r}")
    for name in ("match_spaces", "halved_spaces"):
        if unknown := [space for space in config[name] if space not in config["spaces"]]:
            raise ConfigurationError(
                f"{name} has {unknown[0]!r}, which is none of the spaces, {', '.join(config['spaces'])}"
            )
    if config["embedding_weight"] and not config["match_dim"]:
        raise ConfigurationError(
            "embedding_weight counts where pictures are laid over each other, for which the head has no descriptors "
            "(match_dim 0); leave it out, or train some (stage 3)"
        )


def check_options(given: Collection[str], known: Collection[str]) -> None:
    """Whether ``from_pretrained`` knows what it is asked for; diffusers passes over what it does not.

    Args:
        known: Names of the configuration's entries.

    Raises:
        ConfigurationError: a name is neither of an entry nor of ``LOADING``.
    """
    for name in given:
        if name not in known and name not in LOADING:
            alike = get_close_matches(name, [*known, *LOADING], 1)
            raise ConfigurationError(
                f"a head has no option {name!r}"
                + (f"; do you mean {alike[0]}?" if alike else f": {', '.join(known)}")
            )


def check_class(file: Path, wanted: str) -> None:
    """Whether a configuration that lies here says of no other class that it is of it, which diffusers passes over.

    Raises:
        ValueError: it does, or is none.
    """
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if (named := found.get("_class_name", wanted)) != wanted:
        raise ValueError(f"its configuration is of a {named}")
