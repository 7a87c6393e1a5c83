"""The weights of a run: another head's that it starts from, and which of them decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ..errors import ArtifactError
from ..head import LCMemHead


def take_weights(head: LCMemHead, initial: LCMemHead) -> None:
    """Start from ``initial``; what it lacks, a space or the local branch, stays as it was drawn.

    Raises:
        ArtifactError: it has another shape, or a space that is not trained.
    """
    try:
        lacking, foreign = head.load_state_dict(initial.state_dict(), strict=False)
    except RuntimeError as error:
        raise ArtifactError(
            f"the head to go on from has another shape than this recipe's ({error}); give its size"
        ) from error
    wrong = [*foreign, *(key for key in lacking if key.split(".")[0] not in ("local", "stems", "probes"))]
    if wrong:
        raise ArtifactError(
            f"the head to go on from has another shape than this recipe's ({', '.join(wrong[:3])} do not match); "
            "give its size, and an encoder of each of its spaces"
        )


def decay_groups(parameters: Iterable[torch.nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Groups for an optimiser: of what is trained, matrices and kernels decay, vectors do not."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
