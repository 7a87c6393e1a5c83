"""What was found about one image, and how the page says it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from ..report import thumbnails
from ..types import Decision

Status = Literal["no match", "match", "withheld", "not checked"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One image and what was found about it.

    Attributes:
        decision: ``None`` where it was not checked.
        picture: As it was judged; ``None`` where there is none, or where it is withheld.
        problem: Why it was not checked; empty otherwise.
        drawn: Whether a pipeline drew it, so that attempts and rung say something.
        doubt: Why "no match" says little, where the threshold misses most training images themselves; else empty.
    """

    decision: Decision | None
    picture: Image.Image | None = None
    problem: str = ""
    drawn: bool = False
    doubt: str = ""

    @property
    def status(self) -> Status:
        """In two words."""
        if self.decision is None or self.decision.accepted is None:
            return "not checked"
        if self.decision.accepted:
            return "no match"
        return "withheld" if self.drawn else "match"


def render(finding: Finding, training: Callable[[str], Image.Image | None] | None = None) -> str:
    """A fragment of HTML: the verdict, its numbers, and the nearest training images; all names are escaped.

    Args:
        training: Gives a training image by its id, for its thumbnail; without it they are named only.
    """
    environment = Environment(
        loader=PackageLoader(__package__, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    near = finding.decision.neighbours if finding.decision else ()
    return environment.get_template("finding.html.jinja").render(
        finding=finding,
        decision=finding.decision,
        status=finding.status,
        near=near,
        shown=thumbnails((one.id for one in near), training),
        named_only=training is None,
    )
