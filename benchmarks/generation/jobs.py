"""One job run in three ways: at one go, killed again and again, shared by two processes; and what each left."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lcmem_filter.generation.folder import MANIFEST_JSONL

WAIT = 20.0
"""Seconds, at most, for a batch that is half written."""
LAUNCH = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]


@dataclass(frozen=True)
class Job:
    """``lcmem-filter generate`` with everything but the output folder; ``batches`` is how many its plan has."""

    arguments: Sequence[str]
    batches: int

    def command(self, output: Path, processes: int = 1) -> list[str]:
        launch = LAUNCH if processes == 2 else []
        return [
            sys.executable,
            *launch,
            "-m",
            "lcmem_filter",
            "generate",
            *self.arguments,
            "--output",
            str(output),
        ]


@dataclass
class Kills:
    """What was seen of the killed runs: batches with a receipt, and files without one, at each kill."""

    batches_done: list[int] = field(default_factory=list)
    images_in_unfinished_batches: list[int] = field(default_factory=list)


def finish(job: Job, output: Path, processes: int = 1) -> float:
    """Run the job to its end; seconds it took."""
    start = time.monotonic()
    done = subprocess.run(job.command(output, processes), capture_output=True, text=True)
    # the status is 2 too where the index's threshold is doubted
    if not (output / MANIFEST_JSONL).exists():
        raise SystemExit(f"the job failed:\n{done.stderr[-3000:]}")
    return time.monotonic() - start


def finish_with_kills(job: Job, output: Path, kills: int, seed: int) -> Kills:
    """Kill the job ``kills`` times (SIGKILL), each time at another share of its batches and some moment later; every
    other time as a batch is half written, where that is seen in time."""
    draw, seen = random.Random(seed), Kills()
    for number in range(1, kills + 1):
        process = subprocess.Popen(job.command(output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and receipts(output) < job.batches * number // (kills + 1):
            time.sleep(0.05)
        time.sleep(draw.uniform(0, 6))
        until = time.monotonic() + WAIT
        while number % 2 and time.monotonic() < until and process.poll() is None and not unfinished(output):
            pass
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            raise SystemExit("the job ended before it could be killed; give it more images")
        seen.batches_done.append(receipts(output))
        seen.images_in_unfinished_batches.append(unfinished(output))
    finish(job, output)
    return seen


def receipts(output: Path) -> int:
    return len(list((output / ".job" / "batches").glob("*.json")))


def unfinished(output: Path) -> int:
    """Files in ``images`` whose batch has no receipt."""
    there = [path.name for path in (output / "images").iterdir()]  # before the receipts, which come last
    texts = "".join(path.read_text() for path in (output / ".job" / "batches").glob("*.json"))
    return sum(name not in texts for name in there)


def checksums(output: Path) -> dict[str, str]:
    """SHA-256 of every image and manifest."""
    files = [*(output / "images").iterdir(), *output.glob("m*.*"), output / "job.json"]
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)
    }


def compared(whole: Path, other: Path) -> dict[str, Any]:
    """How the files of two runs agree."""
    a, b = checksums(whole), checksums(other)
    return {
        "files": len(a),
        "identical": sum(b.get(name) == digest for name, digest in a.items()),
        "missing": sorted(a.keys() - b.keys()),
        "surplus": sorted(b.keys() - a.keys()),
    }
