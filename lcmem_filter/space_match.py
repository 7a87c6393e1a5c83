"""Which latent space a VAE speaks, and from which agreement on probe images on that is certain."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

MINIMUM_AGREEMENT = 0.6
"""Two encoders speak one latent space where their probe latents agree at least so much (``channel_agreement``)."""

CERTAIN_AGREEMENT = 0.85
"""Below this a head describes an encoder's latents badly: of 40 copies it found 27 at 0.74, 16 at 0.66, all at 0.87."""


@dataclass(frozen=True, slots=True)
class SpaceMatch:
    """Which latent space a VAE speaks, and how well it agrees with each that the head knows, in [-1, 1]."""

    space: str
    agreement: float
    agreements: Mapping[str, float]

    @property
    def certain(self) -> bool:
        return self.agreement >= CERTAIN_AGREEMENT

    def told(self) -> str:
        """The space, with a warning where it is not certain."""
        if not self.certain:
            warnings.warn(
                f"the VAE agrees with the head's latent space {self.space!r} by {self.agreement:.2f} only (on probe "
                f"images; other encoders of one space agree by {CERTAIN_AGREEMENT} and more), so copies may be missed: "
                "use a head that knows its space, or teach one: lcmem-filter train DATA --vae VAE --add-space",
                stacklevel=3,
            )
        return self.space
