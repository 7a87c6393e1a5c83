"""Every baseline: what it keeps, that its search is exact, and its similarity against a naive reference."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lcmem_filter.baselines import BASELINES, Searcher, make_baseline
from lcmem_filter.baselines.lcmem import LCMem
from lcmem_filter.baselines.lcmem_without_warps import LCMemWithoutWarps
from lcmem_filter.errors import ArtifactNotFoundError, LcmemFilterError, MissingExtraError
from lcmem_filter.head import LCMemHead
from lcmem_filter.images import to_pixels
from lcmem_filter.index import MemorizationIndex
from lcmem_filter.latents import canonical
from lcmem_filter.verification import score_latents

from .makers import MAKERS, SIDE
from tests.index.material import build, pictures, saved_encoder
from tests.tiny import picture, tiny_vae

COUNT = 9


def make(name: str, folder: Path) -> Any:
    try:
        return MAKERS[name](folder)
    except MissingExtraError as error:
        pytest.skip(str(error))


def images_for(baseline: Any, count: int = COUNT) -> torch.Tensor:
    if baseline.sees == "pixel":
        return torch.stack([to_pixels(picture(seed), SIDE) for seed in range(count)])
    coarse = torch.randn(count, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    return canonical(coarse, 16)


def naive(baseline: Any, asked: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Every pair's similarity (B, N), one at a time; as a whole shortlist where scores are relative to it."""
    if isinstance(baseline, LCMem | LCMemWithoutWarps):
        return torch.cat([baseline.similarity(a[None], kept[None]) for a in asked])
    return torch.stack(
        [torch.stack([baseline.similarity(a[None], b[None, None])[0, 0] for b in kept]) for a in asked]
    )


def test_every_baseline_is_tested():
    assert set(MAKERS) == set(BASELINES)


