"""What the program prints: results on standard output, messages on standard error."""

from __future__ import annotations

import textwrap

from rich.console import Console, RenderableType

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""For messages, so that standard output contains nothing but results."""
_WIDTH = 80


def notice(message: str, *, wrap: bool = False) -> None:
    """Prints one message on standard error; with `wrap` in lines of at most 80 columns, broken between words."""
    if wrap:
        message = textwrap.fill(message, _WIDTH, break_long_words=False, break_on_hyphens=False)
    console.print(message, markup=False)


def output() -> Console:
    """Returns the console for results, on standard output.

    It is as wide as the terminal, also when the output goes to a pipe or a file; without a terminal it has 80 columns.
    """
    return Console(highlight=False)


def render(renderable: RenderableType) -> str:
    """Returns what rich would print, as plain text of at most 100 columns: for `print` and notebooks."""
    plain = Console(width=100, no_color=True)
    with plain.capture() as capture:
        plain.print(renderable)
    return capture.get().rstrip()


def is_live() -> bool:
    """Whether a moving progress bar can be shown: on a terminal or in a notebook, not in a log."""
    return console.is_terminal or console.is_jupyter
