"""The residual blocks: size of the branch, accuracy lost without the block, and layer responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from resnetlab.core.html import number
from resnetlab.core.pictures import (
    TRAINING,
    VALIDATION,
    Mark,
    Picture,
    add_legend,
    on_axes,
    style_axes,
)
from resnetlab.evaluation.diagnostics import FEW_IMAGES, Diagnostics
from resnetlab.report.section import Report, Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_NAMES = 40
"""With more blocks than this, names do not fit along the axis."""
_COLUMNS = {
    "ratio": ".3f", "cosine": ".3f", "variance_share": ".3f", "points_lost": ".2f", "loss_cost": ".4f",
}  # fmt: skip


def view(report: Report) -> dict[str, Any]:
    """Returns the pictures of the blocks and layers, and their values."""
    if report.results.exploration is None:
        return {"missing": report.results.unexplored}
    found = report.results.exploration.diagnostics
    if found is None:  # the network has no residual blocks
        return {}
    blocks, ranked = _with_points(found.blocks), found.responses.sort_values("rank")
    identities = blocks.loc[blocks["kind"].isin(["identity", "padded"]), "ratio"].dropna()
    costs = blocks["points_lost"].dropna()
    raising = int((costs.to_numpy(dtype=float) < 0).sum())
    return {
        "pictures": residual_pictures(found),
        "images": found.images,
        "few": FEW_IMAGES,
        "identities": len(identities),
        "median": float(identities.median()) if len(identities) else None,
        "effective_depth": found.effective_depth if len(costs) else None,
        "costliest": blocks.loc[costs.idxmax()].to_dict() if len(costs) else None,
        "most_raising": blocks.loc[costs.idxmin()].to_dict() if raising else None,
        "raising": raising,
        "blocks": [
            (row["block"], row["kind"], *(number(row[name], form) for name, form in _COLUMNS.items()))
            for row in blocks.to_dict("records")
        ],
        "layers": [
            (row["layer"], number(row["response"], ".3f"), f"{row['rank']:,}")
            for row in found.responses.to_dict("records")
        ],
        "largest": ranked.iloc[0].to_dict() if len(ranked) else None,
        "smallest": ranked.iloc[-1].to_dict() if len(ranked) else None,
    }


def figures(report: Report) -> Mapping[str, Sequence[Picture]]:
    """Returns blocks.png and responses.png."""
    exploration = report.results.exploration
    diagnostics = None if exploration is None else exploration.diagnostics
    found = {} if diagnostics is None else residual_pictures(diagnostics)
    return {
        "blocks": [found[name] for name in ("ratio", "cost") if name in found],
        "responses": [found[name] for name in ("responses",) if name in found],
    }


def residual_pictures(found: Diagnostics) -> dict[str, Picture]:
    """Returns the pictures "ratio" and "cost" by block, and "responses" by layer, those that have values."""
    pictures, below = {}, "Its values are in the table below."
    if np.isfinite(found.blocks["ratio"].to_numpy()).any():
        pictures["ratio"] = _bars(
            found.blocks, "ratio", "{:.3f}", VALIDATION, title="Branch / shortcut",
            words=f"Size of the branch relative to its shortcut, one bar for each block. {below}",
        )  # fmt: skip
    if np.isfinite(found.blocks["top1_cost"].to_numpy()).any():
        pictures["cost"] = _bars(
            _with_points(found.blocks), "points_lost", "{:.2f} points lost", TRAINING,
            title="Points of top-1 lost without the block",
            words=f"Points of accuracy lost when one block is removed, one bar for each block. {below}",
        )  # fmt: skip
    if len(found.responses):
        pictures["responses"] = _responses(found.responses, f"Responses of the 3x3 convolutions, two lines. {below}")
    return pictures


def _with_points(blocks: pd.DataFrame) -> pd.DataFrame:
    return blocks.assign(points_lost=100 * blocks["top1_cost"])


def short_name(block: str) -> str:
    """Returns what a block is called along an axis: "stage2.block1" is "2.1"."""
    return block.replace("stage", "").replace("block", "")


def _bars(blocks: pd.DataFrame, column: str, form: str, color: str, *, title: str, words: str) -> Picture:
    values = blocks[column].to_numpy(dtype=float)
    names = blocks["block"].tolist()

    def draw(axes: Axes) -> None:
        axes.bar(np.arange(len(values)), np.nan_to_num(values), color=color)
        style_axes(axes, xlabel="block (stage.number)")
        if len(names) <= _MAX_NAMES:
            labels, is_many = list(map(short_name, names)), len(names) > 9
            axes.set_xticks(range(len(names)), labels, parse_math=False, rotation=90 if is_many else 0)
            axes.tick_params(axis="x", labelsize=9 if len(names) <= 20 else 6)
        else:
            axes.set_xticks([])

    marks = [
        Mark(x=place, y=(value,), text=f"{name}\n{form.format(value)}")
        for place, (name, value) in enumerate(zip(names, values.tolist(), strict=True))
        if np.isfinite(value)
    ]
    return Picture(title=title, words=words, draw=on_axes(draw), marks=marks)


def _responses(layers: pd.DataFrame, words: str) -> Picture:
    ranked = layers.sort_values("rank")
    places = np.arange(1, len(layers) + 1)

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        axes.plot(places, layers["response"], "o-", color=VALIDATION, markersize=3, label="in order")
        axes.plot(places, ranked["response"], ":", color=TRAINING, label="sorted")
        style_axes(axes, xlabel="3x3 convolution", ylabel="standard deviation")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        add_legend(axes)

    marks = [
        Mark(
            x=place,
            y=(float(row["response"]), float(other["response"])),
            text=f"{row['layer']} {row['response']:.3f}\nsorted: {other['layer']} {other['response']:.3f}",
        )
        for place, row, other in zip(places.tolist(), layers.to_dict("records"), ranked.to_dict("records"), strict=True)
        if np.isfinite(row["response"]) and np.isfinite(other["response"])
    ]
    return Picture(title="Responses of the layers", words=words, draw=on_axes(draw), marks=marks)


SECTION = Section(order=90, name="residual", title="Residual blocks", link="Residual", view=view, figures=figures)
