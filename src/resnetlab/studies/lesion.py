"""Does a network still work without one of its blocks? Lesions, reordering and paths: Veit et al. 2016."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from resnetlab.core.fields import Checked, documented, setting
from resnetlab.core.pictures import MUTED, make_logarithmic, style_axes
from resnetlab.core.randomness import generator
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.diagnostics import diagnose, sample
from resnetlab.evaluation.evaluate import default_split
from resnetlab.evaluation.forward import answer, check_images, evaluating
from resnetlab.evaluation.metrics import overall
from resnetlab.models.blocks import ResidualBlock
from resnetlab.models.resnet import ResNet, block_site
from resnetlab.models.surgery import ShortcutOnly
from resnetlab.studies.lab.comparison import above, mean_and_deviation, verdict_on
from resnetlab.studies.lab.conduct import Finding, conduct
from resnetlab.studies.lab.drawing import KINDS, with_errors
from resnetlab.studies.lab.lab import Lab
from resnetlab.studies.lab.measure import guessing, over_seeds
from resnetlab.studies.lab.networks import depth_setting, twin_cells
from resnetlab.studies.lab.question import OPEN, Question, StudyResult, Verdict
from resnetlab.studies.lab.setup import SetUp

SMALL_COST, LARGE_COST = 5.0, 20.0
"""Points of accuracy: the most that deleting a residual block may cost, and the least that a plain block must cost."""
QUESTION = Question(
    name="lesion",
    title="Does a network still work without one of its blocks?",
    claim=(
        f"Deleting one block of a trained residual network costs at most {SMALL_COST:g} points of accuracy (median "
        f"over blocks); deleting one block of the same network without shortcuts costs at least {LARGE_COST:g}."
    ),
    source="Veit et al. 2016, Residual Networks Behave Like Ensembles of Relatively Shallow Networks, sections 4 and 5",
    protocol=(
        "CIFAR-10, a residual network of 110 layers, 54 blocks, without retraining; the paper shows the cost of "
        "deletions as curves; the thresholds of the claim are ours"
    ),
    published=(
        {"quantity": "95 % of the paths: fewest blocks", "value": 19.0, "unit": "of 54 blocks"},
        {"quantity": "95 % of the paths: most blocks", "value": 35.0, "unit": "of 54 blocks"},
        {"quantity": "paths that carry the gradient: fewest blocks", "value": 5.0, "unit": "of 54 blocks"},
        {"quantity": "paths that carry the gradient: most blocks", "value": 17.0, "unit": "of 54 blocks"},
        {"quantity": "paths that carry the gradient", "value": 0.45, "unit": "% of all paths"},
    ),
)
_TRAINING = 0.7  # fraction of the budget
_MOST_IMAGES = 512
_GRADIENT_IMAGES = 64
_MOST_COUNTS = 8
"""Maximum of different numbers of blocks, and of swaps, that are tried."""


@documented
@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """The arguments of this study."""

    depth: int = depth_setting(20, "layers of the networks; 20 layers are 9 blocks", least=20)
    draws: int = setting(
        5, "random draws for each number of deleted blocks, number of swaps and path length", minimum=1
    )


def lesion(
    data: str | Path | ImageData = "digits",
    *,
    depth: int = Options.depth,
    draws: int = Options.draws,
    **setup: Unpack[SetUp],
) -> StudyResult:
    """Deletes and reorders blocks of a trained residual network and of its plain twin, and measures its paths.

    Each block is deleted alone; then several random ones together; then blocks of the same shape are swapped. A block
    that changes the shape keeps its padded shortcut when it is deleted and is reported separately; in a plain network
    it cannot be deleted.

    Args:
        data: a source for `load_data`, or its result.
        depth: see `Options`.
        draws: see `Options`.
        **setup: see `SetUp`.

    Raises:
        UserError: an argument is out of range, or see `conduct`.
    """
    return conduct(QUESTION, data, setup, _answer, Options(depth=depth, draws=draws))


def _answer(lab: Lab, options: Options) -> Finding:
    depth, draws = options.depth, options.draws
    cells = twin_cells(lab, [depth])
    lab.prepare(cells, fraction=_TRAINING)
    lesions, paths = [], []
    for cell, run in zip(cells, lab.train(cells), strict=True):
        lab.log(f"lesions of {cell.name}")
        found = lab.measured(f"lesions-{cell.name}", functools.partial(_lesions, lab, run, cell.seed, draws))
        lesions.append(found.assign(**cell.labels, seed=cell.seed))
        if cell.labels["network"] == "residual":
            found = lab.measured(f"paths-{cell.name}", functools.partial(_paths, lab, run, cell.seed, draws))
            paths.append(found.assign(seed=cell.seed))
    rows = pd.concat(lesions, ignore_index=True)
    carried = _carried(pd.concat(paths))
    costs = rows.loc[(rows["lesion"] == "block") & rows["kind"].isin(("plain", "identity"))]
    chance, _ = guessing(lab.data.split(default_split(lab.data)).labels)
    verdict = judge(costs, rows.loc[rows["lesion"] == "none"], chance=chance)
    return Finding(
        table=_table(rows),
        verdict=dataclasses.replace(verdict, reason=f"{verdict.reason}. {_summary_of_paths(carried)}"),
        figures={
            "lesion.png": (
                lambda figure: _draw_blocks(figure, rows, (SMALL_COST, LARGE_COST), lab.data.name),
                "Cost of deleting each block alone, for the networks with and without shortcuts: mean and standard "
                "deviation over seeds. Blocks with hollow points keep a padded shortcut; plain blocks that change the "
                "shape cannot be deleted.",
            ),
            "random.png": (
                lambda figure: _draw_random(figure, rows, lab.data.name),
                "Left: error after deleting several random blocks, mean and standard deviation over choices and seeds. "
                "Right: error after swapping blocks of the same shape; Kendall's tau is 1 for the original order.",
            ),
            "paths.png": (
                lambda figure: _draw_paths(figure, carried),
                "The residual network, by the number of blocks on a path. Left: gradient along one path. Right: "
                "percentage of all paths, and percentage of the gradient that they carry.",
            ),
        },
        deviations=[
            f"network: {depth} layers, {(depth - 2) // 2} blocks; in the paper 110 and 54",
            f"measured on at most {_MOST_IMAGES} images of the {default_split(lab.data)} split, with {draws} random "
            "choices of each kind for each network",
            "the plain network is the same network without shortcuts; in the paper it is VGG",
            "the paper gives the path lengths that carry almost all of the gradient; here they are its middle 95 %",
        ],
    )


def _table(rows: pd.DataFrame) -> pd.DataFrame:
    labels = ["network", "lesion", "name", "kind", "number"]
    values = ("tau", "error", "cost")
    table = over_seeds(over_seeds(rows, [*labels, "seed"], values), labels, values)  # of draws, then of seeds
    shown = table.loc[:, ["network", "name", "kind", "tau", "error", "error_sd", "cost", "cost_sd", "seeds"]]
    return shown.rename(columns={"name": "lesion", "kind": "shortcut", "tau": "kendall_tau"})


def _lesions(lab: Lab, run: Run, seed: int, draws: int) -> pd.DataFrame:
    """Returns one row per changed network: lesion, name, kind, number, tau, error and cost, in points."""
    model, split = lab.network(run), default_split(lab.data)
    positions = sample(len(lab.data.split(split)), _MOST_IMAGES)
    images, labels = lab.data.squares(split, positions), lab.data.split(split).labels[positions]

    def error(network: ResNet) -> float:
        return 100 * (1 - overall(answer(network, images, check_images(model, images)).logits, labels)["top1"])

    found = diagnose(model, images, labels, at_most=_MOST_IMAGES)
    assert found.top1 is not None
    whole = 100 * (1 - found.top1)
    rows: list[dict[str, Any]] = [{"lesion": "none", "name": "none", "error": whole}]
    for block in found.blocks.dropna(subset="lesion_top1").to_dict("records"):
        rows.append(
            {
                "lesion": "block",
                "name": block["block"],
                "kind": block["kind"],
                "number": 1,
                "error": 100 * (1 - block["lesion_top1"]),
            }
        )
    exchangeable = exchangeable_blocks(model)
    names = [name for stage in exchangeable for name in stage]
    for number in _counts(len(names)):
        for draw in range(draws):
            chosen = generator(seed, "lesion", epoch=draw, step=number).choice(names, number, replace=False)
            row = {"lesion": "random", "name": _some(number, "random block"), "number": number}
            rows.append({**row, "error": error(without_blocks(model, chosen))})
    everything = [name for name, _ in model.blocks()]
    for number in _counts(len(names)):
        for draw in range(draws):
            order = swapped(exchangeable, number, generator(seed, "reordering", epoch=draw, step=number))
            tau = kendall_tau([everything.index(order.get(name, name)) for name in everything])
            row = {"lesion": "order", "name": _some(number, "random swap"), "number": number, "tau": tau}
            rows.append({**row, "error": error(reordered(model, order))})
    table = pd.DataFrame(rows, columns=["lesion", "name", "kind", "number", "tau", "error"])
    return table.assign(cost=table["error"] - whole)


def _paths(lab: Lab, run: Run, seed: int, draws: int) -> pd.DataFrame:
    """Returns one row per length of a path, in blocks: length, gradient (norm, mean over images and draws)."""
    model = lab.network(run).requires_grad_(False)
    split = default_split(lab.data)
    positions = sample(len(lab.data.split(split)), _GRADIENT_IMAGES)
    images = lab.data.squares(split, positions)
    normalized = check_images(model, images).normalize(images.to(lab.device), torch.float32)
    labels = lab.data.split(split).labels[positions].to(lab.device)
    names = [name for name, _ in model.blocks()]
    rows = []
    for length in range(len(names) + 1):
        norms = []
        for draw in range(draws):
            through = generator(seed, "paths", epoch=draw, step=length).choice(names, length, replace=False)
            gradient = path_gradient(model, normalized, labels, set(through))
            norms.append(float(gradient.flatten(1).norm(dim=1).mean()))
        rows.append({"length": length, "gradient": np.mean(norms)})
    return pd.DataFrame(rows)


def _carried(paths: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per length: gradient of one path (mean over seeds), fraction of all paths and of the gradient."""
    found = over_seeds(paths, ("length",), ("gradient",))
    found["paths"] = fraction_of_paths(len(found) - 1)
    total = found["gradient"] * found["paths"]
    return found.assign(carried=total / total.sum())


