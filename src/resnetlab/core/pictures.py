"""Pictures: each is described once, and matplotlib draws it as SVG for a page or a notebook, and as PNG.

An SVG takes its colors from CSS variables, so that it follows the light or dark mode of the page around it; a PNG has
the light colors on white. matplotlib is imported when the first picture is drawn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from resnetlab.core.files import atomic, write_text
from resnetlab.core.fonts import save_figure
from resnetlab.core.html import json_script

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure, SubFigure

PALETTE: dict[str, tuple[str, str]] = {
    "paper": ("#fdfdfb", "#15171a"),
    "raised": ("#f6f6f3", "#1d2024"),
    "ink": ("#1c1e21", "#e8e7e3"),
    "muted": ("#575c66", "#a9adb5"),
    "rule": ("#d9d9d4", "#33373d"),
    "control": ("#85888f", "#7d828b"),
    "training": ("#a8480f", "#efa270"),
    "validation": ("#1f5a9e", "#8ab6ee"),
    "bar": ("#8fb0d6", "#3d6797"),
    "none": ("#f3f3ef", "#1f2226"),
    "wrong-1": ("#f7e2d3", "#4d2d1a"),
    "wrong-2": ("#efc4a8", "#6b3719"),
    "wrong-3": ("#e09b6e", "#8a4018"),
    "wrong-4": ("#c4713d", "#a04a1a"),
    "wrong-5": ("#a84810", "#b5541c"),
    "wrong-6": ("#7d3003", "#ba571d"),
    "right-1": ("#dfe9f5", "#22364d"),
    "right-2": ("#bfd3ea", "#254365"),
    "right-3": ("#9fbcde", "#274b72"),
    "right-4": ("#7ea6d3", "#28507c"),
    "right-5": ("#4274ad", "#2c5e98"),
    "right-6": ("#1f5b9e", "#2f6db5"),
    "on-weak": ("#000001", "#ffffff"),
    "on-strong": ("#fffffe", "#ffffff"),
    "class-0": ("#205a9e", "#6aa5ec"),
    "class-1": ("#c75a00", "#f0924a"),
    "class-2": ("#1f8a4c", "#55c482"),
    "class-3": ("#c22f3d", "#f2767f"),
    "class-4": ("#7b4fb5", "#b493ec"),
    "class-5": ("#8a5a3c", "#c79a78"),
    "class-6": ("#c9439b", "#f08acb"),
    "class-7": ("#5f6670", "#b6bcc6"),
    "class-8": ("#857c00", "#cfc44a"),
    "class-9": ("#0e8c9c", "#4cc6d4"),
    "map-right": ("#6f94c2", "#5d86bb"),
    "map-wrong": ("#b8480a", "#ffa060"),
}
"""The colors of pages and pictures by name, in light and in dark mode.

