"""The head: embeddings, scores, saving, and refusing what it was not made for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lcmem_filter.branches import POOLINGS
from lcmem_filter.errors import (
    ArtifactError,
    ArtifactNotFoundError,
    ConfigurationError,
    CorruptArtifactError,
    LatentSpaceError,
)
from lcmem_filter.head import SIZES, LCMemHead
from lcmem_filter.shipped import shipped_heads
from lcmem_filter.training import TrainingConfig
from lcmem_filter.training.card import write_card
from lcmem_filter.training.weights import with_descriptors

from tests.tiny import tiny_vae, turned_vae


def tiny_head(seed: int = 0, **changes: Any) -> LCMemHead:
    torch.manual_seed(seed)
    return LCMemHead.create("micro", {"sd": 4, "sd3": 16}, **changes)


@pytest.fixture
def head() -> LCMemHead:
    return tiny_head()


def latents(rows: int = 3, channels: int = 4, side: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, channels, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", SIZES)
def test_sizes(size: Any) -> None:
    head = LCMemHead.create(size)
    with torch.no_grad():
        embeddings = head.embed(latents(2, side=64), "sd")
    assert embeddings.shape == (2, SIZES[size]["embedding_dim"]) and embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))
    norms = [
        module
        for module in head.modules()
        if isinstance(module, nn.LayerNorm) or "LayerNorm" in type(module).__name__
    ]
    assert norms and {module.eps for module in norms} == {1e-6}


def test_a_trunk_of_cells_sees_a_token_of_each() -> None:
    head = tiny_head(trunk_type="resnet")
    seen = []
    head.trunk.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    described = head.describe(latents(2), "sd")
    assert seen == [(2, 32, 16, 16)] and head.token_side == 16
    assert described.tokens is not None and described.tokens.shape == (2, 16 * 16, 16)
    assert tiny_head().token_side == 8


def test_a_trunk_that_counts_batches_is_kept_in_half_precision(tmp_path: Path) -> None:
    head = tiny_head(trunk_type="resnet").train()
    for seed in range(3):  # what is normalised by then is not what it was drawn with
        head(5 + latents(8, seed=seed), "sd")
    head.eval()
    head.half().save_pretrained(tmp_path)
    again = LCMemHead.from_pretrained(tmp_path)
    assert again.trunk.encoder.stages[0].layers[0].layer[0].normalization.num_batches_tracked == 3
    assert again.fingerprint == head.fingerprint
    expected = LCMemHead.from_pretrained(tmp_path).embed(latents(), "sd")
    torch.testing.assert_close(head.embed(latents(), "sd"), expected)
    assert not torch.allclose(expected, tiny_head(trunk_type="resnet").embed(latents(), "sd"), atol=0.05)


def test_tiny_is_the_papers_and_small_is_small() -> None:
    tiny, small = LCMemHead.create("tiny"), LCMemHead.create("small")
    assert tiny.embedding_dim == 512
    assert 27e6 < sum(p.numel() for p in tiny.parameters()) < 29e6
    assert sum(p.numel() for p in small.parameters()) < 2e6
    with torch.no_grad():
        features = tiny.features(latents(), "sd")
    assert features.min() > 0 and features.max() < 1


def test_unknown_sizes_and_shares_beyond_one_are_refused() -> None:
    for name in ("same_identity", "embedding_weight"):
        with pytest.raises(ConfigurationError, match=f"{name} lies between 0 and 1, got 20"):
            LCMemHead.create("micro", **{name: 20})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one of tiny, small, small32, resnet, micro, got 'huge'"):
        LCMemHead.create("huge")  # type: ignore[arg-type]


def test_embeddings_ignore_scale_and_shift_of_latents(head: LCMemHead) -> None:
    raw = latents(side=24)
    scaled = (
        raw * torch.tensor([0.18215, 2, 0.5, 1])[:, None, None] + torch.tensor([1.0, 0, -3, 2])[:, None, None]
    )
    torch.testing.assert_close(head.embed(scaled, "sd"), head.embed(raw, "sd"), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        head.embed(head.canonical(raw, "sd"), "sd"), head.embed(raw, "sd"), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("pooling", [name for name in POOLINGS if name != "mean"])
def test_poolings_tell_more_than_the_mean_and_travel_with_the_head(pooling: str, tmp_path: Path) -> None:
    mean, head = tiny_head(), tiny_head(pooling=pooling)
    assert mean.fingerprint == tiny_head(pooling="mean").fingerprint != head.fingerprint
    pool = POOLINGS[pooling](3)
    uniform = torch.rand(2, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(2, 3, 4, 4)
    torch.testing.assert_close(pool(uniform), uniform[..., 0, 0])
    uneven = torch.cat([torch.zeros(1, 3, 4, 2), torch.ones(1, 3, 4, 2)], -1)
    with torch.no_grad():
        for parameter in pool.parameters():
            parameter.copy_(torch.full_like(parameter, 3.0))
    assert bool((pool(uneven) > 0.75).all())  # of which half is 1: the cells that stand out weigh more
    head.save_pretrained(tmp_path)
    loaded = LCMemHead.from_pretrained(tmp_path)
    assert loaded.fingerprint == head.fingerprint
    torch.testing.assert_close(loaded.embed(latents(), "sd"), head.embed(latents(), "sd"), rtol=0, atol=0)
    head.embed(latents(), "sd").sum().backward()
    assert all(parameter.grad is not None for parameter in head.pool.parameters())


@torch.no_grad()
def test_embeddings_do_not_depend_on_the_batch(head: LCMemHead) -> None:
    whole = head.embed(latents(5), "sd")
    assert whole.std(0).max() > 1e-3
    for row in range(5):
        torch.testing.assert_close(
            head.embed(latents(5)[row : row + 1], "sd")[0], whole[row], rtol=0, atol=1e-5
        )


@torch.no_grad()
def test_embeddings_are_float32_whatever_surrounds_them(head: LCMemHead) -> None:
    expected = head.embed(latents(), "sd")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head.embed(latents(), "sd"), expected)
    assert head.embed(latents().half(), "sd").dtype == torch.float32
    rounded = tiny_head()
    rounded.load_state_dict({name: value.half().float() for name, value in head.state_dict().items()})
    assert torch.equal(head.half().embed(latents(), "sd"), rounded.embed(latents(), "sd"))


def test_embeddings_can_be_differentiated(head: LCMemHead) -> None:
    given = latents().requires_grad_()
    head.embed(given, "sd")[:, 0].sum().backward()
    assert given.grad is not None and given.grad.isfinite().all() and given.grad.abs().max() > 0


def test_verification_score(head: LCMemHead) -> None:
    a, b = (torch.rand(2, 5, 64, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    score = head.verification_score(a, b)
    weight, bias = head.fc_end.weight[0], head.fc_end.bias[0]
    expected = 1 / (1 + torch.exp(-(((a - b).abs() * weight).sum(-1) + bias)))
    torch.testing.assert_close(score, expected)
    torch.testing.assert_close(score, head.verification_score(b, a))
    torch.testing.assert_close(head.half().verification_score(a, b), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_saved_heads_load_again(head: LCMemHead, tmp_path: Path, dtype: torch.dtype) -> None:
    head.to(dtype).save_pretrained(tmp_path / "head")
    assert {path.suffix for path in (tmp_path / "head").iterdir()} >= {".json", ".safetensors"}
    loaded = LCMemHead.from_pretrained(tmp_path / "head")
    assert loaded.dtype == torch.float32 and not loaded.training
    assert loaded.spaces == ("sd", "sd3")
    for name, value in head.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.float()), name
    with torch.no_grad():
        assert torch.equal(loaded.embed(latents(), "sd"), head.embed(latents(), "sd"))
    assert loaded.fingerprint == head.fingerprint
    assert LCMemHead.from_pretrained(tmp_path / "head", torch_dtype=dtype).dtype == dtype


def test_fingerprints_tell_heads_apart(head: LCMemHead) -> None:
    assert tiny_head().fingerprint == head.fingerprint
    assert tiny_head(seed=1).fingerprint != head.fingerprint
    assert tiny_head(score="verification").fingerprint != head.fingerprint
    with torch.no_grad():
        head.projection.bias[0] += 1e-6
    assert tiny_head().fingerprint != head.fingerprint


def test_fingerprints_of_heads_without_branches_are_those_that_they_always_had() -> None:
    made = LCMemHead.create("micro", {"sd": 4})
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_((torch.arange(weight.numel()) % 7 / 8).view_as(weight))  # the same on every machine
    assert made.fingerprint_of("sd").startswith("274924c0f1b37fad")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_descriptors_are_float32_unit_weighted_and_for_the_spaces_of_the_branch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    made = with_descriptors(
        LCMemHead.create("micro", {"sd": 4, "other": 6}), ("sd",), TrainingConfig(match_dim=8)
    )
    latents = torch.randn(3, 4, 20, 24)
    whole = made.descriptors(latents, "sd")
    found = made.to(dtype).descriptors(latents, "sd")
    assert found.dtype == torch.float32 and found.shape == (3, 8, 16, 16)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-2 if dtype == torch.float16 else 0)
    assert found.norm(dim=1).min() > 0 and found.norm(dim=1).max() < 1
    with pytest.raises(ValueError, match="no descriptors of latent space 'other'"):
        made.descriptors(torch.randn(3, 6, 16, 16), "other")
    with pytest.raises(LatentSpaceError, match="no stem for latent space 'flux'"):
        made.descriptors(latents, "flux")


def test_every_second_dense_token_is_the_patchs_own() -> None:
    stem = LCMemHead.create("micro").stems["sd"]
    latents = torch.randn(2, 4, 16, 16)
    torch.testing.assert_close(stem(latents, True)[..., ::2, ::2], stem(latents), rtol=0, atol=1e-5)


def test_spaces_are_known_by_behaviour(head: LCMemHead) -> None:
    sd, sd3 = tiny_vae(), tiny_vae(seed=2, latent_channels=16)
    head.add_probes("sd", sd)
    head.add_probes("sd3", sd3)
    match = head.identify_space(sd)
    assert match.space == "sd" and match.agreement == pytest.approx(1) and match.agreements["sd3"] == -1
    assert head.identify_space(sd3).space == "sd3"
    assert head.identify_space(tiny_vae().to(torch.bfloat16)).agreement > 0.99
    with torch.no_grad():
        other = tiny_vae()
        for parameter in other.encoder.parameters():
            parameter += 0.02 * parameter.std().nan_to_num() * torch.randn_like(parameter)
    assert head.identify_space(other).space == "sd"  # nearly the same encoder


def test_a_space_that_is_not_certain_is_told_with_a_warning(head: LCMemHead) -> None:
    head.add_probes("sd", tiny_vae())
    assert head.identify_space(tiny_vae()).told() == "sd"
    turned = turned_vae()
    match = head.identify_space(turned)
    assert 0.6 < match.agreement < 0.8, match
    with pytest.warns(
        UserWarning, match=rf"'sd' by {match.agreement:.2f} only.*copies may be missed.*--add-space"
    ):
        assert match.told() == "sd"


def test_probes_are_saved(head: LCMemHead, tmp_path: Path) -> None:
    head.add_probes("sd", tiny_vae())
    head.half().save_pretrained(tmp_path)
    assert LCMemHead.from_pretrained(tmp_path).identify_space(tiny_vae()).agreement > 0.999


@pytest.mark.parametrize(
    "vae", [{"seed": 1}, {"latent_channels": 8}], ids=["other weights", "other channels"]
)
def test_vaes_of_other_spaces_are_refused(head: LCMemHead, vae: dict[str, int]) -> None:
    head.add_probes("sd", tiny_vae())
    with pytest.raises(
        LatentSpaceError, match=r"none of the head's latent spaces .*sd -?\d.*lcmem-filter train"
    ):
        head.identify_space(tiny_vae(**vae))


def test_a_head_without_probes_recognises_nothing(head: LCMemHead) -> None:
    with pytest.raises(LatentSpaceError, match="agreement on probe images"):
        head.identify_space(tiny_vae())


def test_latents_without_a_stem_are_refused(head: LCMemHead) -> None:
    with pytest.raises(LatentSpaceError, match="no stem for latent space 'flux'; it has sd, sd3"):
        head.embed(latents(), "flux")
    with pytest.raises(LatentSpaceError, match="batch, 16, height, width"):
        head.embed(latents(), "sd3")


def test_no_head_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for where in (tmp_path / "nowhere", tmp_path / "empty", "no-such-head"):
        with pytest.raises(ArtifactNotFoundError, match="no head"):
            LCMemHead.from_pretrained(where)


def test_weights_are_as_readable_as_the_configuration(head: LCMemHead, tmp_path: Path) -> None:
    head.save_pretrained(tmp_path)
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


@pytest.mark.parametrize(
    "harm",
    [
        "truncated weights",
        "no weights",
        "pickled weights",
        "bad config",
        "other class",
        "of a head, but for the class",
        "weights that are not finite",
        "weights of another",
        "weights that the configuration lacks",
    ],
)
def test_harmed_heads_are_refused(head: LCMemHead, tmp_path: Path, harm: str) -> None:
    head.save_pretrained(tmp_path)
    weights, config = next(tmp_path.glob("*.safetensors")), tmp_path / "config.json"
    if harm == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif harm == "no weights":
        weights.unlink()
    elif harm == "pickled weights":
        weights.unlink()
        torch.save(head.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    elif harm == "bad config":
        config.write_text("{")
    elif harm == "of a head, but for the class":
        config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "AutoencoderKL"}))
    elif harm == "weights that are not finite":
        save_file({**head.state_dict(), "fc_end.bias": torch.tensor([torch.nan])}, weights)
    elif harm == "weights that the configuration lacks":
        config.write_text(json.dumps({**json.loads(config.read_text()), "token_dim": 0}))
    elif harm == "other class":
        config.write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    else:
        config.write_text(json.dumps({**json.loads(config.read_text()), "embedding_dim": 32}))
    with pytest.raises(CorruptArtifactError, match="no head can be loaded"):
        LCMemHead.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", shipped_heads())
def test_shipped_heads(name: str, tmp_path: Path) -> None:
    head = LCMemHead.from_pretrained(name)
    folder = Path(__file__).parents[1] / "lcmem_filter" / "heads" / name
    assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) < 10e6
    card = (folder / "README.md").read_text()
    assert all(word in card for word in ("## Data", "Terms:", "## Recipe", "## Metrics", "## Known misses"))
    (tmp_path / name).mkdir()
    write_card(tmp_path / name, head, json.loads((folder / "training.json").read_text()))
    assert card == (tmp_path / name / "README.md").read_text()
    assert all(f"\n| {space} | " in card for space in head.spaces)
    assert f"0.0% (0.0% to {1 - 0.025 ** (1 / 5):.1%}) of 5 |" in card  # none of five, exactly
    for probes in head.probes.values():
        assert probes.abs().max() > 0.1  # it knows its spaces
    for space, channels in head.config.spaces.items():
        with torch.no_grad():
            embeddings = head.embed(torch.randn(8, channels, 16, 16), space)
        assert (embeddings @ embeddings.T).fill_diagonal_(0).max() < 0.95


def test_a_folder_that_is_named_as_one_is_no_shipped_head(
    head: LCMemHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head.save_pretrained(tmp_path / "lcmem-small")
    monkeypatch.chdir(tmp_path)
    shipped = LCMemHead.from_pretrained("lcmem-small").fingerprint
    assert LCMemHead.from_pretrained("./lcmem-small").fingerprint == head.fingerprint != shipped
    assert LCMemHead.from_pretrained(tmp_path / "lcmem-small").fingerprint == head.fingerprint
    assert LCMemHead.from_pretrained(Path("lcmem-small")).fingerprint == head.fingerprint
    shutil.rmtree(tmp_path / "lcmem-small")
    assert LCMemHead.from_pretrained("lcmem-small").fingerprint == shipped
    with pytest.raises(ArtifactNotFoundError, match=r"or a shipped head \(.*lcmem-small"):
        LCMemHead.from_pretrained(Path("lcmem-small"))


def test_what_is_saved_does_not_tell_where_it_was_loaded_from(tmp_path: Path) -> None:
    LCMemHead.create("micro").save_pretrained(tmp_path / "private")
    LCMemHead.from_pretrained(tmp_path / "private").save_pretrained(tmp_path / "copy")
    assert "private" not in (tmp_path / "copy" / "config.json").read_text()
    assert LCMemHead.from_pretrained(tmp_path / "copy").config.spaces == {"sd": 4}


def test_a_head_that_finds_no_room_says_so(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    head, before = LCMemHead.create("micro", {"sd": 4}), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        with pytest.raises(ArtifactError, match=r"cannot be written to .*head: .*make room there"):
            head.save_pretrained(tmp_path / "head")
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # nor for its configuration
        with pytest.raises(OSError, match=f"File too large.*{tmp_path / 'other'}"):
            head.save_pretrained(tmp_path / "other")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_is_no_folder_to_save_a_head_in(head: LCMemHead, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArtifactError, match="file is a file; give a folder"):
        head.save_pretrained(tmp_path / "file")


def test_options_that_a_head_does_not_have_are_told(head: LCMemHead, tmp_path: Path) -> None:
    head.save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="no option 'same_identiy'; do you mean same_identity"):
        LCMemHead.from_pretrained(tmp_path, same_identiy=0.6)
    with pytest.raises(ConfigurationError, match="no option 'zzz': spaces, grid"):
        LCMemHead.from_pretrained(tmp_path, zzz=0.6)
    assert (
        LCMemHead.from_pretrained(tmp_path, same_identity=0.6, low_cpu_mem_usage=False).spaces == head.spaces
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"score": "euclidean"}, "score must be one of cosine, verification, got 'euclidean'"),
        ({"activation": "relu"}, "activation must be one of none, sigmoid, got 'relu'"),
        ({"pooling": "max"}, "pooling must be one of mean"),
        ({"trunk_type": "vit"}, "trunk_type must be one of convnext"),
        ({"middles": "no"}, "middles must be true or false, got 'no'"),
        ({"match_deformed": 1}, "match_deformed must be true or false, got 1"),
        (
            {"match_dim": 8, "match_spaces": ["sdxl"]},
            "match_spaces has 'sdxl', which is none of the spaces, sd, sd3",
        ),
        ({"halved_spaces": ["sdxl"]}, "halved_spaces has 'sdxl', which is none of the spaces"),
        ({"embedding_weight": 0.2}, r"no descriptors \(match_dim 0\); leave it out"),
        ({"same_identity": "0.6"}, "same_identity lies between 0 and 1, got '0.6'"),
        ({"same_identity": float("nan")}, "same_identity lies between 0 and 1, got nan"),
    ],
)
def test_configurations_that_no_head_has_are_refused(
    head: LCMemHead, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told):
        tiny_head(**changes)
