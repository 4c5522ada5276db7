"""The pictures of the study of lesions."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from resnetlab.core.pictures import MUTED, style_axes
from resnetlab.studies.lab.drawing import KINDS, with_errors
from resnetlab.studies.lab.measure import over_seeds


def draw_blocks(figure: Figure, rows: pd.DataFrame, bounds: tuple[float, float], data: str) -> None:
    """Draws what each block costs alone, by network; `bounds` are the claim's, for the residual and the plain one."""
    axes = figure.subplots()
    single = rows.loc[rows["lesion"] == "block"]
    names = sorted(set(single["name"]), key=lambda name: [int(part) for part in name[5:].split(".block")])
    for kind, look in KINDS.items():
        table = over_seeds(single.loc[single["network"] == kind], ("name", "kind"), ("cost",))
        table["place"] = [names.index(name) + (0.12 if kind == "plain" else -0.12) for name in table["name"]]
        padded = table["kind"] == "padded"
        for part, fill in ((table.loc[~padded], look["color"]), (table.loc[padded], "white")):
            label = kind if fill != "white" else f"{kind}, padded shortcut kept"
            if len(part):
                with_errors(axes, part, "place", "cost", label=label, **{**look, "linestyle": ""}, mfc=fill)
    axes.axhline(bounds[0], color=KINDS["residual"]["color"], linewidth=0.8, linestyle=":")
    axes.axhline(bounds[1], color=KINDS["plain"]["color"], linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(names)), [name.replace("stage", "").replace(".block", ".") for name in names])
    axes.tick_params(axis="x", rotation=0 if len(names) <= 20 else 90)
    style_axes(
        axes,
        title=f"One block deleted, {data}; dotted: the claim's bounds",
        xlabel="deleted block (stage.block)",
        ylabel="cost, points of accuracy",
    )
    axes.legend(frameon=False, fontsize=9)


def draw_random(figure: Figure, rows: pd.DataFrame, data: str) -> None:
    """Draws the error over the number of deleted blocks, and over Kendall's tau of their order."""
    left, right = figure.subplots(1, 2, sharey=True)
    for kind, look in KINDS.items():
        of_kind = rows.loc[rows["network"] == kind]
        random = of_kind.loc[of_kind["lesion"].isin(("none", "random"))].fillna({"number": 0})
        with_errors(left, over_seeds(random, ("number",), ("error",)), "number", "error", label=kind, **look)
        order = of_kind.loc[of_kind["lesion"] == "order"]
        right.scatter(order["tau"], order["error"], s=16, color=look["color"], marker=look["marker"], alpha=0.6)
        right.axhline(
            of_kind.loc[of_kind["lesion"] == "none", "error"].mean(),
            color=look["color"], linewidth=0.9, linestyle=look["linestyle"],
        )  # fmt: skip
    left.set_ylim(0, 100)
    right.invert_xaxis()
    style_axes(left, title=f"Random blocks deleted, {data}", xlabel="deleted blocks", ylabel="error, %")
    style_axes(right, title="Blocks that changed places; lines: none did", xlabel="Kendall's tau of their order")
    left.legend(frameon=False, fontsize=9)


def draw_paths(figure: Figure, carried: pd.DataFrame) -> None:
    """Draws the gradient along one path, and the shares of all paths and of the gradient, over their length."""
    left, right = figure.subplots(1, 2)
    look = KINDS["residual"]
    left.plot(carried["length"], carried["gradient"], markersize=4, **look)
    left.set_yscale("log")
    right.plot(
        carried["length"], 100 * carried["paths"], label="paths",
        color=MUTED, marker="^", markersize=4, linestyle="--",
    )  # fmt: skip
    right.plot(carried["length"], 100 * carried["carried"], label="gradient", markersize=4, **look)
    right.legend(frameon=False, fontsize=9)
    style_axes(left, title="Gradient along one path", xlabel="blocks on the path", ylabel="norm at the image")
    style_axes(right, title="Paths, and the gradient they carry", xlabel="blocks on the path", ylabel="share, %")
