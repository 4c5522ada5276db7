"""Whether an exception was raised in code of yours, or in that of Python, an installed package or ResNetLab."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

from resnetlab.core.files import printable

_PACKAGE = Path(__file__).resolve().parent.parent
_INSTALLED = {"site-packages", "dist-packages"}


def place_in_your_code(error: BaseException) -> str | None:
    """Returns "FILE:LINE" of the innermost call of an exception's traceback in a file of yours, or None."""
    places = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    return next((f"{printable(file)}:{line}" for file, line in reversed(places) if _is_yours(file)), None)


def _is_yours(file: str) -> bool:
    if file.startswith("<"):  # code without a file
        return False
    path = Path(file).resolve()
    library = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")]
    return not _INSTALLED.intersection(path.parts) and not any(map(path.is_relative_to, [*library, _PACKAGE]))
