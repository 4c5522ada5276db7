"""Text in pictures with characters that matplotlib's own font lacks, such as Chinese, Thai or emoji.

A PNG gets fonts of this machine that have them. What no font has becomes a number in brackets, never an empty box. In
an SVG, the text stays as it is, because the browser has fonts of its own, and only the room for it is estimated.
"""

from __future__ import annotations

import functools
import io
import re
import unicodedata
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from markupsafe import escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WARNING = "Glyph .* missing from font"
_OWN = "DejaVu Sans"
_NO_FONT = "Last Resort"
"""A font of this name has a box for every character."""
_WIDE = "—"
"""As wide as a Chinese character, and part of matplotlib's own font."""
_ZERO, _ONE = "\u200b", "\u200c"
"""Characters without width, the digits of a number that marks a text."""


def save_figure(figure: Figure, form: str, *, fonts: Sequence[str] | None = None, **options: Any) -> bytes:
    """Returns a figure as a file in which every text can be read.

    Args:
        figure: completely drawn. Its texts may be changed.
        form: "png" or "svg".
        fonts: paths of the font files to choose from; those of the system by default.
        **options: of matplotlib's `savefig`.
    """
    content, is_complete = _save(figure, form, options)
    if is_complete:
        return content
    missing = _use_fonts(figure, fonts)
    if form == "svg":
        marked: list[str] = []
        if missing:
            _replace_texts(figure, functools.partial(_mark, missing=missing, marked=marked))
        return _unmark(_save(figure, form, options)[0].decode(), marked).encode()
    if missing:
        numbers: dict[str, str] = {}
        _replace_texts(figure, functools.partial(_number, missing=missing, numbers=numbers))
        if numbers:
            figure.supxlabel(_note(len(numbers)), x=0.01, ha="left", fontsize=8)
    return _save(figure, form, options)[0]


def covering_fonts(characters: Collection[str], fonts: Sequence[str] | None = None) -> list[str]:
    """Returns paths of as few font files as possible that have as many of the characters as possible.

    Args:
        characters: single characters.
        fonts: paths to choose from; those of the system by default.
    """
    return list(_covering(frozenset(characters), None if fonts is None else tuple(fonts)))


def one_font(text: str, fonts: Sequence[str] | None = None) -> tuple[str, str | None]:
    """Returns a text as a single font can draw it, and the font's path; None for matplotlib's own.

    A character that the font lacks becomes its code, such as [U+732B].

    Args:
        text: one line.
        fonts: paths to choose from; those of the system by default.
    """
    from matplotlib import font_manager

    own = _characters(font_manager.findfont(_OWN))
    characters = {character for character in text if character.isprintable()}
    if characters <= own:
        return text, None
    chosen = covering_fonts(characters, fonts)[:1]
    has = _characters(chosen[0]) if chosen else own
    if len(characters & has) <= len(characters & own):
        chosen, has = [], own
    lacking = characters - has
    shown = "".join(f"[U+{ord(character):04X}]" if character in lacking else character for character in text)
    return shown, chosen[0] if chosen else None


@functools.lru_cache(maxsize=64)
def _covering(characters: frozenset[str], fonts: tuple[str, ...] | None) -> tuple[str, ...]:
    from matplotlib import font_manager

    # The system is searched again, because matplotlib's own list may be older than a font.
    paths = sorted(font_manager.findSystemFonts()) if fonts is None else fonts
    has = {path: characters & _characters(path) for path in paths}
    chosen, left = [], set(characters)
    while left and has:
        # Of several, a regular sans serif.
        best = max(has, key=lambda path: (len(has[path] & left), "sans" in path.lower(), "regular" in path.lower()))
        if not has[best] & left:
            break
        chosen.append(best)
        left -= has[best]
    return tuple(chosen)


@functools.lru_cache(maxsize=1024)
def _characters(path: str) -> frozenset[str]:
    """Returns the characters that a font can draw; none for a file that is not such a font."""
    from matplotlib import font_manager

    try:
        font = font_manager.get_font(path)
        if not font.scalable or font.family_name.startswith(_NO_FONT):
            return frozenset()
        return frozenset(map(chr, font.get_charmap()))
    except (OSError, RuntimeError, ValueError):  # a damaged font, or one of bitmaps
        return frozenset()


