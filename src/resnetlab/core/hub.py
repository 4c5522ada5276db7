"""Names of repositories on a model hub: "hub:USER/NAME"."""

from __future__ import annotations

import re
from pathlib import Path

from resnetlab.core.errors import UserError
from resnetlab.core.files import printable

PREFIX = "hub:"
_REPOSITORY = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9](?:[\w.-]*\w)?/[A-Za-z0-9](?:[\w.-]*\w)?", re.ASCII)
_LONGEST = 96  # the hub's own limit


def is_hub_name(source: object) -> bool:
    """Whether a source of weights is a repository of the hub."""
    return isinstance(source, (str, Path)) and _text(source).startswith(PREFIX)


def repository_of(name: str | Path) -> str:
    """Returns USER/NAME of "hub:USER/NAME"; raises `UserError` if that cannot be the name of a repository."""
    repository = _text(name).removeprefix(PREFIX)
    if not _REPOSITORY.fullmatch(repository) or len(repository) > _LONGEST:
        raise UserError(
            f"expected hub:USER/NAME, such as hub:ada/cats-and-dogs, got {printable(_text(name)[:120])!r}. Both parts "
            "are letters, digits, '-', '_' and '.'."
        )
    return repository


def _text(name: str | Path) -> str:
    return name if isinstance(name, str) else name.as_posix()
