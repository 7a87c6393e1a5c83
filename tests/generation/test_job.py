"""Jobs: what they leave, that kills change no byte of it, and when they stop by themselves."""

from __future__ import annotations

import copy
import json
import re
import shutil
from dataclasses import replace

import datasets
import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import cpu_offload
from diffusers import StableDiffusionPipeline
from PIL import Image

import lcmem_filter
from lcmem_filter import processes
from lcmem_filter.errors import (
    ArtifactError,
    CorruptArtifactError,
    DataError,
    FilterFailedError,
    GenerationStoppedError,
    MemorizationError,
    UnsupportedPipelineError,
)
from lcmem_filter.filter import MemorizationFilter
from lcmem_filter.generation import Request, run
from lcmem_filter.generation.drawing import draw_batch, prompts_of
from lcmem_filter.generation.folder import JobFolder
from lcmem_filter.generation.history import History
from lcmem_filter.generation.job import checked_options, pipeline_fingerprint
from lcmem_filter.generation.plan import Item, plan_of
from lcmem_filter.generation.report import _sample
from lcmem_filter.images import open_images
from lcmem_filter.pipeline.policy import attached_policy
from lcmem_filter.pipeline.watch import Stage
from lcmem_filter.types import Calibration
from lcmem_filter.verification import STATISTIC

from ..index.material import build
from ..pipeline.families.stable_diffusion_xl import xl
from ..pipeline.scripted import always, wear
from ..tiny import picture, tiny_pipeline, write_pictures
from .material import OPTIONS, PROMPTS, checksums


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.fixture
def job(pipe, folder, tmp_path):
    """Runs the job, or one that differs in some arguments, into ``tmp_path / name``."""

    def start(name="job", prompts=PROMPTS, **changed):
        arguments = {
            "options": OPTIONS,
            "batch_size": 4,
            "max_resamples": 1,
            "stop_rejection_rate": 1.0,
            "progress": False,
        }
        return lcmem_filter.generate(
            pipe, prompts, folder / "index", tmp_path / name, **{**arguments, **changed}
        )

    return start


@pytest.fixture(scope="module")
def whole(pipe, folder, tmp_path_factory):
    """The job, uninterrupted."""
    output = tmp_path_factory.mktemp("whole") / "job"
    return lcmem_filter.generate(
        pipe,
        PROMPTS,
        folder / "index",
        output,
        options=OPTIONS,
        batch_size=4,
        max_resamples=1,
        stop_rejection_rate=1.0,
        progress=False,
    )


def test_the_set_holds_what_was_accepted_and_the_manifest_everything(whole, pipe, folder):
    rows = whole.rows
    assert {row.status for row in rows} == {"accepted", "withheld"}, "the index must reject some for good"
    assert any(row.status == "accepted" and row.attempts == 2 and row.rung for row in rows)
    assert all(len(row.rungs) == row.attempts - 1 and (row.rungs or ("",))[-1] == row.rung for row in rows)
    assert all((row.accepted is True) == (row.file_name is not None) for row in rows)
    known = {record.id for record in lcmem_filter.MemorizationIndex.load(folder / "index").records}
    assert all(len(row.matched_before) == row.attempts - 1 and known >= {*row.matched_before} for row in rows)
    copied = {id_ for one in whole.results.copied for id_ in one.samples}
    assert {row.file_name for row in rows if row.matched_before and row.delivered} <= copied
    files = {path.relative_to(whole.folder).as_posix() for path in (whole.folder / "images").iterdir()}
    assert files == {row.file_name for row in rows if row.delivered}
    manifest = pq.read_table(whole.folder / "manifest.parquet")
    lines = [json.loads(line) for line in (whole.folder / "manifest.jsonl").read_text().splitlines()]
    assert manifest.to_pylist() == lines
    assert [line["position"] for line in lines] == list(range(len(PROMPTS)))
    assert [line["prompt"] for line in lines] == PROMPTS
    assert lines[0]["nearest"] and lines[0]["fingerprints"]["index"] and lines[0]["versions"]["torch"]
    assert json.loads(manifest.schema.metadata[b"lcmem_filter"]) == json.loads(
        (whole.folder / "job.json").read_text()
    )
    assert getattr(pipe, "memorization_filter", None) is None