def _save(figure: Figure, form: str, options: dict[str, Any]) -> tuple[bytes, bool]:
    """Returns the file, and whether its fonts have all characters; other warnings of matplotlib are passed on."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message=_WARNING)
        with _laid_out(figure, form, options.get("dpi", figure.dpi)):
            figure.savefig(buffer, format=form, **options)
    others = [warning for warning in caught if not re.match(_WARNING, str(warning.message))]
    for warning in others:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return buffer.getvalue(), len(others) == len(caught)


@contextmanager
def _laid_out(figure: Figure, form: str, dpi: float) -> Iterator[None]:
    """Arranges the parts of a figure for a file; otherwise `savefig` draws everything once more to do so."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    (FigureCanvasSVG if form == "svg" else FigureCanvasAgg)(figure)  # measures texts like the file
    engine, usual = figure.get_layout_engine(), figure.dpi
    figure.set_dpi(dpi)
    try:
        if engine is not None and figure.axes:
            engine.execute(figure)
        figure.set_layout_engine(None)
        yield
    finally:
        figure.set_layout_engine(engine)
        figure.set_dpi(usual)


def _use_fonts(figure: Figure, fonts: Sequence[str] | None) -> set[str]:
    """Gives all texts further fonts, and returns the characters that no font has."""
    from matplotlib import font_manager
    from matplotlib.text import Text

    texts: list[Any] = figure.findobj(Text)
    own = _characters(font_manager.findfont(_OWN))
    missing = {character for text in texts for character in text.get_text() if character.isprintable()} - own
    paths = covering_fonts(missing, fonts)
    for path in paths:
        if path not in {entry.fname for entry in font_manager.fontManager.ttflist}:
            font_manager.fontManager.addfont(path)
    names = [font_manager.get_font(path).family_name for path in paths]
    for text in texts:
        text.set_fontfamily([_OWN, *names])
    return missing.difference(*map(_characters, paths))


def _replace_texts(figure: Figure, replace: Callable[[str], str]) -> None:
    """Changes all texts of a figure; those along an axis come from its formatter whenever it is drawn."""
    from matplotlib.text import Text
    from matplotlib.ticker import FuncFormatter

    for axes in figure.findobj(lambda artist: hasattr(artist, "xaxis")):
        for axis in (axes.xaxis, axes.yaxis):  # type: ignore[attr-defined]
            formatter = axis.get_major_formatter()
            if isinstance(formatter, FuncFormatter):
                axis.set_major_formatter(
                    FuncFormatter(lambda value, place, formatter=formatter: replace(formatter(value, place)))
                )
    for text in figure.findobj(Text):
        text.set_text(replace(text.get_text()))  # type: ignore[attr-defined]


def _number(text: str, *, missing: set[str], numbers: dict[str, str]) -> str:
    """Returns a text with a number in place of each run of missing characters, the same for the same run."""
    one = f"[{re.escape(''.join(sorted(missing)))}]+"
    return re.sub(f"{one}(?: {one})*", lambda run: numbers.setdefault(run[0], f"[{len(numbers) + 1}]"), text)


def _mark(text: str, *, missing: set[str], marked: list[str]) -> str:
    """Returns a text of the same width in matplotlib's font, each line marked by its place in `marked`."""
    lines = text.split("\n")  # each becomes an element of the SVG
    for number, line in enumerate(lines):
        if not missing.isdisjoint(line):
            if line not in marked:
                marked.append(line)
            digits = f"{marked.index(line):016b}".replace("0", _ZERO).replace("1", _ONE)
            lines[number] = "".join(_as_wide(character) if character in missing else character for character in line)
            lines[number] += digits
    return "\n".join(lines)


def _as_wide(character: str) -> str:
    return _WIDE if unicodedata.east_asian_width(character) in "WF" else "n"


def _unmark(svg: str, marked: Sequence[str]) -> str:
    """Returns an SVG with the texts themselves in place of those that `_mark` made."""

    def original(found: re.Match[str]) -> str:
        place = int(found[1].replace(_ZERO, "0").replace(_ONE, "1"), 2)
        return f">{escape(marked[place])}<"

    return re.sub(rf">[^<>]*?([{_ZERO}{_ONE}]{{16}})<", original, svg)


def _note(count: int) -> str:
    names = "[1]" if count == 1 else "[1] and [2]" if count == 2 else f"[1] to [{count}]"
    return f"{names}: no font on this machine has these characters.\nInstall one, such as Noto Sans CJK for Chinese."
