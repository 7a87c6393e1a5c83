"""``lcmem-filter``: find the commands, parse, run one, turn what went wrong into an exit status."""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import os
import pkgutil
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from .. import __version__, cli
from ..errors import LcmemFilterError

FAILED = 2
INTERRUPTED = 130
BROKEN_PIPE = 141

TO_DO = {
    errno.EEXIST: "give a folder, or a path where nothing lies",
    errno.ENOTDIR: "give a folder, or a path where nothing lies",
    errno.EISDIR: "give a file",
    errno.EACCES: "have it readable and writable, or give another path",
    errno.EROFS: "give a path that can be written to",
    errno.ENOSPC: "make room there, and run the same command again",
    errno.EDQUOT: "make room there, and run the same command again",
    errno.EFBIG: "give a path where larger files may be written",
}
"""What helps against errors of the operating system."""

_NOT_COMMANDS = {"main", "__main__"}


class Command(Protocol):
    """What a module of ``cli`` must have."""

    NAME: str
    HELP: str

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None: ...

    @staticmethod
    def run(args: argparse.Namespace) -> int: ...


def commands() -> dict[str, Command]:
    """Every command by its name, in alphabetical order."""
    modules = [entry.name for entry in pkgutil.iter_modules(cli.__path__)]
    found = [
        cast(Command, importlib.import_module(f"{cli.__name__}.{name}"))
        for name in modules
        if name not in _NOT_COMMANDS and not name.startswith("_")
    ]
    return {command.NAME: command for command in sorted(found, key=lambda command: command.NAME)}


def build_parser() -> argparse.ArgumentParser:
    """The parser with every command; the chosen command is ``args.command``."""
    parser = argparse.ArgumentParser(
        prog="lcmem-filter",
        description="Stop a latent diffusion pipeline from returning copies of its training images.",
    )
    parser.add_argument("--version", action="version", version=f"lcmem-filter {__version__}")
    choices = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in commands().items():
        command.add_arguments(choices.add_parser(name, help=command.HELP, description=command.HELP))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: the command's own, or 2 when it failed."""
    shown = warnings.formatwarning
    warnings.formatwarning = _in_one_line(shown)
    imports = logging.getLogger("transformers.utils.import_utils")
    imports.addFilter(_of_something_else_than_torchvision)
    try:
        args = build_parser().parse_args(argv)
        status = commands()[args.command].run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of stdout is gone; keep the interpreter from flushing to it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        print("lcmem-filter: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (LcmemFilterError, OSError) as error:
        print(f"lcmem-filter: {_one_line(error)}", file=sys.stderr)
        return FAILED
    except Exception:  # python's own status for this is 1, which `check` uses for "matches found"
        traceback.print_exc()
        print("lcmem-filter: failed in a way that it should not; the traceback is above", file=sys.stderr)
        return FAILED
    finally:
        warnings.formatwarning = shown
        imports.removeFilter(_of_something_else_than_torchvision)


def _of_something_else_than_torchvision(record: logging.LogRecord) -> bool:
    """Not what transformers says as diffusers is imported, of processors that no command uses."""
    return "requires torchvision" not in record.getMessage()


def _in_one_line(others: Callable[..., str]) -> Callable[..., str]:
    """Shows the package's own warnings as what else a command says; ``others`` shows those of other packages."""
    package = os.path.dirname(cli.__path__[0])

    def shown(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if not filename.startswith(package):
            return others(message, category, filename, lineno, line)
        return f"lcmem-filter: {' '.join(str(message).split())}\n"

    return shown


def _one_line(error: BaseException) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    advice = TO_DO.get(error.errno or 0) if isinstance(error, OSError) else None
    return f"{said}; {advice}" if advice else said


if __name__ == "__main__":
    sys.exit(main())
