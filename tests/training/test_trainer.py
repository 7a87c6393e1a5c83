"""Training runs, small: what comes out, going on after a kill, several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lcmem_filter.errors import ArtifactError, CorruptArtifactError, DataError, EmptyDataError
from lcmem_filter.head import LCMemHead
from lcmem_filter.latents import Encoder
from lcmem_filter.training import TrainingConfig, train_head, trainer
from lcmem_filter.training.trainer import Validator, _Run

from tests.tiny import tiny_vae
from tests.training.pictures import QUICK, Pictures

SOURCES: list[Any] = [Pictures("twice", 12, 2), Pictures("once", 12, 1, first=100)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("latents")


def train(
    output: Path | str, cache: Path, config: TrainingConfig = QUICK, sources: Any = None, **options: Any
) -> LCMemHead:
    encoders = {"sd": Encoder(tiny_vae(), "tiny")}
    return train_head(
        SOURCES if sources is None else sources,
        encoders,
        output,
        config,
        cache=cache,
        **{"progress": False, **options},
    )


def record(output: Path) -> Any:
    return json.loads((output / "training.json").read_text())


@pytest.mark.parametrize(
    ("scores", "steps", "best"),
    [
        ((1.0, 1.0, 1.0, 1.0, 1.0, 1.0), 6, 6),  # none can be better, so none was no better
        ((0.5, 0.7, 0.7, 0.6, 0.9, 0.9), 4, 2),
        ((0.5, 1.0, 0.9, 1.0, 0.9, 0.8), 6, 4),
        ((0.5, 0.6, 0.7, 0.6, 0.8, 0.7), 6, 5),
    ],
)
def test_a_score_that_cannot_be_better_stops_no_run(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, scores: Any, steps: int, best: int
) -> None:
    measure, left = Validator.measure, iter(scores)
    monkeypatch.setattr(Validator, "measure", lambda *given: replace(measure(*given), score=next(left)))
    train(tmp_path / "head", cache, replace(QUICK, steps=6, evaluate_every=1, patience=2))
    written = record(tmp_path / "head")
    assert (written["step"], written["best_step"]) == (steps, best)


def test_a_run_learns_and_leaves_a_head(tmp_path: Path, cache: Path) -> None:
    output = tmp_path / "head"
    head = train(output, cache, replace(QUICK, steps=40, evaluate_every=10, augment=False))
    written = record(output)
    losses = [entry["loss"] for entry in written["history"]]
    assert losses[-1] < 0.8 * losses[0]
    assert written["step"] == 40 and not (output / ".training").exists()
    assert written["best_score"] == max(entry["score"] for entry in written["history"])
    assert LCMemHead.from_pretrained(output).fingerprint == head.fingerprint
    assert head.identify_space(tiny_vae()).space == "sd"
    card = (output / "README.md").read_text()
    assert "| twice |" in card and "not stated" in card and str(tmp_path) not in card


@pytest.mark.parametrize("killed_at", [3, 5, 8])
def test_a_killed_run_goes_on_to_the_same_weights(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    whole = train(tmp_path / "whole", cache)
    step = _Run._step
    with monkeypatch.context() as patch:

        def killed(self: _Run, number: int, *rest: Any) -> float:
            if number == killed_at:
                raise KeyboardInterrupt
            return step(self, number, *rest)

        patch.setattr(_Run, "_step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "killed", cache)
    steps: list[int] = []

    def counted(self: _Run, number: int, *rest: Any) -> float:
        steps.append(number)
        return step(self, number, *rest)

    monkeypatch.setattr(_Run, "_step", counted)
    torch.manual_seed(99)  # what else went on in the process does not matter
    resumed = train(tmp_path / "killed", cache)
    assert steps[0] == killed_at // 4 * 4  # from the last checkpoint, not from the start
    assert resumed.fingerprint == whole.fingerprint
    scores = [
        [entry["score"] for entry in record(tmp_path / name)["history"]] for name in ("whole", "killed")
    ]
    assert scores[0] == scores[1]


def test_a_half_written_checkpoint_is_passed_over(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lcmem_filter.training.checkpoint import Checkpoints

    whole = train(tmp_path / "whole", cache)
    seal = Checkpoints._seal
    with monkeypatch.context() as patch:

        def unsealed(self: Checkpoints, progress: Any) -> None:
            if progress.step == 8:
                raise KeyboardInterrupt
            seal(self, progress)

        patch.setattr(Checkpoints, "_seal", unsealed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "killed", cache)
    assert train(tmp_path / "killed", cache).fingerprint == whole.fingerprint


def test_a_corrupt_checkpoint_is_named(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: _Run, *_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_Run, "_finish", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "head", cache, replace(QUICK, steps=4))
    state = tmp_path / "head" / ".training" / "step-00000004"
    (state / "optimizer.bin").write_bytes(b"no optimiser")
    with pytest.raises(CorruptArtifactError, match="cannot be read"):
        train(tmp_path / "head", cache, replace(QUICK, steps=4))
    (state / "progress.json").write_text("{")
    with pytest.raises(CorruptArtifactError, match="start over"):
        train(tmp_path / "head", cache, replace(QUICK, steps=4))


def test_a_finished_run_is_not_repeated_and_not_overwritten(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(tmp_path / "head", cache, replace(QUICK, steps=4))
    monkeypatch.setattr(_Run, "_train", None)
    (tmp_path / "head" / ".training" / "step-00000004").mkdir(parents=True)  # killed before it was dropped
    (tmp_path / "head" / ".training" / "step-00000004" / "progress.json").write_text("{}")
    train(tmp_path / "head", cache, replace(QUICK, steps=4), terms="Research only.")
    assert not (tmp_path / "head" / ".training").exists()
    assert record(tmp_path / "head")["terms"] == "Research only."
    assert "Terms: Research only." in (tmp_path / "head" / "README.md").read_text()
    assert train(tmp_path / "head", cache, replace(QUICK, steps=4)).fingerprint == first.fingerprint
    with pytest.raises(ArtifactError, match=r"another run .*seed"):
        train(tmp_path / "head", cache, replace(QUICK, steps=4, seed=7))
    written = record(tmp_path / "head")
    del written["plan"]["config"]["pooling"]  # of before there were any
    (tmp_path / "head" / "training.json").write_text(json.dumps(written))
    assert train(tmp_path / "head", cache, replace(QUICK, steps=4)).fingerprint == first.fingerprint
    (tmp_path / "head" / "training.json").unlink()
    with pytest.raises(ArtifactError, match="already holds"):
        train(tmp_path / "head", cache, replace(QUICK, steps=4))


def test_training_stops_early_and_keeps_the_best(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lcmem_filter.training import trainer

    measure, scores = trainer.Validator.measure, iter([0.2, 0.9, 0.5, 0.9, 0.1, 1.0])
    fingerprints = []

    def scored(self: Any, head: LCMemHead, device: Any) -> Any:
        fingerprints.append(head.fingerprint)
        return replace(measure(self, head, device), score=next(scores))

    monkeypatch.setattr(trainer.Validator, "measure", scored)
    head = train(tmp_path / "head", cache, replace(QUICK, steps=100, evaluate_every=2, patience=3))
    assert record(tmp_path / "head")["best_step"] == 4 and record(tmp_path / "head")["step"] == 10
    assert head.fingerprint == fingerprints[1]


def test_the_papers_loss_trains_the_verification_layer(tmp_path: Path, cache: Path) -> None:
    for loss in ("nt-xent", "verification"):
        config = replace(QUICK, steps=4, loss=loss)
        head = train(tmp_path / loss, cache, config)
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            untrained = LCMemHead.create("micro", {"sd": 4})
        assert torch.equal(head.fc_end.weight, untrained.fc_end.weight) == (loss == "nt-xent")
        assert not torch.equal(head.projection.weight, untrained.projection.weight)
        assert head.config.score == {"nt-xent": "cosine", "verification": "verification"}[loss]


def test_stage_2_goes_on_from_stage_1_and_finds_transformed_copies(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(QUICK, steps=8, stage2_steps=4, strong_views=2)
    head = train(tmp_path / "both", cache, config, stages=(1, 2), progress=True)
    said = capsys.readouterr().err
    assert 0 <= said.index("stage 1: ") < said.index("8/8") < said.index("stage 2: ") < said.rindex("4/4")
    first, second = record(tmp_path / "both" / "stage1"), record(tmp_path / "both")
    one = LCMemHead.from_pretrained(tmp_path / "both" / "stage1")
    assert (first["plan"]["config"]["stage"], second["plan"]["config"]["stage"]) == (1, 2)
    assert second["plan"]["initial"] == one.fingerprint != head.fingerprint
    assert second["step"] == 4 and second["history"][0]["learning_rate"] <= config.stage2_learning_rate
    assert (
        not first["best"]["transformed_copies"]["per_set"] and second["best"]["transformed_copies"]["per_set"]
    )
    assert (
        second["best"]["half_formed_copies"]["per_set"] and not first["best"]["half_formed_copies"]["per_set"]
    )
    card = (tmp_path / "both" / "README.md").read_text()
    assert "strongly transformed copies" in card and "half-formed copies" in card
    assert train(tmp_path / "both", cache, config, stages=(1, 2)).fingerprint == head.fingerprint
    again = train(tmp_path / "second", cache, config, stages=(2,), initial=one)
    assert again.fingerprint == head.fingerprint
    with pytest.raises(ArtifactError, match="another shape"):
        train(tmp_path / "third", cache, config, stages=(2,), initial=LCMemHead.create("small"))
    for stages in ((2,), (3,)):
        with pytest.raises(ArtifactError, match="has pooling 'mean', not 'gem'"):
            train(tmp_path / "fifth", cache, replace(config, pooling="gem"), stages=stages, initial=one)
    with pytest.raises(ValueError, match="stages are 1, 2 and 3"):
        train(tmp_path / "fourth", cache, config, stages=(2, 1))  # type: ignore[arg-type]


def test_stage_3_trains_descriptors_and_nothing_else(tmp_path: Path, cache: Path) -> None:
    config = replace(QUICK, stage2_steps=4, stage3_steps=12, stage3_batch_pairs=12, evaluate_every=1)
    config = replace(config, patience=12)  # the loss of each step, of all of them
    head = train(tmp_path / "all", cache, config, stages=(1, 2, 3))
    before = LCMemHead.from_pretrained(tmp_path / "all" / "stage2")
    assert head.has_descriptors("sd") and not before.has_descriptors("sd")
    for name, value in before.state_dict().items():
        torch.testing.assert_close(head.state_dict()[name], value, rtol=0, atol=0, msg=name)
    losses = [entry["loss"] for entry in record(tmp_path / "all")["history"]]
    assert len(losses) == 12 and sum(losses[6:]) < 0.9 * sum(losses[:6]), losses
    card = (tmp_path / "all" / "README.md").read_text()
    assert "In the latent spaces sd, pictures are laid over each other" in card
    assert "Went on from: stage 2 for 4 steps of 8 pairs; before that: stage 1" in card
    alone = train(tmp_path / "third", cache, config, stages=(3,), initial=before)
    assert alone.fingerprint == head.fingerprint


def test_what_a_stage_changed_can_be_taken_half_the_way_back(tmp_path: Path, cache: Path) -> None:
    config = replace(QUICK, stage3_steps=6, stage3_batch_pairs=12, evaluate_every=3)
    torch.manual_seed(0)
    plain = LCMemHead.create("micro", {"sd": 4})
    initial = train(tmp_path / "initial", cache, config, stages=(3,), initial=plain)
    heads = [
        train(tmp_path / f"{share}", cache, replace(config, keep_initial=share), stages=(3,), initial=initial)
        for share in (0.0, 0.5, 1.0)
    ]
    trained, halfway, back = (head.state_dict() for head in heads)
    for name, value in initial.state_dict().items():
        torch.testing.assert_close(back[name], value, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(halfway[name], (value + trained[name]) / 2, rtol=1e-5, atol=1e-6)
    assert not torch.equal(trained["dense.lateral.weight"], initial.state_dict()["dense.lateral.weight"])
    told = [record(tmp_path / name)["best"]["same_identity"] for name in ("1.0", "initial")]
    assert told[0] == told[1]  # measured after it


def test_stage_3_keeps_the_spaces_that_it_does_not_train_on(tmp_path: Path, cache: Path) -> None:
    torch.manual_seed(0)
    initial = LCMemHead.create("micro", {"sd": 4, "other": 6})
    config = replace(QUICK, stage3_steps=4, stage3_batch_pairs=12)
    head = train(tmp_path / "head", cache, config, stages=(3,), initial=initial)
    assert {space: head.has_descriptors(space) for space in head.spaces} == {"sd": True, "other": False}
    assert head.fingerprint_of("other") != initial.fingerprint_of("other")  # the branch is new to it too
    with pytest.raises(ArtifactError, match="no stem for latent space 'sd'"):
        train(tmp_path / "b", cache, config, stages=(3,), initial=LCMemHead.create("micro", {"x": 4}))
    with pytest.raises(ValueError, match="stage 3 needs a trained head"):
        train(tmp_path / "c", cache, config, stages=(3,))


def test_two_spaces_train_together(tmp_path: Path) -> None:
    encoders = {"a": Encoder(tiny_vae(), "a"), "b": Encoder(tiny_vae(seed=1, latent_channels=6), "b")}
    head = train_head(SOURCES, encoders, tmp_path / "head", replace(QUICK, steps=4), progress=False)
    assert head.spaces == ("a", "b")
    assert head.identify_space(tiny_vae(seed=1, latent_channels=6)).space == "b"


def test_mixed_precision_and_accumulation(
    tmp_path: Path, cache: Path, forget_precision: Callable[[], None]
) -> None:
    config = replace(QUICK, steps=4, mixed_precision="bf16", gradient_accumulation=2)
    forget_precision()
    head = train(tmp_path / "head", cache, config)
    assert {p.dtype for p in head.parameters()} == {torch.float32}
    assert record(tmp_path / "head")["history"][0]["loss"] > 0


def test_accumulated_batches_make_one_step(tmp_path: Path, cache: Path) -> None:
    """Two copies of one batch, accumulated, move the weights as that batch does."""
    one = replace(QUICK, steps=4, batch_pairs=4, augment=False)
    original = trainer.batch_of

    def repeated(pairs: Any, part: slice, *rest: Any) -> Any:
        return original(pairs, slice(0, 4), *rest[:-2], 0, None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "batch_of", repeated)
        single = train(tmp_path / "single", cache, one)
        patch.setattr("lcmem_filter.training.data.PairSampler.draw", _doubled())
        double = train(tmp_path / "double", cache, replace(one, batch_pairs=8, gradient_accumulation=2))
    for name, value in single.state_dict().items():
        torch.testing.assert_close(double.state_dict()[name], value, rtol=0, atol=2e-5, msg=name)


def _doubled() -> Any:
    from lcmem_filter.training.data import PairSampler

    draw = PairSampler.draw

    def halved(self: PairSampler, *key: int) -> Any:
        self.pairs = 4
        pairs = draw(self, *key)
        import numpy as np

        return type(pairs)(
            *(np.concatenate([getattr(pairs, f)] * 2) for f in ("a", "b", "view_a", "view_b", "identities"))
        )

    return halved


def test_unreadable_images_are_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources: list[Any] = [Pictures("twice", 12, 2, broken=(3, 4)), SOURCES[1]]
    train(tmp_path / "head", tmp_path / "cache", replace(QUICK, steps=4), sources, progress=True)
    data = record(tmp_path / "head")["data"]
    names = [f"twice/{sources[0].records[row].id}" for row in (3, 4)]
    assert data["unreadable"] == 2
    told = capsys.readouterr().err
    assert (
        f"2 images cannot be read: {', '.join(names)} (image {sources[0].records[3].id!r} of 'twice'" in told
    )
    assert "too few for a false rejection of 0.01" in told
    card = (tmp_path / "head" / "README.md").read_text()
    assert "2 images could not be read." in card and names[0] not in card
    assert sum(data[part][name][0] for part in ("train", "validation") for name in ("twice", "once")) == 34


def test_what_somebody_named_is_part_of_the_plan(tmp_path: Path, cache: Path) -> None:
    first = SOURCES[0].records[0].id
    train(tmp_path / "head", cache, replace(QUICK, steps=2), leave_out=[f"twice/{first}"])
    assert record(tmp_path / "head")["data"]["left_out"] == 1
    with pytest.raises(ArtifactError, match="left_out"):
        train(tmp_path / "head", cache, replace(QUICK, steps=2))


def test_data_that_cannot_be_trained_on(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(EmptyDataError, match="no image of 'p'"):
        train(tmp_path / "a", cache, sources=[Pictures("p", 4, 1, broken=(0, 1, 2, 3))])
    with pytest.raises(DataError, match="two identities"):
        train(tmp_path / "b", cache, sources=[Pictures("q", 2, 2)])
    with pytest.raises(DataError, match="every validation image"):
        train(tmp_path / "c", cache, validation=[SOURCES[0]])
    with pytest.raises(DataError, match="at least one data source"):
        train(tmp_path / "d", cache, sources=())


@pytest.mark.parametrize(
    "change",
    [
        {"batch_pairs": 5, "gradient_accumulation": 2},
        {"steps": 0},
        {"temperature": 0},
        {"validation_fraction": 1.0},
    ],
)
def test_settings_that_make_no_sense(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(QUICK, **change).check_batch(1)


PROCESS = """
import sys
from dataclasses import replace
from pathlib import Path
from tests.training.test_trainer import QUICK, train
train(Path(sys.argv[1]), Path(sys.argv[2]), replace(QUICK, steps=4, augment=False))
"""


MINING = """
import os, sys
from dataclasses import replace
from pathlib import Path
import torch
from lcmem_filter.training.data import PairSampler
from tests.training.test_trainer import QUICK, train
mine, told = PairSampler.mine, []
def and_tell(sampler, embeddings):
    told.append(embeddings)
    mine(sampler, embeddings)
