"""What becomes of a batch before the loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lcmem_filter.head import LCMemHead
from lcmem_filter.training import TrainingConfig
from lcmem_filter.training.batches import moved_against
from lcmem_filter.training.objective import MatchObjective, Objective
from lcmem_filter.training.weights import with_descriptors


@pytest.mark.parametrize("stage", [1, 3])
def test_side_b_is_moved_to_where_the_loss_is_larger(stage: Any) -> None:
    config = TrainingConfig(size="micro").for_stage(stage)
    torch.manual_seed(0)
    head = LCMemHead.create("micro", {"sd": 4})
    if stage == 3:
        head = with_descriptors(head, ("sd",), config)
    objective = (MatchObjective if stage == 3 else Objective)(head, config)
    a = head.canonical(torch.randn(12, 4, 16, 16), "sd")
    b = head.canonical(a + 0.5 * torch.randn(12, 4, 16, 16), "sd")
    batch = (a, b, ("sd", "sd"), torch.arange(12), torch.linspace(0, 0.9, 12), torch.ones(12).bool())
    moved = moved_against(objective, batch, 0.1)
    assert moved[0] is a and all(one is other for one, other in zip(moved[2:], batch[2:], strict=True))
    apart = (moved[1] - b).square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(apart, 0.1 * batch[4], rtol=0.1, atol=1e-6)
    noise = torch.randn_like(b)
    noise = noise / noise.square().mean((1, 2, 3), keepdim=True).sqrt() * apart[:, None, None, None]
    with torch.no_grad():
        plain, against, anyhow = (
            objective(a, x, *batch[2:]) for x in (b, moved[1], head.canonical(b + noise, "sd"))
        )
    assert against - plain > 3 * abs(anyhow - plain)
    assert all(parameter.grad is None for parameter in head.parameters())
    assert not moved[1].requires_grad
