"""The trained baselines: what they are trained for, that training is repeatable and goes on, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lcmem_filter.baselines import make_baseline
from lcmem_filter.baselines.siamese import SiameseNetwork
from lcmem_filter.baselines.siamese_training import (
    Batch,
    PictureBatches,
    SiameseConfig,
    siamese_loss,
    train_siamese,
)
from lcmem_filter.cli.main import main
from lcmem_filter.errors import ArtifactError, CorruptArtifactError, DataError, EmptyDataError
from lcmem_filter.images import open_images, to_pixels

from .makers import MAKERS
from tests.tiny import picture, write_pictures
from tests.training.pictures import Pictures

METHODS = ("packhaeuser", "dar", "dar_unsupervised")
QUICK = SiameseConfig(
    "dar",
    resolution=32,
    widths=(8, 16),
    depths=(1, 1),
    features=12,
    steps=6,
    batch_pairs=8,
    warmup_steps=2,
    evaluate_every=2,
)


def quick(method: Any, **changes: Any) -> SiameseConfig:
    return replace(QUICK, method=method, **changes)


def sources(**changes: Any) -> list[Any]:
    return [Pictures("faces", 6, 2, **changes), Pictures("scans", 20, 1, first=100)]


def train(method: Any, output: Any, **changes: Any) -> SiameseNetwork:
    return train_siamese(sources(), output, quick(method, **changes), progress=False)


def equal(a: SiameseNetwork, b: SiameseNetwork) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def networks_loss(method: Any) -> tuple[Any, Batch, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    config = quick(method)
    network = SiameseNetwork(method, 32, config.widths, config.depths, config.features)
    batch = PictureBatches(sources(), config)[0]
    found = siamese_loss(network, batch, config)
    a, b = network(torch.cat([batch.a, batch.b])).detach().double().split(len(batch.a))
    return (network.requires_grad_(False), found.detach()), batch, a, b


def test_packhaeusers_loss_against_a_loop():
    (network, found), batch, a, b = networks_loss("packhaeuser")
    assert ((a > 0) & (a < 1)).all()
    weight, bias = network.decision.weight[0].double(), network.decision.bias[0].double()
    total = 0.0
    for i in range(len(a)):
        others = [j for j in range(len(a)) if batch.identities[j] != batch.identities[i]]
        other = others[int(batch.offsets[i] * len(others))]
        right, wrong = (torch.sigmoid((weight * (a[i] - b[j]).abs()).sum() + bias) for j in (i, other))
        total -= float(torch.log(right) + torch.log(1 - wrong))
    assert float(found) == pytest.approx(total / (2 * len(a)), abs=1e-5)


@pytest.mark.parametrize("method", ["dar", "dar_unsupervised"])
def test_dars_loss_against_a_loop(method):
    (_, found), batch, a, b = networks_loss(method)
    every = torch.nn.functional.normalize(torch.cat([a, b]), dim=1)
    who, count = batch.identities.repeat(2), len(a)
    total = 0.0
    for i in range(2 * count):
        partner = (i + count) % (2 * count)
        rivals = [j for j in range(2 * count) if who[j] != who[i]] + [partner]
        logits = every[rivals] @ every[i] / 0.07
        total -= float(torch.log_softmax(logits, 0)[-1])
    assert float(found) == pytest.approx(total / (2 * count), abs=1e-4)


def test_positives_are_of_one_identity_and_unsupervised_of_one_image(monkeypatch):
    read: list[tuple[int, int]] = []
    original = PictureBatches._image

    def noting(self: PictureBatches, row: int) -> Any:
        read.append((row, int(self.images.sets[row])))
        return original(self, row)

    monkeypatch.setattr(PictureBatches, "_image", noting)
    for method, same_image in (("dar", False), ("dar_unsupervised", True)):
        read.clear()
        batches = PictureBatches(sources(), quick(method, same_image=0.0))
        for step in range(6):
            batches[step]
        pairs = list(zip(read[::2], read[1::2], strict=True))
        assert {s for (_, s), _ in pairs} == {0, 1}
        for (a, set_a), (b, _) in pairs:
            assert a // 2 == b // 2 if set_a == 0 else a == b
        assert any(a != b for a, b in pairs) != same_image


def test_pictures_are_those_of_their_rows():
    batches = PictureBatches(sources(), QUICK)
    assert batches._image(13) == picture(101)
    assert batches._image(3) == picture(1).rotate(3)


@pytest.mark.parametrize("method", METHODS)
def test_a_picture_that_is_listed_several_times_is_no_negative_of_itself(method, tmp_path):
    write_pictures(tmp_path / "scans", range(6))
    rows = [f"{number:03d}.png,{finding}" for number in range(6) for finding in ("mass", "nodule")]
    (tmp_path / "scans" / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    batches = PictureBatches([open_images(tmp_path / "scans")], quick(method, sets_per_batch=1))
    assert len(batches.images) == 6
    assert [batches._image(row) for row in range(6)] == [picture(number) for number in range(6)]


def test_the_two_sides_are_augmented_and_repeatable():
    one, again = (PictureBatches(sources(), quick("dar_unsupervised"))[3] for _ in range(2))
    assert torch.equal(one.a, again.a) and torch.equal(one.b, again.b)
    assert one.a.shape == (8, 3, 32, 32) and one.a.abs().max() <= 1
    assert ((one.a - one.b).flatten(1).abs().mean(1) > 0.005).all()
    clean = [to_pixels(picture(seed).rotate(3 * turn), 32) for seed in range(6) for turn in (0, 1)]
    clean += [to_pixels(picture(seed), 32) for seed in range(100, 120)]
    kept = [any(torch.equal(a, c) for c in clean) for a in one.a]
    assert any(kept) and not all(kept) and not any(torch.equal(b, c) for b in one.b for c in clean)


def test_unreadable_pictures_are_left_out_and_counted(tmp_path):
    broken = sources(broken=(0, 1, 2, 3))
    batch = PictureBatches(broken, QUICK)[0]
    assert len(batch.a) == len(batch.b) == len(batch.identities) == len(batch.offsets) == 8 - batch.left_out
    train_siamese(broken, tmp_path, QUICK, progress=False)
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["pairs_left_out"] > 0
    assert record["images_seen"] == 2 * (6 * 8 - record["pairs_left_out"])
    with pytest.raises(EmptyDataError, match="of 8 pairs 8 cannot be read"):
        PictureBatches([Pictures("faces", 6, 2, broken=tuple(range(12)))], QUICK)[0]
    nothing = Pictures("nothing", 6, 2, broken=tuple(range(12)))
    with pytest.raises(EmptyDataError, match="none of the 12 images of 'nothing' can be read"):
        train_siamese([*broken, nothing], tmp_path / "other", QUICK, progress=False)


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_run_ends_in_the_same_weights(method, tmp_path, monkeypatch):
    whole = train(method, tmp_path / "whole")
    made = PictureBatches.__getitem__

    def stopping(self: PictureBatches, step: int) -> Batch:
        if step == 5:
            raise KeyboardInterrupt
        return made(self, step)

    with monkeypatch.context() as patched:
        patched.setattr(PictureBatches, "__getitem__", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(method, tmp_path / "parts")
    steps: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(
            PictureBatches, "__getitem__", lambda self, step: steps.append(step) or made(self, step)
        )
        parts = train(method, tmp_path / "parts")
    assert steps == [4, 5] and equal(whole, parts)
    assert not equal(whole, train(method, tmp_path / "other", seed=1))
    record = json.loads((tmp_path / "parts" / "training.json").read_text())
    assert record["images_seen"] == 2 * 6 * 8 and record["step"] == 6
    (tmp_path / "parts" / ".training" / "step-00000006").mkdir(parents=True)  # killed before it was dropped
    assert equal(whole, train(method, tmp_path / "parts"))
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == [
        "config.json", "model.safetensors", "training.json"
    ]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_mixed_precision_is_for_training_alone(method, tmp_path, forget_precision):
    """The network computes in bfloat16 while it learns; losses, and what it became, are float32."""
    whole = train(method, tmp_path / "whole")
    forget_precision()
    mixed = train(method, tmp_path / "mixed", mixed_precision="bf16")
    losses = [
        json.loads((tmp_path / name / "training.json").read_text())["history"][0]["loss"]
        for name in ("whole", "mixed")
    ]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.05)
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.inference_mode():
        saved = SiameseNetwork.load(tmp_path / "mixed")(pixels)
        torch.testing.assert_close(mixed(pixels), saved, rtol=0, atol=1e-5)
    assert not equal(whole, mixed) and {value.dtype for value in mixed.parameters()} == {torch.float32}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_change_nothing(tmp_path):
    alone = train("dar", tmp_path / "alone")
    helped = train_siamese(sources(), tmp_path / "helped", QUICK, workers=1, progress=False)
    assert equal(alone, helped)


def test_training_leaves_the_random_generator_alone(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    train("dar", tmp_path)
    make_baseline("dar", weights=tmp_path)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("method", METHODS)
def test_training_teaches_to_find_copies(method, tmp_path):
    """How often a changed picture is no nearer to its original than a stranger is to some other, of 40."""
    many = [Pictures("many", 40, 1)]
    recipe = {"widths": (16, 32), "features": 32, "batch_pairs": 16, "warmup_steps": 0, "evaluate_every": 500}
    stored = torch.stack([to_pixels(picture(seed), 32) for seed in range(40)])
    asked = torch.stack([to_pixels(picture(seed).rotate(9).crop((3, 3, 30, 29)), 32) for seed in range(40)])
    wrong = []
    for steps, rate in ((1, 1e-9), (100, 1e-2)):
        folder = tmp_path / str(steps)
        train_siamese(many, folder, quick(method, steps=steps, learning_rate=rate, **recipe), progress=False)
        baseline = make_baseline(method, weights=folder)
        found = baseline.similarity(baseline.embed(asked), baseline.embed(stored).expand(40, -1, -1))
        strangers = found[~torch.eye(40, dtype=torch.bool)]
        wrong.append(float((found.diag()[:, None] <= strangers).float().mean()))
    assert wrong[1] < min(0.03, wrong[0] / 2), wrong


def test_packhaeusers_proposals_are_exact_where_features_are_0_or_1(tmp_path):
    baseline = MAKERS["packhaeuser"](tmp_path)
    draw = torch.Generator().manual_seed(0)
    stored, asked = ((torch.rand(n, 12, generator=draw) < 0.5).float() for n in (300, 20))
    exact = baseline.similarity(asked, stored.expand(20, -1, -1))
    proposed = baseline.query(asked) @ baseline.key(stored).T
    left = exact - proposed
    torch.testing.assert_close(left, left[:, :1].expand_as(left), rtol=0, atol=1e-5)


def test_a_network_of_another_baseline_is_refused(tmp_path):
    MAKERS["dar"](tmp_path)
    with pytest.raises(ArtifactError, match="holds a dar network, not dar_unsupervised"):
        make_baseline("dar_unsupervised", weights=tmp_path)


@pytest.mark.parametrize("damage", ["cut", "no weights", "another shape", "no json"])
def test_damaged_folders_are_told(damage, tmp_path):
    MAKERS["dar"](tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-20])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "another shape":
        config.write_text(json.dumps({**json.loads(config.read_text()), "features": 13}))
    else:
        config.write_text("{")
    with pytest.raises(CorruptArtifactError, match="holds no network that can be read"):
        make_baseline("dar", weights=tmp_path)


def test_another_run_in_the_same_folder_is_refused(tmp_path):
    train("dar", tmp_path)
    again = train_siamese(sources(), tmp_path, quick("dar"), terms="Mine.", progress=False)
    assert equal(again, SiameseNetwork.load(tmp_path))
    assert json.loads((tmp_path / "training.json").read_text())["terms"] == "Mine."
    with pytest.raises(ArtifactError, match="holds another run"):
        train("packhaeuser", tmp_path)


def test_a_run_from_before_an_option_was_there_is_the_same(tmp_path):
    trained = train("dar", tmp_path)
    file = tmp_path / "training.json"
    record = json.loads(file.read_text())
    del record["plan"]["config"]["mixed_precision"]
    file.write_text(json.dumps(record))
    assert equal(train("dar", tmp_path), trained)
    with pytest.raises(ArtifactError, match="holds another run"):
        train("dar", tmp_path, learning_rate=1e-4)


def test_recipes_and_data_that_cannot_be(tmp_path):
    for wrong in (
        {"steps": 0}, {"batch_pairs": 1}, {"temperature": 0.0}, {"same_image": 1.5}, {"mixed_precision": "fp16"}
    ):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(wrong))):
            quick("dar", **wrong)
    with pytest.raises(DataError, match="at least one data source"):
        train_siamese([], tmp_path, QUICK)
    with pytest.raises(DataError, match="two identities"):
        train_siamese([Pictures("one", 1, 3)], tmp_path, QUICK, progress=False)


def command(*arguments: object) -> int:
    return main(["train", *(str(argument) for argument in arguments)])


def test_from_the_command_line(tmp_path, capsys):
    write_pictures(tmp_path / "people", range(12), identities=1)
    given = (tmp_path / "people", "--baseline", "dar-unsupervised", "--output", tmp_path / "out")
    recipe = ("--resolution", 32, "--steps", 2, "--batch-pairs", 4, "--terms", "ours")
    assert command(*given, *recipe) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["method"] == "dar_unsupervised" and "12 training images" in err
    baseline = make_baseline("dar_unsupervised", weights=tmp_path / "out")
    assert baseline.resolution == 32 and baseline.record["terms"] == "ours"
    assert baseline.fingerprint == json.loads(out)["fingerprint"]
    weights = load_file(tmp_path / "out" / "model.safetensors").items()
    learnt = sum(value.numel() for name, value in weights if name.endswith(("weight", "bias")))
    assert (
        learnt == 11_176_512 + 513 * 128
    )  # torchvision's resnet18 without its classifier, and the projection


@pytest.mark.parametrize(("images_each", "told"), [(1, True), (2, False)])
def test_a_supervised_one_says_where_no_two_images_share_an_identity(images_each, told, tmp_path, capsys):
    for person in "abcd":
        write_pictures(tmp_path / "people" / person, range(10 * ord(person), 10 * ord(person) + images_each))
    recipe = ("--resolution", 32, "--steps", 1, "--batch-pairs", 2)
    assert command(tmp_path / "people", "--baseline", "dar", "--output", tmp_path / "out", *recipe) == 0
    assert ("no two images share an identity" in capsys.readouterr().err) == told


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--baseline", "dar", "--vae", "x", "--size", "micro"), "leave out --vae, --size"),
        (("--baseline", "dar", "--stages", "1,2"), "leave out --stages"),
        (("--baseline", "dar", "--steps", "0"), "steps must be at least 1"),
        ((), "a head needs --vae"),
    ],
)
def test_options_that_do_not_apply_are_refused(more, told, tmp_path, capsys):
    assert command(tmp_path, "--output", tmp_path / "out", *more) == 2
    assert told in capsys.readouterr().err
