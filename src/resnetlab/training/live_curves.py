"""Learning curves below a notebook's cell, updated after every epoch of a training."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from resnetlab.core.pictures import learning_curves, to_png

_WIDTH = 860
"""Width of the picture on the page, in pixels; the PNG has more of its own, for sharp screens."""


def in_notebook() -> bool:
    """Whether this process is a Jupyter kernel, whose front end can show pictures.

    False in plain Python, in a terminal and in IPython's shell. The answer does not import IPython.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None  # IPython's own shell has none


class LiveCurves:
    """Shows loss and top-1 accuracy of training and validation in a notebook; elsewhere nothing.

    Args:
        epochs: of the whole training, the length of the horizontal axis.
        rows: the history so far, when resuming.
        quiet: show nothing.
    """

    def __init__(self, *, epochs: int, rows: Iterable[Mapping[str, Any]] = (), quiet: bool = False) -> None:
        self._epochs = epochs
        self._rows = [dict(row) for row in rows]
        self._shown = not quiet and in_notebook()
        self._handle: Any = None

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Adds the history's row of an epoch to the picture."""
        self._rows.append(dict(row))
        if not self._shown:
            return
        from IPython.display import Image, display  # type: ignore[import-not-found]  # every notebook has it

        loss, top1, _ = learning_curves(self._rows, self._epochs)
        picture = Image(data=to_png([loss, top1]), format="png", width=_WIDTH)
        if self._handle is None:
            self._handle = display(picture, display_id=True)
        else:
            self._handle.update(picture)
