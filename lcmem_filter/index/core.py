"""MemorizationIndex: a training set that can be searched."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..errors import (
    ArtifactError,
    ArtifactNotFoundError,
    ConfigurationError,
    CorruptArtifactError,
    FilterFailedError,
    IncompleteIndexError,
    LcmemFilterError,
    check_kind,
)
from ..head import LCMemHead
from ..images import ImageRecord, ImageSource
from ..latents import MIN_RESOLUTION, Encoder, EncoderSource, load_encoder
from ..types import Calibration
from . import folder as files
from .backends import Hits
from .build import Build, build_index, default_resolution
from .identities import classes_among, numbered
from .keys import Key, Keys
from .recent import Recent
from .reembed import reembed_index
from .shards import Shards, records_of


class MemorizationIndex:
    """A training set as embeddings, canonical latents and records, with the head that made them.

    Made by ``build`` or ``load``.

    Attributes:
        path: Its folder.
        space: Latent space of the stored images, as the head calls it.
        head: The head that made the embeddings, and that queries must go through.
        encoder_source: Which encoder the images went through.
        resolution: Side in pixels that they were squashed to before.
        latent_size: (h, w) of their latents before these were resized to the head's grid.
        unreadable: Training images that could not be read, with what was wrong; copies of them are not found.
        calibrations: The threshold for queries of each latent space that it was calibrated for.
        recent: What was computed of its rows lately.
        allow_unindexed: Whether whoever loaded it accepted that.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], backend: str, allow_unindexed: bool) -> None:
        self.path, self._manifest, self.allow_unindexed = path, manifest, allow_unindexed
        self.space: str = manifest["space"]
        self.resolution: int = manifest["resolution"]
        self.latent_size: tuple[int, int] = tuple(manifest["latent_size"])
        self.encoder_source = EncoderSource(**manifest["encoder"])
        self.unreadable: dict[str, str] = manifest["unreadable"]
        self.head = files.head_of(path, manifest)
        self._latents = Shards(path, manifest, files.LATENTS) if manifest["latents"] else None
        self._keys = Keys(path, manifest, self._latents, backend)
        self._records = records_of(path, manifest)
        self.calibrations = files.calibrations_of(path, manifest)
        self.recent, self.backend = Recent(), backend

    @classmethod
    def build(
        cls,
        source: ImageSource,
        encoder: Encoder,
        head: LCMemHead,
        output: str | os.PathLike[str],
        *,
        resolution: int | None = None,
        keep_latents: bool = True,
        reuse: MemorizationIndex | None = None,
        progress: bool = True,
    ) -> MemorizationIndex:
        """Encode and embed every image of ``source`` into the folder ``output``; interrupted, go on where it stopped.

        Under ``accelerate launch`` (on CPUs, ``torchrun``) the shards are divided among the processes.

        Args:
            source: The pipeline's whole training set.
            encoder: Its VAE, or another encoder of the same latent space.
            head: A head with a stem for that space.
            resolution: Side in pixels that each picture is squashed to; give what the pipeline generates. By
                default what the encoder's configuration names, else 512.
            keep_latents: Keep canonical latents for verification. They can be decoded into the images.
            reuse: An index by the same encoder, head and resolution, as of the training set before it grew: what it
                holds of pictures with the same bytes is taken from it, and not encoded again.
            progress: Show progress on stderr.

        Returns:
            The index; where images could not be read (``unreadable``), whoever judges by it has to accept that.

        Raises:
            ArtifactError: ``output`` holds something else, ``reuse`` was built otherwise, or processes that share the
                build differ in head, encoder or options.
            ConfigurationError: a resolution at which nothing can be seen.
            EmptyDataError: no image could be read.
            LatentSpaceError: the head does not know the encoder's latent space.
        """
        check_kind("source", source, ImageSource, "open_images(PATH)")
        check_kind("encoder", encoder, Encoder, "load_encoder(PATH)")
        check_kind("head", head, LCMemHead, "LCMemHead.from_pretrained(NAME)")
        if reuse is not None:
            check_kind("reuse", reuse, MemorizationIndex, "MemorizationIndex.load(PATH)")
        space = head.identify_space(encoder.vae).told()
        side = default_resolution(encoder) if resolution is None else resolution
        if side < MIN_RESOLUTION:
            raise ConfigurationError(
                f"resolution is a side in pixels of at least {MIN_RESOLUTION}, got {side}"
            )
        build = Build(source, encoder, head, Path(output), space, side, keep_latents, reuse)
        build_index(build, progress=progress)
        return cls._open(output)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, allow_unindexed: bool = False, backend: str = "exact"
    ) -> MemorizationIndex:
        """Load an index; the checksum of every file is verified.

        Args:
            allow_unindexed: Accept an index that lacks training images which could not be read.
            backend: Search engine, one of ``BACKENDS``.

        Raises:
            ArtifactNotFoundError: no finished index lies at ``path``.
            CorruptArtifactError: a file is missing, truncated or changed.
            IncompleteIndexError: training images could not be read when it was built.
            MissingExtraError: the backend is not installed.
        """
        index = cls._open(path, allow_unindexed=allow_unindexed, backend=backend)
        index.check_complete()
        return index

    @classmethod
    def _open(
        cls, path: str | os.PathLike[str], *, allow_unindexed: bool = False, backend: str = "exact"
    ) -> MemorizationIndex:
        """As ``load``, complete or not."""
        manifest = files.read_manifest(Path(path))
        files.check_files(Path(path), manifest["files"])
        folder = Path(path).absolute()  # latents are read later, from another working directory maybe
        try:
            return cls(folder, manifest, backend, allow_unindexed)
        except LcmemFilterError:
            raise
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise CorruptArtifactError(
                f"index {folder} cannot be used: {type(error).__name__}: {error}; build it again"
            ) from error

    def check_complete(self, *, allow_unindexed: bool = False) -> None:
        """
        Raises:
            IncompleteIndexError: it lacks training images which could not be read, and nobody accepted that.
        """
        if self.unreadable and not (allow_unindexed or self.allow_unindexed):
            raise IncompleteIndexError(
                f"index {self.path} lacks {len(self.unreadable)} training images that could not be read (the first: "
                f"{next(iter(self.unreadable))}); mend them and run the same build again, or accept that copies of "
                "them pass: load it with allow_unindexed=True (--allow-unindexed)"
            )

    def reembed(self, head: LCMemHead, output: str | os.PathLike[str]) -> MemorizationIndex:
        """The same images in a new index, embedded by another head from the latents that are kept: nothing is encoded.

        Args:
            head: A head with a stem for the index's space and the same canonical grid.
            output: An empty folder, or an index that the same call left.

        Returns:
            The new index; it has to be calibrated.

        Raises:
            ArtifactError: ``output`` holds something else, or larger latents came to the grid by another way than the
                head's.
            LatentSpaceError: the head has no stem for the space, or another grid.
            LcmemFilterError: the index keeps no latents.
        """
        reembed_index(self.path, self._manifest, self.head, head, Path(output))
        return type(self)._open(output, allow_unindexed=self.allow_unindexed, backend=self.backend)

    def __len__(self) -> int:
        return int(self._manifest["rows"])

    def __repr__(self) -> str:
        return (
            f"MemorizationIndex({str(self.path)!r}, {len(self)} images, space {self.space!r}, {self.backend})"
        )

    @property
    def records(self) -> Sequence[ImageRecord]:
        """What is known of each row."""
        return self._records.records

    @functools.cached_property
    def identities(self) -> torch.Tensor:
        """``numbered`` identities of the rows."""
        return torch.from_numpy(numbered(self._named_identities, self.classes))

    @functools.cached_property
    def classes(self) -> frozenset[Hashable]:
        """Folders whose names are of no identity (``classes_among``); what else names identities is believed."""
        if not files.by_folders(self._manifest):
            return frozenset()
        return frozenset(classes_among(self._named_identities, self._records.sha256))

    @property
    def _named_identities(self) -> list[str | None]:
        return [record.identity for record in self.records]

    @functools.cached_property
    def sha256_set(self) -> frozenset[str]:
        """SHA-256 of the stored bytes of every image."""
        return frozenset(self.row_of_picture)

    @functools.cached_property
    def row_of_picture(self) -> dict[str, int]:
        """The first row of each SHA-256 of stored bytes."""
        return {digest: row for row, digest in reversed(list(enumerate(self._records.sha256)))}

    def sha256_of(self, id_: str) -> str | None:
        """SHA-256 of the stored bytes of an image; ``None`` where the index holds none of that id."""
        row = self._row_of.get(id_)
        return None if row is None else self._records.sha256[row]

    def pictures_in(self, source: ImageSource) -> Callable[[str], Image.Image | None]:
        """From ids to the indexed pictures, where ``source`` has them: other pictures of the same ids are none."""
        return lambda id_: source.image_of(id_, self.sha256_of(id_))

    @property
    def has_latents(self) -> bool:
        """Whether canonical latents are kept."""
        return self._latents is not None

    @property
    def fingerprint(self) -> str:
        """Changes when the head, any stored row or a calibration does, or names are believed that were not."""
        stored = json.dumps(files.counted_once(self._manifest), sort_keys=True)
        stored += "" if files.by_folders(self._manifest) else "names are believed"
        return hashlib.sha256(stored.encode()).hexdigest()

    @property
    def calibration(self) -> Calibration | None:
        """The threshold for queries of the index's own latent space; ``None`` before it was calibrated."""
        return self.calibration_for(self.space)

    def calibration_for(self, space: str) -> Calibration | None:
        """The threshold for queries of latent space ``space``; ``None`` where there is none."""
        return self.calibrations.get(space)

    def set_calibration(self, calibration: Calibration) -> None:
        """Keep a threshold, in memory and in the folder.

        Raises:
            ArtifactError: the folder holds another index by now.
        """
        with files.locked(self.path):
            current = files.read_manifest(self.path)
            if files.built(current) != files.built(self._manifest):
                raise ArtifactError(
                    f"index {self.path} was built again since it was loaded; load it and calibrate it again"
                )
            # what others set since this was loaded is kept
            calibrations = {**files.calibrations_of(self.path, current), calibration.query_space: calibration}
            name = files.next_calibration(self.path)
            digest = files.write_json(
                self.path / name, {key: one.to_dict() for key, one in calibrations.items()}
            )
            old = current["calibration"]
            checksums = {key: value for key, value in current["files"].items() if key != old}
            manifest = {**current, "calibration": name, "files": {**checksums, name: digest}}
            files.put_in_force(self.path, manifest)
        self._manifest, self.calibrations = manifest, calibrations

    def load_encoder(self, *, trust_remote_code: bool = False) -> Encoder:
        """The encoder that the index was built with.

        Args:
            trust_remote_code: Run a custom class in the encoder's folder. Whoever built the index having done so is no
                reason to: an index may come from anybody.

        Raises:
            ArtifactError: another encoder lies there now.
            ArtifactNotFoundError: it is no longer where it was, or needs ``trust_remote_code``.
        """
        source = self.encoder_source
        try:
            encoder = load_encoder(
                source.path,
                revision=source.revision,
                subfolder=source.subfolder,
                trust_remote_code=trust_remote_code,
            )
        except ArtifactNotFoundError as error:
            raise ArtifactNotFoundError(
                f"{error}. Index {self.path} was built with it; where it lies elsewhere now, name that (--vae)"
            ) from error
        if encoder.source.sha256 != source.sha256:
            raise ArtifactError(
                f"{source.path} holds another encoder than index {self.path} was built with (weights "
                f"{encoder.source.sha256[:12]}, not {source.sha256[:12]}); restore it, name the right one (--vae), or "
                "build the index again"
            )
        return encoder

    def to(self, device: torch.device | str) -> MemorizationIndex:
        """Embed and search on ``device`` from now on."""
        device = torch.device(device)
        if device != self.head.device:
            with torch.inference_mode(False):  # weights have a gradient with respect to what they see
                self.head.to(device)
            self._keys.to(device)
            self.recent = Recent()  # lets go of the other device's memory
        return self

    def propose(self, queries: torch.Tensor, k: int, by: Key = "embeddings") -> torch.Tensor:
        """Rows (B, k), int64, most alike each query (B, D) by the backend's word, the nearest first; all if fewer.

        Args:
            by: What queries are: embeddings, or ``latents.outlines`` where latents are kept.

        Raises:
            FilterFailedError: a query is not finite.
            LcmemFilterError: the index has no such key, or its latents are not finite or have changed since.
        """
        if not torch.isfinite(queries).all():
            raise FilterFailedError("a query is not finite and cannot be searched; no image is returned")
        return self._keys.propose(queries, k, by)

    def prepare(self, by: Key) -> None:
        """Make a search engine now, not when first asked: for outlines, all latents are read. Raises as ``propose``."""
        self._keys.backend(by)

    def search(self, embeddings: torch.Tensor, k: int) -> Hits:
        """As ``propose``, with cosines from the stored embeddings: the same whichever backend proposed.

        Args:
            embeddings: (B, D), unit-norm.

        Raises:
            FilterFailedError: a query is not finite.
            CorruptArtifactError: a stored embedding is not.
        """
        queries = embeddings.float()
        rows = self.propose(queries, k)
        similarity = torch.einsum("bd,bkd->bk", queries, self.embeddings(rows).to(queries.device))
        if not torch.isfinite(similarity).all():
            raise CorruptArtifactError(
                f"index {self.path} gave a similarity that is not finite; build it again"
            )
        similarity, order = similarity.clamp(-1, 1).sort(dim=1, descending=True, stable=True)
        return Hits(rows.gather(1, order), similarity)

    def embeddings_of(self, ids: Sequence[str]) -> torch.Tensor:
        """Stored embeddings (k, D) of the images ``ids``, float32, on the head's device.

        Raises:
            LcmemFilterError: an id that the index does not hold.
        """
        if unknown := [id_ for id_ in ids if id_ not in self._row_of]:
            raise LcmemFilterError(f"index {self.path} holds no image {unknown[0]!r}")
        rows = torch.tensor([self._row_of[id_] for id_ in ids], dtype=torch.long)
        return self.embeddings(rows).to(self.head.device)

    @functools.cached_property
    def _row_of(self) -> dict[str, int]:
        return {record.id: row for row, record in enumerate(self.records)}

    def embeddings(self, rows: torch.Tensor) -> torch.Tensor:
        """Stored embeddings (..., D) of ``rows`` (...), float32, on the CPU."""
        return self._keys.stored("embeddings")[rows.cpu()].float()

    def outlines(self, rows: torch.Tensor) -> torch.Tensor:
        """``latents.outlines`` (..., D) of ``rows`` (...), float32, on the CPU; raises as ``propose``."""
        return self._keys.stored("outlines")[rows.cpu()].float()

    def latents(self, rows: torch.Tensor) -> torch.Tensor:
        """Canonical latents (..., C, grid, grid) of ``rows`` (...), float32, on the CPU.

        Raises:
            LcmemFilterError: the index keeps none.
        """
        if self._latents is None:
            raise LcmemFilterError(f"index {self.path} keeps no latents; build it without --no-latents")
        flat = rows.reshape(-1).cpu().numpy()
        return torch.from_numpy(self._latents.take(flat)).reshape(*rows.shape, *self._latents.shape).float()

    def __deepcopy__(self, memo: dict[int, object]) -> MemorizationIndex:
        return self  # copies of a pipeline's blocks share it
