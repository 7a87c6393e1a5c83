"""What goes wrong with a training run: told at once, told clearly, and nothing is lost."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from lcmem_filter.baselines.siamese_training import SiameseConfig, train_siamese
from lcmem_filter.cli import train as command
from lcmem_filter.cli._data import open_training
from lcmem_filter.cli.main import main
from lcmem_filter.errors import (
    ArtifactError,
    ConfigurationError,
    CorruptArtifactError,
    DataError,
    EmptyDataError,
    LatentSpaceError,
    TrainingFailedError,
)
from lcmem_filter.head import LCMemHead
from lcmem_filter.images import open_images
from lcmem_filter.latents import Encoder
from lcmem_filter.training import (
    AddHalvingConfig,
    AddSpaceConfig,
    TrainingConfig,
    add_halving,
    add_space,
    train_head,
    trainer,
    training_record,
)
from lcmem_filter.training.names import identity_of

from tests.tiny import tiny_vae, write_pictures
from tests.training.pictures import QUICK, Pictures
from tests.training.test_trainer import SOURCES, cache, record, train

__all__ = ["cache"]  # the fixture


def test_a_run_that_is_cut_off_while_it_puts_its_head_down_goes_on(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tmp_path / "whole", cache)

    def full(*_: Any) -> None:
        raise OSError(28, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "write_card", full)
        with pytest.raises(OSError, match="no space left"):
            train(tmp_path / "head", cache)
    assert (tmp_path / "head" / "config.json").exists()
    assert train(tmp_path / "head", cache).fingerprint == whole.fingerprint
    assert record(tmp_path / "head")["step"] == QUICK.steps


def test_what_stands_in_the_way_of_a_later_stage_is_told_before_the_first(
    tmp_path: Path, cache: Path
) -> None:
    LCMemHead.create("micro").save_pretrained(tmp_path / "taken")
    with pytest.raises(ArtifactError, match="already holds a head"):
        train(tmp_path / "taken", cache, stages=(1, 2))
    with pytest.raises(ConfigurationError, match=r"stage3_batch_pairs .* \(48\), got 72; give 96"):
        train(tmp_path / "taken", cache, replace(QUICK, gradient_accumulation=2), stages=(1, 3))
    with pytest.raises(ConfigurationError, match="got 40; give 48"):
        train(tmp_path / "a", cache, replace(QUICK, stage3_batch_pairs=40), stages=(1, 3))
    with pytest.raises(ConfigurationError, match="keep_initial needs a head"):
        train(tmp_path / "a", cache, replace(QUICK, keep_initial=0.5))
    assert not (tmp_path / "taken" / "stage1").exists() and not (tmp_path / "a").exists()
    train(tmp_path / "first", cache, replace(QUICK, steps=2))
    with pytest.raises(ArtifactError, match=r"another run \(.*stage was 1, is 2"):
        train(tmp_path / "first", cache, replace(QUICK, steps=2), stages=(1, 2))
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="file is a file; give a folder"):
        train(tmp_path / "file", cache)
    assert not (tmp_path / "first" / "stage1").exists()


def test_another_run_is_told_by_what_is_different(tmp_path: Path, cache: Path) -> None:
    train(tmp_path / "head", cache, replace(QUICK, steps=2))
    with pytest.raises(ArtifactError) as told:
        train(tmp_path / "head", cache, replace(QUICK, steps=3), sources=SOURCES[:1])
    assert "(steps was 2, is 3; sources: other images)" in str(told.value)


@pytest.mark.parametrize("name", ["", "sd.1", "keys"])
def test_names_that_no_latent_space_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be called"):
        trainer.train_head(SOURCES, {name: Encoder(tiny_vae(), "tiny")}, tmp_path / "head", QUICK)


def test_a_head_of_many_spaces_is_gone_on_from_in_one(tmp_path: Path, cache: Path) -> None:
    torch.manual_seed(0)
    initial = LCMemHead.create("micro", {"sd": 4, "other": 6}, match_dim=8, match_spaces=["sd"])
    config = replace(QUICK, stage2_steps=2, strong_views=1, stage2_learning_rate=1e-12)
    head = train(tmp_path / "head", cache, config, stages=(2,), initial=initial)
    assert head.spaces == ("sd",) and not head.has_descriptors("sd")
    for name, value in head.state_dict().items():
        if not name.startswith("probes"):
            torch.testing.assert_close(value, initial.state_dict()[name], rtol=1e-6, atol=1e-6, msg=name)
    with pytest.raises(ArtifactError, match="has no stem for sd; it has other"):
        train(tmp_path / "b", cache, stages=(2,), initial=LCMemHead.create("micro", {"other": 6}))
    with pytest.raises(ArtifactError, match="trained for cosine"):
        train(tmp_path / "b", cache, replace(config, loss="verification"), stages=(2,), initial=initial)


@pytest.mark.parametrize("token_weight", [0.0, 1.0])
def test_a_gradient_reaches_all_that_is_trained(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, token_weight: float
) -> None:
    """With several processes, a part that none reaches would stop the run."""
    step, counts = torch.optim.AdamW.step, []

    def watched(self: torch.optim.AdamW, *rest: Any, **options: Any) -> Any:
        counts.append([p.grad is None for group in self.param_groups for p in group["params"]])
        return step(self, *rest, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    train(tmp_path / "head", cache, replace(QUICK, token_weight=token_weight, steps=2))
    assert len(counts) == 2 and not any(any(missing) for missing in counts)


def test_a_loss_that_is_not_finite_ends_the_run(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any) -> torch.Tensor:
        return torch.full((), torch.nan, requires_grad=True)

    monkeypatch.setattr(trainer.Objective, "forward", lost)
    with pytest.raises(TrainingFailedError, match="the loss is nan at step 1; give a smaller"):
        train(tmp_path / "head", cache)
    assert not (tmp_path / "head" / "training.json").exists()


def test_a_run_goes_on_with_the_images_that_it_began_with_or_not_at_all(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images that come back would move the line between those that are trained and those that are validated on."""
    gone = Pictures("twice", 12, 2, first=500)
    whole = gone.fingerprint

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    gone.broken = (0, 1)
    with monkeypatch.context() as patch:
        patch.setattr(trainer._Run, "_finish", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "head", cache, replace(QUICK, steps=4), sources=[gone])
    gone.broken = ()
    assert gone.fingerprint == whole
    with pytest.raises(ArtifactError, match="other images of its data could be read"):
        train(tmp_path / "head", cache, replace(QUICK, steps=4), sources=[gone])
    assert (tmp_path / "head" / ".training").exists()