No two light ones are equal, and none is black, which matplotlib leaves out of an SVG.
"""

LIGHT = {name: light for name, (light, _) in PALETTE.items()}
INK, MUTED, RULE, BAR = (LIGHT[name] for name in ("ink", "muted", "rule", "bar"))
TRAINING, VALIDATION = LIGHT["training"], LIGHT["validation"]
PAPER = "#ffffff"
"""The color of the background, for edges that set things apart: white in a PNG."""

PAGE_COLORS = {PAPER: "var(--paper)", **{light: f"var(--{name})" for name, light in LIGHT.items()}}
"""What an SVG in one of our pages has in place of each light color."""
NOTEBOOK_COLORS = {
    INK: "currentColor",
    MUTED: "currentColor",
    RULE: "#8888",
    TRAINING: "#c9652a",
    VALIDATION: "#4a86cc",
}
"""The same for a notebook, which has text colors of its own and may be light or dark."""

WIDTH, HEIGHT = 3.9, 2.7
"""Size of a usual picture in inches: text of 9 points can be read where it fills a phone."""
_DOTS_PER_INCH = 160
_SCREEN_SCALE = 1.25
"""Pixels of the screen for each point of an SVG that has room."""
_MOST_TICKS = 10
_FEW = 3
"""A line through at most this many values marks each one."""

CURVES = (
    ("loss", "Loss", "train_loss", "val_loss", ".4f"),
    ("top1", "Top-1 accuracy", "train_top1", "val_top1", ".2%"),
)
"""Name, title, columns of the history and number format of each pair of learning curves."""


def css_variables() -> Markup:
    """Returns the palette as CSS variables; dark mode follows the reader's system, and paper is always light."""
    light, dark = ("".join(f"--{name}:{pair[mode]};" for name, pair in PALETTE.items()) for mode in (0, 1))
    return Markup(
        f":root{{color-scheme:light;{light}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{color-scheme:dark;{dark}}}}}"
    )


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Values that are shown when the reader points near `x`.

    Attributes:
        x: where, in the units of the axis.
        y: the values that get a dot there.
        text: what is shown, in lines.
    """

    x: float
    y: tuple[float, ...]
    text: str


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture, described independently of the format it is drawn in.

    Attributes:
        title: heads the picture; plain text. An SVG has none: its page has a heading.
        words: what a screen reader says instead of the picture.
        draw: puts the content on an empty figure, or on a part of one.
        marks: values to show under the pointer, of the first axes.
        data: further data for the program of the page.
        size: width and height in inches.
    """

    title: str
    words: str
    draw: Callable[[Figure | SubFigure], None]
    marks: Sequence[Mark] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    size: tuple[float, float] = (WIDTH, HEIGHT)

    def svg(self, name: str, colors: Mapping[str, str] = PAGE_COLORS) -> Markup:
        """Returns the picture as an SVG element.

        Args:
            name: makes the element's ids unique on its page.
            colors: what stands for each light color.
        """
        return self._drawn(name, colors)[0]

    def html(self, name: str) -> Markup:
        """Returns the picture as an SVG element, followed by the values to show under the pointer as a JSON script."""
        svg, figure = self._drawn(name, PAGE_COLORS)
        return svg + json_script({**places(figure, self.marks), **self.data})

    def _drawn(self, name: str, colors: Mapping[str, str]) -> tuple[Markup, Figure]:
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        figure = Figure(figsize=self.size, layout="constrained")
        with _style(), rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
            self.draw(figure)
            metadata: Any = dict.fromkeys(_METADATA)
            content = save_figure(figure, "svg", transparent=True, dpi=_DOTS_PER_INCH, metadata=metadata).decode()
        width, height = (72 * inches for inches in self.size)
        head = Markup(
            '<svg class="picture" viewBox="0 0 {:g} {:g}" width="{:.0f}" role="img" font-family="sans-serif" '
            'aria-label="{}">'
        ).format(width, height, _SCREEN_SCALE * width, self.words)
        return head + _content(content, colors) + Markup("</svg>"), figure


def to_png(pictures: Sequence[Picture], *, fonts: Sequence[str] | None = None) -> bytes:
    """Returns pictures side by side as one PNG file, each under its title; equal pictures give equal bytes.

    Args:
        pictures: at least one.
        fonts: paths of font files for characters that matplotlib's font lacks; those of the system by default.
    """
    from matplotlib.figure import Figure

    widths, heights = zip(*(picture.size for picture in pictures), strict=True)
    figure = Figure(figsize=(sum(widths), max(heights)), layout="constrained")
    parts: Sequence[Figure | SubFigure] = [figure]
    if len(pictures) > 1:
        parts = figure.subfigures(1, len(pictures), width_ratios=widths, squeeze=False)[0]
    with _style():
        for part, picture in zip(parts, pictures, strict=True):
            picture.draw(part)
            if picture.title and part.axes:
                above = 22.0 if part.axes[0].get_legend() is not None else 8.0
                set_title(part.axes[0], picture.title, pad=above)
        options: dict[str, Any] = {"facecolor": "white", "metadata": {"Software": None}}
        return save_figure(figure, "png", fonts=fonts, dpi=_DOTS_PER_INCH, **options)


def save_png(path: Path, *pictures: Picture) -> None:
    """Writes pictures side by side as one PNG file, atomically; see `to_png`."""
    content = to_png(pictures)
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def save_svg(path: Path, picture: Picture) -> None:
    """Writes a picture as an SVG file, atomically.

    Within a page it has the page's colors, and on its own the light ones.
    """
    colors = {light: f"{color[:-1]}, {light})" for light, color in PAGE_COLORS.items()}
    svg = str(picture.svg(path.stem, colors)).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    write_text(path, svg)


def sentence(text: str, *, title: str = "") -> Picture:
    """Returns a picture of a sentence, in place of a picture without data."""

    def draw(figure: Figure | SubFigure) -> None:
        figure.text(0.5, 0.5, text, ha="center", va="center", color=INK, wrap=True, parse_math=False)

    return Picture(title=title, words=text, draw=draw, size=(9.0, 1.2))


def on_axes(draw: Callable[[Axes], None]) -> Callable[[Figure | SubFigure], None]:
    """Returns `draw` as a picture takes it, for a picture that is one pair of axes."""
    return lambda figure: draw(figure.subplots())


def set_title(axes: Axes, title: str, pad: float = 6.0) -> None:
    """Writes a title at the left above axes, in plain text: a dollar sign in it starts no formula."""
    axes.set_title(title, fontsize=10, color=INK, loc="left", pad=pad, parse_math=False)


