"""A generation job on disk, written so that a kill at any moment loses at most the batch that was being drawn.

    images/000000.png          delivered images only, named by their place in the plan
    metadata.jsonl             one row a delivered image, so that ``datasets`` reads the folder as it is
    manifest.jsonl, .parquet   one row an image that was asked for, withheld ones included
    job.json                   plan, settings, versions and fingerprints; a job goes on only as it began
    report/                    for people
    .job/batches/000000.json   a batch's receipt: its rows with the SHA-256 of each image; written last
    .job/stop                  why the processes of a job are to stop
    .job/lock                  held while the job is drawn

An image reaches ``images/`` under its name only after it was judged, whole and synced.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from ..digests import sha256
from ..errors import ArtifactError, CorruptArtifactError, DataError
from ..folders import images_in
from ..index.folder import hold, write_file, write_json
from .rows import Row

IMAGES, METADATA = "images", "metadata.jsonl"
MANIFEST_JSONL, MANIFEST_PARQUET = "manifest.jsonl", "manifest.parquet"
JOB, REPORT = "job.json", "report"


class JobFolder:
    """Reads and writes one job's folder.

    Args:
        path: The folder; made when the job starts.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._receipts = self.path / ".job" / "batches"
        self._stop = self.path / ".job" / "stop"
        self._lock = self.path / ".job" / "lock"

    @contextlib.contextmanager
    def started(self, job: Mapping[str, Any]) -> Iterator[None]:
        """Begin a job, or go on with it, until the context ends; what a killed run left half written is removed.

        Raises:
            ArtifactError: the folder holds something else than this job, or the job is being drawn elsewhere.
        """
        self.check(job)  # before anything is written there
        with self._locked():
            self.check(job)  # another job may have begun there meanwhile
            if not (self.path / JOB).exists():  # first: from then on the folder is known to be this job's
                write_json(self.path / JOB, job)
            folders = (self.path / IMAGES, self._receipts)
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            for left in (file for folder in folders for file in folder.glob("*.tmp")):
                left.unlink(missing_ok=True)
            for name in (JOB, METADATA, MANIFEST_JSONL, MANIFEST_PARQUET):
                for left in self.path.glob(f"{name}.*.tmp"):
                    left.unlink(missing_ok=True)
            self._stop.unlink(missing_ok=True)
            try:
                yield
            except DataError:
                self._free()
                raise

    def _free(self) -> None:
        """Where nothing was drawn yet, let another job begin: this one was not what could be drawn."""
        folders = (self.path / IMAGES, self._receipts)
        if not any(any(folder.iterdir()) for folder in folders):
            for folder in folders:
                folder.rmdir()
            (self.path / JOB).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else starts a job there (``hold``)."""
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        with self._lock.open("a", encoding="utf-8") as file:
            try:
                hold(file, wait=False)
            except BlockingIOError:
                raise ArtifactError(
                    f"the job in {self.path} is being drawn already; wait for it, or stop it first"
                ) from None
            yield

    def check(self, job: Mapping[str, Any]) -> None:
        """
        Raises:
            ArtifactError: the folder holds something else than ``job``.
        """
        from ..processes import differences

        file = self.path / JOB
        if not file.exists():
            if self.path.is_dir() and not all(map(self._is_of_no_job, self.path.iterdir())):
                raise ArtifactError(f"{self.path} is not empty and holds no job; give another output folder")
            return
        try:
            found = json.loads(file.read_text(encoding="utf-8"))["fixed"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptArtifactError(f"{file} cannot be read: {error}; remove {self.path}") from error
        wanted = json.loads(json.dumps(job["fixed"]))  # as it comes back from JSON
        if changed := differences(found, wanted):
            raise ArtifactError(
                f"{self.path} holds a job with other {', '.join(changed)}; a job goes on only as it began: give "
                "another output folder, or remove it"
            )

    def _is_of_no_job(self, path: Path) -> bool:
        """Whether a file or folder is what a start that came to nothing leaves: half of ``job.json``, or the lock."""
        if path == self._lock.parent:
            return all(inside == self._lock for inside in path.iterdir())
        return path.name.startswith(f"{JOB}.") and path.suffix == ".tmp"

    @property
    def threads(self) -> int | None:
        """CPU threads of the job that lies there; ``None`` where none does."""
        try:
            return int(json.loads((self.path / JOB).read_text(encoding="utf-8"))["fixed"]["threads"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def file_name(self, position: int) -> str:
        """Where an image lies, relative to the folder."""
        return f"{IMAGES}/{position:06d}.png"

    def write_image(self, position: int, image: Image.Image) -> tuple[str, int]:
        """Write a delivered image; its SHA-256 and its size in bytes."""
        path = self.path / self.file_name(position)
        digest = write_file(path, lambda file: image.save(file, "PNG"))
        return digest, path.stat().st_size

    def remove_image(self, position: int) -> None:
        """Make sure that no image lies there."""
        (self.path / self.file_name(position)).unlink(missing_ok=True)

    def write_receipt(self, batch: int, rows: list[Row]) -> None:
        """Record that a batch is done."""
        write_json(self._receipt(batch), [asdict(row) for row in rows])

    def read_receipt(self, batch: int) -> list[Row] | None:
        """A batch's rows; ``None`` where it is not done."""
        try:
            return [
                Row.from_dict(row) for row in json.loads(self._receipt(batch).read_text(encoding="utf-8"))
            ]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def verified_receipt(self, batch: int) -> list[Row] | None:
        """The same; a receipt whose images are not what it says is removed."""
        rows = self.read_receipt(batch)
        if rows is not None and all(self._is_intact(row) for row in rows):
            return rows
        self._receipt(batch).unlink(missing_ok=True)
        return None

    def images_beside(self, rows: Iterable[Row]) -> list[str]:
        """Images that lie among those of ``rows`` and are none of them, relative to the folder."""
        own = {row.file_name for row in rows}
        found = (path.relative_to(self.path).as_posix() for path in images_in(self.path / IMAGES))
        return [name for name in found if name not in own]

    def batches_done(self) -> int:
        """How many batches have a receipt, of every process."""
        return sum(entry.name.endswith(".json") for entry in os.scandir(self._receipts))

    def ask_to_stop(self, reason: str) -> None:
        """Let every process end before its next batch."""
        write_file(self._stop, lambda file: file.write(reason.encode()))

    def stop_reason(self) -> str | None:
        """Why to stop; ``None`` to go on."""
        try:
            return self._stop.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def _receipt(self, batch: int) -> Path:
        return self._receipts / f"{batch:06d}.json"

    def _is_intact(self, row: Row) -> bool:
        path = self.path / self.file_name(row.position)
        if row.file_name is None:
            return not path.exists()
        return path.is_file() and path.stat().st_size == row.bytes and sha256(path) == row.sha256
