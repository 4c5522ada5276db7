"""Do gradients vanish, or shatter, with depth? Norms and autocorrelation: Balduzzi et al. 2017."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from resnetlab.core.pictures import MUTED, style_axes
from resnetlab.core.randomness import generator, torch_seeded
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData
from resnetlab.models.resnet import ResNet
from resnetlab.studies.lab.comparison import weigh
from resnetlab.studies.lab.conduct import Finding, conduct
from resnetlab.studies.lab.depths import check_depths, twin_cells
from resnetlab.studies.lab.drawing import KINDS, depth_look
from resnetlab.studies.lab.lab import Lab
from resnetlab.studies.lab.measure import errors, over_seeds
from resnetlab.studies.lab.noise import difference, spread
from resnetlab.studies.lab.plan import Cell
from resnetlab.studies.lab.question import Question, StudyResult, Verdict
from resnetlab.studies.lab.setup import SetUp
from resnetlab.studies.shattering import autocorrelation, block_gradients, line_gradients, settled

QUESTION = Question(
    name="gradients",
    title="Do gradients vanish with depth, or do they shatter?",
    claim=(
        "At initialization the gradients of a deep plain network resemble white noise: the deeper, the less those of "
        "neighboring inputs correlate. With shortcuts they correlate much longer."
    ),
    source="Balduzzi et al. 2017, The Shattered Gradients Problem",
    protocol=(
        "analysis, and networks at initialization; with the depth L correlations fall as 1/2^L without shortcuts and "
        "as 1/sqrt(L) with shortcuts and batch normalization; drawn, not tabulated"
    ),
)
STATES = ("at initialization", "trained")
_SHARE = 0.9  # of the budget, for the trainings
_PLACES, _LINES, _IMAGES = 65, 8, 64
_NEAR = (_PLACES - 1) // 16
"""Places apart at which correlations are judged: a sixteenth of the way from one image to another."""
_STATISTICS = 256  # images for the statistics of networks that were not trained


def gradients(
    data: str | Path | ImageData = "digits", *, depths: Sequence[int] = (8, 20, 56), **setup: Unpack[SetUp]
) -> StudyResult:
    """Measures gradients of plain and residual networks of several depths, before and after their training.

    Along lines from one training image to another, how alike are the gradients of a logit in the image; and how large
    is the gradient of the loss in the output of each block. A network that was not trained is given the statistics of
    training images for its normalizations.

    Args:
        data: what `load_data` takes, or returned.
        depths: layers, 6n + 2 each.
        **setup: see `SetUp`.

    Raises:
        UserError: a depth is not 6n + 2, there is one depth only, or see `conduct`.
    """
    return conduct(QUESTION, data, setup, _answer, depths=check_depths(depths, at_least=2))


def _answer(lab: Lab, depths: list[int]) -> Finding:
    cells = twin_cells(lab, depths)
    lab.prepare(cells, share=_SHARE)
    runs = lab.train(cells)
    along, inside = [], []
    for cell, run in zip(cells, runs, strict=True):
        for state in STATES:
            get = functools.partial(_network, lab, cell, run, state)
            key, labels = f"{cell.name}-{state.split()[-1]}", {**cell.labels, "seed": cell.seed, "state": state}
            along.append(lab.once(f"lines-{key}", functools.partial(_along, lab, get)).assign(**labels))
            inside.append(lab.once(f"blocks-{key}", functools.partial(_inside, lab, get)).assign(**labels))
    curves, norms = pd.concat(along, ignore_index=True), pd.concat(inside, ignore_index=True)
    rows = summary(curves, norms).merge(errors(lab, cells, runs), on=["network", "depth", "seed"])
    rows.loc[rows["state"] == STATES[0], ["train_error", "test_error"]] = np.nan
    return Finding(
        table=over_seeds(rows, ("state", "network", "depth"), ("autocorrelation", "norm_ratio", "test_error")),
        verdict=judge(rows, depths),
        figures={
            "gradients.png": (
                lambda figure: _draw_curves(figure, curves, depths, lab.data.name),
                "How alike gradients in the image are, by their distance on the line from one training image to "
                "another: 1 of the same gradient, 0 of white noise; means over lines and seeds.",
            ),
            "norms.png": (
                lambda figure: _draw_norms(figure, norms, depths, lab.data.name),
                "Norm of the gradient of an image's loss in the output of each block, from the stem at 0 to the last "
                "block at 1; means over images and seeds.",
            ),
        },
        deviations=[
            f"gradients: of one logit along {_LINES} lines of {_PLACES} places between training images, where the "
            "paper's Fig. 1 takes networks of one input; the mean gradient is not taken off",
            "shortcuts: zero-padded, with activation after the sum, so that the paper's rates are not exact for them",
        ],
    )  # fmt: skip


def summary(curves: pd.DataFrame, norms: pd.DataFrame) -> pd.DataFrame:
    """Returns a row a network and state: autocorrelation at a sixteenth of the way, norm_ratio.

    The ratio is that of norm_first, at the stem, and norm_last, at the last block: above 1 gradients grow on their way
    back, below 1 they vanish.

    Args:
        curves: network, depth, seed, state, places, autocorrelation.
        norms: network, depth, seed, state, block, position from 0 to 1, norm.
    """
    labels = ["network", "depth", "seed", "state"]
    near = curves.loc[curves["places"] == _NEAR, [*labels, "autocorrelation"]]
    first = norms.loc[norms["position"] == 0, [*labels, "norm"]].rename(columns={"norm": "norm_first"})
    last = norms.loc[norms["position"] == 1, [*labels, "norm"]].rename(columns={"norm": "norm_last"})
    found = near.merge(first, on=labels).merge(last, on=labels)
    return found.assign(norm_ratio=found["norm_first"] / found["norm_last"])


def judge(rows: pd.DataFrame, depths: Sequence[int]) -> Verdict:
    """Returns the verdict by the autocorrelation at initialization.

    Args:
        rows: network ("plain" or "residual"), depth, state, autocorrelation, norm_ratio; a row a network and state.
        depths: those of them.
    """
    shallow, deep = min(depths), max(depths)

    def of(kind: str, depth: int, column: str = "autocorrelation", state: str = STATES[0]) -> np.ndarray:
        return _of(rows, kind, depth, state)[column].to_numpy(dtype=float)

    found = {
        f"without shortcuts, {deep} layers less {shallow}": difference(of("plain", deep), of("plain", shallow)),
        f"with shortcuts less without, {deep} layers": difference(of("residual", deep), of("plain", deep)),
    }
    lead = (
        f"a sixteenth of the way apart, gradients at initialization correlate by {spread(of('plain', shallow))} with "
        f"{shallow} layers and {spread(of('plain', deep))} with {deep} layers without shortcuts, and by "
        f"{spread(of('residual', shallow))} and {spread(of('residual', deep))} with them; the differences are"
    )
    verdict = weigh(found, dict(zip(found, ("below", "above"), strict=True)), lead)
    trained, first = (
        " and ".join(
            f"{spread(of(kind, deep, column, state))} {words}"
            for kind, words in (("plain", "without shortcuts"), ("residual", "with them"))
        )
        for column, state in (("autocorrelation", STATES[1]), ("norm_ratio", STATES[0]))
    )
    words = (
        f"{verdict.words}. With {deep} layers it is {trained} after training; at initialization the gradient at the "
        f"stem, over that at the last block, is {first}"
    )
    return Verdict(claim=verdict.claim, words=words)


def _network(lab: Lab, cell: Cell, run: Run, state: str) -> ResNet:
    if state == STATES[1]:
        return lab.network(run).requires_grad_(False)
    with torch_seeded(cell.seed, "initial weights"):  # as training begins
        model = ResNet(cell.config).to(lab.device)
    images, _ = _images(lab, range(min(_STATISTICS, len(lab.data.split("train")))))
    return settled(model, images).requires_grad_(False)


def _along(lab: Lab, get: Callable[[], ResNet]) -> pd.DataFrame:
    """Returns a row a distance: places apart, and the autocorrelation of gradients, mean over lines."""
    model, count = get(), len(lab.data.split("train"))
    curves = []
    for line in range(_LINES):
        ends = generator(0, "lines of gradients", step=line).choice(count, 2, replace=False)
        images, labels = _images(lab, ends)
        curves.append(autocorrelation(line_gradients(model, images[0], images[1], _PLACES, int(labels[0]))))
    return pd.DataFrame({"places": np.arange(_PLACES), "autocorrelation": np.mean(curves, axis=0)})


def _inside(lab: Lab, get: Callable[[], ResNet]) -> pd.DataFrame:
    """Returns a row a block, and one for the stem: block, position from 0 to 1, norm of the gradient."""
    images, labels = _images(lab, range(min(_IMAGES, len(lab.data.split("train")))))
    norms = block_gradients(get(), images, labels)
    return pd.DataFrame({"block": list(norms), "position": np.linspace(0, 1, len(norms)), "norm": list(norms.values())})


def _images(lab: Lab, positions: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
    """Returns training images, normalized, and their labels, on the study's device."""
    places = torch.as_tensor(np.array(positions))
    images = lab.data.squares("train", places).to(lab.device)
    labels = lab.data.split("train").labels[places].to(lab.device)
    return lab.data.preprocessing.normalize(images, torch.float32), labels


