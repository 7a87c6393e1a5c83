"""Views of latents."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from lcmem_filter.training.views import (
    augment_as_visit,
    augment_strongly,
    augment_upside_down,
    blurred,
    generator_for,
    half_formed,
    mirror_some,
    turn_groups,
    warp_elastically,
)


def latents(rows: int = 12) -> torch.Tensor:
    return torch.randn(rows, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.5


def test_half_formed_copies_keep_their_outlines_and_lose_their_detail() -> None:
    coarse = F.interpolate(latents(40)[:, :, :4, :4], (16, 16), mode="bicubic")
    given = coarse + 0.5 * latents(40)
    formed = half_formed(given, generator_for(0, "half"))
    cosines = F.cosine_similarity(formed.flatten(1)[:, None], coarse.flatten(1)[None], dim=-1)
    assert cosines.argmax(1).tolist() == list(range(40))

    def detail(values: torch.Tensor) -> torch.Tensor:
        return (
            (values - F.avg_pool2d(values, 3, 1, 1))[..., 1:-1, 1:-1] * (given - coarse)[..., 1:-1, 1:-1]
        ).sum()

    assert detail(formed) < 0.5 * detail(given)


def test_half_formed_copies_are_drawn_from_the_generator_and_change_their_share() -> None:
    given = latents(200)
    one, again = (half_formed(given, generator_for(1, "half"), share=0.3) for _ in range(2))
    torch.testing.assert_close(one, again, rtol=0, atol=0)
    changed = (one != given).flatten(1).any(1)
    assert 0.2 < changed.float().mean() < 0.4
    torch.testing.assert_close(half_formed(given, generator_for(1, "half"), share=0.0), given, rtol=0, atol=0)


def test_elastic_warps_move_what_is_smooth_a_little_and_leave_the_others_alone() -> None:
    along = torch.arange(16.0).expand(300, 1, 16, 16)
    one, again = (warp_elastically(along, generator_for(2, "warp"), most=1.5, share=0.4) for _ in range(2))
    torch.testing.assert_close(one, again, rtol=0, atol=0)
    moved = (one - along)[..., 4:12, 4:12]  # a ramp shows displacements in cells; its edges are reflected
    warped = moved.flatten(1).any(1)
    assert 0.3 < warped.float().mean() < 0.5
    assert 0.4 < float(moved[warped].std()) < 1.1  # drawn up to 1.5, less between the grid's points

    def together(rows: int) -> float:
        return float(
            torch.corrcoef(torch.stack([moved[warped, 0, 0, 0], moved[warped, 0, rows, rows]]))[0, 1]
        )

    assert together(1) > 0.9 and abs(together(7)) < 0.4  # smooth, and not one shift for all


def test_another_visit_moves_and_relights_a_picture_and_keeps_what_it_shows() -> None:
    noise = np.random.default_rng(0).random((9, 9, 3))
    picture = Image.fromarray((noise * 200 + 30).astype(np.uint8)).resize((96, 96), Image.Resampling.BICUBIC)
    visits = [augment_as_visit(picture, 64, generator_for(0, "visit", i)) for i in range(60)]
    assert visits[0].size == (64, 64)
    assert np.array_equal(visits[0], augment_as_visit(picture, 64, generator_for(0, "visit", 0)))
    given = np.asarray(picture.resize((64, 64)), dtype=float)[16:48, 16:48].ravel()
    alike = [np.corrcoef(np.asarray(v, dtype=float)[16:48, 16:48].ravel(), given)[0, 1] for v in visits]
    assert 0.4 < np.median(alike) < 0.97  # a picture like it, and not it
    bordered = [bool((np.asarray(v)[:, :2] == 0).all()) for v in visits]
    assert 0.1 < np.mean(bordered) < 0.5  # of one in three, those whose border is as wide
    assert np.std([np.asarray(v)[20:44, 20:44].mean() for v in visits]) > 8  # lit otherwise


def test_each_latent_is_blurred_by_its_own_gaussian() -> None:
    point = torch.zeros(2, 1, 17, 17)
    point[:, 0, 8, 8] = 1
    spread = blurred(point, torch.tensor([0.5, 1.2]), 4)
    for row, deviation in zip(spread[:, 0], (0.5, 1.2), strict=True):
        weights = [math.exp(-0.5 * (x / deviation) ** 2) for x in range(-4, 5)]
        line = torch.tensor(weights) / sum(weights)
        torch.testing.assert_close(row[4:13, 4:13], line[:, None] * line[None])
    torch.testing.assert_close(
        blurred(torch.ones(1, 3, 8, 8), torch.tensor([1.0]), 4), torch.ones(1, 3, 8, 8)
    )


def test_half_of_the_latents_are_mirrored() -> None:
    given = latents(200)
    found = mirror_some(given, generator_for(0, "mirror"))
    mirrored, kept = ((found == other).flatten(1).all(1) for other in (given.flip(-1), given))
    assert (mirrored | kept).all() and 70 < int(mirrored.sum()) < 130


def test_a_view_upside_down_is_a_strong_view_of_the_picture_upside_down() -> None:
    picture = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.4), 60).convert("RGB")
    turned = picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    found = augment_upside_down(picture, 32, generator_for("here"))
    assert found.tobytes() == augment_strongly(turned, 32, generator_for("here")).tobytes()
    assert found.tobytes() != augment_strongly(picture, 32, generator_for("here")).tobytes()


def test_half_of_the_groups_are_turned_upside_down_whole() -> None:
    given = latents(400)
    found = turn_groups(given, 4, generator_for(0, "turn"))
    turned, kept = ((found == other).flatten(1).all(1).view(-1, 4) for other in (given.flip(-2), given))
    assert (turned.all(1) | kept.all(1)).all() and 30 < int(turned.all(1).sum()) < 70
    assert (turn_groups(given[:10], 4, generator_for(0, "turn")) == found[:10]).all()
