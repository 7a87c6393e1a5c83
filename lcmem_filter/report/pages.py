"""What every page shares: the templates' environment, a policy that lets one script run, and files that are whole."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..errors import told_where


def environment() -> Environment:
    """Of the templates beside this module; all that they are given is escaped."""
    return Environment(
        loader=PackageLoader(__package__, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def style_and_script(templates: Environment, script: str) -> dict[str, Any]:
    """The variables ``style``, ``script`` and ``script_policy`` of a page whose script is of that name."""
    text = _source(templates, script)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {
        "style": Markup(_source(templates, "report.css")),
        "script": Markup(text),
        "script_policy": f"'sha256-{digest}'",
    }


def check_file(path: Path) -> None:
    """Make the folder of a file that is to be written, before the hours that what it holds may take.

    Raises:
        OSError: it cannot be made, or the file not be written to it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
        pass
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))


def replace_file(path: Path, text: str) -> None:
    """Write a file, whole from the first moment on; what is not UTF-8, as a file's name may be, is escaped."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with told_where(path):
            aside.write_bytes(text.encode("utf-8", "backslashreplace"))
            os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _source(templates: Environment, name: str) -> str:
    assert templates.loader is not None
    return templates.loader.get_source(templates, name)[0].replace("\r\n", "\n")