def test_work_of_others_is_not_written_over(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("mine")
    with pytest.raises(ArtifactError, match=r"holds a README.md, in whose place the head's card would come"):
        train(tmp_path / "project", cache)
    assert [path.name for path in (tmp_path / "project").iterdir()] == ["README.md"]


@pytest.mark.parametrize("name", ["size", "loss", "pooling", "mixed_precision"])
def test_what_there_is_not_is_told_by_a_recipe(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} must be one of .*, got 'ntxent'"):
        TrainingConfig(**{name: "ntxent"})  # type: ignore[arg-type]


def test_the_environment_changes_no_recipe(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train(tmp_path / "a", cache, replace(QUICK, steps=4)).fingerprint
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert train(tmp_path / "b", cache, replace(QUICK, steps=4)).fingerprint == expected


def test_descriptors_that_are_widened_have_nothing_to_go_back_to(tmp_path: Path, cache: Path) -> None:
    config = replace(QUICK, stage3_steps=1, stage3_batch_pairs=24, match_width=8, steps=1)
    initial = train(tmp_path / "first", cache, config, stages=(1, 3))
    wider = replace(config, match_width=16, keep_initial=1.0)
    head = train(tmp_path / "wider", cache, wider, stages=(3,), initial=initial)
    assert head.config.match_width == 16
    same = [name for name, value in head.state_dict().items() if name.startswith("dense.")]
    assert same and head.state_dict()["stems.sd.layernorm.weight"].equal(
        initial.state_dict()["stems.sd.layernorm.weight"]
    )


def test_a_card_names_the_encoders_of_all_spaces_that_a_head_knows(tmp_path: Path, cache: Path) -> None:
    config = replace(QUICK, steps=1, stage3_steps=1, stage3_batch_pairs=24)
    encoders = {
        "sd": Encoder(tiny_vae(), "tiny"),
        "six": Encoder(tiny_vae(seed=1, latent_channels=6), "other"),
    }
    given = {"cache": cache, "progress": False}
    both = train_head(SOURCES, encoders, tmp_path / "both", config, **given)
    known = training_record(tmp_path / "both")
    train_head(
        SOURCES,
        {"six": encoders["six"]},
        tmp_path / "one",
        config,
        stages=(3,),
        initial=both,
        record=known,
        **given,
    )
    found = training_record(tmp_path / "one")
    assert known is not None and found is not None and found["spaces"] == known["spaces"]


def test_a_space_that_the_head_of_stage_3_lacks_is_told_before_anything_is_encoded(tmp_path: Path) -> None:
    head = LCMemHead.create("micro", {"other": 4})
    given: dict[str, Any] = {"stages": (3,), "initial": head, "cache": tmp_path / "cache", "progress": False}
    with pytest.raises(ArtifactError, match="no stem for latent space 'sd'; it has other"):
        train_head(SOURCES, {"sd": Encoder(tiny_vae(), "tiny")}, tmp_path / "head", QUICK, **given)
    assert not (tmp_path / "cache").exists()


def test_another_precision_than_the_processs_own_is_told(tmp_path: Path, forget_precision: Any) -> None:
    forget_precision()
    Accelerator(mixed_precision="bf16")
    with pytest.raises(
        ConfigurationError, match="already computes in mixed precision 'bf16', got 'no'; give"
    ):
        train_head(SOURCES, {"sd": Encoder(tiny_vae(), "tiny")}, tmp_path, QUICK, progress=False)


def test_a_card_counts_what_was_left_out(tmp_path: Path, cache: Path) -> None:
    first = open_images(write_pictures(tmp_path / "a", range(12)))
    given: dict[str, Any] = {"sources": [first], "leave_out": ["000.png", "001.png"]}
    write_pictures(tmp_path / "b", range(50, 62))
    for path in sorted((tmp_path / "b").iterdir()):  # the same names, other pictures
        path.rename(path.with_name(f"{int(path.stem) - 50:03d}.png"))
    second = open_images(tmp_path / "b")
    train(tmp_path / "apart", cache, replace(QUICK, steps=1), validation=[second], **given)
    assert record(tmp_path / "apart")["data"]["left_out"] == 2
    train(tmp_path / "split", cache, replace(QUICK, steps=1), **given)
    split = record(tmp_path / "split")["data"]
    held = 4 - sum(images for images, _ in split["validation"].values())
    assert split["left_out"] == held


@pytest.mark.parametrize("written", ["{", "{}", '{"plan": {}}'])
def test_a_broken_record_of_a_head_to_go_on_from_is_told(tmp_path: Path, written: str) -> None:
    (tmp_path / "training.json").write_text(written)
    with pytest.raises(CorruptArtifactError, match="is no run's record"):
        training_record(tmp_path)


def test_sets_and_identities_are_told_apart(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(DataError, match="2 data sets are called 'twice'"):
        train(tmp_path / "head", cache, sources=[SOURCES[0], Pictures("twice", 4, 2, first=50)])
    with pytest.raises(DataError, match="validation needs two identities"):
        train(tmp_path / "head", cache, validation=[Pictures("alone", 1, 3, first=70)])
    empty = tmp_path / "empty"  # both are told before anything is encoded
    with pytest.raises(DataError, match="same_labels needs a column"):
        train(tmp_path / "head", empty, replace(QUICK, same_labels=0.5))
    with pytest.raises(DataError, match="at least two identities, got 1"):
        train(tmp_path / "head", empty, sources=[Pictures("alone", 1, 3)], validation=SOURCES)
    assert not empty.exists()
    sources = [open_images(write_pictures(tmp_path / name, range(3))) for name in ("d", "e")]
    named = [identity_of(source, one) for source in sources for one in source.records]
    assert len(set(named)) == 6
    given = [
        identity_of(source, one)
        for name in ("f", "g")
        for source in [open_images(write_pictures(tmp_path / name, range(3), identities=1))]
        for one in source.records
    ]
    assert given[:3] == given[3:] and len(set(given)) == 3


def test_folders_of_classes_are_trained_on_as_the_index_takes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, count in (("ill", 21), ("well", 22), ("anna", 2)):
        write_pictures(tmp_path / "cls" / name, range(count))
    rows = [
        f"cls/{name}/{i:03d}.png,{name} " for name, count in (("ill", 21), ("anna", 2)) for i in range(count)
    ]
    (tmp_path / "table.csv").write_text("\n".join(["file_name,identity", *rows]))
    given = argparse.Namespace(image_column=None, identity_column=None, where=[])
    folders, table = open_training(given, [str(tmp_path / "cls"), str(tmp_path / "table.csv")], [])
    named = [identity_of(folders, one) for one in folders.records]
    assert len(set(named)) == 21 + 22 + 1 and named.count("anna") == 2
    assert {identity_of(table, one) for one in table.records} == {"ill", "anna"}
    err = capsys.readouterr().err
    assert (
        "cls: folders taken for classes, not for identities, since each has more than 20 images: ill, well;"
        in err
    )
    assert "table: of its identities, 1 stand in a set before it too and are taken for the same: anna;" in err
    believed = (
        "table: 21 of 23 images have an identity of more than 20 pictures, which is believed: ill; where"
    )
    assert believed in err and err.count("which is believed: ") == 1


def test_an_output_that_cannot_be_made_is_told_before_anything_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"cannot be made: .*file is a file"):
        train(tmp_path / "file" / "head", tmp_path / "cache")
    recipe = SiameseConfig("dar", resolution=32, widths=(16, 32), depths=(1, 1), steps=1, batch_pairs=2)
    monkeypatch.setattr("lcmem_filter.baselines.siamese_training.PictureBatches", None)
    with pytest.raises(ArtifactError, match=r"cannot be made: .*file is a file"):
        train_siamese(SOURCES, tmp_path / "file" / "head", recipe, progress=False)
    assert not (tmp_path / "cache").exists()


def test_an_encoder_that_gives_nan_for_all_is_blamed_itself(tmp_path: Path) -> None:
    vae = tiny_vae()
    with torch.no_grad():
        next(vae.parameters()).fill_(float("nan"))
    with pytest.raises(EmptyDataError, match="gives NaN or infinity for every image"):
        train_head(SOURCES, {"sd": Encoder(vae, "sd")}, tmp_path / "head", QUICK, progress=False)


def test_a_shipped_heads_record_is_not_taken_from_a_folder_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lcmem-small").mkdir()
    (tmp_path / "lcmem-small" / "training.json").write_text(json.dumps({"step": -1}))
    monkeypatch.chdir(tmp_path)
    found = training_record("lcmem-small")
    assert found is not None and found["step"] > 0


def even(self: Encoder, pixels: torch.Tensor) -> torch.Tensor:
    """In place of ``encode``, of an encoder that takes no odd sides, as those that unshuffle pixels."""
    if pixels.shape[-1] % 2:
        raise RuntimeError("no\nodd sides")
    return torch.zeros(len(pixels), 4, *(side // 4 for side in pixels.shape[-2:]))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--stages", "3"], "stage 3 needs a trained head"),
        (["--stages", "2,1"], "some of them in that order"),
        (["--gradient-accumulation", "0"], "gradient_accumulation must be at least 1, got 0"),
        (["--learning-rate", "-1"], "learning_rate must be positive"),
        (["--elastic", "2"], r"elastic must be in [0, 1], got 2.0"),
        (["--margin", "-0.1"], "margin must not be negative"),
        (["--learning-rate", "nan"], "learning_rate must be a finite number, got nan"),
        (["--space", "sd.1"], "cannot be called 'sd.1'"),
        (["--workers", "2"], "no workers without --baseline; leave out --workers"),
        (["--stages", "2", "--steps", "1"], "stage 1 is not asked for (--stages); leave out --steps"),
        (["--stage2-steps", "1"], "stage 2 is not asked for (--stages); leave out --stage2-steps"),
        (
            ["--stages", "3", "--batch-pairs", "8"],
            "stage 3 does not go by all of them (--stages); leave out --batch-",
        ),
        (
            ["--hard-negatives", "1"],
            "stage 1 does not go by all of them (--stages); leave out --hard-negatives",
        ),
        (["--stages", "1,2", "--match-dim", "8"], "stage 1 and 2 does not go by all of them"),
        (["--mixed-precision", "fp16"], "fp16 needs a GPU"),
        (
            ["--batch-pairs", "1"],
            "batch_pairs must be at least 2 x processes x gradient_accumulation (2), got 1",
        ),
        (["--batch-pairs", "8", "--gradient-accumulation", "8"], "(16), got 8: a pair alone"),
        (["--resolution", "33"], "AutoencoderKL cannot encode pictures of 33 px: no"),
        (["--where", "a=1", "--where", "a=2"], "rows cannot have a=1 and a=2"),
        (["--baseline", "packhaeuser", "--temperature", "1"], "loss has none; leave out --temperature"),
        (["--add-space", "--stages", "2"], "trains a stem alone; leave out --stages"),
        (["--add-space", "--steps", "0"], "steps must be positive, got 0"),
        (["--baseline", "dar", "--workers", "-1"], "workers must not be negative"),
        (["--baseline", "dar", "--margin", "1"], "trains no head; leave out --margin"),
    ],
)
def test_options_that_make_no_sense_are_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    told: str,
) -> None:
    tiny_vae().save_pretrained(tmp_path / "vae")
    write_pictures(tmp_path / "images", range(12))
    monkeypatch.setattr(Encoder, "encode", even)
    given = [str(tmp_path / "images"), "--output", str(tmp_path / "head")]
    if "--baseline" not in options:
        given += ["--vae", str(tmp_path / "vae")]
    if "--add-space" in options:
        given += ["--initial", "lcmem-small", "--reference-vae", str(tmp_path / "vae")]
    try:
        status = main(["train", *given, *options])
    except SystemExit as error:  # argparse's own
        status = int(error.code or 0)
    said = capsys.readouterr().err
    assert status == 2 and told in said and "Traceback" not in said
    assert not (tmp_path / "head").exists()


def test_an_encoder_of_another_space_than_its_name_says_is_told_at_once(tmp_path: Path, cache: Path) -> None:
    head = train(tmp_path / "head", cache)
    other = tiny_vae()
    with torch.no_grad():
        for parameter in other.encoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    given = [SOURCES, {"sd": Encoder(other, "elsewhere")}, tmp_path / "a"]
    for stages, config in (((3,), QUICK), ((2,), replace(QUICK, keep_spaces=True))):
        with pytest.raises(LatentSpaceError, match="speaks none of the head's latent spaces"):
            train_head(*given, config, stages=stages, initial=head, cache=cache, progress=False)
    assert not (tmp_path / "a").exists()


def test_a_heads_own_name_for_a_space_is_the_default(tmp_path: Path) -> None:
    head = LCMemHead.create("micro", {"mine": 4})
    head.add_probes("mine", tiny_vae())
    encoder = Encoder(tiny_vae(), str(tmp_path / "vae"))
    assert command._name_of_space(encoder, head) == "mine"
    assert command._name_of_space(encoder, None) == "vae"


def test_a_resolution_at_which_nothing_is_seen(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="resolutions must be at least 16, got 1"):
        replace(QUICK, resolution=1)


def test_latents_that_are_far_coarser_than_the_grid_are_told_before_anything_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lcmem_filter.training.prepare.encode_plans", None)
    head, coarse = LCMemHead.create("micro"), replace(QUICK, size="tiny", resolution=30)
    fine, new = Encoder(tiny_vae(), "sd"), Encoder(tiny_vae(seed=1, latent_channels=6), "new")
    head.add_probes("sd", fine.vae)
    beside: dict[str, Any] = {"output": tmp_path / "head", "progress": False}
    with pytest.raises(ConfigurationError, match=r"30 px are 15x15, .* grid, 32x32; give resolution 64$"):
        train_head(SOURCES, {"sd": fine}, config=coarse, **beside)
    further = replace(QUICK, size="tiny", further_resolutions=(16,))
    with pytest.raises(ConfigurationError, match=r"16 px are 8x8, .* give resolution 64$"):
        train_head(SOURCES, {"sd": fine}, config=further, **beside)
    monkeypatch.setattr(Encoder, "side_at", lambda self, resolution: 1 if self is new else resolution // 2)
    for encoders in ((new, fine), (fine, new)):
        known = LCMemHead.create("micro", {"sd": 4 if encoders[1] is fine else 6})
        known.add_probes("sd", encoders[1].vae)
        with pytest.raises(ConfigurationError, match=r"32 px are 1x1, .* give resolution 512$"):
            add_space(known, "new", *encoders, SOURCES, config=AddSpaceConfig(resolution=32), **beside)
    assert not (tmp_path / "head").exists()


def test_a_path_in_place_of_what_lies_there_is_told_at_once(tmp_path: Path) -> None:
    head, encoder = LCMemHead.create("micro"), Encoder(tiny_vae(), "sd")
    beside: dict[str, Any] = {"output": tmp_path / "head", "progress": False}
    calls: list[tuple[str, Any]] = [
        ("the encoder of sd has to be of Encoder", lambda: train_head(SOURCES, {"sd": "vae"}, **beside)),
        ("initial has", lambda: train_head(SOURCES, {"sd": encoder}, initial="lcmem-small", **beside)),
        ("a source has", lambda: add_space(head, "new", encoder, encoder, "images", **beside)),
        ("reference has", lambda: add_space(head, "new", encoder, "vae", SOURCES, **beside)),
        ("encoder has", lambda: add_halving(head, "vae", SOURCES, **beside)),
        ("initial has", lambda: add_halving("lcmem-small", encoder, SOURCES, **beside)),
    ]
    for told, call in calls:
        with pytest.raises(TypeError, match=f"^{told}.*got str; .* gives one$"):
            call()
    assert not (tmp_path / "head").exists()


def test_terms_that_no_card_can_state_are_told_before_anything_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lcmem_filter.training.prepare.encode_plans", None)
    head, encoder, new = (
        LCMemHead.create("micro"),
        Encoder(tiny_vae(), "sd"),
        Encoder(tiny_vae(seed=1), "new"),
    )
    head.add_probes("sd", encoder.vae)
    beside: dict[str, Any] = {"output": tmp_path / "head", "terms": "ask \udca9", "progress": False}
    halving = AddHalvingConfig(resolution=32)
    calls: list[Any] = [
        lambda: train_head(SOURCES, {"sd": encoder}, config=QUICK, **beside),
        lambda: add_space(head, "new", new, encoder, SOURCES, **beside),
        lambda: add_halving(head, encoder, SOURCES, config=halving, **beside),
        lambda: train_siamese(SOURCES, config=SiameseConfig("dar"), **beside),
    ]
    for call in calls:
        with pytest.raises(
            ConfigurationError, match=r"terms .* cannot be written as UTF-8 .*character 5\); give"
        ):
            call()
    assert not (tmp_path / "head").exists()


@pytest.mark.parametrize("kind", ["head", "part", "baseline"])
def test_a_checkpoint_that_finds_no_room_says_so(tmp_path: Path, cache: Path, kind: str) -> None:
    resource = pytest.importorskip("resource")
    given: dict[str, Any] = {"cache": cache, "progress": False}
    head, encoder = train(tmp_path / "first", cache, replace(QUICK, steps=1)), Encoder(tiny_vae(), "sd")
    halving = AddHalvingConfig(steps=1, batch_images=4, resolution=32, validation_fraction=0.3)
    siamese = SiameseConfig("dar", resolution=32, widths=(16, 32), depths=(1, 1), steps=1, batch_pairs=2)
    add_halving(head, encoder, SOURCES, tmp_path / "encoded", halving, **given)
    weights = (tmp_path / "first" / "diffusion_pytorch_model.safetensors").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        limit = 3 * weights // 2 if kind == "head" else 10_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        with pytest.raises(
            ArtifactError, match=r"the checkpoint cannot be written to .*step-0.*: .*; make room"
        ):
            if kind == "head":
                train(tmp_path / "head", cache)
            elif kind == "part":
                add_halving(head, encoder, SOURCES, tmp_path / "head", halving, **given)
            else:
                train_siamese(SOURCES, tmp_path / "head", siamese, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("kind", "beside"),
    [(TrainingConfig, {}), (AddSpaceConfig, {}), (AddHalvingConfig, {}), (SiameseConfig, {"method": "dar"})],
)
def test_recipes_take_whole_and_finite_numbers_alone(kind: type, beside: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"^steps must be a whole number, got 100\.0$"):
        kind(steps=100.0, **beside)
    with pytest.raises(ConfigurationError, match=r"^seed must be a whole number, got None$"):
        kind(seed=None, **beside)
    for value in (float("nan"), float("inf"), "1e-3"):
        with pytest.raises(
            ConfigurationError, match=f"^learning_rate must be a finite number, got {value!r}$"
        ):
            kind(learning_rate=value, **beside)

    for seed in (-(2**63) - 1, 2**64):
        with pytest.raises(ConfigurationError, match=rf"seed must be a number of 64 bits, got {seed}$"):
            kind(seed=seed, **beside)
    assert kind(seed=2**64 - 1, **beside)


@pytest.mark.parametrize("name", ["weight_decay", "warmup_steps"])
def test_recipes_take_no_negative_numbers(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name} must not be negative, got -1$"):
        TrainingConfig(**{name: -1})


@pytest.mark.parametrize(
    ("where", "options"),
    [
        ("training.cache._encode_shard", ["--vae", "VAE"]),
        ("training.trainer._Run._step", ["--vae", "VAE"]),
        ("training.extend.check_finite", ["--vae", "VAE", "--add-halving", "--initial", "HEAD"]),
        ("baselines.siamese_training.siamese_loss", ["--baseline", "dar"]),
    ],
)
def test_what_breaks_beside_a_progress_bar_is_told_on_a_line_of_its_own(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    options: list[str],
) -> None:
    def broken(*_: Any) -> None:
        raise TrainingFailedError("it broke")

    vae = tiny_vae()
    vae.save_pretrained(tmp_path / "VAE")
    head = LCMemHead.create("micro", {"sd": vae.config["latent_channels"]})
    head.add_probes("sd", vae)
    head.save_pretrained(tmp_path / "HEAD")
    write_pictures(tmp_path / "images", range(12))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"lcmem_filter.{where}", broken)
    assert main(["train", "images", "--output", "out", "--resolution", "32", *options]) == 2
    assert capsys.readouterr().err.split("\n")[-2] == "lcmem-filter: it broke"