def test_an_interrupted_batch_is_withheld_and_the_job_ends(job, pipe, monkeypatch):
    step, calls = pipe.scheduler.step, []

    def interrupted(*args, **options):
        pipe._interrupt = not calls
        calls.append(1)
        return step(*args, **options)

    monkeypatch.setattr(pipe.scheduler, "step", interrupted)
    done = job(prompts=PROMPTS[:8])
    assert [row.accepted for row in done.rows[:4]] == [None] * 4
    assert not any(row.delivered for row in done.rows[:4]) and any(row.delivered for row in done.rows[4:])
    manifest = pq.read_table(done.folder / "manifest.parquet").to_pylist()
    lines = (done.folder / "manifest.jsonl").read_text()
    assert manifest == [json.loads(line) for line in lines.splitlines()] and "NaN" not in lines
    assert [row["score"] is None and row["p_value"] is None for row in manifest] == [True] * 4 + [False] * 4
    assert len(job(prompts=PROMPTS[:8]).rows) == 8 and (done.folder / "manifest.jsonl").read_text() == lines
    calls.clear()
    with pytest.raises(FilterFailedError, match=r"image 0 .* was not judged: the call was interrupted"):
        job("raise", prompts=PROMPTS[:8], on_exhausted="raise")


def test_how_adapters_and_freeu_are_set_is_part_of_a_pipelines_fingerprint():
    peft = pytest.importorskip("peft")
    pipe = tiny_pipeline()
    of = [pipeline_fingerprint(pipe)]
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.4, b2=1.6)
    of.append(pipeline_fingerprint(pipe))
    pipe.disable_freeu()
    assert pipeline_fingerprint(pipe) == of[0]
    lora = peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"])
    pipe.unet.add_adapter(lora, adapter_name="x")
    of.append(pipeline_fingerprint(pipe))
    pipe.unet.set_adapters(["x"], [0.2])
    of.append(pipeline_fingerprint(pipe))
    pipe.unet.disable_adapters()
    of.append(pipeline_fingerprint(pipe))
    assert len(set(of)) == 5


def test_datasets_reads_the_folder(whole, tmp_path):
    for given in ({"path": str(whole.folder)}, {"path": "imagefolder", "data_dir": str(whole.folder)}):
        found = datasets.load_dataset(**given, split="train", cache_dir=str(tmp_path))
        delivered = [row for row in whole.rows if row.delivered]
        assert found["position"] == [row.position for row in delivered]
        assert found["prompt"] == [row.prompt for row in delivered]
        first = np.asarray(Image.open(whole.folder / delivered[0].file_name))
        assert np.array_equal(np.asarray(found[0]["image"]), first) and first.std() > 0


def test_datasets_reads_a_single_image(job, tmp_path):
    made = job(prompts=["a cat"], on_memorized="flag")
    found = datasets.load_dataset(
        "imagefolder", data_dir=str(made.folder), split="train", cache_dir=str(tmp_path / "cache")
    )
    with Image.open(made.folder / made.rows[0].file_name) as delivered:
        assert found["prompt"] == ["a cat"] and found[0]["image"].size == delivered.size


def test_the_report_counts_what_was_withheld(whole):
    numbers = json.loads((whole.folder / "report" / "report.json").read_text())
    withheld = sum(row.status == "withheld" for row in whole.rows)
    assert numbers["counts"] == {"accepted": len(PROMPTS) - withheld, "withheld": withheld}
    assert numbers["exit_code"] == 0 and "withheld" in whole.results.verdict
    redrawn = [row for row in whole.rows if row.attempts == 2]
    accepted = sum(row.status == "accepted" for row in redrawn)
    assert numbers["rungs"] == [{"rung": "new_seed", "tried": len(redrawn), "accepted": accepted}]
    assert numbers["run"]["kind"] == "generation"
    assert (whole.tally.drawn, whole.tally.withheld) == (len(PROMPTS), withheld)


