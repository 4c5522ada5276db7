"""The sections of the page, as HTML: what Python must work out; the rest is in page.html."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open

from resnetlab.core.runs import Run
from resnetlab.report.command import train_command
from resnetlab.report.figures import (
    MAX_CELL_TEXT,
    PIXELATED_BELOW,
    Mistake,
    confusion_chart,
    curve_charts,
    data_uri,
    is_wide,
    shorten,
)

MAX_CONFUSIONS = 8
_SETTINGS_ORDER = ("model", "data", "preprocessing", "recipe", "machine")


def facts(run: Run, summary: Mapping[str, Any], classes: int) -> str:
    """The run in a few numbers, as far as they were recorded."""
    history, machine = run.history, run.settings.get("machine", {})
    found = {}
    if classes > 5:  # among five classes the right one is always among the first five
        found["Top-5 accuracy"] = f"{summary['top5']:.2%}"
    found["Cross-entropy"] = f"{summary['loss']:.4f}"
    if (parameters := count_parameters(run.weights)) is not None:
        found["Parameters"] = f"{parameters:,}"
    if len(history):
        found["Epochs"] = f"{len(history):,}"
        found["Training time"] = _duration(history["seconds"].iloc[-1])
        found["Images per second"] = f"{history['images_per_second'].median():,.0f}"
    if machine:
        found["Device"] = ", ".join(str(machine[key]) for key in ("device", "precision") if key in machine)
    return "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in found.items())


def curves(history: pd.DataFrame, label_smoothing: float = 0.0) -> str:
    """The learning curves, and in words where they end and why the two losses differ."""
    if history.empty:
        return '<p class="note">The history of this run holds no epoch, so there are no curves.</p>'
    last, charts = history.iloc[-1], curve_charts(history)
    validated = history.dropna(subset=["val_top1"])
    summary = f"After epoch {last['epoch']:.0f} the training loss is {last['train_loss']:.4f}"
    if len(validated):
        best = validated.iloc[int(validated["val_top1"].argmax())]
        summary += (
            f" and the validation loss {last['val_loss']:.4f}, with {last['val_top1']:.2%} of the validation "
            "images right"
        )
        summary += (
            ", the most of any epoch"
            if best["epoch"] == last["epoch"]
            else f"; most were right after epoch {best['epoch']:.0f}, {best['val_top1']:.2%}"
        )
    scale = ", logarithmic scale" if is_wide(history) else ""
    if label_smoothing:
        summary += f". The training loss includes label smoothing of {label_smoothing:g}, the validation loss does not"
    if len(history) == 1:
        return f'<p class="caption">One epoch draws no curve. {escape(summary)}.</p>'
    titles = {"loss": f"Loss{scale}", "top1": "Top-1 accuracy", "lr": "Learning rate"}
    panels = "".join(
        f'<div class="panel {name}"><h3>{title}</h3>'
        f"{_chart(charts[name], f'{title} by epoch, a line chart. Where it ends follows in words.')}</div>"
        for name, title in titles.items()
    )
    return (
        '<p class="legend" aria-hidden="true"><span class="training">training</span>'
        '<span class="validation">validation</span></p>'
        f'<div class="panels">{panels}</div><p class="caption">{escape(summary)}.</p>'
    )


def confusion(names: list[str], matrix: np.ndarray) -> str:
    """The confusion matrix (true class, predicted class), and its largest wrong cells as a table."""
    few = len(names) <= MAX_CELL_TEXT
    label = (
        f"Confusion matrix of {len(names):,} classes, a heat map; {np.trace(matrix):,} of {matrix.sum():,} images "
        "lie on its diagonal. The most frequent confusions are in the table that follows."
    )
    reading = (
        "Each row is a true class, each column a prediction. Blue is right, orange is wrong, and the stronger "
        "the colour, the larger the share of the true class. "
    )
    reading += (
        "The numbers count images."
        if few
        else "Point at a cell for its classes and numbers; drag to enlarge a part, double-click to return."
    )
    longest = max(len(shorten(name)) for name in names)
    side = f"{min(46.0, 12 + 2.1 * len(names) + 0.4 * longest):.1f}rem" if few else "46rem"
    return (
        f'<div class="confusion"><div class="matrix" style="--side: {side}">'
        f'{_chart(confusion_chart(matrix, names), label)}<p class="caption">{reading}</p></div>'
        f"{_confusions(names, matrix)}</div>"
    )


def classes(per_class: pd.DataFrame) -> str:
    """The rows of the table, worst first; a class without images has no figures and comes last."""
    table = per_class.assign(absent=per_class["support"] == 0)
    table = table.sort_values(["absent", "f1", "recall"], kind="stable")
    rows = []
    for row in table.to_dict("records"):
        cells = [f'<th scope="row">{escape(str(row["class"]))}</th>']
        cells.append(f'<td data-value="{row["support"]}">{row["support"]:,}</td>')
        for name in ("precision", "recall", "f1"):
            value = float(row[name])
            bar = f' class="bar" style="--share: {value:.3f}"' if name == "f1" else ""
            if row["absent"] or math.isnan(value):
                cells.append('<td data-value="">–</td>')  # noqa: RUF001
            else:
                cells.append(f'<td data-value="{value!r}"{bar}>{value:.3f}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join(rows)


def worst_mistakes(mistakes: Sequence[Mistake], wrong: int, total: int, no_pictures: str | None) -> str:
    """The images with the highest loss; `no_pictures` says why they cannot be seen."""
    if not mistakes:
        return f"<p>No mistakes: all {total:,} images were classified correctly.</p>"
    images = "image was" if wrong == 1 else "images were"
    shown = (
        "the highest loss comes first"
        if len(mistakes) == wrong
        else f"the {len(mistakes)} with the highest loss are shown"
    )
    note = f'<p class="note">{escape(no_pictures)}</p>' if no_pictures else ""
    cards = "".join(_card(mistake) for mistake in mistakes)
    return f'<p>{wrong:,} of {total:,} {images} classified wrongly; {shown}.</p>{note}<ul class="mistakes">{cards}</ul>'


def provenance(run: Run) -> str:
    """Everything that run.toml and environment.json record, keys of other versions included."""
    tables = {key: value for key, value in run.settings.items() if isinstance(value, Mapping)}
    order = [
        *(key for key in _SETTINGS_ORDER if key in tables),
        *(key for key in tables if key not in _SETTINGS_ORDER),
    ]
    parts = [_definitions(key.capitalize().replace("_", " "), tables[key]) for key in order]
    single = {key: value for key, value in run.settings.items() if key not in tables}
    environment = run.environment if (run.path / "environment.json").is_file() else {"recorded": False}
    return "".join([*parts, _definitions("Run", single), _definitions("Environment", environment)])


def reproduce(settings: Mapping[str, Any], mirrors: bool | None) -> str:
    """The command that makes the run again, broken between options only."""
    command = train_command(settings, mirrors=mirrors)
    if command is None:
        return (
            "<p>This run was started from Python, with <code>resnetlab.fit</code> and settings that the command line "
            "has no names for. <code>run.toml</code> in the run folder holds every one of them.</p>"
        )
    words = " ".join(f"<span>{escape(shlex.join(part))}</span>" for part in command)
    return (
        "<p>This command trains the same network on the same data:</p>"
        f'<pre class="command"><code>{words}</code></pre>'
        "<p>Settings that it does not name have their usual values; <code>run.toml</code> in the run folder holds "
        "every one of them.</p>"
    )


def _confusions(names: list[str], matrix: np.ndarray) -> str:
    wrong = matrix * ~np.eye(len(names), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_CONFUSIONS]
    rows = []
    for row, column in np.stack(np.unravel_index(order, wrong.shape), axis=1).tolist():
        if count := int(wrong[row, column]):
            true, predicted, share = escape(names[row]), escape(names[column]), count / matrix[row].sum()
            rows.append(
                f'<tr><th scope="row">{true}</th><td class="text">{predicted}</td>'
                f"<td>{count:,}</td><td>{share:.1%}</td></tr>"
            )
    if not rows:
        return ""
    return (
        '<div class="scroll"><table class="compact"><caption>Most frequent confusions</caption><thead><tr>'
        '<th scope="col">True class</th><th scope="col" class="text">Taken for</th>'
        f'<th scope="col">Images</th><th scope="col">Share of class</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _card(mistake: Mistake) -> str:
    label, prediction, place = escape(mistake.label), escape(mistake.prediction), escape(mistake.place)
    image = ""
    if (picture := mistake.picture) is not None:
        small = ' class="pixelated"' if max(picture.size) < PIXELATED_BELOW else ""
        size = f'width="{picture.width}" height="{picture.height}"'
        image = f'<img{small} src="{data_uri(picture)}" {size} alt="Image of class {label}">'
    return (
        f'<li>{image}<p><b>{label}</b> taken for <b class="wrong">{prediction}</b></p>'
        f'<p class="place">confidence {mistake.confidence:.1%}<br>loss {mistake.loss:.2f}<br>{place}</p></li>'
    )


def _definitions(caption: str, values: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{_value(value)}</td></tr>' for key, value in _flatten(values)
    )
    return f'<table class="definitions"><caption>{escape(caption)}</caption><tbody>{rows}</tbody></table>'


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = prefix + key.replace("_", " ")
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{name}: ")
        else:
            yield name, value


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)) and len(value) > 12:
        entries = ", ".join(_value(entry) for entry in value)
        return f"<details><summary>{len(value):,} entries</summary>{entries}</details>"
    if isinstance(value, (list, tuple, Mapping)):
        return ", ".join(_value(entry) for entry in value) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:.6g}" if isinstance(value, float) else escape(str(value))


def _chart(figure: Mapping[str, Any], label: str) -> str:
    """A place for a chart and its data, in which no text can end the script element."""
    text = json.dumps(figure, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    safe = text.replace("<", "\\u003c")
    return (
        f'<div class="chart" role="img" aria-label="{escape(label)}"></div>'
        f'<script type="application/json">{safe}</script>'
    )


def count_parameters(path: Path) -> int | None:
    """Counts the learned numbers in a weights file from its header alone: buffers are left out."""
    try:
        with safe_open(path, framework="numpy") as tensors:
            names = list(tensors.keys())
            learned = [name for name in names if "running_" not in name and "num_batches" not in name]
            return sum(math.prod(tensors.get_slice(name).get_shape()) for name in learned)
    except (OSError, SafetensorError):
        return None


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
