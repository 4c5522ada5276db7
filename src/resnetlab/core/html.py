"""HTML from jinja2 templates: one environment for the report, the study page and the notebook views.

Every value is escaped unless it is `Markup`, and a name that a template misses is an error.
"""

from __future__ import annotations

import json
import math
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from markupsafe import Markup

from resnetlab.core.files import printable

if TYPE_CHECKING:
    from jinja2 import Environment

ABSENT = "–"  # noqa: RUF001  # in place of a figure that does not exist


def render(template: str, **values: Any) -> Markup:
    """Returns a template filled with values.

    Args:
        template: its path within the package, such as "report/templates/page.html".
        **values: the names that the template uses.
    """
    return Markup(_environment().get_template(template).render(values))


def source(name: str) -> Markup:
    """Returns a style sheet or program of the package as it is, to stand within a page."""
    return Markup((_PACKAGE / name).read_text(encoding="utf-8"))


def json_script(values: Any, name: str = "") -> Markup:
    """Returns a script element that holds data for the page's programs; no text in it can end the element."""
    text = json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", r"\u003c")
    identity = Markup(' id="{}"').format(name) if name else ""
    return Markup('<script type="application/json"{}>{}</script>').format(identity, Markup(text))


def number(value: Any, form: str) -> str:
    """Returns a number as text, or a dash for None and NaN."""
    return ABSENT if value is None or math.isnan(value) else format(value, form)


def counted(count: int, one: str, many: str = "") -> str:
    """Returns a count and its noun, such as "1 image" and "1,200 images"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def address(path: str | os.PathLike[str]) -> str:
    """Returns a file's address relative to the working directory, as notebooks link to files."""
    return quote(os.fsencode(os.path.relpath(path)))


@cache
def _environment() -> Environment:
    # Only what writes HTML loads jinja2.
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(source),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable(str(value)),
    )
    environment.filters |= {"number": number, "address": address}
    environment.globals |= {"counted": counted, "json_script": json_script, "source": source, "zip": zip}
    return environment


_PACKAGE = Path(__file__).parents[1]