def _draw_curves(figure: Figure, curves: pd.DataFrame, depths: Sequence[int], data: str) -> None:
    panels = figure.subplots(1, 2, sharey=True)
    for panel, state in zip(panels, STATES, strict=True):
        panel.axhline(0, color=MUTED, linewidth=0.8, linestyle=":")
        for kind in KINDS:
            for number, depth in enumerate(depths):
                table = over_seeds(_of(curves, kind, depth, state), ("places",), ("autocorrelation",))
                distance = table["places"] / (_PLACES - 1)
                panel.plot(
                    distance, table["autocorrelation"],
                    label=f"{kind}, {depth} layers", **depth_look(kind, number, len(depths)),
                )  # fmt: skip
        panel.axvline(_NEAR / (_PLACES - 1), color=MUTED, linewidth=0.8)
        panel.set_xlim(0, 0.5)
        style_axes(panel, title=f"{data}, {state}", xlabel="distance, of that between two images")
    panels[0].set_ylabel("autocorrelation of the gradient", fontsize=9, color=MUTED)
    panels[1].legend(frameon=False, fontsize=8)


def _draw_norms(figure: Figure, norms: pd.DataFrame, depths: Sequence[int], data: str) -> None:
    panels = figure.subplots(1, 2, sharey=True)
    for panel, state in zip(panels, STATES, strict=True):
        for kind in KINDS:
            for number, depth in enumerate(depths):
                table = over_seeds(_of(norms, kind, depth, state), ("position",), ("norm",))
                look = depth_look(kind, number, len(depths))
                panel.plot(table["position"], table["norm"], label=f"{kind}, {depth} layers", **look)
        panel.set_yscale("log")
        style_axes(panel, title=f"{data}, {state}", xlabel="place in the network, from stem to last block")
    panels[0].set_ylabel("norm of the loss gradient", fontsize=9, color=MUTED)
    panels[0].legend(frameon=False, fontsize=8)


def _of(rows: pd.DataFrame, kind: str, depth: int, state: str) -> pd.DataFrame:
    return rows.loc[(rows["network"] == kind) & (rows["depth"] == depth) & (rows["state"] == state)]
