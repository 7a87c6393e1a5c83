"""Arguments that name images, encoders and pipelines, shared by commands."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Hashable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from ..images import ImageRecord, ImageSource
    from ..index import MemorizationIndex
    from ..latents import Encoder

DATA = (
    "image folder, folder of identities, CSV, JSONL or Parquet file, folder of a table's Parquet files or pattern in "
    "quotes that names them, or folder of Dataset.save_to_disk"
)

EXITS = (
    "Exits with 0 (no match), 1 (matches, whether or not all could be checked) or 2 (error, or no match but not all "
    "could be checked, or the threshold misses most training images themselves)."
)
"""Of ``audit`` and ``check``."""


class Once(argparse.Action):
    """An option that, given again, would put the second value in place of the first without a word."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option} is given twice, {getattr(namespace, self.dest)} and {values}; give one")
        setattr(namespace, self.dest, values)


def add_column_arguments(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, *, ids: bool = True
) -> None:
    """Options that say how a table is read."""
    parser.add_argument(
        "--image-column", help="column of the images (default: image, file_name, path or file)"
    )
    parser.add_argument(
        "--identity-column",
        help="column of the identities (default: identity, where there is one), or the attribute of DICOM files that "
        "names them, such as PatientID",
    )
    if ids:
        parser.add_argument("--id-column", help="column of unique ids (default: path, or row number)")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="only these rows of a table; given several times, rows that meet all of them",
    )


def add_encoder_arguments(
    parser: argparse.ArgumentParser,
    *,
    required: bool,
    default: str = " (default: the one that the index was built with)",
) -> None:
    """Options that name a VAE, and what holds where none is named."""
    default = "" if required else default
    parser.add_argument(
        "--vae", required=required, action=Once, help=f"diffusers folder or hub id of a VAE{default}"
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run a custom class that lies in the VAE's folder"
    )


def add_pipeline_arguments(parser: argparse.ArgumentParser) -> None:
    """The option that says how a pipeline is loaded."""
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """The option that names a device."""
    parser.add_argument(
        "--device", help="where to compute, such as cuda:0 (default: a GPU where there is one)"
    )


def add_salt_argument(group: argparse._ArgumentGroup) -> None:
    """The option that keeps ids out of a report."""
    group.add_argument(
        "--salt-file",
        metavar="FILE",
        help="replace ids in the report by keyed hashes (lcmem_filter.report.salted_id); the file is the key, made "
        "where there is none; keep it apart from the report; pictures are left out with --no-thumbnails",
    )


def open_source(args: argparse.Namespace, path: str, where: list[str] | None = None) -> ImageSource:
    """The images at ``path``, read as the options say."""
    from ..images import open_images

    return open_images(
        path,
        image_column=args.image_column,
        identity_column=args.identity_column,
        id_column=getattr(args, "id_column", None),
        where=conditions(args.where if where is None else where) or None,
    )


def tell_of_classes(who: str, classes: Collection[Hashable], what: str) -> None:
    """On stderr, which folders are taken for ``classes``, and what to do where they are none.

    Args:
        what: They have too many of, ``"images"`` or different ``"pictures"``.
    """
    import sys

    from ..errors import first_of
    from ..index.identities import MOST_OF_IDENTITY

    print(
        f"{who}: folders taken for classes, not for identities, since each has more than {MOST_OF_IDENTITY} {what}: "
        f"{first_of(sorted(map(str, classes)))}; where they are of identities, give a table with a column identity, "
        "which is believed",
        file=sys.stderr,
    )


def tell_where_column_may_be_of_classes(
    who: str, identities: Sequence[str | None], pictures: Sequence[Hashable] | None = None
) -> None:
    """A column of diagnoses is believed as one of people is: told on stderr where most images that it names are of
    names with more pictures than a folder's is believed with.

    Args:
        identities: Of each image, as the column names them.
        pictures: What tells pictures apart, as for ``classes_among``.
    """
    import sys

    from ..errors import first_of
    from ..index.identities import MOST_OF_IDENTITY, classes_among

    large = classes_among(identities, pictures)
    of_large = sum(one in large for one in identities)
    if 2 * of_large > len(identities) - identities.count(None):
        print(
            f"{who}: {of_large} of {len(identities)} images have an identity of more than {MOST_OF_IDENTITY} pictures, "
            f"which is believed: {first_of(sorted(map(str, large)))}; where that is a class, as a diagnosis is, and "
            "not one person, name another column (--identity-column), or have none called identity",
            file=sys.stderr,
        )


def tell_that_nobody_is_named(data: str, records: Sequence[ImageRecord], why: str) -> None:
    """A table whose column of identities has a name of its own would be taken for one without, and so would a folder of
    DICOM files: told on stderr.

    Args:
        why: Names are good for something.
    """
    import sys

    from ..dicom import DICOM_SUFFIXES
    from ..images import columns_of

    if any(record.identity is not None for record in records):
        return
    if len(columns := columns_of(data)) > 1:
        where = f"no column of {data} says who is in an image; where one does ({', '.join(columns)})"
    elif any(record.id.lower().endswith(tuple(DICOM_SUFFIXES)) for record in records):
        where = f"nothing in {data} says who is in an image; where an attribute of its files does (such as PatientID)"
    else:
        return
    print(f"lcmem-filter: {where}, name it (--identity-column): {why}", file=sys.stderr)