PairSampler.mine = and_tell
config = replace(QUICK, size="resnet", stage2_steps=4, evaluate_every=2)
train(Path(sys.argv[1]), Path(sys.argv[2]), config, stages=(2,))
torch.save(torch.stack(told), Path(sys.argv[2], os.environ["RANK"] + ".pt"))
"""


def in_two_processes(folder: Path, program: str) -> None:
    """Run a program of two arguments, ``folder/double`` and ``folder/cache2``."""
    script = folder / "process.py"
    script.write_text(program)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    here = str(Path(__file__).parents[2])
    path = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [*launch, str(script), str(folder / "double"), str(folder / "cache2")]
    subprocess.run(command, check=True, timeout=240, cwd=here, env=environment)


@pytest.mark.slow
def test_two_processes_make_the_same_head_as_one(tmp_path: Path) -> None:
    """The batch is divided and the negatives of both processes count: the gradient is the whole batch's."""
    config = replace(QUICK, steps=4, augment=False)
    single = train(tmp_path / "single", tmp_path / "cache", config)
    in_two_processes(tmp_path, PROCESS)
    double = LCMemHead.from_pretrained(tmp_path / "double")
    assert record(tmp_path / "double")["plan"]["processes"] == 2
    for name, value in single.state_dict().items():
        torch.testing.assert_close(double.state_dict()[name], value, rtol=0, atol=5e-5, msg=name)


@pytest.mark.slow
def test_two_processes_draw_one_batch_whatever_each_saw_of_it(tmp_path: Path) -> None:
    """Statistics of batches are each process's own; neighbours by them would be too, and others after a kill."""
    in_two_processes(tmp_path, MINING)
    first, second = (torch.load(tmp_path / "cache2" / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert len(first) == 3 and torch.equal(first, second)


def test_a_folder_of_output_that_is_named_as_a_shipped_head_is_the_folder(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("lcmem-small", "./lcmem-small"):
        made = train(name, cache, replace(QUICK, steps=2))
        assert train(name, cache, replace(QUICK, steps=2), terms="mine").fingerprint == made.fingerprint
        assert record(tmp_path / name)["terms"] == "mine" and record(tmp_path / name)["step"] == 2
        assert "Terms: mine" in (tmp_path / name / "README.md").read_text()
