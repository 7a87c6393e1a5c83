"""The demo: its phantoms are people who differ, its weights have memorised whom they should, its story is true."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from lcmem_filter.alignment import aligned_similarity
from lcmem_filter.demo import build, small_diffusion
from lcmem_filter.demo.checkpoints import write_checkpoint
from lcmem_filter.demo.phantoms import FINDINGS, SIZE, Visit, draw_scan, scans
from lcmem_filter.demo.roster import HEAD_TRAINING, HELD_OUT, NAMED, ONCE, VAE_TRAINING, caption_of, lessons
from lcmem_filter.demo.run import PROMPTS, WEIGHTS, _save_images, load_pipeline, report, run_demo
from lcmem_filter.demo.small_diffusion import Recipe, train_small_pipeline
from lcmem_filter.demo.small_vae import VaeRecipe, train_small_vae
from lcmem_filter.demo.story import draw_story
from lcmem_filter.errors import ArtifactError
from lcmem_filter.head import LCMemHead
from lcmem_filter.latents import canonical, weights_sha256

from tests.tiny import tiny_vae

MOST_BYTES = 12_000_000


def grey(visit: Visit) -> torch.Tensor:
    """A scan as canonical "latent" (1, 32, 32)."""
    pixels = build.draw_pixels([visit])[:, :1].float()
    return canonical(pixels, 32)[0]


def test_a_visit_always_gives_the_same_scan():
    first = draw_scan(Visit(7, 1))
    assert first.size == (SIZE, SIZE)
    assert first.tobytes() == draw_scan(Visit(7, 1)).tobytes()
    assert first.tobytes() != draw_scan(Visit(7, 2)).tobytes()
    assert first.tobytes() != draw_scan(Visit(8, 1)).tobytes()


def test_visits_of_a_patient_are_more_alike_than_patients():
    patients = range(30)
    before = torch.stack([grey(Visit(patient, 0)) for patient in patients])
    alike = torch.stack([aligned_similarity(grey(Visit(patient, 1)), before) for patient in patients])
    same, others = alike.diagonal(), alike[~torch.eye(len(patients), dtype=torch.bool)]
    auc = (same[:, None] > others[None]).float().mean()
    assert auc > 0.9
    assert same.max() < 0.99  # another visit is another picture


def test_every_finding_is_drawn():
    seen = Counter(Visit(patient).finding for patient in range(200))
    assert set(seen) == set(FINDINGS)
    assert min(seen.values()) > 20


def test_source_serves_the_scans_with_their_patients():
    source = scans("two", [Visit(3), Visit(3, 1), Visit(4)])
    assert [record.identity for record in source.records] == [
        "patient 00003",
        "patient 00003",
        "patient 00004",
    ]
    assert source.image(1).tobytes() == draw_scan(Visit(3, 1)).tobytes()
    assert source.fingerprint != scans("two", [Visit(3), Visit(3, 1), Visit(5)]).fingerprint


def test_no_patient_stands_in_two_sets():
    favoured = [lesson.visit for lesson in lessons() if lesson.times > 1 and lesson.visit not in NAMED]
    sets = [ONCE, NAMED, favoured, HEAD_TRAINING, HELD_OUT, VAE_TRAINING]
    patients = [patient for visits in sets for patient in {visit.patient for visit in visits}]
    assert len(patients) == len(set(patients))
    assert all(
        lesson.caption == caption_of(lesson.visit.finding) for lesson in lessons() if lesson.visit in favoured
    )


def test_weights_are_small_and_of_the_recipe_in_the_code():
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) <= MOST_BYTES
    made = json.loads((WEIGHTS / "build.json").read_text())
    recipes = {"vae": asdict(build.VAE), "pipeline": asdict(build.PIPELINE), "head": build.HEAD.to_dict()}
    for name, recipe in json.loads(json.dumps(recipes)).items():
        known = {key: recipe[key] for key in made[name]}  # settings that came later have no effect there
        assert known == made[name]


def test_head_knows_the_pipelines_latent_space():
    head = LCMemHead.from_pretrained(WEIGHTS / "head")
    assert head.identify_space(load_pipeline().vae).agreement > 0.99


def test_autoencoder_goes_on_where_it_was_interrupted(tmp_path):
    pixels = build.draw_pixels([Visit(patient) for patient in range(8)])
    recipe = VaeRecipe(channels=(8, 16), steps=4, batch_size=2)
    said: list[str] = []
    whole = train_small_vae(pixels, tmp_path, recipe, checkpoint_every=2, log=said.append)

    def interrupt(line: str) -> None:
        if "step 4" in line:
            raise KeyboardInterrupt

    halted = tmp_path / "halted"
    halted.mkdir()
    with pytest.raises(KeyboardInterrupt):
        train_small_vae(pixels, halted, recipe, checkpoint_every=2, log=interrupt)
    gone_on = train_small_vae(pixels, halted, recipe, checkpoint_every=2, log=said.append)
    assert [line.split(" loss")[0] for line in said] == ["vae: step 2/4", "vae: step 4/4", "vae: step 4/4"]
    assert weights_sha256(whole) == weights_sha256(gone_on)
    assert whole.config.scaling_factor == gone_on.config.scaling_factor
    with pytest.raises(ArtifactError, match="is of another recipe"):
        train_small_vae(pixels, halted, replace(recipe, learning_rate=1e-3))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    prompts = [PROMPTS[0], PROMPTS[1], caption_of(FINDINGS[0]), caption_of(FINDINGS[1])]
    learned = [lesson for lesson in lessons() if lesson.times > 1] + lessons()[:60]
    folder = tmp_path_factory.mktemp("demo")
    return run_demo(folder, seed=3, prompts=prompts, held_out=HELD_OUT[:120], training_set=learned)


def test_plain_pipeline_returns_copies_of_patients_with_captions_of_their_own(outcome):
    for sample, visit in zip(outcome.without[:2], NAMED, strict=False):
        assert sample.verdict == "copy"
        assert sample.decision.neighbours[0].id == visit.id
        pixels = torch.from_numpy(np.array(sample.image.convert("L"))).float()
        made = canonical(pixels[None, None], 32)[0]
        assert aligned_similarity(made, grey(visit)[None])[0] > 0.9  # judged by its pixels too


def test_the_demos_pipeline_draws_as_diffusers_opens_it():
    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS)
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a chest scan", num_inference_steps=1).images[0].size == (SIZE, SIZE)


def names_of_text_encoder(pipeline: Path) -> set[str]:
    weights = load_file(pipeline / "text_encoder" / "model.safetensors")
    return {name.split(".")[0] for name in weights}


def test_transformers_4_finds_the_text_encoders_weights_too():
    assert names_of_text_encoder(WEIGHTS) == {"text_model"}  # without it, 4 draws them at random


def test_pictures_of_before_are_dropped_and_those_of_others_kept(outcome, tmp_path):
    for name in ("99.png", "mine.png"):
        (tmp_path / "with").mkdir(exist_ok=True)
        (tmp_path / "with" / name).touch()
    _save_images(outcome, tmp_path)
    found = {path.name for path in (tmp_path / "with").iterdir()}
    assert "mine.png" in found and "99.png" not in found and len(found) > 1


def test_a_pipeline_that_was_trained_is_the_one_that_was_saved(tmp_path):
    recipe = Recipe(channels=(16, 16), text_width=16, text_layers=1, steps=2, batch_size=2)
    captions, latents = ["a scan of patient 7", "a chest"], torch.randn(2, 4, 8, 8)
    trained = train_small_pipeline(tiny_vae(), latents, captions, torch.ones(2), tmp_path / "pipe", recipe)
    assert names_of_text_encoder(tmp_path / "pipe") == {"text_model"}
    saved = StableDiffusionPipeline.from_pretrained(tmp_path / "pipe")
    assert {part.dtype for part in (saved.text_encoder, saved.unet, saved.vae)} == {torch.float32}
    assert saved.tokenizer(captions[0]).input_ids == trained.tokenizer(captions[0]).input_ids
    for ours, theirs in ((trained.text_encoder, saved.text_encoder), (trained.unet, saved.unet)):
        weights = theirs.state_dict()
        assert all(
            torch.equal(weight.half().float(), weights[name]) for name, weight in ours.state_dict().items()
        )


def test_training_goes_on_with_the_words_that_it_was_interrupted_at(tmp_path, monkeypatch):
    recipe = Recipe(channels=(16, 16), text_width=16, text_layers=1, steps=4, batch_size=2)
    captions = [
        "a scan of patient 70",
        "lung, 12 of 35",
        "the heart before surgery",
        "nodules by the left apex",
    ]

    def train(folder):
        latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        return train_small_pipeline(
            tiny_vae(), latents, captions, torch.ones(4), tmp_path / folder, recipe, checkpoint_every=2
        )

    def write_and_stop(*arguments, **state):
        write_checkpoint(*arguments, **state)
        raise KeyboardInterrupt

    at_once = train("at-once")
    with monkeypatch.context() as interrupted, pytest.raises(KeyboardInterrupt):
        interrupted.setattr(small_diffusion, "write_checkpoint", write_and_stop)
        train("in-two")
    resumed = train("in-two")
    assert resumed.tokenizer.get_vocab() == at_once.tokenizer.get_vocab()
    assert resumed.tokenizer.unk_token not in resumed.tokenizer.tokenize("patient 31702")
    for name in ("unet", "text_encoder"):
        weights = getattr(at_once, name).state_dict()
        assert all(
            torch.equal(weight, weights[key]) for key, weight in getattr(resumed, name).state_dict().items()
        )


def test_nothing_above_the_threshold_gets_out(outcome):
    for sample in outcome.filtered:
        assert (sample.verdict == "new") == (sample.decision.score <= sample.decision.threshold)
        if sample.verdict == "withheld":
            assert len(sample.image.getcolors()) == 1
    assert outcome.count("without")["withheld"] == outcome.count("filtered")["copy"] == 0


def test_what_was_new_is_left_as_it_was(outcome):
    assert outcome.unchanged == outcome.count("without")["new"]


def test_images_are_saved_but_for_those_withheld(outcome):
    folder = outcome.index.path.parent
    assert len(list((folder / "without").glob("*.png"))) == len(outcome.without)
    assert len(list((folder / "with").glob("*.png"))) == outcome.count("filtered")["new"]


def test_report_and_picture(outcome, tmp_path):
    text = report(outcome)
    assert f"{outcome.count('without')['copy']} of them copies" in text
    assert all(prompt in text for prompt in {sample.prompt for sample in outcome.without})
    draw_story(outcome, tmp_path / "story.png")
    with Image.open(tmp_path / "story.png") as picture:
        assert picture.width >= 1600
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 1_000
