"""The rows of the filter benchmark that other filters make, on tiny random networks, against naive recomputations."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from lcmem_filter.demo.small_diffusion import tokenise
from lcmem_filter.head import LCMemHead

from tests.index import material
from tests.tiny import tiny_pipeline, tiny_vae
from tools import readme

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "filters"
STEPS, SIDE, GUIDANCE = 4, 32, 3.0
TINY_VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 8,
    "image_size": 32,
    "projection_dim": 16,
}


@pytest.fixture
def benchmark(monkeypatch):
    """The benchmark's modules, with drawing made small."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = [path.stem for path in FOLDER.glob("*.py")]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    wanted = (
        "copies",
        "data",
        "drawing",
        "filters",
        "measure",
        "noise_magnitude",
        "safety_checker",
        "small_flow",
    )
    modules = SimpleNamespace(**{name: importlib.import_module(name) for name in wanted})
    monkeypatch.setattr(modules.drawing, "STEPS", STEPS)
    monkeypatch.setattr(modules.drawing, "RESOLUTION", SIDE)
    yield modules
    for name in names:
        sys.modules.pop(name, None)


def pipeline(prediction_type: str = "v_prediction"):
    pipe = tiny_pipeline()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type=prediction_type)
    return pipe


def flow_pipeline(benchmark, folder: Path):
    """Of Stable Diffusion 3's kind, untrained, for images of ``SIDE``."""
    flow, captions = benchmark.small_flow, ["a picture of x", "a picture of y"]
    recipe = flow.FlowRecipe(width=32, heads=2, layers=1, text_width=16)
    pipe = flow.build_flow_pipeline(recipe, shifted_vae(), captions, SIDE // 2, folder)
    torch.nn.init.normal_(pipe.transformer.proj_out.weight)  # zeros as it begins
    pipe.set_progress_bar_config(disable=True)
    return pipe


def shifted_vae():
    """A VAE as Stable Diffusion 3's, whose latents are shifted before they are scaled."""
    vae = tiny_vae()
    vae.register_to_config(shift_factor=0.25)
    return vae


def some_samples(benchmark, n: int = 3):
    return [benchmark.drawing.Sample(f"a picture of {'xyzuvw'[i % 6]}", 10 + i, False) for i in range(n)]


@torch.no_grad()
def naive_magnitudes(pipe, sample, steps: int) -> list[float]:
    """Each prediction on its own, as eps by its definition, and the loop of the pipeline written out."""
    text, empty = pipe.encode_prompt(sample.prompt, "cpu", 1, True, negative_prompt="")
    latents = torch.randn((1, 4, SIDE // 2, SIDE // 2), generator=torch.Generator().manual_seed(sample.seed))
    pipe.scheduler.set_timesteps(STEPS)
    found = []
    for t in pipe.scheduler.timesteps[:steps]:
        alpha = pipe.scheduler.alphas_cumprod[t]
        raw = [pipe.unet(latents, t, encoder_hidden_states=states).sample for states in (text, empty)]
        as_v = pipe.scheduler.config.prediction_type == "v_prediction"
        eps = [alpha.sqrt() * v + (1 - alpha).sqrt() * latents for v in raw] if as_v else raw
        found.append(float((eps[0] - eps[1]).square().sum().sqrt()))
        guided = raw[1] + GUIDANCE * (raw[0] - raw[1])
        latents = pipe.scheduler.step(guided, t, latents).prev_sample
    return found


def test_few_hits_among_alike_samples_count_as_many_samples_as_there_are_prompts(benchmark):
    stats, prompts = importlib.import_module("stats"), [f"prompt {i // 6}" for i in range(240)]
    widths = []
    for count in (0, 1, 4, 239, 240):
        found = stats.share(np.arange(240) < count, prompts)
        assert found["effective_n"] == found["clusters"] == 40
        assert found["interval"] == [pytest.approx(one) for one in stats.wilson(count / 240, 40)]
        widths.append(found["interval"][1] - found["interval"][0])
    assert widths[0] < widths[1] < widths[2]  # more hits are never told with more certainty
    apart = stats.share(np.arange(240) % 6 == 0, prompts)  # one of each prompt
    assert apart["effective_n"] == 240


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noise_magnitudes_are_those_of_their_definition(benchmark, prediction_type):
    pipe, samples = pipeline(prediction_type), some_samples(benchmark)
    expected = [naive_magnitudes(pipe, sample, 3) for sample in samples]
    assert min(map(min, expected)) > 0
    found = benchmark.noise_magnitude.first_steps(pipe, samples, 3, log=lambda _: None)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_the_flow_pipeline_is_trained_on_what_it_is_told_when_it_draws(benchmark, tmp_path):
    pipe, prompts = flow_pipeline(benchmark, tmp_path), ["a picture of y", ""]
    tokens = tokenise(pipe.tokenizer, prompts, 16)
    found = benchmark.small_flow.conditioning(pipe, tokens)
    length = benchmark.drawing.settings(pipe)["max_sequence_length"]
    told, _, pooled, _ = pipe.encode_prompt(
        prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=length
    )
    torch.testing.assert_close(found, (told, pooled))
    assert not torch.equal(told[0], told[1])


def test_a_flow_pipeline_that_was_trained_is_the_one_that_was_saved(benchmark, tmp_path):
    flow, latents = benchmark.small_flow, torch.randn(2, 4, SIDE // 2, SIDE // 2)
    recipe = flow.FlowRecipe(
        width=32, heads=2, layers=1, text_width=16, steps=2, warmup_steps=1, batch_size=2
    )
    captions, samples = ["a picture of x", "a picture of y"], some_samples(benchmark)
    made = flow.train_flow_pipeline(
        shifted_vae(), latents, captions, torch.ones(2), tmp_path, recipe, log=str
    )
    saved = benchmark.drawing.load_pipeline(tmp_path)
    made.set_progress_bar_config(disable=True)
    (one, latents_made), (other, latents_saved) = (benchmark.drawing.call(p, samples) for p in (made, saved))
    np.testing.assert_array_equal(one.images, other.images)
    assert latents_made.shape == (3, 4, SIDE // 2, SIDE // 2) and torch.equal(latents_made, latents_saved)
    decoded = benchmark.drawing.decode(made.vae, latents_made).astype(int)
    assert abs(decoded - benchmark.drawing.to_uint8(one.images)).max() <= 1
    assert json.loads((tmp_path / "training.json").read_text())["step"] == 2


@torch.no_grad()
def test_noise_magnitudes_of_flow_are_those_of_the_velocity(benchmark, tmp_path):
    pipe, samples = flow_pipeline(benchmark, tmp_path), some_samples(benchmark)
    expected = []
    for sample in samples:
        text, empty, pooled, pooled_empty = pipe.encode_prompt(
            sample.prompt, None, None, max_sequence_length=16
        )
        generator = torch.Generator().manual_seed(sample.seed)
        given = {"hidden_states": torch.randn((1, 4, SIDE // 2, SIDE // 2), generator=generator)}
        given["timestep"] = torch.tensor([1000.0])
        with_text, without = (
            pipe.transformer(**given, encoder_hidden_states=states, pooled_projections=pool).sample
            for states, pool in ((text, pooled), (empty, pooled_empty))
        )
        expected.append([float((with_text - without).square().sum().sqrt())])
    assert min(map(min, expected)) > 0
    found = benchmark.noise_magnitude.first_steps(pipe, samples, 1, log=lambda _: None)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_only_the_first_steps_are_run_and_a_full_draw_shows_the_same(benchmark, monkeypatch):
    pipe, samples = pipeline(), some_samples(benchmark)
    noise, calls = benchmark.noise_magnitude, []
    pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    with monkeypatch.context() as patch:
        patch.setattr(pipe.vae, "decode", lambda *_, **__: pytest.fail("decoded"))
        first = noise.first_steps(pipe, samples, 2, log=lambda _: None)
    assert first.shape == (3, 2) and len(calls) == 2
    with noise.watched_noise(pipe, 2) as seen:
        pipe(**benchmark.drawing.request(pipe, samples))
    assert len(calls) == 2 + STEPS
    np.testing.assert_array_equal(torch.stack(seen, 1).numpy(), first)
    assert len(pipe.unet._forward_hooks) == 1, "the watching hook is gone"


def test_noise_needs_guidance_and_a_known_prediction(benchmark):
    noise, pipe = benchmark.noise_magnitude, pipeline()
    request = benchmark.drawing.request(pipe, some_samples(benchmark))
    with pytest.raises(SystemExit, match="needs guidance"), noise.watched_noise(pipe, 1):
        pipe(**{**request, "guidance_scale": 1.0})
    with pytest.raises(SystemExit, match="not sample"), noise.watched_noise(pipeline("sample"), 1):
        pass


def test_kept_noise_is_not_read_again_nor_taken_for_other_prompts(benchmark, tmp_path, monkeypatch):
    noise, samples, path = benchmark.noise_magnitude, some_samples(benchmark), tmp_path / "noise.pt"
    monkeypatch.setattr(noise, "STEPS_READ", (1, 2))
    made = noise.kept_first_steps(path, pipeline(), samples, lambda _: None)
    assert made.shape == (3, 2)
    np.testing.assert_array_equal(noise.kept_first_steps(path, None, samples), made)
    with pytest.raises(SystemExit, match="other prompts or seeds"):
        noise.kept_first_steps(path, None, samples[::-1])


def test_prompts_that_calibrate_are_of_held_out_images_and_of_no_memorised_one(benchmark):
    def row(identity: str, caption: str, copies: int = 1):
        return benchmark.data.Row(f"lfw/{identity}", identity, "face", caption, copies, "lfw", 0)

    rows = {
        "pipeline": [row("lfw/Ann_A", "a press photo of ann a", copies=60), row("lfw/Bo", "a person")],
        "calibration": [row("lfw/Cy", "a person"), row("lfw/Di", "a press photo of ann a")],
        "held_out": [row("lfw/Ed_E", "a person"), row("lfw/Fay", "a person")],
    }
    unseen = benchmark.noise_magnitude.unseen_prompts(rows)
    assert {name: [sample.prompt for sample in some] for name, some in unseen.items()} == {
        "calibration": ["a person"],
        "held_out": ["a person", "a person"],
    }
    named = benchmark.drawing.choose_named(rows["held_out"], 1)
    assert [sample.prompt for sample in named] == ["a press photo of ed e"]
    seeds = [sample.seed for some in (*unseen.values(), named) for sample in some]
    assert len(set(seeds)) == len(seeds) and min(seeds) >= 1_000_000


def judged(benchmark, copied: list[bool], first: int = 0):
    """Samples of different prompts with these verdicts; their one-pixel latents count from ``first``."""
    n = len(copied)
    samples = [benchmark.drawing.Sample(f"p{i}", i, False) for i in range(n)]
    latents, images = (
        torch.arange(first, first + n).view(n, 1, 1, 1).float(),
        np.zeros((n, 1, 1, 3), np.uint8),
    )
    drawn = benchmark.drawing.Drawn(latents, images, [], 1.0)
    verdicts = benchmark.copies.Verdicts(np.zeros(n), np.zeros(n, int), np.array(copied))
    return benchmark.measure.Judged(samples, drawn, verdicts)


def counts(row) -> dict[str, tuple[int, int]]:
    shares = {name: one for name, one in row.items() if isinstance(one, dict) and "interval" in one}
    return {name: (one["count"], one["n"]) for name, one in shares.items()}


def test_thresholds_reject_at_most_the_rate_of_what_they_were_fitted_on(benchmark):
    magnitudes = np.stack([np.arange(1.0, 200), np.zeros(199)], 1)
    for steps, threshold in ((1, 198.0), (2, 99.0)):
        scores = benchmark.noise_magnitude.NoiseMagnitude(steps).scores(magnitudes)
        assert benchmark.filters.threshold_of(scores) == threshold, (
            "one of 199 is above it: at most 1 % of 200"
        )


def test_a_row_of_the_noise_magnitude_counts_what_its_threshold_rejects(benchmark):
    noise, sample = benchmark.noise_magnitude, benchmark.drawing.Sample
    detector = noise.NoiseMagnitude(1)
    detector.threshold = 198.0
    unseen = {
        "calibration": [sample("a", i, False) for i in range(199)],
        "held_out": [sample("a", 0, False), sample("b", 1, False)],
    }
    magnitudes = {
        "calibration": np.zeros((199, 1)),
        "held_out": np.array([[1.0], [2]]),
        "generated": np.array([[300.0], [300], [5], [300], [5]]),
        "named": np.array([[198.0], [199], [199], [199]]),
    }
    generated = judged(benchmark, [True, True, True, False, False])
    named = judged(benchmark, [False, True, True, False])
    row = noise.noise_row(detector, magnitudes, unseen, generated, named)
    of_named = row.pop("named_prompts")
    assert counts(of_named) == {"memorised_returned": (0, 2), "other_generations_rejected": (1, 2)}
    assert counts(row) == {
        "memorised_returned": (1, 3),
        "other_generations_rejected": (1, 2),
        "held_out_prompts_rejected": (0, 2),
    }
    assert row["held_out_rejected"] is None, "it never judged an image"
    assert "calibrated on prompts" in row["label"] and "not on images" in row["note"]
    assert row["calibration_prompts"] == {"n": 199, "different": 1}


def test_a_filters_row_counts_what_it_rejects_of_each_set(benchmark):
    latents = SimpleNamespace(label="l", threshold=1.5, scores=lambda given, _: given.flatten().numpy())
    real = {
        name: (torch.full((n, 1, 1, 1), 9.0), np.zeros(n)) for name, n in (("held_out", 3), ("copies", 2))
    }
    generated = judged(benchmark, [True, False, True, False])
    row = benchmark.measure.offline(latents, real, generated, judged(benchmark, [False, False, True], 1))
    of_named = row.pop("named_prompts")
    assert counts(of_named) == {"memorised_returned": (0, 1), "other_generations_rejected": (1, 2)}
    assert counts(row) == {
        "memorised_returned": (1, 2),
        "other_generations_rejected": (1, 2),
        "held_out_rejected": (3, 3),
        "mild_copies_of_training_images_missed": (0, 2),
    }


class Means:
    """Stands for EfficientNet-Lite0: the mean colour, as a unit vector."""

    def __init__(self) -> None:
        self.embedded = 0

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.min() >= -1 and pixels.max() <= 1
        self.embedded += len(pixels)
        return torch.nn.functional.normalize(pixels.mean((2, 3)), dim=1)


def test_efficientnet_finds_the_nearest_picture_and_keeps_its_features(benchmark, tmp_path, monkeypatch):
    filters, network = benchmark.filters, Means()
    monkeypatch.setattr(filters, "make_baseline", lambda name: network)
    pictures = np.random.default_rng(0).integers(0, 256, (150, 4, 4, 3), dtype=np.uint8)
    keys, queries = [str(i) for i in range(150)], pictures[[7, 149]] // 2
    candidate = filters.EfficientNetLite0(pictures, keys, tmp_path / "features.pt")
    own = candidate.scores(torch.zeros(1), pictures[[3, 149]])
    np.testing.assert_allclose(own, 1, atol=1e-6)
    means = [image.reshape(-1, 3).mean(0) / 127.5 - 1 for image in (*pictures, *queries)]
    units = np.stack([mean / np.linalg.norm(mean) for mean in means])
    expected = [max(float(unit @ row) for row in units[:150]) for unit in units[150:]]
    np.testing.assert_allclose(candidate.scores(torch.zeros(1), queries), expected, atol=1e-5)
    before = network.embedded
    filters.EfficientNetLite0(pictures, keys, tmp_path / "features.pt")
    assert network.embedded == before
    with pytest.raises(SystemExit, match="other images"):
        filters.EfficientNetLite0(pictures, keys[::-1], tmp_path / "features.pt")


def test_where_the_extra_is_missing_the_results_say_why(benchmark, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    run = importlib.import_module("run")
    monkeypatch.setattr(run, "RawLatents", lambda index: SimpleNamespace(label=f"raw latents of {index}"))
    monkeypatch.setattr(run, "read_pictures", lambda rows: np.zeros((1, 8, 8, 3), np.uint8))
    lcmem = [SimpleNamespace(label=name, filter=SimpleNamespace(index=f"index of {name}")) for name in "ab"]
    others, not_run = run.make_others(lcmem, [SimpleNamespace(key="a")], tmp_path)
    assert [other.label for other in others] == [
        "a, embedding only",
        "b, embedding only",
        "raw latents of index of a",
        benchmark.filters.Pixels.label,
    ]
    assert "pip install 'lcmem-filter[bench]'" in not_run[benchmark.filters.EfficientNetLite0.label]


def test_indexes_of_several_heads_hold_the_same_images_encoded_once(benchmark, tmp_path, monkeypatch):
    sources, encoder = importlib.import_module("sources"), material.saved_encoder(tmp_path)
    monkeypatch.setattr(sources, "RESOLUTION", SIDE)
    heads, encoded = [tmp_path / "a", tmp_path / "b"], []
    material.head().save_pretrained(heads[0])
    torch.manual_seed(1)
    other = LCMemHead.create("micro", {"sd": 4})
    other.add_probes("sd", tiny_vae())
    other.save_pretrained(heads[1])
    source, plain = material.pictures(tmp_path / "train", range(6)), encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda pixels: encoded.append(len(pixels)) or plain(pixels))
    for _ in range(2):
        found = sources.build_indexes(source, encoder, [str(head) for head in heads], tmp_path / "cache")
        assert list(found) == ["a", "b"] and encoded.count(6) == 1
    one, two = found.values()
    assert one.records == two.records and torch.equal(
        one.latents(torch.arange(6)), two.latents(torch.arange(6))
    )
    assert two.head.fingerprint == other.fingerprint != one.head.fingerprint
    with pytest.raises(SystemExit, match="of another head"):
        sources.build_index(source, encoder, str(heads[0]), sources.index_folder(tmp_path / "cache", "b"))


def test_the_safety_checker_is_run_in_its_place_and_leaves_nothing_behind(benchmark):
    pipe, request = pipeline(), benchmark.drawing.request
    checker, calls = benchmark.safety_checker.SafetyChecker(TINY_VISION), []
    checker.checker.register_forward_hook(lambda *_: calls.append(1))
    plain = pipe(**request(pipe, some_samples(benchmark)), output_type="np")
    with checker.attached(pipe):
        checked = pipe(**request(pipe, some_samples(benchmark)), output_type="np")
    assert len(calls) == 1 and checked.nsfw_content_detected == [False] * 3
    np.testing.assert_array_equal(checked.images, plain.images)
    assert pipe.safety_checker is None and pipe.feature_extractor is None
    row = checker.describe({"time_ratio": 2.0})
    assert "random weights: time only" in row["label"] and row["time_ratio"] == 2.0


def test_the_safety_checker_has_the_published_size(benchmark):
    with torch.device("meta"):
        checker = benchmark.safety_checker.SafetyChecker()
    assert checker.describe({})["parameters"] == 303_981_588


def test_everything_that_is_timed_gets_its_own_place_in_the_pipeline(benchmark):
    measure, pipe = benchmark.measure, pipeline()
    checker, noise = benchmark.safety_checker.SafetyChecker(TINY_VISION), benchmark.noise_magnitude
    rows = [benchmark.filters.Nothing(), noise.NoiseMagnitude(1), noise.NoiseMagnitude(10), checker]
    calls = []
    checker.checker.register_forward_hook(lambda *_: calls.append(1))
    seconds = measure.seconds_an_image(pipe, rows, some_samples(benchmark, 2 * benchmark.drawing.BATCH), 2)
    assert list(seconds) == [row.label for row in rows]
    assert seconds["none"]["time_ratio"] == 1.0 and len(calls) == 3, "two rounds, after one to warm up"
    for label, found in seconds.items():
        low, high = found.get("time_ratio_interval", (1.0, 1.0))
        assert low <= found["time_ratio"] <= high and found.get("rounds", 2) == 2, label
    assert not pipe.unet._forward_hooks and pipe.safety_checker is None


def test_the_readme_shows_prompts_apart_what_was_only_timed_and_what_was_not_run(tmp_path, monkeypatch):
    share = {"count": 1, "n": 2, "share": 0.5, "interval": [0.1, 0.9]}
    row = {"label": "noise", "time_ratio": 1.04, "time_ratio_interval": [0.9, 1.2]}
    row |= {"held_out_rejected": None, "note": "Calibrated on prompts."}
    row |= {"memorised_returned": share, "other_generations_rejected": share}
    named = {"memorised_returned": {**share, "n": 77}, "other_generations_rejected": {**share, "n": 83}}
    row |= {"held_out_prompts_rejected": share, "named_prompts": named}
    run = {"head": "h", "on_memorized": "reject"}
    run |= {"memorised_with_filter": share, "memorised_without_filter": share}
    results = {
        "about": "About.",
        "filters": [row],
        "not_run": {"EfficientNet": "no package"},
        "time_only": [{"label": "checker (time only)", "time_ratio": 1.5}],
        "pipeline_with_lcmem": [run],
    }
    (tmp_path / "filters.json").write_text(json.dumps(results))
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    shown, half = readme.filters(), "1 of 2: 50.0% (10.0% to 90.0%)"
    assert f"| noise | {half} | - | {half} | 1.04x (0.90 to 1.20) |" in shown
    assert '1 of 2 without the filter; 1 with `h` and `on_memorized="reject"`.' in shown
    assert "| checker (time only) | - | - | - | 1.50x |" in shown
    assert f"Of unseen images' captions, detectors of prompts reject: noise {half}." in shown
    assert "77 copies and 83 others. Copies returned and others rejected: noise: 1 and 1." in shown
    assert "Not measured: EfficientNet (no package)" in shown
