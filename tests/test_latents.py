"""Latents: encoding, the canonical form, and which space a VAE speaks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoModel, ModelMixin

from lcmem_filter.errors import ArtifactNotFoundError, ConfigurationError, LatentSpaceError
from lcmem_filter.head import LCMemHead
from lcmem_filter.latents import (
    OUTLINES,
    Encoder,
    canonical,
    channel_agreement,
    check_latents,
    encode_pixels,
    load_encoder,
    normalise,
    outlines,
    probe_images,
    probe_latents,
    to_grid,
    weights_sha256,
)

from tests.tiny import VAES, tiny_vae

REAL_VAES = Path(os.environ.get("LCMEM_VAE", Path(__file__).parents[2] / "shared" / "vae" / "taesd")).parent


def pixels(rows: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("kind", VAES)
def test_encoding_is_the_posteriors_mode(kind: str) -> None:
    vae = tiny_vae(kind)
    with torch.no_grad():
        output = vae.encode(pixels())
        expected = output.latent_dist.mean if kind == "AutoencoderKL" else output.latents
    first, again = encode_pixels(vae, pixels()), encode_pixels(vae, pixels())
    assert torch.equal(first, expected) and torch.equal(first, again)
    assert first.shape == (3, 4, 16, 16) and not first.requires_grad


@pytest.mark.parametrize("shape", ["latents", "latent", "tensor", "tuple"])
def test_encoders_of_other_classes(shape: str) -> None:
    class Custom(torch.nn.Module):
        def encode(self, x: torch.Tensor) -> Any:
            latents = x[:, :, ::2, ::2].half()
            if shape == "tensor":
                return latents
            if shape == "tuple":
                return (latents,)
            from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
            from diffusers.models.autoencoders.vae import EncoderOutput

            return (
                AutoencoderTinyOutput(latents=latents)
                if shape == "latents"
                else EncoderOutput(latent=latents)
            )

    latents = encode_pixels(Custom(), pixels())
    assert latents.shape == (3, 3, 16, 16) and latents.dtype == torch.float32


@pytest.mark.parametrize("at_once, portions", [(2 * 32 * 32, [2, 2, 1]), (100, [1] * 5), (1 << 20, [5])])
def test_large_batches_are_encoded_in_portions(at_once: int, portions: list[int], monkeypatch) -> None:
    vae, seen = tiny_vae(), []
    whole, encode = encode_pixels(vae, pixels(5)), vae.encode
    monkeypatch.setattr("lcmem_filter.latents.ENCODED_AT_ONCE", at_once)
    monkeypatch.setattr(vae, "encode", lambda part: seen.append(len(part)) or encode(part))
    torch.testing.assert_close(encode_pixels(vae, pixels(5)), whole)
    assert seen == portions


def test_a_half_precision_vae_gives_float32() -> None:
    vae = tiny_vae().to(torch.bfloat16)
    latents = encode_pixels(vae, pixels())
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, encode_pixels(tiny_vae(), pixels()), rtol=0.1, atol=0.1)


def test_normalised_latents_have_mean_0_and_standard_deviation_a_half() -> None:
    latents = normalise(torch.randn(2, 4, 16, 16) * torch.tensor([1, 5, 0.1, 9.0])[:, None, None] + 7)
    torch.testing.assert_close(latents.mean((2, 3)), torch.zeros(2, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(latents.std((2, 3)), torch.full((2, 4), 0.5))


def test_a_constant_channel_is_zero_and_finite() -> None:
    assert not normalise(torch.full((1, 4, 8, 8), 3.0)).any()


def test_canonical_latents_ignore_scale_and_shift_of_channels() -> None:
    raw = torch.randn(2, 4, 24, 24)
    pipeline = (
        raw * torch.tensor([0.18215, 1, 3, 0.5])[:, None, None] + torch.tensor([1, -2, 0, 0.1])[:, None, None]
    )
    torch.testing.assert_close(canonical(pipeline, 16), canonical(raw, 16), rtol=0, atol=1e-5)
    flipped = canonical(-raw, 16)
    torch.testing.assert_close(flipped, -canonical(raw, 16), rtol=0, atol=1e-6)


def test_canonical_latents_stay_as_they_are() -> None:
    once = canonical(torch.randn(2, 4, 40, 24), 16)
    torch.testing.assert_close(canonical(once, 16), once, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 48), (40, 16)])
def test_larger_latents_are_averaged_over_areas(height: int, width: int) -> None:
    latents = torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(0))
    resized = to_grid(latents, 16)
    top, left = -(-height // 16), -(-width // 16)  # the first cell ends where it covers the area
    torch.testing.assert_close(resized[..., 0, 0], latents[..., :top, :left].mean((-2, -1)))
    assert resized.shape == (2, 4, 16, 16)


def test_resizing_is_antialiased() -> None:
    stripes = (torch.arange(64) % 2 * 2.0 - 1).expand(1, 1, 64, 64)
    assert to_grid(stripes, 16).abs().max() < 0.1
    assert to_grid(stripes[..., :16, :16], 16) is not None


@pytest.mark.parametrize(
    ("channels", "grid", "side"), [(4, 16, 8), (4, 4, 4), (16, 16, 4), (32, 16, 4), (128, 16, 2)]
)
def test_outlines_are_latents_shrunk_to_few_numbers(channels: int, grid: int, side: int) -> None:
    latents = canonical(
        torch.randn(5, channels, grid, grid, generator=torch.Generator().manual_seed(0)), grid
    )
    cells = grid // side
    shrunk = latents.view(5, channels, side, cells, side, cells).mean((3, 5)).flatten(1)
    found = outlines(latents)
    assert found.shape == (5, channels * side**2) and (found.shape[1] <= OUTLINES)
    torch.testing.assert_close(found, shrunk / shrunk.norm(dim=1, keepdim=True))


def test_probe_images_are_the_same_everywhere() -> None:
    probes = probe_images()
    assert probes.shape == (12, 3, 128, 128)
    assert torch.equal(probes, probe_images())
    assert probes.min() >= -1 and probes.max() <= 1 and probes.std() > 0.3
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    probe_images()
    assert torch.equal(before, torch.random.get_rng_state())


def test_probe_images_do_not_depend_on_torchs_defaults() -> None:
    expected = probe_images(32)
    with torch.device("meta"):
        assert torch.equal(probe_images(32), expected)
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(probe_images(32), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_agreement() -> None:
    a = torch.randn(5, 4, 8, 8)
    assert channel_agreement(a, a * 3 + 1) == pytest.approx(1)
    assert channel_agreement(a, -a) == pytest.approx(-1)
    assert channel_agreement(a, a * torch.tensor([1.0, 1, -1, -1])[:, None, None]) == pytest.approx(0)
    assert channel_agreement(a, torch.randn(5, 4, 8, 8)) == pytest.approx(0, abs=0.2)
    assert channel_agreement(a, a[:, :3]) == -1


@pytest.mark.skipif(
    not REAL_VAES.exists(), reason="no pretrained autoencoders beside the checkout (LCMEM_VAE)"
)
def test_real_spaces_are_told_apart() -> None:
    latents = {
        name: probe_latents(load_encoder(REAL_VAES / name).vae, 16)
        for name in ("taesd", "taesdxl", "taesd3", "taef1")
    }
    for a, b in (("taesd", "taesdxl"), ("taesd3", "taef1")):
        assert channel_agreement(latents[a], latents[b]) < 0.4


def test_latents_of_another_shape_are_refused() -> None:
    check_latents(torch.zeros(2, 4, 8, 8), 4, "sd")
    for wrong in (torch.zeros(2, 16, 8, 8), torch.zeros(4, 8, 8), torch.zeros(2, 64, 4)):
        with pytest.raises(LatentSpaceError, match="batch, 4, height, width"):
            check_latents(wrong, 4, "sd")


@pytest.mark.parametrize("kind", VAES)
def test_encoders_load_from_folders(tmp_path: Path, kind: str) -> None:
    vae = tiny_vae(kind)
    vae.save_pretrained(tmp_path / "pipeline" / "vae")
    alone = load_encoder(tmp_path / "pipeline" / "vae")
    whole = load_encoder(tmp_path / "pipeline")  # a pipeline's folder gives its VAE
    for encoder in (alone, whole):
        assert torch.equal(encoder.encode(pixels()), encode_pixels(vae, pixels()))
        assert encoder.source.class_name == kind and encoder.source.sha256 == weights_sha256(vae)
    assert whole.source.subfolder == "vae"
    assert not any(parameter.requires_grad for parameter in alone.vae.parameters())


def test_what_is_no_encoder_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    for where in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ArtifactNotFoundError, match="no autoencoder could be loaded"):
            load_encoder(where)


@pytest.mark.parametrize("name", ["nowhere", "../some/where", "/nowhere/vae", "~/vae", "three/deep/folders"])
def test_what_can_only_be_a_folder_is_not_asked_for_on_the_hub(name: str, monkeypatch) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    for loader in (AutoModel, ModelMixin):
        monkeypatch.setattr(loader, "from_pretrained", asked)
    with pytest.raises(ArtifactNotFoundError, match=r"no autoencoder.*there is no such folder"):
        load_encoder(name)
    with pytest.raises(
        ArtifactNotFoundError, match=r"no such folder.*a shipped head \(lcmem-large, lcmem-reid"
    ):
        LCMemHead.from_pretrained(name)
    with pytest.raises(ArtifactNotFoundError, match="the hub was asked"):
        load_encoder("some-owner/some-vae")


def test_a_folder_inside_one_that_is_here_is_not_asked_for_on_the_hub(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").mkdir()
    monkeypatch.setattr("lcmem_filter.latents._load_autoencoder", lambda *_: pytest.fail("the hub was asked"))
    with pytest.raises(
        ArtifactNotFoundError, match="there is a folder 'my-model' here, without 'vea'"
    ) as told:
        load_encoder("my-model/vea")
    assert "the hub was asked" not in str(told.value)


def test_weights_hash_knows_values_not_devices_or_formats() -> None:
    vae = tiny_vae()
    before = weights_sha256(vae)
    assert weights_sha256(tiny_vae()) == before != weights_sha256(tiny_vae(seed=1))
    assert weights_sha256(vae, b"prefix") != before
    assert weights_sha256(SimpleNamespace(state_dict=vae.state_dict)) == before  # type: ignore[arg-type]


def test_pictures_that_an_encoder_does_not_take_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(tiny_vae(), "tiny")
    assert encoder.side_at(64) == encode_pixels(encoder.vae, torch.zeros(1, 3, 64, 64)).shape[-1]

    def none(self: Encoder, pixels: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such\nsides")

    monkeypatch.setattr(Encoder, "encode", none)
    with pytest.raises(
        ConfigurationError, match=r"AutoencoderKL cannot encode pictures of 64 px: no such; give"
    ):
        encoder.side_at(64)


def test_that_the_hub_was_asked_is_told_where_no_folder_was_found(tmp_path: Path, monkeypatch) -> None:
    def unreachable(*_: object) -> None:
        raise OSError("offline")

    monkeypatch.setattr("lcmem_filter.latents._load_autoencoder", unreachable)
    for path, asked in (("owner/name", True), (str(tmp_path), False), ("no/such/folder", False)):
        with pytest.raises(ArtifactNotFoundError) as told:
            load_encoder(path)
        assert ("there is no such folder here, so the hub was asked" in str(told.value)) == asked
