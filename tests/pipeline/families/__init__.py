"""Tiny random pipelines of every family that the filter is tested with.

To add a family, write a ``Family`` in one of the modules here and name it in the module's ``FAMILIES``; every test of
``test_families.py`` then runs over it, and ``python -m tools.readme`` lists it in the README.
"""

from __future__ import annotations

from .family import Family


def families() -> list[Family]:
    """All families, those that share parts next to each other."""
    from . import (
        flow,
        kandinsky,
        latent_consistency,
        packed,
        stable_diffusion,
        stable_diffusion_xl,
        transformers,
    )

    modules = (
        stable_diffusion,
        latent_consistency,
        stable_diffusion_xl,
        flow,
        packed,
        transformers,
        kandinsky,
    )
    return [family for module in modules for family in module.FAMILIES]


__all__ = ["Family", "families"]