def test_a_job_drawn_where_one_stands_is_called_as_its_folder(pipe, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = lcmem_filter.generate(pipe, PROMPTS[:1], folder / "index", ".", options=OPTIONS, progress=False)
    assert made.results.run.images == tmp_path.name


def test_the_report_says_why_a_redraw_below_the_threshold_is_withheld(whole):
    threshold = whole.results.calibration.threshold
    stricter = [
        (row, one)
        for row, one in zip(whole.rows, whole.results.samples, strict=True)
        if row.accepted is False and row.score <= threshold
    ]
    assert all(
        one.problem == row.reason or f"exceeds {row.threshold:.3f}" in one.problem for row, one in stricter
    )
    row = replace(whole.rows[0], accepted=False, score=0.4, threshold=0.3, reason="", attempts=2)
    assert "exceeds 0.300, the threshold for what is drawn again" in _sample(row, 0.5).problem
    assert _sample(replace(row, score=0.6), 0.5).problem == ""


def test_the_words_that_an_image_was_drawn_from_are_kept(job, whole):
    found = job("words", rungs=["prompt_perturbation"])
    again = [row for row in found.rows if row.attempts > 1]
    assert again and all({*row.prompt.split()} < {*row.drawn_prompt.split()} for row in again)
    assert not any(row.drawn_prompt for row in (*whole.rows, *found.rows) if row not in again)
    lines = [json.loads(line) for line in (found.folder / "manifest.jsonl").read_text().splitlines()]
    assert [line["drawn_prompt"] for line in lines] == [row.drawn_prompt for row in found.rows]
    shown = {sample.id: sample.prompt for sample in found.results.samples}
    assert all(shown[row.file_name] == row.drawn_prompt for row in again if row.delivered)


def test_an_image_is_what_the_plain_pipeline_draws_from_its_seed(whole, pipe):
    batch = whole.rows[:4]
    generators = [torch.Generator().manual_seed(row.seed) for row in batch]
    images = pipe([row.prompt for row in batch], generator=generators, **OPTIONS).images
    once = [(row, image) for row, image in zip(batch, images, strict=True) if row.attempts == 1]
    assert once
    for row, image in once:
        assert np.array_equal(np.asarray(Image.open(whole.folder / row.file_name)), np.asarray(image))


@pytest.mark.parametrize("writes", [0, 1, 5, 6])
def test_a_kill_changes_no_byte(whole, job, tmp_path, monkeypatch, writes):
    """Killed at one of its writes (images or receipts) and halfway through it."""
    left = [writes]

    def dying(write, path_of):
        def die(self, *arguments):
            if left[0] == 0:
                path_of(self, arguments[0]).with_suffix(".png.1.tmp").write_bytes(b"half")
                raise Killed
            left[0] -= 1
            return write(self, *arguments)

        return die

    with monkeypatch.context() as patch:
        image = dying(JobFolder.write_image, lambda self, place: self.path / self.file_name(place))
        patch.setattr(JobFolder, "write_image", image)
        patch.setattr(JobFolder, "write_receipt", dying(JobFolder.write_receipt, JobFolder._receipt))
        with pytest.raises(Killed):
            job()
    assert not (tmp_path / "job" / "metadata.jsonl").exists()
    job()
    assert checksums(tmp_path / "job") == checksums(whole.folder)


def test_a_finished_job_is_not_drawn_again_but_damage_is_mended(whole, job, tmp_path, monkeypatch):
    shutil.copytree(whole.folder, tmp_path / "job")
    batches = []
    draw = run.draw_batch
    monkeypatch.setattr(
        run, "draw_batch", lambda pipe, items, *a, **k: batches.append(items) or draw(pipe, items, *a, **k)
    )
    job()
    assert not batches
    damaged = next(row for row in whole.rows if row.delivered)
    (tmp_path / "job" / damaged.file_name).write_bytes(b"damaged")
    job()
    assert [items[0].position // 4 for items in batches] == [damaged.position // 4]
    assert checksums(tmp_path / "job") == checksums(whole.folder)


def test_an_image_that_the_job_did_not_draw_is_named_and_not_delivered(whole, job, tmp_path):
    shutil.copytree(whole.folder, tmp_path / "job")
    others = [tmp_path / "job" / "images" / name for name in ("more/scan.png", "scan.png")]
    others[0].parent.mkdir()
    for path in others:
        picture(0).save(path)
    with pytest.raises(
        ArtifactError, match=r"holds images/more/scan\.png, images/scan\.png, which this job did not"
    ):
        job()
    for path in others:
        path.unlink()
    assert job().rows == whole.rows


def test_another_batch_size_differs_by_rounding(whole, job, tmp_path):
    other = job("other", batch_size=5)
    assert other.rows[0].seed == whole.rows[0].seed
    same = [(a, b) for a, b in zip(whole.rows, other.rows, strict=True) if a.attempts == b.attempts == 1]
    assert len(same) >= len(PROMPTS) // 3
    for a, b in same:
        one, two = (
            np.asarray(Image.open(d / r.file_name), int) for d, r in ((whole.folder, a), (other.folder, b))
        )
        assert np.abs(one - two).max() <= 2
        assert a.score == pytest.approx(b.score, abs=1e-3)


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"seed": 1}, "plan, seed"),
        ({"options": {**OPTIONS, "guidance_scale": 3.0}}, "options (guidance_scale)"),
        ({"on_memorized": "reject"}, "on_memorized"),
        ({"threads": 2}, "threads"),
    ],
)
def test_a_folder_goes_on_only_with_its_own_job(whole, job, tmp_path, changed, names):
    shutil.copytree(whole.folder, tmp_path / "job")
    with pytest.raises(ArtifactError, match=re.escape(f"job with other {names};")):
        job(**changed)
    assert checksums(tmp_path / "job") == checksums(whole.folder)


