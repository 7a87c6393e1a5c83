"""Laying pictures over each other: against loops written out, and copies that were cropped, turned and mirrored."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from lcmem_filter import alignment, matching
from lcmem_filter.alignment import aligned_similarity
from lcmem_filter.matching import (
    COARSE,
    LEAST_INSIDE,
    STIFFNESS,
    alike_deformed,
    alike_under,
    alike_under_warps,
    all_warps,
    vote,
)
from lcmem_filter.training.losses import matched

CPU = torch.device("cpu")


def maps(count: int, seed: int = 0, weighted: bool = True) -> torch.Tensor:
    """Smooth descriptor maps (count, 8, 16, 16), as of a head."""
    draw = torch.Generator().manual_seed(seed)
    directions = F.interpolate(torch.randn(count, 8, 12, 12, generator=draw), (16, 16), mode="bilinear")
    weights = torch.rand(count, 1, 16, 16, generator=draw) * 0.8 + 0.1 if weighted else 1.0
    return F.normalize(directions, dim=1) * weights


def warped(maps: torch.Tensor, warp: torch.Tensor) -> torch.Tensor:
    where = F.affine_grid(warp.expand(len(maps), 2, 3), [len(maps), 1, 16, 16], align_corners=False)
    seen = F.grid_sample(maps, where, padding_mode="reflection", align_corners=False)
    return F.normalize(seen, dim=1) * 0.9


def test_all_warps_differ_and_hold_the_picture_as_it_is_and_mirrored() -> None:
    warps = all_warps(CPU)
    assert warps.shape == (490, 2, 3)
    distance = torch.cdist(warps.flatten(1), warps.flatten(1)) + torch.eye(490) * 99
    assert distance.min() > 0.1
    for mirror in (1.0, -1.0):
        as_it_is = torch.tensor([[mirror, 0.0, 0.0], [0.0, 1.0, 0.0]])
        assert ((warps - as_it_is).abs().amax((1, 2)) < 1e-6).sum() == 1


def test_likeness_under_a_warp_is_the_weighted_mean_cosine_cell_by_cell() -> None:
    sample, candidate = maps(2)
    warp = all_warps(CPU)[333]
    found = float(alike_under(sample[None], candidate[None], warp[None, None]))
    total = weights = 0.0
    for y in range(16):
        for x in range(16):
            place = torch.tensor([(2 * x + 1) / 16 - 1, (2 * y + 1) / 16 - 1, 1.0])
            u, v = ((warp @ place + 1) * 16 - 1) / 2  # in cells of the candidate
            seen, norm = torch.zeros(8), 0.0
            for j in range(16):
                for i in range(16):
                    share = max(0, 1 - abs(float(u) - i)) * max(0, 1 - abs(float(v) - j))
                    seen += share * candidate[:, j, i]
                    norm += share * float(candidate[:, j, i].norm())
            weight = norm * float(sample[:, y, x].norm())
            total += weight * float(F.cosine_similarity(sample[:, y, x], seen, dim=0)) if norm else 0.0
            weights += weight
    assert found == pytest.approx(total / weights, abs=1e-4)


def test_the_vote_is_the_best_warp_of_a_loop() -> None:
    sample, candidates = maps(1)[0], maps(3, seed=1)
    values, which = vote(sample[None], candidates[None])

    def coarse(one: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            F.normalize(F.avg_pool2d(one[None], 16 // COARSE), dim=1)[0],
            F.avg_pool2d(one.norm(dim=0)[None, None], 16 // COARSE)[0, 0],
        )

    (ours, weight), warps = coarse(sample), all_warps(CPU)
    for place, candidate in enumerate(candidates):
        theirs, _ = coarse(candidate)
        both = torch.cat([theirs, torch.ones(1, COARSE, COARSE)])  # and what lies inside
        found = []
        for warp in warps:
            where = F.affine_grid(warp[None], [1, 1, COARSE, COARSE], align_corners=False)
            seen = F.grid_sample(both[None], where, align_corners=False)[0]
            inside = (seen[-1] * weight).sum()
            alike = ((ours * seen[:-1]).sum(0) * weight).sum() / inside
            found.append(float(alike) if inside >= LEAST_INSIDE * weight.sum() else -math.inf)
        assert float(values[0, place]) == pytest.approx(max(found), abs=1e-4)
        assert found[int(which[0, place])] == pytest.approx(max(found), abs=1e-4)


def test_the_same_picture_is_wholly_alike() -> None:
    stored = maps(5)
    alike = alike_under_warps(stored, stored[None].expand(5, -1, -1, -1, -1))
    torch.testing.assert_close(alike.diagonal(), torch.ones(5), rtol=0, atol=1e-4)
    assert (alike - torch.eye(5)).max() < 0.6


@pytest.mark.parametrize("which", range(0, 490, 61))
def test_a_copy_is_found_under_every_warp(which: int) -> None:
    stored = maps(6, weighted=False)
    copies = warped(stored, all_warps(CPU)[which])
    alike = alike_under_warps(copies, stored[None].expand(6, -1, -1, -1, -1))
    assert alike.diagonal().min() > 0.7
    assert (alike - 2 * torch.eye(6)).max() < 0.4


def test_a_warp_between_those_that_are_voted_on_is_met_more_closely() -> None:
    stored = maps(6, weighted=False)
    between = torch.tensor([[0.85, 0.0, 0.06], [0.0, 0.85, -0.06]])
    copies = warped(stored, between)
    alike = alike_under_warps(copies, stored[:, None])[:, 0]
    voted = all_warps(CPU)[vote(copies, stored[:, None])[1][:, 0]]
    plainly = alike_under(copies, stored, voted[:, None])[:, 0]
    assert (alike >= plainly).all() and (1 - alike).mean() < 0.75 * (1 - plainly).mean()


def test_a_deformed_likeness_is_that_of_the_place_around_which_all_is_most_alike() -> None:
    """Against loops: each cell takes the shift, of 25 in half cells, under which its surroundings agree best."""
    sample, candidate = maps(2)
    warp = all_warps(CPU)[333]
    found = float(alike_deformed(sample[None], candidate[None], warp[None]))
    shifts = [(y / 2, x / 2) for y in range(-2, 3) for x in range(-2, 3)]
    cosines, weights = torch.zeros(25, 16, 16), torch.zeros(16, 16)
    given = torch.cat([candidate, candidate.norm(dim=0, keepdim=True)])[None]
    for n, (dy, dx) in enumerate(shifts):
        moved = warp.clone()
        moved[:, 2] += warp[:, :2] @ torch.tensor([dx, dy]) * 2 / 16
        seen = F.grid_sample(
            given, F.affine_grid(moved[None], [1, 1, 16, 16], align_corners=False), align_corners=False
        )[0]
        cosines[n] = F.cosine_similarity(sample, seen[:8], dim=0)
        if (dy, dx) == (0, 0):
            weights = sample.norm(dim=0) * seen[8]
    total, reach = 0.0, STIFFNESS // 2
    for y in range(16):
        for x in range(16):
            around = cosines[:, max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]
            total += float(cosines[int(around.mean((1, 2)).argmax()), y, x] * weights[y, x])
    assert found == pytest.approx(total / float(weights.sum()), abs=1e-4)


def test_a_picture_whose_parts_moved_is_more_alike_where_it_is_deformed_than_a_stranger_becomes() -> None:
    stored = maps(6, weighted=False)
    place = F.affine_grid(torch.eye(2, 3).expand(6, 2, 3), [6, 1, 16, 16], align_corners=False)
    moved = place + 0.1 * torch.stack([torch.sin(3 * place[..., 1]), torch.cos(3 * place[..., 0])], -1)
    samples = F.normalize(F.grid_sample(stored, moved, padding_mode="reflection", align_corners=False), dim=1)
    everyone = stored[None].expand(6, -1, -1, -1, -1)
    rigid, deformed = (alike_under_warps(samples, everyone, deformed=one) for one in (False, True))
    own = torch.eye(6).bool()
    gained = deformed - rigid
    assert gained[own].min() > 0.03 and gained[own].mean() > 1.5 * gained[~own].mean()
    assert deformed.max() <= 1


def test_descriptors_learn_through_a_deformation() -> None:
    stored, samples = maps(4), maps(4, seed=2).requires_grad_(True)
    warps = all_warps(CPU)[[3, 100, 250, 400]]
    alike = alike_deformed(samples, stored, warps)
    (gradient,) = torch.autograd.grad(alike.sum(), samples)
    better = alike_deformed((samples + 0.5 * gradient).detach(), stored, warps)
    assert (better > alike).all()


def test_cells_without_weight_do_not_count() -> None:
    sample, candidate = maps(2, weighted=False)
    torn = candidate.clone()
    torn[:, :6] = sample[:, :6]
    weight = torch.ones(16, 1)
    weight[6:] = 1e-4
    as_it_is = torch.tensor([[[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]])
    whole = alike_under(sample[None], torn[None], as_it_is)
    assert alike_under((sample * weight)[None], torn[None], as_it_is) > 0.99 > whole


def test_gradients_can_be_taken_after_a_filter_was_used() -> None:
    matching.all_warps.cache_clear()
    matching._votes.cache_clear()
    stored = maps(3)
    with torch.inference_mode():
        alike_under_warps(stored, stored[:, None])
    learned = stored.clone().requires_grad_(True)
    alike_under_warps(learned, stored[:, None]).sum().backward()
    assert learned.grad is not None and learned.grad.abs().max() > 0


def test_the_loss_asks_each_copy_to_be_most_like_its_own_image() -> None:
    stored = maps(12)
    copies, everyone = warped(stored, all_warps(CPU)[200]), torch.ones(12, dtype=torch.bool)
    who = torch.arange(12)
    right = matched(copies, stored, who, everyone, 0.05)
    wrong = matched(copies.roll(1, 0), stored, who, everyone, 0.05)
    assert right.shape == (12,) and right.max() < 0.1 * wrong.min()
    mere = matched(copies, stored, who, ~everyone, 0.05)
    torch.testing.assert_close(mere, 0.3 * right)


def test_images_of_one_identity_are_no_wrong_candidates() -> None:
    stored = maps(3).requires_grad_(True)
    copies, everyone = warped(stored.detach(), all_warps(CPU)[200]), torch.ones(3, dtype=torch.bool)
    alone = matched(copies, stored, torch.zeros(3, dtype=torch.long), everyone, 0.05)
    torch.testing.assert_close(alone, torch.zeros(3))
    (gradient,) = torch.autograd.grad(alone.sum(), stored)
    assert gradient.isfinite().all() and not gradient.any()
    two = matched(copies, stored, torch.tensor([0, 0, 1]), everyone, 0.05)
    (gradient,) = torch.autograd.grad(two[0], stored)
    assert two.isfinite().all() and gradient[1].any() == gradient[2].any()  # among all, not among its own
    pair = matched(copies[[0, 2]], stored[[0, 2]], torch.tensor([0, 1]), everyone[:2], 0.05)
    torch.testing.assert_close(two[2:], pair[1:], rtol=1e-3, atol=1e-3)


def test_descriptors_that_follow_the_losss_gradient_find_their_images_better() -> None:
    stored, everyone = maps(8), torch.ones(8, dtype=torch.bool)
    copies = warped(stored, all_warps(CPU)[200]) + 0.9 * maps(8, seed=3)
    learned = stored.clone().requires_grad_(True)
    who = torch.arange(8)
    before = matched(copies, stored, who, everyone, 0.5).sum()
    for _ in range(10):
        (gradient,) = torch.autograd.grad(matched(copies, learned, who, everyone, 0.5).sum(), learned)
        learned = (learned - 3.0 * gradient).detach().requires_grad_(True)
    assert matched(copies, learned, who, everyone, 0.5).sum() < 0.9 * before


@pytest.mark.parametrize("deformed", [False, True])
def test_groups_at_once_cost_what_they_cost_one_by_one(deformed: bool) -> None:
    stored = maps(12).requires_grad_(True)
    copies = warped(stored.detach(), all_warps(CPU)[200]) + 0.9 * maps(12, seed=3)
    who, same_image = torch.arange(12), torch.arange(12) % 3 > 0
    who[1], who[5] = 0, 0  # one in its group, one in another
    given = (copies, stored, who, same_image)
    at_once = matched(*given, 0.05, 4, deformed)
    parts = zip(*(one.split(4) for one in given), strict=True)
    one_by_one = torch.cat([matched(*part, 0.05, deformed=deformed) for part in parts])
    torch.testing.assert_close(at_once, one_by_one)
    gradients = [torch.autograd.grad(loss.sum(), stored)[0] for loss in (at_once, one_by_one)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.fixture(params=[torch.bfloat16, torch.float64], ids=str)
def default_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """One to set in the test, which begins and leaves with nothing kept."""
    before = torch.get_default_dtype()
    forget()
    try:
        yield request.param
    finally:
        torch.set_default_dtype(before)
        forget()


def forget() -> None:
    """What is made once and kept for the life of the process."""
    for kept in (matching.all_warps, matching._votes, alignment._grids):
        kept.cache_clear()


def likenesses(stored: torch.Tensor) -> list[torch.Tensor]:
    everyone = stored[None].expand(len(stored), *stored.shape)
    under_warps = [alike_under_warps(stored, everyone, deformed) for deformed in (False, True)]
    return [*under_warps, aligned_similarity(stored[0], stored)]


def test_likeness_does_not_depend_on_torchs_default_dtype(default_dtype: torch.dtype) -> None:
    stored = maps(3)
    torch.set_default_dtype(default_dtype)
    found = likenesses(stored)
    torch.set_default_dtype(torch.float32)
    later = likenesses(stored)  # by what was kept
    forget()
    for one, kept, expected in zip(found, later, likenesses(stored), strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, expected) and torch.equal(kept, expected)


def test_likeness_does_not_depend_on_torchs_default_device() -> None:
    stored = maps(3)
    forget()
    with torch.device("meta"):
        found = likenesses(stored)
    for one, expected in zip(found, likenesses(stored), strict=True):
        assert torch.equal(one, expected)