@pytest.mark.parametrize("name", BASELINES)
def test_search_finds_what_a_naive_loop_finds(name, tmp_path):
    baseline = make(name, tmp_path)
    images = images_for(baseline)
    kept = baseline.embed(images)
    assert (
        kept.dtype == torch.float32 and kept.ndim == 2 and len(kept) == COUNT and torch.isfinite(kept).all()
    )
    draw = torch.Generator().manual_seed(0)
    asked = baseline.embed(images[:5] + 0.02 * torch.randn(images[:5].shape, generator=draw))
    every = naive(baseline, asked, kept)
    found = Searcher(baseline, kept).search(asked, 4)
    best, rows = every.sort(1, descending=True)
    torch.testing.assert_close(found.similarity, best[:, :4], rtol=0, atol=2e-5)
    clear = best[:, 0] - best[:, 1] > 1e-4
    assert torch.equal(found.rows[clear, 0], rows[clear, 0])
    torch.testing.assert_close(every.gather(1, found.rows), found.similarity, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", BASELINES)
def test_a_copy_is_found_first_unless_left_out(name, tmp_path):
    baseline = make(name, tmp_path)
    kept = baseline.embed(images_for(baseline))
    search = Searcher(baseline, kept)
    own = torch.arange(COUNT)
    found = search.search(kept, 2)
    tied = found.similarity[:, 0] - found.similarity[:, 1] < 1e-5
    assert (found.rows[:, 0] == own)[~tied].all() and (~tied).any()
    without = search.search(kept, COUNT - 1, but=own)
    assert not (without.rows == own[:, None]).any() and torch.isfinite(without.similarity).all()


@pytest.mark.parametrize("name", BASELINES)
def test_what_is_kept_does_not_depend_on_the_batch(name, tmp_path):
    baseline = make(name, tmp_path)
    images = images_for(baseline, 3)
    single = torch.cat([baseline.embed(image[None]) for image in images])
    torch.testing.assert_close(baseline.embed(images), single, rtol=0, atol=2e-5)


def pair(baseline: Any) -> tuple[torch.Tensor, float]:
    images = images_for(baseline, 2)
    kept = baseline.embed(images)
    return images, float(baseline.similarity(kept[:1], kept[1:][None])[0, 0])


def test_mse_against_a_loop():
    images, found = pair(make_baseline("mse", side=SIDE))
    a, b = (images / 2 + 0.5).numpy()
    total = sum((float(x) - float(y)) ** 2 for x, y in zip(a.ravel(), b.ravel(), strict=True))
    assert found == pytest.approx(-total / a.size, abs=1e-6)


def test_ncc_against_a_loop():
    images, found = pair(make_baseline("ncc", side=SIDE))
    a, b = (images / 2 + 0.5).double().numpy()
    top = left = right = 0.0
    for channel in range(3):
        for x, y in zip(a[channel].ravel(), b[channel].ravel(), strict=True):
            dx, dy = x - a[channel].mean(), y - b[channel].mean()
            top, left, right = top + dx * dy, left + dx * dx, right + dy * dy
    assert found == pytest.approx(top / math.sqrt(left * right), abs=1e-5)


def test_ssim_against_a_loop(tmp_path):
    images, found = pair(make("ssim", tmp_path))
    a, b = (
        np.pad(one, ((0, 0), (5, 5), (5, 5)), mode="reflect") for one in (images / 2 + 0.5).double().numpy()
    )
    taps = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(taps, taps) / taps.sum() ** 2
    values = []
    for channel in range(3):
        for top in range(SIDE):
            for left in range(SIDE):
                x, y = (one[channel, top : top + 11, left : left + 11] for one in (a, b))
                mx, my = (window * x).sum(), (window * y).sum()
                vx, vy = (window * x * x).sum() - mx**2, (window * y * y).sum() - my**2
                both = (window * x * y).sum() - mx * my
                c1, c2 = 0.01**2, 0.03**2
                values.append((2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    assert found == pytest.approx(np.mean(values), abs=1e-4)


def test_perceptual_hash_against_hamming_distance(tmp_path):
    images, found = pair(make("perceptual_hash", tmp_path))
    import imagehash

    a, b = (
        imagehash.phash(Image.fromarray(((one / 2 + 0.5) * 255).round().byte().permute(1, 2, 0).numpy()), 16)
        for one in images
    )
    assert found == pytest.approx(1 - 2 * (a - b) / 256, abs=1e-6)


def test_raw_latents_against_correlations():
    images, found = pair(make_baseline("raw_latents"))
    a, b = images.double().numpy()
    expected = np.mean([np.corrcoef(a[c].ravel(), b[c].ravel())[0, 1] for c in range(4)])
    assert found == pytest.approx(expected, abs=1e-5)


def test_aligned_latents_see_through_a_small_shift_and_a_flip():
    still = images_for(make_baseline("raw_latents"), 3)
    moved = canonical(torch.roll(still, 1, 3).flip(3), 16)
    raw, aligned = (make_baseline(name) for name in ("raw_latents", "aligned_latents"))
    for baseline, low, high in ((raw, -1.0, 0.6), (aligned, 0.8, 1.0)):
        found = baseline.similarity(baseline.embed(moved), baseline.embed(still)[:, None])
        assert ((found > low) & (found < high)).all(), found


def test_lcmem_is_the_filters_statistic(tmp_path):
    index = build(tmp_path)
    stored = index.latents(torch.arange(len(index)))
    asked = canonical(
        stored[:4] + 0.3 * torch.randn(stored[:4].shape, generator=torch.Generator().manual_seed(0)), 16
    )
    baseline = make_baseline("lcmem", head=index.head)
    found = Searcher(baseline, baseline.embed(stored)).search(baseline.embed(asked), 1)
    expected = torch.tensor([one.score for one in score_latents(index, asked, "sd")])
    torch.testing.assert_close(found.similarity[:, 0], expected, rtol=0, atol=2e-3)  # the index keeps float16


def test_lcmem_is_the_filters_statistic_where_identities_are_told(tmp_path):
    pictures(tmp_path / "train", range(20), identities=2)
    index = build(tmp_path)
    stored = index.latents(torch.arange(len(index)))
    noise = torch.randn(stored.shape, generator=torch.Generator().manual_seed(0))
    asked = canonical(stored + 0.3 * noise, 16)
    baseline = make_baseline("lcmem", head=index.head)
    kept = baseline.embed(stored)
    found = [
        Searcher(baseline, one).search(baseline.embed(asked), 1).similarity[:, 0]
        for one in (kept, baseline.told(kept, index.identities))
    ]
    expected = torch.tensor([one.score for one in score_latents(index, asked, "sd")])
    torch.testing.assert_close(found[1], expected, rtol=0, atol=2e-3)
    assert (found[1] - found[0]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("matched", "deformed", "trunk", "kind"),
    [
        (("sd", "other"), False, "convnext", "descriptors"),
        (("sd", "other"), True, "convnext", "deformed descriptors"),
        (("sd",), False, "convnext", "tokens"),
        (("sd",), False, "resnet", "tokens"),
    ],
)
def test_lcmem_is_the_filters_statistic_between_spaces(tmp_path, matched, deformed, trunk, kind):
    torch.manual_seed(0)
    options = {"match_dim": 8, "match_spaces": list(matched), "match_deformed": deformed, "trunk_type": trunk}
    head = LCMemHead.create("micro", {"sd": 4, "other": 6}, token_dim=8, **options)
    head.add_probes("sd", tiny_vae())
    source, encoder = pictures(tmp_path / "train", range(20)), saved_encoder(tmp_path)
    index = MemorizationIndex.build(source, encoder, head, tmp_path / "index", resolution=32, progress=False)
    asked = canonical(torch.randn(3, 6, 16, 16, generator=torch.Generator().manual_seed(0)), 16)
    baseline, of_index = LCMem(head, "other", "sd"), LCMem(head, "sd")
    assert (baseline.kind, of_index.kind) == (kind, "deformed descriptors" if deformed else "descriptors")
    stored = of_index.embed(index.latents(torch.arange(len(index))))
    found = Searcher(baseline, stored).search(baseline.embed(asked), 1)
    expected = torch.tensor([one.score for one in score_latents(index, asked, "other")])
    torch.testing.assert_close(found.similarity[:, 0], expected, rtol=0, atol=2e-3)


def test_masked_autoencoder_masks_nothing(tmp_path):
    baseline = make("mae", tmp_path)
    images = images_for(baseline, 1)
    assert torch.equal(baseline.embed(images), baseline.embed(images))
    assert baseline._forward(images).last_hidden_state.shape[1] == 1 + (SIDE // 8) ** 2


def test_random_weights_leave_the_random_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    make_baseline("random_head", size="micro")
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("ssim", "torchmetrics.functional.image"),
        ("perceptual_hash", "imagehash"),
        ("inception", "timm"),
        ("efficientnet_lite0", "efficientnet_lite_pytorch"),
        ("dlib_faces", "dlib"),
    ],
)
def test_a_missing_extra_is_told(name, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lcmem-filter\[bench\]'"):
        make_baseline(name)


NEEDS_WEIGHTS = ["clip", "dinov2", "dinov3", "mae", "data2vec", "convnext", "sscd"]
NEEDS_WEIGHTS += ["packhaeuser", "dar", "dar_unsupervised"]


@pytest.mark.parametrize("name", NEEDS_WEIGHTS)
def test_missing_weights_are_told(name, tmp_path):
    with pytest.raises(ArtifactNotFoundError, match=r"weights=\.\.\."):
        make_baseline(name)
    with pytest.raises(ArtifactNotFoundError, match=re.escape(str(tmp_path))):
        make_baseline(name, weights=tmp_path)


def test_a_file_that_is_no_torchscript(tmp_path):
    (tmp_path / "sscd.pt").write_bytes(b"no")
    with pytest.raises(ArtifactNotFoundError, match="no TorchScript"):
        make_baseline("sscd", weights=tmp_path / "sscd.pt")


def test_an_unknown_baseline():
    with pytest.raises(LcmemFilterError, match="no baseline 'psnr'; choose one of mse, ncc"):
        make_baseline("psnr")