def test_what_is_refused_is_named_within_fingerprints_and_versions_too(whole, job, tmp_path):
    shutil.copytree(whole.folder, tmp_path / "job")
    begun = json.loads((tmp_path / "job" / "job.json").read_text())
    begun["fixed"]["fingerprints"]["index"] = begun["fixed"]["versions"]["torch"] = "another"
    (tmp_path / "job" / "job.json").write_text(json.dumps(begun))
    with pytest.raises(
        ArtifactError, match=re.escape("job with other fingerprints (index), versions (torch);")
    ):
        job()


def test_other_folders_are_left_alone(job, tmp_path):
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "thesis.tex").write_text("")
    with pytest.raises(ArtifactError, match="not empty and holds no job"):
        job()
    (tmp_path / "job" / "job.json").write_text("{")
    with pytest.raises(CorruptArtifactError, match="cannot be read"):
        job()


def test_reject_and_flag(job, whole):
    rejected = job("reject", on_memorized="reject", prompts=PROMPTS[:4])
    hit = [row.position for row in whole.rows[:4] if row.attempts > 1]
    assert [row.position for row in rejected.rows if row.status == "withheld"] == hit
    flagged = job("flag", on_memorized="flag", prompts=PROMPTS[:4])
    assert [row.position for row in flagged.rows if row.status == "flagged"] == hit
    assert all(row.delivered for row in flagged.rows) and flagged.results.exit_code == 1


def test_a_filter_that_was_attached_before_is_attached_after(job, pipe, folder):
    lcmem_filter.attach(pipe, folder / "index", on_memorized="reject", on_exhausted="raise")
    before = attached_policy(pipe)
    job(on_memorized="flag", prompts=PROMPTS[:4])
    assert attached_policy(pipe) is before and pipe.memorization_filter is before.filter
    lcmem_filter.detach(pipe)
    job(on_memorized="flag", prompts=PROMPTS[:4])
    assert not hasattr(pipe, "memorization_filter") and type(pipe) is StableDiffusionPipeline


def test_a_negative_prompt_is_each_images(job, whole):
    made = job(options={**OPTIONS, "negative_prompt": "blurred"}, prompts=PROMPTS[:4])
    assert len(made.rows) == 4 and [row.sha256 for row in made.rows] != [row.sha256 for row in whole.rows[:4]]


def test_a_salted_report_quotes_no_text_of_the_call_and_no_path(job, folder):
    options = {**OPTIONS, "negative_prompt": "Ms Doe"}
    for salt, told in ((None, True), (b"a secret salt", False)):
        made = job(options=options, prompts=PROMPTS[:4], thumbnails=False, salt=salt)
        for name in ("report.html", "report.json"):
            written = (made.folder / "report" / name).read_text()
            assert ["Ms Doe" in written, str(folder / "pipeline") in written] == [told, told], name
            assert "num_inference_steps" in written
        found = json.loads((made.folder / "report" / "report.json").read_text())
        assert ["seed" in found["run"]["settings"], found["samples"][0]["seed"] is not None] == [told, told]


