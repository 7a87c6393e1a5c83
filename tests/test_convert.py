"""Conversion of the paper's checkpoint layout, against that layout rebuilt here in plain torch."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from lcmem_filter.cli.main import main
from lcmem_filter.convert import convert_checkpoint
from lcmem_filter.errors import ArtifactNotFoundError, CorruptArtifactError
from lcmem_filter.head import LCMemHead
from lcmem_filter.latents import normalise

from tests.tiny import tiny_vae

WIDTHS, DEPTHS = (8, 12, 16, 24), (1, 1, 2, 1)


class Norm2d(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W), as torchvision's ConvNeXt has it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Permute(nn.Module):
    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(*self.order)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(width, width, 7, padding=3, groups=width),
            Permute(0, 2, 3, 1),
            nn.LayerNorm(width, eps=1e-6),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            Permute(0, 3, 1, 2),
        )
        self.layer_scale = nn.Parameter(torch.rand(width, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layer_scale * self.block(x)


class Backbone(nn.Module):
    def __init__(self, widths: tuple[int, ...], depths: tuple[int, ...], features: int) -> None:
        super().__init__()
        stages: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(4, widths[0], 4, stride=4), Norm2d(widths[0], eps=1e-6))
        ]
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            if i:
                before = widths[i - 1]
                stages.append(nn.Sequential(Norm2d(before, eps=1e-6), nn.Conv2d(before, width, 2, stride=2)))
            stages.append(nn.Sequential(*(Block(width) for _ in range(depth))))
        self.features = nn.Sequential(*stages)
        self.classifier = nn.Sequential(
            Norm2d(widths[-1], eps=1e-6), nn.Flatten(1), nn.Linear(widths[-1], features)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1))


class PaperNetwork(nn.Module):
    """The siamese network of the paper: sigmoid features, one linear layer on their difference."""

    def __init__(
        self, widths: tuple[int, ...] = WIDTHS, depths: tuple[int, ...] = DEPTHS, features: int = 20
    ) -> None:
        super().__init__()
        self.model = Backbone(widths, depths, features)
        self.fc_end = nn.Linear(features, 1)

    def embed(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.model(latents))

    def score(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.fc_end((self.embed(a) - self.embed(b)).abs()))[:, 0]


@pytest.fixture
def network() -> PaperNetwork:
    torch.manual_seed(3)
    return PaperNetwork().eval()


@pytest.fixture
def checkpoint(network: PaperNetwork, tmp_path: Path) -> Path:
    path = tmp_path / "network.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (96, 96), (64, 128)])
@torch.no_grad()
def test_features_and_scores_are_those_of_the_paper(
    network: PaperNetwork, checkpoint: Path, size: tuple[int, int]
) -> None:
    head = convert_checkpoint(checkpoint)
    a, b = normalise(torch.randn(2, 3, 4, *size))[0], normalise(torch.randn(3, 4, *size))
    assert (
        network.embed(a).std(0).min() > 1e-3
    )  # features that do not differ would agree whatever the weights
    torch.testing.assert_close(head(a, "sd")[0], network.embed(a), rtol=0, atol=3e-7)
    score = head.verification_score(head(a, "sd")[0], head(b, "sd")[0])
    torch.testing.assert_close(score, network.score(a, b), rtol=0, atol=3e-7)


@torch.no_grad()
def test_the_real_size_converts_and_survives_saving(tmp_path: Path) -> None:
    torch.manual_seed(5)
    network = PaperNetwork((96, 192, 384, 768), (3, 3, 9, 3), 512).eval()
    path = tmp_path / "network.safetensors"
    save_file(network.state_dict(), path)
    convert_checkpoint(path).save_pretrained(tmp_path / "head")
    head = LCMemHead.from_pretrained(tmp_path / "head")
    assert (head.grid, head.embedding_dim, head.config.score) == (64, 512, "verification")
    raw = torch.randn(1, 4, 64, 64) * 3 + 1
    torch.testing.assert_close(head.features(raw, "sd"), network.embed(normalise(raw)), rtol=0, atol=1e-5)


def test_wrapped_and_parallel_state_dicts(network: PaperNetwork, checkpoint: Path, tmp_path: Path) -> None:
    parallel = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": parallel, "epoch": 3}, tmp_path / "parallel.pt")
    converted = convert_checkpoint(tmp_path / "parallel.pt")
    assert converted.fingerprint == convert_checkpoint(checkpoint).fingerprint


def test_probes_name_the_space(checkpoint: Path) -> None:
    vae = tiny_vae()
    assert convert_checkpoint(checkpoint, vae=vae).identify_space(vae).space == "sd"


def test_the_command_writes_a_head(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(checkpoint), "--output", str(tmp_path / "head"), "--space", "mine"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["spaces"] == ["mine"]
    assert "--vae" in said.err
    assert LCMemHead.from_pretrained(tmp_path / "head").spaces == ("mine",)
    for options, told in (("head", "already holds a head"), ("other", "cannot be called 'keys'")):
        given = ["convert", str(checkpoint), "--output", str(tmp_path / options), "--space", "keys"]
        assert main(given) == 2 and told in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_no_file() -> None:
    with pytest.raises(ArtifactNotFoundError, match="no checkpoint at"):
        convert_checkpoint("nowhere.pth")


def test_pickled_objects_are_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    for name, write in {
        "a.pth": torch.save,
        "b.pth": lambda value, path: path.write_bytes(pickle.dumps(value)),
    }.items():
        write({"model": Trap()}, tmp_path / name)
        with pytest.raises(CorruptArtifactError, match="cannot be read"):
            convert_checkpoint(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"model.features.1.0.layer_scale": None},
            "lacks trunk.encoder.stages.0.layers.0.layer_scale_parameter",
        ),
        ({"model.classifier.2.weight": None}, "lacks projection.weight"),
        ({"model.conv1.weight": torch.zeros(1)}, "'model.conv1.weight'"),
        ({"fc_end.weight": torch.zeros(1, 7)}, "size mismatch"),
        ({"epoch": 3}, "mapping of names to tensors"),
        ({7: torch.zeros(1)}, "mapping of names to tensors"),
    ],
)
def test_other_networks_are_refused(
    network: PaperNetwork, tmp_path: Path, change: dict[str | int, torch.Tensor | None], named: str
) -> None:
    weights = {**network.state_dict(), **change}
    torch.save({name: value for name, value in weights.items() if value is not None}, tmp_path / "other.pth")
    with pytest.raises(CorruptArtifactError, match=named):
        convert_checkpoint(tmp_path / "other.pth")


def test_a_truncated_file_is_refused(checkpoint: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-200])
    with pytest.raises(CorruptArtifactError, match="cannot be read"):
        convert_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("model.features.0.0.weight", torch.zeros(16), r"patch_embeddings.weight of shape \(16,\)"),
        ("model.classifier.2.weight", torch.tensor(3.0), r"has projection.weight of shape \(\)"),
        ("model.features.1.0.block.0.weight", torch.tensor(3.0), r"dwconv.weight of shape \(\)"),
        ("fc_end.bias", torch.tensor([torch.nan]), r"not finite \(fc_end.bias\); give another"),
    ],
)
def test_weights_of_no_network_are_refused(
    network: PaperNetwork, tmp_path: Path, name: str, value: torch.Tensor, told: str
) -> None:
    torch.save({**network.state_dict(), name: value}, tmp_path / "other.pth")
    with pytest.raises(CorruptArtifactError, match=told):
        convert_checkpoint(tmp_path / "other.pth")


def test_what_cannot_be_converted_is_one_line_and_nothing_is_written(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    tiny_vae(latent_channels=8).save_pretrained(tmp_path / "vae")
    for output, options, told in (
        ("file", [], "file is a file; give another --output"),
        ("file/head", [], "file is a file; give another --output"),
        ("head", ["--grid", "0"], "grid must be at least 32 for this network, got 0"),
        ("head", ["--grid", "3"], "grid must be at least 32 for this network, got 3"),
        ("head", ["--grid", "-4"], "grid must be at least 32 for this network, got -4"),
        ("head", ["--vae", str(tmp_path / "vae")], "have 8 channels, and those of 'sd' 4; give an encoder"),
    ):
        assert main(["convert", str(checkpoint), "--output", str(tmp_path / output), *options]) == 2
        said = capsys.readouterr().err
        assert told in said and "Traceback" not in said
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "head").exists()
    assert convert_checkpoint(checkpoint, grid=32).features(torch.randn(1, 4, 32, 32), "sd").shape == (1, 20)