def open_training(args: argparse.Namespace, data: list[str], where: list[str]) -> list[ImageSource]:
    """Each of ``data``, and on stderr which of them name no identities, or what may be classes."""
    import sys

    from ..errors import first_of
    from ..index.identities import classes_of
    from ..training.names import identities_of

    sources = [open_source(args, one, where) for one in data]
    for source in sources:
        if all(record.identity is None for record in source.records):
            print(
                f"{source.name}: each image is an identity of its own; where some share one, name the column "
                "(--identity-column), or give each identity a folder",
                file=sys.stderr,
            )
        if classes := classes_of(source):
            tell_of_classes(source.name, classes, "images")
        elif not source.named_by_folders:
            tell_where_column_may_be_of_classes(source.name, [record.identity for record in source.records])
    named = [set(identities_of([one], beside=sources)) for one in sources]
    for number, source in enumerate(sources):
        others = set[str]().union(*named[:number])
        if both := sorted(named[number] & others):
            print(
                f"{source.name}: of its identities, {len(both)} stand in a set before it too and are taken for the "
                f"same: {first_of(both)}; where they are not, name them otherwise",
                file=sys.stderr,
            )
    return sources


def open_encoder(args: argparse.Namespace) -> Encoder:
    """The encoder that ``--vae`` names, on the device that was asked for."""
    from ..latents import load_encoder

    return load_encoder(args.vae, device=device_of(args), trust_remote_code=args.trust_remote_code)


def open_index(args: argparse.Namespace) -> tuple[MemorizationIndex, Encoder]:
    """The index that ``args.index`` names, and the encoder that ``--vae`` names or else the index's own."""
    from ..index import MemorizationIndex

    index = MemorizationIndex.load(args.index, allow_unindexed=args.allow_unindexed)
    if args.vae:
        return index, open_encoder(args)
    return index, index.load_encoder(trust_remote_code=args.trust_remote_code).to(device_of(args))


def open_pipeline(args: argparse.Namespace) -> Any:
    """The pipeline that ``args.pipeline`` names, on the device that was asked for."""
    import warnings

    import torch
    from diffusers import DiffusionPipeline

    from ..errors import ArtifactNotFoundError
    from ..hub import check_reachable

    try:
        check_reachable(args.pipeline)
        with warnings.catch_warnings():
            # releases that know only the old name are supported too
            warnings.filterwarnings("ignore", ".*torch_dtype", FutureWarning)
            pipe = DiffusionPipeline.from_pretrained(
                args.pipeline,
                torch_dtype=getattr(torch, args.dtype),
                trust_remote_code=args.trust_remote_code,
            )
    except (OSError, ValueError) as error:
        raise ArtifactNotFoundError(
            f"no pipeline could be loaded from {args.pipeline!r}: {error}; give a diffusers folder, or the id of "
            "one on a hub that can be reached"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device_of(args))


def device_of(args: argparse.Namespace) -> str:
    """The device that was asked for, or this process's GPU, or the CPU."""
    if args.device:
        import torch

        from ..errors import DataError

        try:
            return str(torch.empty(0, device=args.device).device)
        except (RuntimeError, AssertionError) as error:  # AssertionError: where PyTorch was built without it
            why = str(error).split("\n")[0]
            raise DataError(f"no device {args.device!r}: {why}; for example --device cpu") from error
    from ..processes import this_process

    device = this_process().device
    if device.type == "cpu":  # with a number, it would be another one than the head's
        return "cpu"
    return str(device)


def condition(text: str) -> tuple[str, str]:
    """``COLUMN=VALUE`` as a pair.

    Raises:
        DataError: it is no such text.
    """
    column, equals, value = text.partition("=")
    if not equals or not column:
        from ..errors import DataError

        raise DataError(f"a condition is COLUMN=VALUE, got {text!r}; for example --where split=train")
    return column, value


def conditions(texts: list[str]) -> dict[str, str]:
    """The value that each column has to have.

    Raises:
        DataError: a text is no condition, or two ask one column for different values, which no row has.
    """
    from ..errors import DataError

    wanted: dict[str, str] = {}
    for column, value in map(condition, texts):
        if wanted.setdefault(column, value) != value:
            raise DataError(
                f"rows cannot have {column}={wanted[column]} and {column}={value}; write a table of the rows that you "
                "mean, or name one value"
            )
    return wanted


def refuse(names: list[str], why: str) -> None:
    """Options that were given and do not apply.

    Raises:
        ConfigurationError: there are some.
    """
    from ..errors import ConfigurationError

    if names:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        raise ConfigurationError(f"{why}; leave out {options}")


def read_ids(path: str) -> set[str]:
    """The lines of a file.

    Raises:
        DataError: it cannot be read.
    """
    from pathlib import Path

    from ..errors import DataError
    from ..tables import lines_of

    try:
        return {line.strip() for line in lines_of(Path(path)) if line.strip()}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}; give a text file with one id a line") from error


def read_salt(args: argparse.Namespace, *, pictures: bool) -> bytes | None:
    """The salt in ``args.salt_file``, made where there is none, readable by its owner only; ``None`` where no file is
    named.

    Args:
        pictures: Whether the report shows some, which is told then.

    Raises:
        DataError: it lies with the report, or can be guessed.
    """
    import sys
    from pathlib import Path

    from ..errors import DataError

    if not args.salt_file:
        return None
    path = Path(args.salt_file)
    if path.resolve().is_relative_to(Path(args.output).resolve()):
        raise DataError("--salt-file lies in --output, with the report; keep the key apart")
    if not path.exists():
        _make_salt(path)
    salt = path.read_bytes().strip()
    if len(salt) < 16:
        raise DataError(
            f"salt file {path} holds fewer than 16 characters, which can be guessed; give a longer one"
        )
    if pictures:
        print(
            "lcmem-filter: the report shows pictures, without their names; leave them out with --no-thumbnails",
            file=sys.stderr,
        )
    return salt


def _make_salt(path: Path) -> None:
    """Write a new salt, whole from the first moment on: of several processes, all read that of the first."""
    import os
    import secrets

    aside = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(secrets.token_hex(32))  # without a line's end, so that all of the file is the salt
        os.link(aside, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