def test_settings_and_vocabulary_are_part_of_a_pipeline(pipe):
    before = pipeline_fingerprint(pipe)
    other = copy.deepcopy(pipe)
    other.vae.register_to_config(scaling_factor=0.5)
    assert pipeline_fingerprint(other) != before
    other = copy.deepcopy(pipe)
    other.register_to_config(requires_safety_checker=True)
    assert pipeline_fingerprint(other) != before
    for turn_on in ("enable_tiling", "enable_slicing"):
        other = copy.deepcopy(pipe)
        getattr(other.vae, turn_on)()
        assert pipeline_fingerprint(other) != before
    shifted = []
    for shift in (3.0, 6.0):
        other = copy.deepcopy(pipe)
        other.scheduler.shift = shift
        shifted.append(pipeline_fingerprint(other))
    assert len({before, *shifted}) == 3
    other = copy.deepcopy(pipe)
    other.tokenizer.add_tokens(["another word"])
    assert pipeline_fingerprint(other) != before
    assert pipeline_fingerprint(copy.deepcopy(pipe)) == before


def test_a_job_that_goes_on_lists_nothing_before_it_is_done(whole, job, tmp_path, monkeypatch):
    shutil.copytree(whole.folder, tmp_path / "job")
    lost = next(row for row in whole.rows if row.delivered)
    (tmp_path / "job" / lost.file_name).unlink()
    told = (
        "metadata.jsonl",
        "manifest.jsonl",
        "manifest.parquet",
        "report/report.html",
        "report/report.json",
    )
    plain = JobFolder.write_image

    def write(self, *image):
        assert not [name for name in told if (tmp_path / "job" / name).exists()]
        return plain(self, *image)

    monkeypatch.setattr(JobFolder, "write_image", write)
    with pytest.raises(GenerationStoppedError):
        job(disk_budget=1)
    assert [name for name in told if (tmp_path / "job" / name).exists()] == list(told[3:])
    job()
    assert checksums(tmp_path / "job") == checksums(whole.folder)


def test_weights_that_are_held_elsewhere_make_the_same_job(pipe):
    in_memory = pipeline_fingerprint(pipe)
    again = copy.deepcopy(pipe)
    cpu_offload(again.unet, execution_device=torch.device("cpu"))
    assert any(parameter.is_meta for parameter in again.unet.parameters())
    assert pipeline_fingerprint(again) == in_memory
    lost = copy.deepcopy(pipe)
    lost.unet.to("meta")
    with pytest.raises(DataError, match=r"of UNet2DConditionModel lie on no device"):
        pipeline_fingerprint(lost)


def test_a_rung_that_steers_says_so_in_a_job_too():
    assert [rung.steers for rung in History(["new_seed", "repulsion"]).rungs] == [False, True]


