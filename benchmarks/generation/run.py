"""Is a generation job the same to the byte after kills and in two processes, and what does its filter cost?

    python benchmarks/generation/run.py --cache CACHE/generation
    python benchmarks/generation/run.py --cache CACHE/generation --pipeline CACHE/pipeline --index CACHE/index

Without ``--pipeline``, the demo's. Writes ``benchmarks/results/generation.json``, or ``--output``; the jobs stay in
``--cache``, which must lie outside the repository and where they go on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jobs
import torch
from diffusers import DiffusionPipeline
from overhead import overhead

import lcmem_filter
from lcmem_filter.demo.phantoms import SIZE, scans
from lcmem_filter.demo.roster import HELD_OUT, lessons
from lcmem_filter.demo.run import PROMPTS, WEIGHTS

RESULTS = Path(__file__).resolve().parents[1] / "results" / "generation.json"
GUIDANCE, STEPS = 3.0, 25
SEED = 0


def main() -> None:
    arguments = _parse()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    cache: Path = arguments.cache
    cache.mkdir(parents=True, exist_ok=True)
    folder = arguments.pipeline or WEIGHTS
    index_folder = arguments.index or _demo_index(cache / "index")
    prompts = choose_prompts(folder, arguments.images)
    (cache / "prompts.txt").write_text("\n".join(prompts) + "\n")
    index = lcmem_filter.MemorizationIndex.load(index_folder)
    results: dict[str, Any] = {
        "about": f"{len(prompts)} images, {len(set(prompts))} prompts, an index of {len(index)} images; files are "
        "images, manifests and job.json; CPU time on one thread, beside the same calls without a filter",
        "pipeline": "demo" if arguments.pipeline is None else "benchmarks/filters",
        "index": {"images": len(index), "head_fingerprint_of_space": index.head.fingerprint_of(index.space)},
        **provenance(),
    }
    pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
    cost = overhead(pipe, index, prompts, options, arguments.timed_batch, arguments.repeats)
    results["overhead"] = {**options, **cost}
    write(results, arguments.output)
    del pipe, index
    job = jobs.Job(_job_arguments(arguments, folder, index_folder), -(-len(prompts) // arguments.batch_size))
    whole, killed, two = (cache / name for name in ("whole", "killed", "two"))
    log(f"one process: {jobs.finish(job, whole):.0f} s")
    results["job"] = _describe(whole, arguments)
    log(f"two processes: {jobs.finish(job, two, processes=2):.0f} s")
    results["two_processes"] = jobs.compared(whole, two)
    write(results, arguments.output)
    seen = jobs.finish_with_kills(job, killed, arguments.kills, SEED)
    results["killed"] = {"kills": arguments.kills, **vars(seen), **jobs.compared(whole, killed)}
    write(results, arguments.output)


def write(results: dict[str, Any], output: Path) -> None:
    """Keep what is known so far; a stage that is missing has not been run."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=1) + "\n")
    log(f"wrote {output}: {', '.join(results)}")


def choose_prompts(pipeline: Path, images: int) -> list[str]:
    """Captions of images that were duplicated in training, once each, then others as they come."""
    if not (pipeline / "rows.json").exists():
        return [PROMPTS[number % len(PROMPTS)] for number in range(images)]
    rows = json.loads((pipeline / "rows.json").read_text())
    own = sorted({row["caption"] for row in rows if row["copies"] > 1})
    draw = random.Random(SEED)
    others = [row["caption"] for row in rows if row["copies"] == 1]
    chosen = [*own[:images], *(draw.choice(others) for _ in range(images - len(own)))]
    draw.shuffle(chosen)
    return chosen


def provenance() -> dict[str, Any]:
    libraries = ("torch", "diffusers", "transformers", "accelerate", "numpy", "pillow")
    cpu = Path("/proc/cpuinfo")
    names = [line for line in cpu.read_text().splitlines() if "model name" in line] if cpu.exists() else []
    return {
        "seed": SEED,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in libraries}},
        "hardware": {
            "processor": names[0].split(":", 1)[1].strip() if names else platform.machine(),
            "cores": os.cpu_count(),
            "threads": 1,
        },
    }


def log(line: str) -> None:
    print(line, flush=True)


def _describe(whole: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    rows = [json.loads(line) for line in (whole / "manifest.jsonl").read_text().splitlines()]
    return {
        "images": len(rows),
        "steps": arguments.steps,
        "batch_size": arguments.batch_size,
        "max_resamples": arguments.max_resamples,
        "matched_at_first": sum(row["attempts"] > 1 or row["accepted"] is False for row in rows),
        "drawn_again_and_delivered": sum(row["attempts"] > 1 and row["status"] == "accepted" for row in rows),
        "withheld": sum(row["status"] == "withheld" for row in rows),
    }


def _job_arguments(arguments: argparse.Namespace, pipeline: Path, index: Path) -> list[str]:
    given = {
        "--index": index,
        "--prompts": arguments.cache / "prompts.txt",
        "--steps": arguments.steps,
        "--guidance-scale": GUIDANCE,
        "--batch-size": arguments.batch_size,
        "--max-resamples": arguments.max_resamples,
        "--stop-rejection-rate": 1,
        "--threads": 1,
        "--device": "cpu",
        "--seed": SEED,
    }
    return [str(pipeline), *(str(part) for pair in given.items() for part in pair)]


def _demo_index(output: Path) -> Path:
    learned = scans("training set", [lesson.visit for lesson in lessons()])
    head = lcmem_filter.LCMemHead.from_pretrained(WEIGHTS / "head")
    encoder = lcmem_filter.load_encoder(WEIGHTS)
    index = lcmem_filter.MemorizationIndex.build(learned, encoder, head, output, resolution=SIZE)
    if index.calibration is None:
        lcmem_filter.calibrate(index, scans("held-out patients", HELD_OUT), false_rejection_rate=0.01)
    return output


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, required=True, help="a folder outside the repository")
    parser.add_argument(
        "--pipeline", type=Path, help="folder that benchmarks/filters/train_pipeline.py wrote"
    )
    parser.add_argument("--index", type=Path, help="a calibrated index of its training set")
    parser.add_argument("--images", type=int, default=208)
    parser.add_argument("--steps", type=int, default=STEPS, help="denoising steps of the jobs")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-resamples", type=int, default=4)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=6, help="timed rounds")
    parser.add_argument("--timed-batch", type=int, default=4, help="images of a timed call")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the results file")
    arguments = parser.parse_args()
    if (arguments.pipeline is None) != (arguments.index is None):
        parser.error("--pipeline and --index go together")
    return arguments


if __name__ == "__main__":
    main()