def style_axes(axes: Axes, *, title: str = "", xlabel: str = "", ylabel: str = "", pad: float = 6.0) -> None:
    """Gives axes the look of all pictures, their title `pad` points above them."""
    if title:
        set_title(axes, title, pad)
    axes.set_xlabel(xlabel, fontsize=9, color=MUTED)
    axes.set_ylabel(ylabel, fontsize=9, color=MUTED)
    axes.tick_params(which="both", labelsize=9, colors=MUTED, width=0.6)
    axes.tick_params(which="minor", color=RULE)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)


def add_legend(axes: Axes, columns: int = 2) -> None:
    """Puts the legend above the axes at the right, where it covers no data."""
    legend = axes.legend(
        loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=columns, frameon=False, fontsize=9, labelcolor=MUTED,
        borderaxespad=0.2, borderpad=0.1, columnspacing=1.2, handlelength=1.8,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def use_percent(axis: Axis) -> None:
    """Labels an axis of shares from 0 to 1 in percent, with no more digits than needed."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(100 * value, 6):g}%"))


def make_logarithmic(axes: Axes, name: str = "y") -> None:
    """Makes the scale of an axis with fixed limits or complete data logarithmic, with plain numbers along it.

    Args:
        axes: whose axis it is.
        name: of the axis, "x" or "y".
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

    axis = getattr(axes, f"{name}axis")
    axes.set(**{f"{name}scale": "log"})
    low, high = getattr(axes, f"get_{name}lim")()
    axis.set_major_locator(FixedLocator(logarithmic_ticks(low, high)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value)))
    axis.set_minor_locator(LogLocator(subs="all"))
    axis.set_minor_formatter(NullFormatter())


def logarithmic_ticks(low: float, high: float) -> list[float]:
    """Returns two to ten places for the numbers along a logarithmic axis from `low` to `high`, both above 0.

    They are 1, 2 and 5 times the powers of ten if these fit, powers of ten on a longer axis, and equally spaced numbers
    on one too short for two of those.
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1, 2, 5), (1,)):
        found = [
            round(factor * 10.0**power, -power) if power < 0 else float(factor * 10**power)
            for power in range(first, last + 1)
            for factor in factors
        ]
        found = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if 2 <= len(found) <= _MOST_TICKS:
            return found
    if len(found) > 1:
        return found[:: math.ceil(len(found) / _MOST_TICKS)]
    from matplotlib.ticker import MaxNLocator

    return [float(value) for value in MaxNLocator(nbins=5).tick_values(low, high) if low <= value <= high]


def plain_number(value: float) -> str:
    """Returns a number as people write it along an axis: 0.001, 20,000 or, beyond these, 10⁻⁶ and 2·10⁷."""
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        return f"{value:,.10f}".rstrip("0").rstrip(".")
    factor, power = f"{value:.3e}".split("e")
    factor = f"{float(factor):g}"
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return ("" if factor == "1" else f"{factor}·") + f"10{raised}"


def spans_widely(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether losses span a factor above 20: only a logarithmic scale then shows more than their peak."""
    losses = [row[name] for row in rows for name in ("train_loss", "val_loss") if math.isfinite(row[name])]
    return bool(losses) and min(losses) > 0 and max(losses) / min(losses) > 20


def learning_curves(rows: Sequence[Mapping[str, Any]], epochs: int = 0) -> tuple[Picture, Picture, Picture]:
    """Returns the pictures of the losses, the accuracies and the learning rate of a history.

    Args:
        rows: of the history, one an epoch; values that are not finite are left out.
        epochs: planned epochs, to which the horizontal axis reaches; 0 for those of the rows.
    """
    pictures = [
        Picture(
            title="Loss, logarithmic scale" if name == "loss" and spans_widely(rows) else title,
            words=f"{title} of training and validation by epoch, a line chart. Its values are in the table below.",
            draw=on_axes(lambda axes, name=name, pair=pair: _draw_curves(axes, rows, epochs, name, pair)),
            marks=_marks(rows, dict(zip(("training", "validation"), pair, strict=True)), form),
        )
        for name, title, *pair, form in CURVES
    ]
    return (
        pictures[0],
        pictures[1],
        Picture(
            title="Learning rate",
            words="Learning rate by epoch, a line chart. Its values are in the table below.",
            draw=on_axes(lambda axes: _draw_rate(axes, rows, epochs)),
            marks=_marks(rows, {"learning rate": "lr"}, ".4g"),
        ),
    )


