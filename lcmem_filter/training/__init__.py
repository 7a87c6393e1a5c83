"""Training a head on one's own images, in stages, and teaching it further latent spaces and sizes."""

from .add_halving import AddHalvingConfig, add_halving
from .add_space import AddSpaceConfig, add_space
from .checkpoint import training_record
from .config import TrainingConfig
from .trainer import train_head

__all__ = [
    "AddHalvingConfig",
    "AddSpaceConfig",
    "TrainingConfig",
    "add_halving",
    "add_space",
    "train_head",
    "training_record",
]
