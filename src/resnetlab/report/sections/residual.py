"""The residual's story: what each block adds to its shortcut, what it is needed for, and how the layers respond."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from resnetlab.evaluation.diagnostics import Diagnostics
from resnetlab.report import charts
from resnetlab.report.evaluation_files import Results
from resnetlab.report.markup import chart, counted, folded, note, number, table

_RATIO, _COST, _RESPONSE = (
    "Branch against shortcut, a bar chart by block. Its numbers are in the table that follows.",
    "What it costs to take a block out, a bar chart by block. Its numbers are in the table that follows.",
    "Responses of the 3x3 convolutions, a line chart, in order and sorted. Its numbers are in the table that follows.",
)


def residual(results: Results) -> str:
    """The charts of the blocks, what they say in words, and everything as tables; or what makes them."""
    if results.exploration is None:
        return note(
            "There are no figures of the network’s blocks: this run was evaluated without them. "  # noqa: RUF001
            f"This command makes them: {results.command}"
        )
    found = results.exploration.diagnostics
    figures = residual_charts(found)
    titles = {
        "ratio": ("Branch against shortcut", _RATIO),
        "cost": ("Top-1 lost without the block", _COST),
        "responses": ("Responses of the layers", _RESPONSE),
    }
    panels = "".join(
        f'<div class="panel {"whole" if name == "responses" else ""}"><h3>{titles[name][0]}</h3>'
        f"{chart(figure, titles[name][1])}</div>"
        for name, figure in figures.items()
    )
    return f'{_words(found)}<div class="panels">{panels}</div>{folded("The same as tables", _tables(found))}'


def residual_charts(found: Diagnostics) -> dict[str, dict[str, Any]]:
    """Returns plotly figures: "ratio" and "cost" by block, and "responses" by layer, as far as there is any."""
    blocks, layers = found.blocks, found.responses
    axis: dict[str, Any] = {"type": "category", "tickangle": "auto", "showticklabels": len(blocks) <= 40}
    names = [charts.plain(short_name(name)) for name in blocks["block"]]
    figures = {}
    if np.isfinite(blocks["ratio"].to_numpy()).any():
        trace = charts.bars(names, blocks["ratio"], color="var(--chart-validation)", hover="%{x}<br>ratio %{y:.3f}")
        figures["ratio"] = charts.figure([trace], axis, {"rangemode": "tozero"})
    if np.isfinite(blocks["top1_cost"].to_numpy()).any():
        trace = charts.bars(names, blocks["top1_cost"], color="var(--chart-training)", hover="%{x}<br>%{y:.2%} lost")
        figures["cost"] = charts.figure([trace], axis, {"tickformat": ".0%"})
    if len(layers):
        order = [charts.plain(name) for name in layers["layer"]]
        ranked = layers.sort_values("rank")
        place = list(range(1, len(layers) + 1))
        lines = [
            charts.line(place, layers["response"], name="in order", color="var(--chart-validation)", customdata=order,
                        hover="%{customdata}<br>response %{y:.3f}<extra></extra>", mode="lines+markers"),
            charts.line(place, ranked["response"], name="sorted", color="var(--chart-training)", dash="dot",
                        customdata=[charts.plain(name) for name in ranked["layer"]],
                        hover="%{customdata}<br>response %{y:.3f}<extra></extra>"),
        ]  # fmt: skip
        figures["responses"] = charts.figure(
            lines, {"title": charts.title("layer"), "tickformat": "d"}, {"rangemode": "tozero"},
            showlegend=True, legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"},
        )  # fmt: skip
    return figures


def short_name(block: str) -> str:
    """Returns what a block is called along an axis: "stage2.block1" is "2.1"."""
    return block.replace("stage", "").replace("block", "")


def _words(found: Diagnostics) -> str:
    blocks, layers = found.blocks, found.responses
    sentences = [f"Measured on {counted(found.images, 'image')} of the split."]
    identities = blocks.loc[blocks["kind"].isin(["identity", "padded"]), "ratio"].dropna()
    if len(identities):
        sentences.append(
            "A residual block adds the answer of its branch to its shortcut. "
            f"Where the shortcut is the identity, the branch is {identities.median():.2f} times as large as what it "
            f"is added to (median of {counted(len(identities), 'block')}): "
            + (
                "the blocks correct what arrives rather than replace it."
                if identities.median() < 1
                else "these blocks change more than they keep, as is usual where there are few."
            )
        )
    else:
        sentences.append("This network has no block with an identity shortcut.")
    costs = blocks["top1_cost"].dropna()
    if len(costs) and found.effective_depth is not None:
        worst = blocks.loc[int(np.nanargmax(blocks["top1_cost"].to_numpy(dtype=float)))]
        sentences.append(
            f"Reduced to its shortcut, one block at a time (Veit et al. 2016), {found.effective_depth} of "
            f"{counted(len(blocks), 'block')} cost more than a point of top-1; the costliest is "
            f"{escape(str(worst['block']))}, without which {worst['top1_cost']:.1%} of the images are lost. "
            "A network without shortcuts loses nearly all with any layer."
        )
    else:
        sentences.append("There were no labels, or too few images, to measure what taking a block out costs.")
    if len(layers):
        ranked = layers.sort_values("rank")
        first, last = ranked.iloc[0], ranked.iloc[-1]
        sentences.append(
            f"The responses, the standard deviations of what the 3x3 layers add after normalization (He et al. 2016, "
            f"Fig. 7), run from {number(last['response'], '.3f')} ({escape(str(last['layer']))}) to "
            f"{number(first['response'], '.3f')} ({escape(str(first['layer']))}). "
            "In the paper they are smaller in residual networks than in plain ones, and smaller the deeper the network."
        )
    return "".join(f"<p>{sentence}</p>" for sentence in [" ".join(sentences[:2]), *sentences[2:]])


def _tables(found: Diagnostics) -> str:
    blocks = [
        [
            escape(str(row["block"])),
            escape(str(row["kind"])),
            *(number(row[name], ".3f") for name in ("ratio", "cosine", "variance_share")),
            number(row["top1_cost"], ".2%"),
            number(row["loss_cost"], ".4f"),
        ]
        for row in found.blocks.to_dict("records")
    ]
    headings = ("Block", "Shortcut", "Branch / shortcut", "Cosine", "Share of variance", "Top-1 lost", "Loss added")
    layers = [
        [escape(str(row["layer"])), number(row["response"], ".3f"), f"{row['rank']:,}"]
        for row in found.responses.to_dict("records")
    ]
    return table("Blocks, in order", headings, blocks, text=(1,)) + table(
        "3x3 convolutions, in order", ("Layer", "Response", "Rank"), layers
    )