def _some(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"


def _counts(most: int) -> list[int]:
    return sorted({round(number) for number in np.linspace(1, most, min(most, _MOST_COUNTS))})


def _draw_blocks(figure: Figure, rows: pd.DataFrame, bounds: tuple[float, float], data: str) -> None:
    """Draws the cost of deleting each block alone; `bounds` are those of the claim, for residual and plain network."""
    axes = figure.subplots()
    single = rows.loc[rows["lesion"] == "block"]
    names = sorted(set(single["name"]), key=lambda name: [int(number) for number in name[5:].split(".block")])
    for kind, look in KINDS.items():
        table = over_seeds(single.loc[single["network"] == kind], ("name", "kind"), ("cost",))
        table["place"] = [names.index(name) + (0.12 if kind == "plain" else -0.12) for name in table["name"]]
        padded = table["kind"] == "padded"
        for blocks, fill in ((table.loc[~padded], look["color"]), (table.loc[padded], "white")):
            label = kind if fill != "white" else f"{kind}, padded shortcut kept"
            if len(blocks):
                with_errors(axes, blocks, "place", "cost", label=label, **{**look, "linestyle": ""}, mfc=fill)
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


def _draw_random(figure: Figure, rows: pd.DataFrame, data: str) -> None:
    """Draws the error by the number of deleted blocks, and by Kendall's tau of their order."""
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
    style_axes(right, title="Blocks swapped; lines: original order", xlabel="Kendall's tau of their order")
    left.legend(frameon=False, fontsize=9)


def _draw_paths(figure: Figure, carried: pd.DataFrame) -> None:
    """Draws the gradient along one path, and the percentages of all paths and of the gradient, by length."""
    left, right = figure.subplots(1, 2)
    look = KINDS["residual"]
    left.plot(carried["length"], carried["gradient"], markersize=4, **look)
    make_logarithmic(left)
    right.plot(
        carried["length"], 100 * carried["paths"], label="paths",
        color=MUTED, marker="^", markersize=4, linestyle="--",
    )  # fmt: skip
    right.plot(carried["length"], 100 * carried["carried"], label="gradient", markersize=4, **look)
    right.legend(frameon=False, fontsize=9)
    style_axes(left, title="Gradient along one path", xlabel="blocks on the path", ylabel="norm")
    style_axes(right, title="Paths, and the gradient that they carry", xlabel="blocks on the path", ylabel="percentage")


def judge(costs: pd.DataFrame, whole: pd.DataFrame, *, chance: float) -> Verdict:
    """Returns the verdict, by the median over blocks of the cost of deleting one.

    Args:
        costs: one row per block that becomes the identity when it is deleted: network ("plain" or "residual"), seed,
            cost in points of accuracy.
        whole: one row per network: network, seed, error in percent.
        chance: accuracy of guessing, in percent.
    """
    residual, plain = (_by_seed(costs, kind, "cost") for kind in ("residual", "plain"))
    before = {kind: _by_seed(whole, kind, "error") for kind in ("residual", "plain")}
    costs_text = (
        f"deleting one block costs {mean_and_deviation(residual)} points of accuracy with shortcuts and "
        f"{mean_and_deviation(plain)} without (medians over blocks), from an error of "
        f"{mean_and_deviation(before['residual'])} % with and {mean_and_deviation(before['plain'])} % without"
    )
    worse = max(before, key=lambda kind: before[kind].mean())
    learned = 100 - before[worse].mean() - chance
    if learned < LARGE_COST:
        return Verdict(
            claim=OPEN,
            reason=f"{costs_text}. The accuracy of the {worse} network is only {learned:.1f} points above guessing, "
            "too low for a conclusion. Give a larger budget or a smaller depth",
        )
    found = {
        f"cost with shortcuts, minus {SMALL_COST:g}": above(residual, SMALL_COST),
        f"cost without shortcuts, minus {LARGE_COST:g}": above(plain, LARGE_COST),
    }
    expected = dict(zip(found, ("below", "above"), strict=True))
    return verdict_on(found, expected, f"{costs_text}. Costs minus the bounds of the claim")


def _by_seed(rows: pd.DataFrame, kind: str, column: str) -> np.ndarray:
    """Returns the median of a column for one kind of network, one value per seed."""
    of_kind = rows.loc[rows["network"] == kind]
    by_seed = (of_kind.loc[of_kind["seed"] == seed, column] for seed in sorted(set(of_kind["seed"])))
    return np.array([np.median(values.to_numpy(dtype=float)) for values in by_seed])


def _summary_of_paths(carried: pd.DataFrame) -> str:
    paths, gradient = carried["paths"].to_numpy(dtype=float), carried["carried"].to_numpy(dtype=float)
    (first, last), (low, high) = central(paths), central(gradient)
    return (
        f"95 % of the paths pass {first} to {last} of {len(carried) - 1} blocks; 95 % of the gradient comes from paths "
        f"of {low} to {high} blocks, {paths[low : high + 1].sum():.1%} of all paths"
    )


def exchangeable_blocks(model: ResNet) -> list[list[str]]:
    """Returns the names of the blocks that keep the shape and have an identity shortcut, one list per stage.

    Deleting such a block leaves the identity, and those of a stage can be swapped. All others, with a projection or a
    padded shortcut, are left out.
    """
    found: list[list[str]] = [[] for _ in model.stage_names]
    for (name, block), (stage, index) in zip(model.blocks(), _places(model), strict=True):
        site = block_site(model.config, stage, index)
        keeps_shape = site.stride == 1 and site.in_channels == model.config.output_width(site.width)
        if keeps_shape and isinstance(block, ResidualBlock) and isinstance(block.downsample, nn.Identity | None):
            found[stage].append(name)
    return found


def without_blocks(model: ResNet, names: Iterable[str]) -> ResNet:
    """Returns a copy in which blocks are reduced to their shortcut, or to the identity in a plain network.

    Args:
        model: the network; it is not changed.
        names: blocks of `exchangeable_blocks`, or others that have a shortcut.
    """
    whole = {name: block for name, block in model.blocks() if isinstance(block, ResidualBlock)}
    return _with_blocks(model, {name: ShortcutOnly(whole[name]) for name in names}, "some of its blocks are deleted")


def reordered(model: ResNet, order: Mapping[str, str]) -> ResNet:
    """Returns a copy in which each place of `order` has the block of another place, by names of blocks."""
    blocks = dict(model.blocks())
    return _with_blocks(model, {place: blocks[name] for place, name in order.items()}, "its blocks are swapped")


def swapped(exchangeable: Sequence[Sequence[str]], swaps: int, draws: np.random.Generator) -> dict[str, str]:
    """Returns which block is in which place after random swaps of exchangeable blocks.

    Args:
        exchangeable: names of blocks, one list per shape; see `exchangeable_blocks`.
        swaps: number of successive swaps; all pairs are equally likely.
        draws: the random numbers.
    """
    order = {name: name for names in exchangeable for name in names}
    pairs = [pair for names in exchangeable for pair in itertools.combinations(names, 2)]
    for first, second in draws.choice(pairs, swaps):
        order[first], order[second] = order[second], order[first]
    return order


def kendall_tau(order: Sequence[int]) -> float:
    """Returns Kendall's rank correlation of a permutation with ascending order: 1 if equal, -1 if reversed.

    tau = 1 - 4 inversions / (n (n - 1))
    """
    count = len(order)
    inversions = sum(first > second for first, second in itertools.combinations(order, 2))
    return 1 - 4 * inversions / (count * (count - 1))


def _places(model: ResNet) -> list[tuple[int, int]]:
    return [(stage, index) for stage, depth in enumerate(model.config.depths) for index in range(depth)]


def _with_blocks(model: ResNet, blocks: Mapping[str, nn.Module], why: str) -> ResNet:
    changed = copy.deepcopy(model)
    for (name, _), (stage, index) in zip(model.blocks(), _places(model), strict=True):
        if name in blocks:
            changed.get_submodule(model.stage_names[stage])[index] = copy.deepcopy(blocks[name])  # type: ignore[operator]
    changed.altered = why
    return changed


def path_gradient(model: ResNet, images: Tensor, labels: Tensor, through: Collection[str]) -> Tensor:
    """Returns the gradient of each image's loss with respect to that image along one path.

    The forward pass is unchanged. In the backward pass, the gradient only flows through the branch of the named blocks
    and the shortcut of all others (Veit et al. 2016, section 4.2). The gradients of all 2^n paths add up to the
    gradient.

    Args:
        model: with a shortcut in every block.
        images: (N, C, H, W), normalized.
        labels: int64 (N,).
        through: names of the blocks whose branch the path takes.

    Returns:
        (N, C, H, W).
    """
    images = images.detach().requires_grad_()
    sections = model.sections()
    *closing, head = sections["head"]
    with torch.enable_grad(), evaluating(model):
        x = images
        for layer in sections["stem"]:
            x = layer(x)
        for name, block in model.blocks():
            assert isinstance(block, ResidualBlock)
            flow = block.flow(x)
            assert flow.shortcut is not None
            branch, shortcut = flow.branch, flow.shortcut
            total = branch + shortcut.detach() if name in through else branch.detach() + shortcut
            x = total if block.preactivation else block.last_activation(total)
        for layer in closing:
            x = layer(x)
        loss = F.cross_entropy(head(x.flatten(1)), labels, reduction="sum")
        return torch.autograd.grad(loss, images)[0]


def fraction_of_paths(blocks: int) -> np.ndarray:
    """Returns the fractions of the paths through 0, 1, ..., `blocks` branches, which are binomial; (blocks + 1,)."""
    return np.array([math.comb(blocks, length) / 2**blocks for length in range(blocks + 1)])


def central(weights: Sequence[float] | np.ndarray, fraction: float = 0.95) -> tuple[int, int]:
    """Returns the first and the last position of the middle range with at least a fraction of the total weight.

    The positions left out on each side have less than half of the rest.
    """
    fractions = np.asarray(weights, dtype=float) / np.sum(weights)
    outside = (1 - fraction) / 2
    first = int(np.argmax(np.cumsum(fractions) >= outside))
    last = len(fractions) - 1 - int(np.argmax(np.cumsum(fractions[::-1]) >= outside))
    return first, last
