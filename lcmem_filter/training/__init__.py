"""Training a head on one's own images. Stage 1: identity consistency on cached latents."""

from .config import TrainingConfig
from .trainer import train_head

__all__ = ["TrainingConfig", "train_head"]