def test_raise_ends_the_job_before_the_batch_is_written(job, whole, tmp_path):
    with pytest.raises(MemorizationError, match="was memorised in each of 2 attempts"):
        job(on_exhausted="raise")
    first = next(row.position for row in whole.rows if row.status == "withheld")
    written = {path.name for path in (tmp_path / "job" / "images").iterdir()}
    assert all(int(name.split(".")[0]) < first // 4 * 4 for name in written)


def test_a_model_that_copies_stops_the_job_with_a_report(job, tmp_path, monkeypatch):
    monkeypatch.setattr(MemorizationFilter, "decide", _rejecting(MemorizationFilter.decide))
    with pytest.raises(
        GenerationStoppedError, match="stopped after 8 of 12 images: 8 of 8 first draws match"
    ):
        job(on_memorized="reject", stop_rejection_rate=0.5)
    assert "stopped early" in (tmp_path / "job" / "report" / "report.html").read_text()
    assert not (tmp_path / "job" / "metadata.jsonl").exists() and not any(
        (tmp_path / "job" / "images").iterdir()
    )
    assert len(job(on_memorized="reject", stop_rejection_rate=1.0).rows) == len(PROMPTS)


def test_a_disk_budget_stops_the_job_and_a_higher_one_goes_on(whole, job, tmp_path):
    total = whole.tally.bytes
    with pytest.raises(GenerationStoppedError, match="would exceed the disk budget"):
        job(disk_budget=total // 2)
    assert 0 < sum(path.stat().st_size for path in (tmp_path / "job" / "images").iterdir()) <= total // 2
    job(disk_budget=2 * total)
    assert checksums(tmp_path / "job") == checksums(whole.folder)


def test_a_stopped_job_reports_what_other_processes_still_drew(whole, job, tmp_path, monkeypatch):
    class FirstOfTwo:
        process_index, num_processes, is_main_process = 0, 2, True

        def wait_for_everyone(self):
            if (tmp_path / "job" / ".job" / "stop").exists():  # the other one ends the batch that it is at
                for row in whole.rows[4:8]:
                    if row.delivered:
                        shutil.copy(whole.folder / row.file_name, tmp_path / "job" / row.file_name)
                receipt = ".job/batches/000001.json"
                shutil.copy(whole.folder / receipt, tmp_path / "job" / receipt)

    monkeypatch.setattr(processes, "this_process", FirstOfTwo)
    with pytest.raises(GenerationStoppedError, match="one process's share, 1 of 2, of the disk budget of 1;"):
        job(disk_budget=1)
    report = json.loads((tmp_path / "job" / "report" / "report.json").read_text())
    shown = {one["id"] for one in report["samples"] if one["delivered"]}
    assert len(report["samples"]) == 8 and report["exit_code"] == 2
    assert shown == {f"images/{path.name}" for path in (tmp_path / "job" / "images").iterdir()}


def test_processes_that_judge_by_different_thresholds_are_no_one_job(whole, job, tmp_path, monkeypatch):
    """As where the index is calibrated after one of them has loaded it, and before another has."""
    fixed = json.loads((whole.folder / "job.json").read_text())["fixed"]
    other = {**fixed, "fingerprints": {**fixed["fingerprints"], "index": "calibrated again"}}

    def gather(own):  # threads, and then what the job's bytes depend on
        return [*own, other if isinstance(own[0], dict) else 64]

    monkeypatch.setattr(processes, "gather_object", gather)
    with pytest.raises(ArtifactError, match=r"processes of this job differ in fingerprints \(index\), as"):
        job()
    assert not (tmp_path / "job").exists()
    other = fixed
    assert checksums(job().folder) == checksums(whole.folder)


def test_nothing_is_written_that_could_not_be_judged(job, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no verdict")

    monkeypatch.setattr(MemorizationFilter, "decide", fail)
    with pytest.raises(FilterFailedError):
        job()
    assert not any((tmp_path / "job" / "images").iterdir())


def test_what_the_safety_checker_blanks_is_no_image_of_the_set(job, pipe, monkeypatch):
    checked = []

    def check(image, device, dtype):
        checked.append(len(image))
        return image, [True] + [False] * (len(image) - 1)

    monkeypatch.setattr(pipe, "run_safety_checker", check, raising=False)
    made = job(on_memorized="reject", prompts=["a cat"] * 8)
    assert checked and sum(row.status == "unsafe" for row in made.rows) >= 1
    assert all(row.file_name is None for row in made.rows if row.status == "unsafe")


def test_an_unconditional_count(job):
    made = job(prompts=np.int64(3))
    assert [row.prompt for row in made.rows] == ["", "", ""]

    class Unconditional:
        def __call__(self, batch_size=1): ...

    class Demanding:
        def __call__(self, image): ...

    items = [Item(0, "", "", 1), Item(1, "", "", 2)]
    assert prompts_of(Unconditional(), items) == {"batch_size": 2}
    with pytest.raises(UnsupportedPipelineError, match="takes no prompts"):
        prompts_of(Unconditional(), [Item(0, "a cat", "", 1)])
    with pytest.raises(UnsupportedPipelineError, match="a script of your own"):
        prompts_of(Demanding(), items)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"options": {"generator": 1}}, "may not hold generator"),
        ({"options": {"callback_on_step_end": print}}, "cannot be kept"),
        ({"stop_rejection_rate": 0.0}, "lies in"),
        ({"disk_budget": 0}, "at least 1 byte"),
        ({"threads": 0}, "threads is at least 1, got 0"),
        ({"seed": 0.5}, r"seed is an integer, got 0\.5"),
        ({"seed": None}, "seed is an integer, got None"),
        ({"prompts": PROMPTS[:1], "batch_size": 2.0}, r"batch_size is an integer, got 2\.0"),
        ({"prompts": [Request("a cat")], "batch_size": 0}, "batch size"),
        ({"prompts": []}, "nothing to generate"),
        ({"prompts": [("a cat", "a dog")]}, "a prompt is a text in UTF-8"),
    ],
)
def test_arguments_that_cannot_be_are_refused(job, tmp_path, changed, says):
    with pytest.raises(DataError, match=says):
        job(**changed)
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"training": "train"}, "training has to be of ImageSource, got str; open_images"),
        ({"salt": "a key that is no bytes"}, "salt has to be of bytes, got str"),
    ],
)
def test_what_the_report_needs_is_looked_at_before_anything_is_drawn(job, tmp_path, changed, says):
    with pytest.raises(TypeError, match=says):
        job(prompts=PROMPTS[:1], **changed)
    assert not (tmp_path / "job").exists()


