"""What the program says while it works: on standard error, so that standard output stays data."""

from __future__ import annotations

from rich.console import Console, RenderableType

console = Console(stderr=True, highlight=False, soft_wrap=True)


def notice(message: str) -> None:
    """Prints one line for the person who waits."""
    console.print(message, markup=False)


def render(renderable: RenderableType) -> str:
    """Returns what rich would print, as plain text of at most 100 columns: for `print` and notebooks."""
    plain = Console(width=100, no_color=True)
    with plain.capture() as capture:
        plain.print(renderable)
    return capture.get().rstrip()


def is_live() -> bool:
    """Whether a moving progress bar can be shown: on a terminal or in a notebook, not in a log."""
    return console.is_terminal or console.is_jupyter
