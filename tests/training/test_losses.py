"""Losses against naive loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lcmem_filter.standing import local_similarity
from lcmem_filter.training.losses import nt_xent, spread, token_similarity, verification

IDENTITIES = torch.tensor([0, 1, 0, 2, 3])


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(5, 7), torch.randn(5, 7)


def _cosines(a: torch.Tensor, b: torch.Tensor) -> tuple[list[torch.Tensor], list[int]]:
    rows = [row / row.norm() for row in torch.cat([a, b])]
    return rows, IDENTITIES.tolist() * 2


def naive_nt_xent(a: torch.Tensor, b: torch.Tensor, temperature: float, margin: float) -> float:
    rows, who = _cosines(a, b)
    total = 0.0
    for i, row in enumerate(rows):
        partner = (i + len(a)) % len(rows)
        others = [j for j in range(len(rows)) if who[j] != who[i]]
        cosines = [float(row @ rows[partner]) - margin, *(float(row @ rows[j]) for j in others)]
        terms = [math.exp(cosine / temperature) for cosine in cosines]
        total -= math.log(terms[0] / sum(terms))
    return total / len(rows)


def naive_spread(a: torch.Tensor, b: torch.Tensor) -> float:
    rows, who = _cosines(a, b)
    total = 0.0
    for i, row in enumerate(rows):
        total -= math.log(min(float((row - rows[j]).norm()) for j in range(len(rows)) if who[j] != who[i]))
    return total / len(rows)


@pytest.mark.parametrize("margin", [0.0, 0.35])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_nt_xent(pair: tuple[torch.Tensor, torch.Tensor], temperature: float, margin: float) -> None:
    assert float(nt_xent(*pair, IDENTITIES, temperature, margin)) == pytest.approx(
        naive_nt_xent(*pair, temperature, margin), rel=1e-5
    )


def test_images_of_one_identity_are_never_negatives(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    a, b = (side.clone().requires_grad_() for side in pair)
    loss = nt_xent(a[:3], b[:3], torch.tensor([4, 4, 4]), 0.1)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert a.grad is not None and a.grad.abs().max() < 1e-6


def test_nt_xent_ignores_norms(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    a, b = pair
    scaled = nt_xent(a * torch.rand(5, 1).add(0.1) * 9, b * 3, IDENTITIES, 0.07)
    torch.testing.assert_close(scaled, nt_xent(a, b, IDENTITIES, 0.07))


def test_spread(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert float(spread(*pair, IDENTITIES)) == pytest.approx(naive_spread(*pair), rel=1e-4)


def test_spread_of_one_identity_is_zero_and_has_a_gradient() -> None:
    a = torch.randn(3, 4, requires_grad=True)
    loss = spread(a, a.detach(), torch.zeros(3, dtype=torch.long))
    loss.backward()
    assert float(loss.detach()) == 0


@pytest.mark.parametrize("offset", [0.0, 0.34, 0.999])
def test_verification(pair: tuple[torch.Tensor, torch.Tensor], offset: float) -> None:
    a, b = pair
    torch.manual_seed(1)
    layer = nn.Linear(7, 1)
    expected = []
    for i, who in enumerate(IDENTITIES.tolist()):
        others = [j for j, other in enumerate(IDENTITIES.tolist()) if other != who]
        other = others[int(offset * len(others))]
        p = torch.sigmoid(layer((a[i] - b[i]).abs())).item()
        q = torch.sigmoid(layer((a[i] - b[other]).abs())).item()
        expected += [-math.log(p), -math.log(1 - q)]
    loss = verification(a, b, IDENTITIES, layer, torch.full((5,), offset))
    assert loss.item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_verification_without_another_identity_keeps_to_matched_pairs(
    pair: tuple[torch.Tensor, torch.Tensor],
) -> None:
    layer = nn.Linear(7, 1)
    loss = verification(*pair, torch.zeros(5, dtype=torch.long), layer, torch.rand(5))
    matched = -torch.log(torch.sigmoid(layer((pair[0] - pair[1]).abs()))).mean()
    torch.testing.assert_close(loss, matched)


def test_token_similarity_is_that_of_the_verifier_with_its_gradient() -> None:
    torch.manual_seed(0)
    a, b, upstream = torch.randn(3, 6, 4), torch.randn(5, 6, 4), torch.randn(3, 5)
    found = []
    for similarity in (lambda x, y: local_similarity(x, y[None]), token_similarity):
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        value = similarity(x, y)
        (value * upstream).sum().backward()
        found.append((value.detach(), x.grad, y.grad))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)
