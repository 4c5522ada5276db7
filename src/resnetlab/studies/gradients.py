"""Do gradients vanish or shatter with depth? Norms and autocorrelation: Balduzzi et al. 2017."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from resnetlab.core.fields import Checked, documented
from resnetlab.core.pictures import MUTED, make_logarithmic, style_axes
from resnetlab.core.randomness import generator, torch_seeded
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.forward import evaluating
from resnetlab.models.blocks import ResidualBlock
from resnetlab.models.resnet import ResNet
from resnetlab.studies.lab.comparison import difference, mean_and_deviation, verdict_on
from resnetlab.studies.lab.conduct import Finding, conduct
from resnetlab.studies.lab.drawing import KINDS, depth_look
from resnetlab.studies.lab.lab import Lab
from resnetlab.studies.lab.measure import errors, over_seeds
from resnetlab.studies.lab.networks import depths_setting, twin_cells
from resnetlab.studies.lab.plan import Cell
from resnetlab.studies.lab.question import Question, StudyResult, Verdict
from resnetlab.studies.lab.setup import SetUp

QUESTION = Question(
    name="gradients",
    title="Do gradients in deep networks vanish, or do they become noise?",
    claim=(
        "At initialization, the gradients of a deep plain network resemble white noise: the deeper it is, the less the "
        "gradients of neighboring inputs correlate. With shortcuts, they still correlate at much larger depths."
    ),
    source="Balduzzi et al. 2017, The Shattered Gradients Problem",
    protocol=(
        "analysis, and networks at initialization; with depth L, correlations fall as 1/2^L without shortcuts and "
        "as 1/sqrt(L) with shortcuts and batch normalization; the paper shows curves, no numbers"
    ),
)
STATES = ("at initialization", "trained")
_TRAINING = 0.9  # fraction of the budget
_PLACES, _LINES, _IMAGES = 65, 8, 64
_NEAR = (_PLACES - 1) // 16
"""Distance of the judged correlations, in places: one sixteenth of the line from one image to another."""
_STATISTICS = 256  # images for the normalization statistics of untrained networks


@documented
@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """The arguments of this study."""

    depths: Sequence[int] = depths_setting((8, 20, 56), at_least=2)


def gradients(
    data: str | Path | ImageData = "digits", *, depths: Sequence[int] = Options.depths, **setup: Unpack[SetUp]
) -> StudyResult:
    """Measures gradients of plain and residual networks of several depths, before and after training.

    Two things are measured: how similar the gradients of a logit with respect to the image are along lines from one
    training image to another, and how large the gradient of the loss with respect to the output of each block is. An
    untrained network normalizes with the statistics of training images.

    Args:
        data: a source for `load_data`, or its result.
        depths: see `Options`.
        **setup: see `SetUp`.

    Raises:
        UserError: there are fewer than two depths, one is not 6n + 2, or see `conduct`.
    """
    return conduct(QUESTION, data, setup, _answer, Options(depths=depths))


def _answer(lab: Lab, options: Options) -> Finding:
    depths = options.depths
    cells = twin_cells(lab, depths)
    lab.prepare(cells, fraction=_TRAINING)
    runs = lab.train(cells)
    along, inside = [], []
    for cell, run in zip(cells, runs, strict=True):
        for state in STATES:
            get = functools.partial(_network, lab, cell, run, state)
            key, labels = f"{cell.name}-{state.split()[-1]}", {**cell.labels, "seed": cell.seed, "state": state}
            along.append(lab.measured(f"lines-{key}", functools.partial(_along, lab, get)).assign(**labels))
            inside.append(lab.measured(f"blocks-{key}", functools.partial(_inside, lab, get)).assign(**labels))
    curves, norms = pd.concat(along, ignore_index=True), pd.concat(inside, ignore_index=True)
    rows = summary(curves, norms).merge(errors(lab, cells, runs), on=["network", "depth", "seed"])
    rows.loc[rows["state"] == STATES[0], ["train_error", "test_error"]] = np.nan
    return Finding(
        table=over_seeds(rows, ("state", "network", "depth"), ("autocorrelation", "norm_ratio", "test_error")),
        verdict=judge(rows, depths),
        figures={
            "gradients.png": (
                lambda figure: _draw_curves(figure, curves, depths, lab.data.name),
                "Autocorrelation of the gradient with respect to the image, by distance on the line from one training "
                "image to another: 1 means equal gradients, 0 white noise; means over lines and seeds.",
            ),
            "norms.png": (
                lambda figure: _draw_norms(figure, norms, depths, lab.data.name),
                "Norm of the gradient of an image's loss with respect to the output of each block, from the stem (0) "
                "to the last block (1); means over images and seeds.",
            ),
        },
        deviations=[
            f"gradients: of one logit along {_LINES} lines of {_PLACES} places between training images, where the "
            "paper's Fig. 1 uses networks with one input; the mean gradient is not subtracted",
            "shortcuts: zero-padded, with the activation after the addition, so the paper's rates are not exact here",
        ],
    )  # fmt: skip


def summary(curves: pd.DataFrame, norms: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per network and state: autocorrelation at one sixteenth of the line, norm_ratio.

    The ratio is norm_first, at the stem, divided by norm_last, at the last block: above 1, gradients grow during the
    backward pass; below 1, they vanish.

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


def _network(lab: Lab, cell: Cell, run: Run, state: str) -> ResNet:
    if state == STATES[1]:
        return lab.network(run).requires_grad_(False)
    with torch_seeded(cell.seed, "initial weights"):  # the weights with which its training started
        model = ResNet(cell.config).to(lab.device)
    images, _ = _images(lab, range(min(_STATISTICS, len(lab.data.split("train")))))
    return settled(model, images).requires_grad_(False)


def _along(lab: Lab, get: Callable[[], ResNet]) -> pd.DataFrame:
    """Returns one row per distance: its number of places, and the autocorrelation of gradients, mean over lines."""
    model, count = get(), len(lab.data.split("train"))
    curves = []
    for line in range(_LINES):
        ends = generator(0, "lines of gradients", step=line).choice(count, 2, replace=False)
        images, labels = _images(lab, ends)
        curves.append(autocorrelation(line_gradients(model, images[0], images[1], _PLACES, int(labels[0]))))
    return pd.DataFrame({"places": np.arange(_PLACES), "autocorrelation": np.mean(curves, axis=0)})


def _inside(lab: Lab, get: Callable[[], ResNet]) -> pd.DataFrame:
    """Returns one row per block, and one for the stem: block, position from 0 to 1, norm of the gradient."""
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
        style_axes(panel, title=f"{data}, {state}", xlabel="distance, as a fraction of the line")
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
        style_axes(panel, title=f"{data}, {state}", xlabel="position in the network, from stem to last block")
    make_logarithmic(panels[0])  # both panels share the axis
    panels[0].set_ylabel("norm of the loss gradient", fontsize=9, color=MUTED)
    panels[0].legend(frameon=False, fontsize=8)


def judge(rows: pd.DataFrame, depths: Sequence[int]) -> Verdict:
    """Returns the verdict, by the autocorrelation at initialization.

    Args:
        rows: one row per network and state, with the columns network ("plain" or "residual"), depth, state,
            autocorrelation and norm_ratio.
        depths: the depths in it.
    """
    shallow, deep = min(depths), max(depths)

    def of(kind: str, depth: int, column: str = "autocorrelation", state: str = STATES[0]) -> np.ndarray:
        return _of(rows, kind, depth, state)[column].to_numpy(dtype=float)

    found = {
        f"correlation in plain-{deep} minus plain-{shallow}": difference(of("plain", deep), of("plain", shallow)),
        f"correlation in residual-{deep} minus plain-{deep}": difference(of("residual", deep), of("plain", deep)),
    }
    lead = (
        f"autocorrelation of the gradients at initialization, one sixteenth of the line apart, with {shallow} and "
        f"{deep} layers: {mean_and_deviation(of('plain', shallow))} and {mean_and_deviation(of('plain', deep))} "
        f"without shortcuts, {mean_and_deviation(of('residual', shallow))} and "
        f"{mean_and_deviation(of('residual', deep))} with them. Differences"
    )
    verdict = verdict_on(found, dict(zip(found, ("below", "above"), strict=True)), lead, unit="")
    trained, first = (
        " and ".join(
            f"{mean_and_deviation(of(kind, deep, column, state))} {which}"
            for kind, which in (("plain", "without shortcuts"), ("residual", "with them"))
        )
        for column, state in (("autocorrelation", STATES[1]), ("norm_ratio", STATES[0]))
    )
    reason = (
        f"{verdict.reason}. After training, the autocorrelation with {deep} layers is {trained}. At initialization, "
        f"the norm of the gradient at the stem, divided by that at the last block, is {first}"
    )
    return dataclasses.replace(verdict, reason=reason)


def _of(rows: pd.DataFrame, kind: str, depth: int, state: str) -> pd.DataFrame:
    return rows.loc[(rows["network"] == kind) & (rows["depth"] == depth) & (rows["state"] == state)]


def settled(model: ResNet, images: Tensor) -> ResNet:
    """Returns a copy in evaluation mode whose batch normalizations use the statistics of these images.

    An untrained network has no statistics of its own; without them, its outputs would not be those at the start of
    training.

    Args:
        model: a network.
        images: (N, C, H, W), normalized; one batch.
    """
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # a plain mean instead of a moving average
    with torch.no_grad():
        model.train()(images)
    return model.eval()


def line_gradients(model: ResNet, first: Tensor, second: Tensor, points: int, output: int) -> Tensor:
    """Returns the gradient of one logit with respect to the image, at places on the line between two images.

    Args:
        model: a network; it is evaluated in evaluation mode, so that images do not affect each other.
        first: the first place; (C, H, W), normalized.
        second: the last place.
        points: number of places, at equal distances.
        output: index of the logit.

    Returns:
        (points, C * H * W).
    """
    position = torch.linspace(0, 1, points, device=first.device, dtype=first.dtype).reshape(-1, 1, 1, 1)
    images = torch.lerp(first, second, position).requires_grad_()
    with torch.enable_grad(), evaluating(model):
        total = model(images)[:, output].sum()
        return torch.autograd.grad(total, images)[0].flatten(1)


def autocorrelation(gradients: Tensor) -> np.ndarray:
    """Returns the autocorrelation of gradients by the number of places between them: 1 at 0, and 0 for white noise.

        r(k) = mean over t of <g(t), g(t + k)>  /  mean over t of <g(t), g(t)>

    The mean gradient is not subtracted: for a linear function, r is 1 everywhere.

    Args:
        gradients: (places, D).

    Returns:
        (places,).
    """
    products = (gradients @ gradients.T).double().cpu()
    means = np.array([float(products.diagonal(lag).mean()) for lag in range(len(products))])
    return means / means[0]


def block_gradients(model: ResNet, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Returns the norm of the gradient of an image's loss with respect to the output of the stem and of each block.

    The values are means over images, by the names of `ResNet.features`, in order.

    Args:
        model: a network.
        images: (N, C, H, W), normalized.
        labels: int64 (N,).
    """
    with torch.enable_grad(), evaluating(model):
        taps = model.features(images.detach().requires_grad_())
        names = ["stem", *(name for name, block in model.blocks() if isinstance(block, ResidualBlock))]
        loss = F.cross_entropy(taps["logits"], labels, reduction="sum")
        gradients = torch.autograd.grad(loss, [taps[name] for name in names])
    return {
        name: float(gradient.flatten(1).norm(dim=1).mean()) for name, gradient in zip(names, gradients, strict=True)
    }
