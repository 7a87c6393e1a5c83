"""Training on views that are augmented and encoded where the head is trained: anew for every batch, or once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from lcmem_filter.errors import ArtifactError, ConfigurationError
from lcmem_filter.head import LCMemHead
from lcmem_filter.latents import Encoder, canonical
from lcmem_filter.training import TrainingConfig, train_head
from lcmem_filter.training.data import drawn_ahead, sampler_for
from lcmem_filter.training.fresh import DeviceViews, FreshViews
from lcmem_filter.training.prepare import prepare_data
from lcmem_filter.training.trainer import _Run
from lcmem_filter.training.views import generator_for
from lcmem_filter.training.weights import head_to_train

from tests.tiny import tiny_vae
from tests.training.pictures import QUICK, Pictures

SOURCES: list[Any] = [Pictures("twice", 8, 2), Pictures("once", 10, 1, first=100, broken=(3,))]
FRESH = replace(QUICK, fresh_views=True, visit_views=1, strong_views=2, evaluate_every=12)
ONCE = replace(FRESH, fresh_views=False, device_views=True)


def encoders(*spaces: str) -> dict[str, Encoder]:
    return {space: Encoder(tiny_vae(seed=seed), space) for seed, space in enumerate(spaces)}


def prepared(cache: Path, config: TrainingConfig, *spaces: str) -> tuple[Any, Any, dict[str, Encoder]]:
    made = encoders(*spaces)
    train, held = prepare_data(SOURCES, (), made, config, cache, Accelerator(), progress=False)
    return train, held, made


def fresh_of(cache: Path, *spaces: str) -> tuple[Any, FreshViews]:
    config = replace(FRESH, validation_fraction=0.1).for_stage(3)
    train, _, made = prepared(cache, config, *spaces)
    return train, FreshViews(train, SOURCES, made, config.resolution, 16, torch.device("cpu"))


def test_clean_views_alone_are_cached_and_all_kinds_are_drawn_from(tmp_path: Path) -> None:
    train, held, _ = prepared(tmp_path, FRESH.for_stage(3), "sd")
    assert held.views == ("clean", "mild", "strong") and held.latents["sd"].shape[1] == 3
    assert train.views == ("clean", "light", "visit", "mild", "strong", "strong", "upside-down")
    assert train.latents["sd"].shape[1] == 1
    cached, _, _ = prepared(tmp_path, replace(FRESH, fresh_views=False).for_stage(3), "sd")
    assert cached.views == train.views and cached.latents["sd"].shape[1] == len(train.views)


class Pooled:
    """Stands for an ``Encoder``: what lies where stays there, also upside down."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(pixels, 2)


def test_views_are_of_their_images_and_clean_ones_as_they_are_cached(tmp_path: Path) -> None:
    config = replace(FRESH, validation_fraction=0.1).for_stage(3)
    train, _, _ = prepared(tmp_path, config, "sd")
    clean = torch.rand(len(train), 1, 3, 16, 16).half()
    train = replace(train, latents={"sd": clean, "other": clean})
    pooled: Any = {"sd": Pooled(), "other": Pooled()}
    fresh = FreshViews(train, SOURCES, pooled, config.resolution, 16, torch.device("cpu"))
    images = np.tile(np.arange(len(train)).repeat(len(train.views)), 4)
    views = np.tile(np.arange(len(train.views)), 4 * len(train))
    made = fresh.latents("other", images, views, generator_for(1))
    assert torch.equal(made[views == 0], clean[:, 0].float().repeat(4, 1, 1, 1)) and made.isfinite().all()
    seen = canonical(Pooled().encode(fresh.pixels.float() / 127.5 - 1), 16)
    unit = [torch.nn.functional.normalize(one.flatten(1), dim=1) for one in (made, seen)]
    alike = unit[0] @ unit[1].T
    for view, kind in enumerate(train.views[1:], 1):
        of_kind, itself = alike[views == view], torch.eye(len(train)).bool().repeat(4, 1)
        assert of_kind[itself].mean() > of_kind[~itself].mean() + 0.15, kind


def test_views_that_an_encoder_makes_nothing_of_give_way_to_clean_ones(tmp_path: Path) -> None:
    train, _, _ = prepared(tmp_path, FRESH.for_stage(3), "sd")

    class Overflowing(Pooled):
        def encode(self, pixels: torch.Tensor) -> torch.Tensor:
            made = super().encode(pixels)
            made[0] = torch.inf
            return torch.cat([made, made[:, :1]], 1)

    broken: Any = {"sd": Overflowing()}
    fresh = FreshViews(train, SOURCES, broken, FRESH.resolution, 16, torch.device("cpu"))
    made = fresh.latents("sd", np.array([4, 5]), np.array([1, 1]), generator_for(1))
    clean = train.latents["sd"][[4, 5], 0].float()
    assert torch.equal(made[0], clean[0]) and not torch.equal(made[1], clean[1]) and made.isfinite().all()


