"""How the training went."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
import pandas as pd

from resnetlab.report import charts
from resnetlab.report.markup import chart, note

CURVES = (
    ("loss", "Loss", "train_loss", "val_loss", ".4f"),
    ("top1", "Top-1 accuracy", "train_top1", "val_top1", ".2%"),
)


def curves(history: pd.DataFrame, label_smoothing: float = 0.0) -> str:
    """The learning curves, and in words where they end and why the two losses differ."""
    if history.empty:
        return note("The history of this run holds no epoch, so there are no curves.")
    figures, last = curve_charts(history), history.iloc[-1]
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
        f"{chart(figures[name], f'{title} by epoch, a line chart. Where it ends follows in words.')}</div>"
        for name, title in titles.items()
    )
    return (
        '<p class="legend" aria-hidden="true"><span class="training">training</span>'
        '<span class="validation">validation</span></p>'
        f'<div class="panels">{panels}</div><p class="caption">{escape(summary)}.</p>'
    )


def curve_charts(history: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Returns plotly figures of the losses ("loss"), accuracies ("top1") and learning rate ("lr")."""
    whole = {"tick0": 1, "dtick": 1} if len(history) <= 8 else {"nticks": 8}  # no halves of an epoch
    epochs = {
        "title": charts.title("epoch"), "tickformat": "d", **whole,
        "spikecolor": "var(--chart-rule)", "spikethickness": 1, "spikedash": "solid",
        "unifiedhovertitle": {"text": "epoch %{x}"},
    }  # fmt: skip
    x, figures = history["epoch"].tolist(), {}
    for key, _, training, validation, form in CURVES:
        hover = f"%{{y:{form}}}"
        lines = [
            charts.line(x, history[training], name="training", color="var(--chart-training)", dash="dot", hover=hover),
            charts.line(x, history[validation], name="validation", color="var(--chart-validation)", hover=hover),
        ]
        scale = "log" if key == "loss" and is_wide(history) else "linear"
        yaxis = {"tickformat": ".0%" if "%" in form else "", "type": scale}
        figures[key] = charts.figure(lines, epochs, yaxis, hovermode="x unified")
    rates = charts.line(x, history["lr"], name="learning rate", color="var(--chart-text)", hover="%{y:.4g}")
    figures["lr"] = charts.figure([rates], epochs, {"rangemode": "tozero", "nticks": 4}, hovermode="x unified")
    return figures


def is_wide(history: pd.DataFrame) -> bool:
    """Whether the losses span so much that only a logarithmic scale shows more than their peak."""
    losses = history[["train_loss", "val_loss"]].to_numpy(dtype=float)
    losses = losses[np.isfinite(losses)]
    return losses.size > 0 and losses.min() > 0 and losses.max() / losses.min() > 20