def test_images_of_which_the_index_holds_none_are_no_training_images(job, tmp_path):
    others = open_images(write_pictures(tmp_path / "others", range(100, 103)))
    with pytest.raises(DataError, match="none of the 3 images of 'others' is a training image of index"):
        job(prompts=PROMPTS[:1], training=others)
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"height": 33}, "have to be divisible by 8"),
        ({"num_inference_steps": 0}, "division or modulo by zero"),
    ],
)
def test_what_the_pipeline_refuses_takes_no_folder(job, tmp_path, changed, says):
    with pytest.raises(
        DataError, match=f"the pipeline refuses its arguments: .*{says}.*; give other options"
    ):
        job(options={**OPTIONS, **changed})
    assert not [path for path in (tmp_path / "job").rglob("*") if path.is_file() and path.name != "lock"]
    assert len(job(prompts=PROMPTS[:1]).rows) == 1


def test_integers_of_numpy_make_the_same_job(whole, job, tmp_path):
    shutil.copytree(whole.folder, tmp_path / "job")
    numbers = {"seed": 0, "batch_size": 4, "max_resamples": 1, "threads": torch.get_num_threads()}
    assert job(**{name: np.int64(number) for name, number in numbers.items()}).rows == whole.rows


def test_what_is_printed_of_a_finished_job_is_short(whole):
    assert str(whole.folder) in repr(whole) and len(repr(whole)) < 500


def test_a_pipeline_that_needs_a_picture_is_told_so(folder, tmp_path):
    with pytest.raises(DataError, match="the pipeline refuses its arguments: Input is in incorrect format"):
        lcmem_filter.generate(
            tiny_pipeline("img2img"), ["a cat"], folder / "index", tmp_path / "job", progress=False
        )
    assert not (tmp_path / "job" / "job.json").exists()


def test_what_goes_wrong_later_is_no_fault_of_the_arguments(job, tmp_path, monkeypatch):
    draw = run.draw_batch

    def second(pipe, items, *rest, **options):
        if items[0].position:
            raise ValueError("a bug")
        return draw(pipe, items, *rest, **options)

    monkeypatch.setattr(run, "draw_batch", second)
    with pytest.raises(ValueError, match=r"^a bug$"):
        job(prompts=PROMPTS[:5])
    assert (tmp_path / "job" / "job.json").exists()


def test_a_file_or_table_of_prompts_is_no_prompt(job, tmp_path):
    (tmp_path / "prompts.csv").write_text("prompt\na cat\n")
    for file in (str(tmp_path / "prompts.csv"), tmp_path / "prompts.csv"):
        with pytest.raises(
            DataError, match=r"prompts\.csv' is a file, not a prompt; give what .*read_requests"
        ):
            job(prompts=file)
    for table in (pandas.DataFrame({"prompt": ["a cat"]}), {"prompt": ["a cat"]}):
        with pytest.raises(DataError, match=f"got a {type(table).__name__}; give its column of prompts"):
            job(prompts=table)
    assert not (tmp_path / "job").exists()
    assert [row.prompt for row in job(prompts=pandas.Series(PROMPTS[:2])).rows] == list(PROMPTS[:2])


def test_images_of_another_size_than_the_index_are_told_in_the_report(job, whole):
    assert whole.results.cautions == ()
    larger = {**OPTIONS, "height": 2 * OPTIONS["height"]}
    with pytest.warns(UserWarning, match="encodings of another resolution differ"):
        made = job(prompts=PROMPTS[:1], options=larger, on_memorized="flag")
    assert ["built at" in caution for caution in made.results.cautions] == [True]


def _rejecting(decide):
    return lambda self, sample: replace(decide(self, sample), accepted=False)