def test_what_is_drawn_depends_on_the_generator_and_differs_from_batch_to_batch(tmp_path: Path) -> None:
    _, fresh = fresh_of(tmp_path, "sd")
    images, views = np.array([0, 1, 2, 3]), np.array([0, 3, 4, 6])
    first, again, other = (fresh.latents("sd", images, views, generator_for(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.equal(first[0], other[0]) and not any(map(torch.equal, first[1:], other[1:]))


def test_views_that_are_drawn_once_stay_and_are_those_that_would_be_drawn(tmp_path: Path) -> None:
    train, fresh = fresh_of(tmp_path, "sd", "b")
    once = DeviceViews(fresh, generator_for(1))
    images, views = (grid.flatten() for grid in np.mgrid[: len(train), : len(train.views)])
    for space in ("sd", "b"):
        kept = once.kept[space]
        assert kept.dtype == torch.float16 and kept.shape[:2] == (len(train), len(train.views))
        assert torch.equal(kept[:, 0], train.latents[space][:, 0].half())
        found = once.latents(space, images, views, generator_for(2))
        assert torch.equal(found, kept.flatten(0, 1).float()) and found.isfinite().all()
        assert not any(map(torch.equal, kept[:, 4], kept[:, 5]))  # two views of one kind
    draw, every = generator_for(1), np.arange(len(train))
    for view in range(1, len(train.views)):
        drawn = fresh.latents("sd", every, np.full(len(every), view), draw)
        assert torch.equal(once.kept["sd"][:, view], drawn.half())


@pytest.mark.parametrize("recipe", [FRESH, ONCE])
@pytest.mark.parametrize("stages", [(1,), (2,), (1, 2, 3)])
def test_a_run_on_such_views_learns(tmp_path: Path, stages: Any, recipe: TrainingConfig) -> None:
    losses: list[float] = []
    config = replace(recipe, steps=24, stage2_steps=24, stage3_steps=12, stage3_batch_pairs=8, image_views=1)
    with pytest.MonkeyPatch.context() as patch:
        step = _Run._step

        def kept(self: _Run, number: int, *rest: Any) -> float:
            losses.append(step(self, number, *rest))
            return losses[-1]

        patch.setattr(_Run, "_step", kept)
        head = train_head(
            SOURCES, encoders("sd"), tmp_path, replace(config, augment=False), stages=stages, progress=False
        )
    assert (head.dense is not None) == (3 in stages)
    first = losses[:24]
    assert np.mean(first[-6:]) < np.mean(first[:6])


@pytest.mark.parametrize("recipe", [FRESH, ONCE])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path, stage: Any, recipe: TrainingConfig) -> None:
    config = replace(recipe, evaluate_every=4, steps=8, stage2_steps=8, stage3_steps=8, stage3_batch_pairs=8)
    given: Any = {"stages": (stage,), "progress": False}
    if stage == 3:
        torch.manual_seed(0)
        given["initial"] = LCMemHead.create("micro", {"sd": 4})
    whole = train_head(SOURCES, encoders("sd"), tmp_path / "whole", config, **given)
    step = _Run._step

    def killed(self: _Run, number: int, *rest: Any) -> float:
        if number == 6:
            raise KeyboardInterrupt
        return step(self, number, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Run, "_step", killed)
        with pytest.raises(KeyboardInterrupt):
            train_head(SOURCES, encoders("sd"), tmp_path / "killed", config, **given)
    again = train_head(SOURCES, encoders("sd"), tmp_path / "killed", config, **given)
    assert again.fingerprint == whole.fingerprint
    losses = [
        [entry["loss"] for entry in json.loads((tmp_path / name / "training.json").read_text())["history"]]
        for name in ("whole", "killed")
    ]
    assert len(losses[0]) == 2 and losses[0] == losses[1]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stage", [1, 2])
def test_pairs_are_the_same_whoever_draws_them(tmp_path: Path, workers: int, stage: Any) -> None:
    config = FRESH.for_stage(stage)
    train, _, _ = prepared(tmp_path, config, "sd")
    sampler = sampler_for(train, replace(config, hard_negatives=1.0))
    sampler.mine(torch.nn.functional.normalize(torch.randn(len(train), 8), dim=1))
    for step, pairs in zip(range(3, 7), drawn_ahead(sampler, range(3, 7), workers), strict=True):
        wanted = sampler.draw(step)
        for name in ("a", "b", "view_a", "view_b", "identities"):
            assert np.array_equal(getattr(pairs, name), getattr(wanted, name))


def test_mistakes_are_told(tmp_path: Path) -> None:
    for recipe, name in ((FRESH, "fresh_views"), (ONCE, "device_views")):
        with pytest.raises(
            ConfigurationError, match=f"{name} are of one resolution, got further_resolutions"
        ):
            replace(recipe, further_resolutions=(64,))
        with pytest.raises(ConfigurationError, match=f"{name} need a resolution .* multiple of 16, got 40"):
            replace(recipe, resolution=40)
    with pytest.raises(ConfigurationError, match="leave one out"):
        replace(FRESH, device_views=True)
    for options in ({"deformed": True}, {"match_width": 8}):
        with pytest.raises(ConfigurationError, match="of stage 3, which is not among the stages"):
            train_head(SOURCES, encoders("sd"), tmp_path, replace(QUICK, **options), progress=False)
    with pytest.raises(ConfigurationError, match="keep_spaces needs a head to go on from"):
        train_head(SOURCES, encoders("sd"), tmp_path, replace(QUICK, keep_spaces=True), progress=False)
    assert not any(tmp_path.iterdir())


def test_the_trunk_alone_is_trained_where_spaces_are_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    initial = LCMemHead.create("micro", {"sd": 4, "other": 4}, match_dim=8, match_spaces=["sd", "other"])
    config = replace(QUICK, keep_spaces=True, steps=4, evaluate_every=4)
    found = {"other in sd": {"mild_copies": {"overall": 1.0}, "same_identity": {"overall": None}}}
    other = {
        "encoder": {"name": "vae", "sha256": "0" * 64, "class": "AutoencoderKL"},
        "recipe": {"resolution": 32},
        "validation": found,
    }
    record = {"plan": {"config": QUICK.to_dict()}, "step": 9, "added_spaces": {"other": other}}
    head = train_head(
        SOURCES, encoders("sd"), tmp_path / "kept", config, initial=initial, record=record, progress=False
    )
    written = json.loads((tmp_path / "kept" / "training.json").read_text())
    assert (
        written["added_spaces"] == {"other": {**other, "validation": {}}}
        and "9 steps" in written["went_on_from"]
    )
    assert set(head.spaces) == set(initial.spaces) and head.has_descriptors("other")
    before, after = initial.state_dict(), head.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"trunk", "projection", "local"}
    with pytest.raises(ArtifactError, match="no stem for latent space 'new'"):
        train_head(SOURCES, encoders("sd", "new"), tmp_path / "new", config, initial=initial, progress=False)


def test_a_trunk_of_another_shape_is_drawn_on_the_stems_that_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    initial = LCMemHead.create(
        "small",
        {"sd": 4, "other": 4},
        match_dim=8,
        match_spaces=["sd", "other"],
        same_identity=0.3,
        embedding_weight=0.2,
    )
    config = replace(QUICK, size="resnet", keep_spaces=True, steps=2, evaluate_every=2)
    head = train_head(SOURCES, encoders("sd"), tmp_path / "head", config, initial=initial)
    told = capsys.readouterr().err
    assert -1 < told.index("the trunk is drawn anew") < told.index("encoding") < told.index("stage 1: ")
    assert "embeddings no longer count" in told
    card = (tmp_path / "head" / "README.md").read_text()
    assert "Went on from: a head without a record, in place of whose trunk another was drawn" in card
    again = LCMemHead.from_pretrained(tmp_path / "head")
    assert again.fingerprint == head.fingerprint and again.config.trunk_type == "resnet"
    assert again.config.same_identity == 0.3 and not again.config.embedding_weight and not again.has_tokens
    latents = torch.randn(3, 4, 16, 16)
    assert torch.equal(again.descriptors(latents, "other"), initial.descriptors(latents, "other"))
    before, after = initial.state_dict(), again.state_dict()
    kept = [name for name in before if name.split(".")[0] in ("stems", "probes", "dense")]
    assert kept and all(torch.equal(before[name], after[name]) for name in kept)
    assert after["trunk.encoder.stages.0.layers.0.layer.0.normalization.num_batches_tracked"] >= 2
    back = replace(config, keep_initial=0.5)
    with pytest.raises(ConfigurationError, match=r"keep_initial goes back .* of another shape"):
        train_head(SOURCES, encoders("sd"), tmp_path / "back", back, initial=initial, progress=False)
    tiny = replace(config, size="tiny")
    with pytest.raises(ArtifactError, match=r"'tiny' does not go with the stems .*grid 16, not 32.*96"):
        train_head(SOURCES, encoders("sd"), tmp_path / "tiny", tiny, initial=initial, progress=False)
    micro = LCMemHead.create("micro", {"sd": 4})
    with pytest.raises(ArtifactError, match=r"stem_channels 16, not 32; stems 32 wide, not 64"):
        train_head(SOURCES, encoders("sd"), tmp_path / "micro", config, initial=micro, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["head"]


@pytest.mark.parametrize("size", ["resnet", "small"])
def test_a_head_that_is_gone_on_from_stays_of_its_size_where_none_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: Any
) -> None:
    torch.manual_seed(0)
    initial = LCMemHead.create(size, {"sd": 4})
    config = replace(QUICK, size=None, steps=1, stage2_steps=1, evaluate_every=1)
    for name, kept in (("kept", True), ("alone", False)):
        config = replace(config, keep_spaces=kept)
        given: dict[str, Any] = {"stages": (1, 2), "initial": initial}
        head = train_head(SOURCES, encoders("sd"), tmp_path / name, config, **given)
        assert [one.shape for one in head.parameters()] == [one.shape for one in initial.parameters()]
        assert "drawn anew" not in capsys.readouterr().err
        assert f"| size | {size} |" in (tmp_path / name / "README.md").read_text()


def test_a_trunk_of_no_named_size_is_kept_where_none_is_named(tmp_path: Path) -> None:
    initial = LCMemHead.create("micro", {"sd": 4}, depths=(1, 2, 1))
    config = replace(QUICK, size=None, steps=1, evaluate_every=1)
    kept = replace(config, keep_spaces=True)
    head = train_head(SOURCES, encoders("sd"), tmp_path / "kept", kept, initial=initial, progress=False)
    assert head.config.depths == [1, 2, 1] and "| size |" not in (tmp_path / "kept" / "README.md").read_text()
    with pytest.raises(ArtifactError, match=r"another shape than one of size 'small'"):
        train_head(SOURCES, encoders("sd"), tmp_path / "a", config, initial=initial, progress=False)


def test_descriptors_of_another_width_are_drawn_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    initial = LCMemHead.create("micro", {"sd": 4}, match_dim=8, match_spaces=["sd"])
    config = replace(QUICK, stage3_steps=2, stage3_batch_pairs=8, match_dim=8, match_width=48, deformed=True)
    head = train_head(SOURCES, encoders("sd"), tmp_path, config, stages=(3,), initial=initial)
    assert head.dense is not None and head.dense.lateral.out_channels == 48
    assert "drawn anew" in capsys.readouterr().err
    again = LCMemHead.from_pretrained(tmp_path)
    assert again.config.match_width == 48 and again.config.match_deformed
    assert again.fingerprint == head.fingerprint


def test_descriptors_are_widened_without_a_change_of_what_they_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    initial = LCMemHead.create("micro", {"sd": 4}, match_dim=8, match_spaces=["sd"])
    assert initial.dense is not None
    for values in initial.dense.parameters():
        torch.nn.init.normal_(values, std=0.3)
    width, latents = initial.dense.lateral.out_channels, torch.randn(3, 4, 16, 16)
    recipe = replace(QUICK, match_dim=8, match_width=3 * width).for_stage(3)
    made = encoders("sd")
    wide, _ = head_to_train(recipe, {"sd": 4}, initial, made)
    assert wide.dense is not None and wide.dense.lateral.out_channels == 3 * width
    kernels = wide.dense.convolutions[1].weight.view(3, width, 3, width, 3, 3)
    assert len({float(part[0, 0, 1, 1].detach()) for part in kernels.transpose(1, 2).flatten(0, 1)}) == 9
    assert torch.allclose(wide.descriptors(latents, "sd"), initial.descriptors(latents, "sd"), atol=1e-5)
    torch.manual_seed(5)  # shares are drawn by the recipe's seed
    again, _ = head_to_train(recipe, {"sd": 4}, initial, made)
    assert again.fingerprint == wide.fingerprint
    config = replace(QUICK, stage3_steps=4, stage3_batch_pairs=8, match_dim=8, evaluate_every=4)
    on = train_head(SOURCES, made, tmp_path, config, stages=(3,), initial=wide)
    assert on.dense is not None and on.config.match_width == 3 * width  # which it keeps
    assert "drawn anew" not in capsys.readouterr().err


def test_the_first_space_is_drawn_as_often_as_it_should_be(tmp_path: Path) -> None:
    from lcmem_filter.training.batches import batch_of

    config = replace(FRESH, fresh_views=False, image_views=0, first_space=0.5)
    train, _, _ = prepared(tmp_path, config, "sd", "b", "c")
    pairs = sampler_for(train, config).draw(0)
    drawn = [
        space
        for step in range(150)
        for space in batch_of(pairs, slice(0, 8), train, config, Accelerator(), step, 0)[2]
    ]
    assert abs(drawn.count("sd") / len(drawn) - (0.5 + 0.5 / 3)) < 0.09