def _draw_curves(axes: Axes, rows: Sequence[Mapping[str, Any]], epochs: int, name: str, pair: Sequence[str]) -> None:
    looks = (("training", ":", TRAINING), ("validation", "-", VALIDATION))
    for (label, line, color), column in zip(looks, pair, strict=True):
        _plot(axes, rows, column, line, color=color, label=label)
    _style_epochs(axes, rows, epochs)
    if name == "loss" and spans_widely(rows):
        make_logarithmic(axes)
    if name == "top1":
        use_percent(axes.yaxis)
    if axes.get_lines():
        add_legend(axes)


def _draw_rate(axes: Axes, rows: Sequence[Mapping[str, Any]], epochs: int) -> None:
    _plot(axes, rows, "lr", "-", color=MUTED, label="learning rate")
    axes.set_ylim(bottom=0)
    _style_epochs(axes, rows, epochs)


def _plot(axes: Axes, rows: Sequence[Mapping[str, Any]], column: str, line: str, *, color: str, label: str) -> None:
    points = [(row["epoch"], row[column]) for row in rows if math.isfinite(row[column])]
    if points:
        marker = "o" if len(points) <= _FEW else ""
        axes.plot(*zip(*points, strict=True), line, color=color, marker=marker, markersize=4, label=label)


def _style_epochs(axes: Axes, rows: Sequence[Mapping[str, Any]], epochs: int) -> None:
    from matplotlib.ticker import MaxNLocator

    style_axes(axes, xlabel="epoch")
    axes.set_xlim(0.5, max([epochs, 1, *(row["epoch"] for row in rows)]) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))


def _marks(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], form: str) -> list[Mark]:
    marks = []
    for row in rows:
        found = {name: row[column] for name, column in columns.items() if math.isfinite(row[column])}
        lines = [f"epoch {row['epoch']}", *(f"{name} {value:{form}}" for name, value in found.items())]
        if found:
            marks.append(Mark(x=row["epoch"], y=tuple(found.values()), text="\n".join(lines)))
    return marks


_METADATA = ("Date", "Creator", "Format", "Type")
"""Metadata that matplotlib would write into an SVG."""


def places(figure: Figure, marks: Sequence[Mark] = ()) -> dict[str, Any]:
    """Returns where the first axes of a drawn figure and its marks lie in the SVG, in its own units.

    `box` is left, top, width and height of the axes; each of `marks` is x, the values' y, and the text.
    """
    axes, (_, height) = figure.axes[0], 72 * figure.get_size_inches()
    inches = figure.dpi_scale_trans.inverted()

    def place(x: float, y: float) -> tuple[float, float]:
        right, up = 72 * inches.transform(axes.transData.transform((x, y)))
        return round(float(right), 1), round(float(height - up), 1)

    (left, low), (right, high) = (72 * inches.transform(corner) for corner in axes.bbox.get_points())
    box = [round(float(value), 2) for value in (left, height - high, right - left, high - low)]
    bottom = axes.get_ylim()[0]
    return {
        "box": box,
        "marks": [[place(m.x, bottom)[0], [place(m.x, y)[1] for y in m.y], m.text] for m in marks],
    }


def _content(svg: str, colors: Mapping[str, str]) -> Markup:
    """Returns the inside of matplotlib's SVG, made to stand within a page.

    Left out are its style sheet, which would apply to the whole page, its fonts, so that text has the page's, ids that
    nothing refers to, and digits below a hundredth of a point. Colors become what `colors` says.
    """
    svg = re.sub(r"<(defs)>\s*<style.*?</style>\s*</defs>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    used = set(re.findall(r'="(?:url\()?#([\w-]+)', svg))

    def in_tag(match: re.Match[str]) -> str:
        tag = match[0].replace("\n", " ").replace("xlink:href", "href")
        tag = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", tag)
        tag = re.sub(r"font-family:[^;\"]*;? ?", "", tag)
        tag = re.sub(r' transform="rotate\(-0 [^"]*\)"', "", tag)
        tag = re.sub(r"#[0-9a-f]{6}\b", lambda found: colors.get(found[0], found[0]), tag)
        tag = re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), tag)
        return re.sub(r"\s{2,}", " ", tag)

    svg = re.sub(r"<[^>]+>", in_tag, svg)
    return Markup(re.sub(r">\s+<", "><", svg).replace("<g></g>", "").strip())


@contextmanager
def _style() -> Iterator[None]:
    """Draws text and lines in the palette's colors unless a picture says otherwise."""
    from matplotlib import rc_context

    colors: dict[Any, str] = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "legend.labelcolor"), INK),
        **dict.fromkeys(("xtick.color", "ytick.color"), MUTED),
        "axes.edgecolor": RULE,
    }
    with rc_context(colors):
        yield