def test_early_stop_is_in_use_and_part_of_the_job(job, folder, tmp_path, monkeypatch):
    index = lcmem_filter.MemorizationIndex.load(folder / "index")
    calibration = Calibration((0.5,), 0.5, 2.0, index.space, 1, {}, (0.0, 1.0), STATISTIC)
    stages = (Stage(0.5, 0.5, calibration),)
    early = lcmem_filter.EarlyStop(stages, 0.5, index.fingerprint, index.space, "DDIMScheduler", 2)
    early.save(tmp_path / "early.json")
    used = []

    def look(drawing, *rest, **options):
        used.append(attached_policy(drawing).early_stop)
        return draw_batch(drawing, *rest, **options)

    monkeypatch.setattr(run, "draw_batch", look)
    done = job(prompts=PROMPTS[:4], early_stop=tmp_path / "early.json")
    assert used == [early]
    written = json.loads((done.folder / "job.json").read_text())["fixed"]["early_stop"]
    (stage,) = early.stages
    assert written["stages"] == [
        {"fraction": 0.5, "noise": stage.noise, "threshold": stage.calibration.threshold}
    ]
    with pytest.raises(ArtifactError, match="early_stop"):
        job(prompts=PROMPTS[:4])
    assert job(prompts=PROMPTS[:4], early_stop=early).rows == done.rows


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn.t accept a copy:DeprecationWarning")
def test_sizes_are_the_tuples_that_pipelines_add():
    sizes = {"original_size": (64, 32), "negative_target_size": [32, 32], "timesteps": [3, 1]}
    found = checked_options(sizes)
    assert found == {"original_size": (64, 32), "negative_target_size": (32, 32), "timesteps": [3, 1]}
    items = plan_of([Request("a cat")]).batch(0)
    pipe = xl()
    wear(pipe, always)
    options = checked_options(
        {"num_inference_steps": 1, "original_size": [64, 32], "height": 32, "width": 32}
    )
    assert len(draw_batch(pipe, items, options, flag=False)) == 1


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn.t accept a copy:DeprecationWarning")
def test_a_job_with_sizes_goes_on(tmp_path):
    index = build(tmp_path, 8)
    index.set_calibration(Calibration((2.0,), 0.5, 2.0, index.space, 1, {}, (0.0, 1.0), STATISTIC))
    pipe, options = xl(), {"num_inference_steps": 1, "height": 32, "width": 32, "original_size": (64, 32)}
    first, again = (
        lcmem_filter.generate(pipe, ["a cat"], index, tmp_path / "job", options=options, progress=False)
        for _ in range(2)
    )
    assert first.rows == again.rows and first.tally.drawn == 1
    with pytest.raises(ArtifactError, match=r"other options \(original_size\)"):
        other = {**options, "original_size": (32, 32)}
        lcmem_filter.generate(pipe, ["a cat"], index, tmp_path / "job", options=other, progress=False)


def test_two_jobs_that_start_at_once_in_one_folder_do_not_mix(tmp_path, monkeypatch):
    first, second = JobFolder(tmp_path / "job"), JobFolder(tmp_path / "job")
    plain = JobFolder.check

    def check(self, job):
        plain(self, job)
        if self is first and not (tmp_path / "job").exists():  # the other one looked there too, and is faster
            with second.started({"fixed": {"seed": 2}}):
                pass

    monkeypatch.setattr(JobFolder, "check", check)
    with (
        pytest.raises(ArtifactError, match="holds a job with other seed"),
        first.started({"fixed": {"seed": 1}}),
    ):
        raise AssertionError("both go on")
    assert json.loads((tmp_path / "job" / "job.json").read_text())["fixed"] == {"seed": 2}


def test_what_a_start_that_came_to_nothing_leaves_takes_no_folder(tmp_path):
    (tmp_path / "job" / ".job").mkdir(parents=True)
    for left in (".job/lock", "job.json.0123.tmp"):
        (tmp_path / "job" / left).touch()
    (tmp_path / "job" / "thesis.tmp").touch()
    with pytest.raises(ArtifactError, match="holds no job"), JobFolder(tmp_path / "job").started({}):
        pass
    (tmp_path / "job" / "thesis.tmp").unlink()
    with JobFolder(tmp_path / "job").started({"fixed": {}}):
        assert {path.name for path in (tmp_path / "job").iterdir()} == {".job", "job.json", "images"}


def test_a_job_that_is_being_drawn_is_not_started_again(whole, job, tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    plain, refused = JobFolder.write_image, []

    def meanwhile(self, position, image):
        if position == 0:
            with pytest.raises(ArtifactError, match="is being drawn already") as error:
                job()
            refused.append(error)
        return plain(self, position, image)

    monkeypatch.setattr(JobFolder, "write_image", meanwhile)
    assert checksums(job().folder) == checksums(whole.folder) and len(refused) == 1
    assert job().rows == whole.rows  # it lets go when it is done
