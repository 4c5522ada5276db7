"""Does a network survive without one of its blocks? Lesions, reordering, and paths: Veit et al. 2016."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch

from resnetlab.core.checks import check_integer
from resnetlab.core.randomness import generator
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.diagnostics import diagnose, sample
from resnetlab.evaluation.evaluate import default_split
from resnetlab.evaluation.forward import answer, check_images
from resnetlab.evaluation.metrics import overall
from resnetlab.models.resnet import ResNet
from resnetlab.studies.lab.comparison import weigh
from resnetlab.studies.lab.conduct import Finding, conduct
from resnetlab.studies.lab.depths import check_depth, twin_cells
from resnetlab.studies.lab.lab import Lab
from resnetlab.studies.lab.measure import guessing, over_seeds
from resnetlab.studies.lab.noise import above, spread
from resnetlab.studies.lab.question import OPEN, Question, StudyResult, Verdict
from resnetlab.studies.lab.setup import SetUp
from resnetlab.studies.lesion.paths import central, path_gradient, share_of_paths
from resnetlab.studies.lesion.pictures import draw_blocks, draw_paths, draw_random
from resnetlab.studies.lesion.removal import alike, kendall_tau, reordered, swapped, without_blocks

SMALL_COST, LARGE_COST = 5.0, 20.0
"""Points of accuracy that a block of a residual network costs at most, and one of a plain network at least."""
QUESTION = Question(
    name="lesion",
    title="Does a network survive without one of its blocks?",
    claim=(
        f"Deleting one block of a trained residual network costs little, at most {SMALL_COST:g} points of accuracy on "
        f"the median; deleting one of its plain twin costs at least {LARGE_COST:g}."
    ),
    source="Veit et al. 2016, Residual Networks Behave Like Ensembles of Relatively Shallow Networks, sections 4 and 5",
    protocol=(
        "CIFAR-10, a residual network of 110 layers, 54 blocks, nothing trained again; what deletions cost is drawn "
        "there and not tabulated, and the points of the claim are ours"
    ),
    published=(
        {"quantity": "95 % of the paths: fewest blocks", "value": 19.0, "unit": "of 54 blocks"},
        {"quantity": "95 % of the paths: most blocks", "value": 35.0, "unit": "of 54 blocks"},
        {"quantity": "paths that carry gradient: fewest blocks", "value": 5.0, "unit": "of 54 blocks"},
        {"quantity": "paths that carry gradient: most blocks", "value": 17.0, "unit": "of 54 blocks"},
        {"quantity": "paths that carry gradient", "value": 0.45, "unit": "% of all paths"},
    ),
)
_SHARE = 0.7  # of the budget, for the trainings
_MOST_IMAGES = 512
_GRADIENT_IMAGES = 64
_MOST_COUNTS = 8
"""As many numbers of blocks, and of swaps, are tried at most."""


def lesion(
    data: str | Path | ImageData = "digits", *, depth: int = 20, draws: int = 5, **setup: Unpack[SetUp]
) -> StudyResult:
    """Deletes and reorders blocks of a trained residual network and of its plain twin, and follows its paths.

    Each block is deleted alone; then several at random; then blocks of one shape change places. A block that changes
    the shape keeps its padded shortcut when it is deleted, and is reported apart; in a plain network it stays.

    Args:
        data: what `load_data` takes, or returned.
        depth: layers, 6n + 2 and at least 20, which are 9 blocks.
        draws: random choices of each kind.
        **setup: see `SetUp`.

    Raises:
        UserError: a depth or a number is none of these, or see `conduct`.
    """
    depth, draws = check_depth("depth", depth, least=20), check_integer("draws", draws, 1)
    return conduct(QUESTION, data, setup, _answer, depth=depth, draws=draws)


def _answer(lab: Lab, depth: int, draws: int) -> Finding:
    cells = twin_cells(lab, [depth])
    lab.prepare(cells, share=_SHARE)
    lesions, paths = [], []
    for cell, run in zip(cells, lab.train(cells), strict=True):
        lab.tell(f"lesions of {cell.name}")
        found = lab.once(f"lesions-{cell.name}", functools.partial(_lesions, lab, run, cell.seed, draws))
        lesions.append(found.assign(**cell.labels, seed=cell.seed))
        if cell.labels["network"] == "residual":
            found = lab.once(f"paths-{cell.name}", functools.partial(_paths, lab, run, cell.seed, draws))
            paths.append(found.assign(seed=cell.seed))
    rows = pd.concat(lesions, ignore_index=True)
    carried = _carried(pd.concat(paths))
    costs = rows.loc[(rows["lesion"] == "block") & rows["kind"].isin(("plain", "identity"))]
    chance, _ = guessing(lab.data.split(default_split(lab.data)).labels)
    verdict = judge(costs, rows.loc[rows["lesion"] == "none"], chance=chance)
    return Finding(
        table=_table(rows),
        verdict=Verdict(claim=verdict.claim, words=f"{verdict.words}. {_words_on_paths(carried)}"),
        figures={
            "lesion.png": (
                lambda figure: draw_blocks(figure, rows, (SMALL_COST, LARGE_COST), lab.data.name),
                "What deleting each block alone costs, for the residual network and its plain twin, mean and standard "
                "deviation over seeds. Hollow points keep a padded shortcut, and plain blocks that change the shape "
                "cannot be deleted.",
            ),
            "random.png": (
                lambda figure: draw_random(figure, rows, lab.data.name),
                "Error after several random blocks were deleted, on the left, mean and standard deviation over choices "
                "and seeds; and after blocks of one shape changed places, on the right, where Kendall's tau is 1 for "
                "the order of the training.",
            ),
            "paths.png": (
                lambda figure: draw_paths(figure, carried),
                "For the residual network, by the number of blocks on a path: the gradient that comes back along one "
                "path on the left; on the right the share of the paths, and the share of their gradient.",
            ),
        },
        deviations=[
            f"network: {depth} layers, {(depth - 2) // 2} blocks; the paper has 110 and 54",
            f"figures are of at most {_MOST_IMAGES} images of the {default_split(lab.data)} split, {draws} random "
            "choices of each kind and network",
            "the plain control is the twin without shortcuts; the paper's is VGG",
            "the paper names the lengths that almost all gradient comes from; here it is the middle 95 % of it",
        ],
    )


def judge(costs: pd.DataFrame, whole: pd.DataFrame, *, chance: float) -> Verdict:
    """Returns the verdict by the median over blocks of what one costs.

    Args:
        costs: network ("plain" or "residual"), seed, cost in points of accuracy; a row a block that leaves the
            identity when it is deleted.
        whole: network, seed, error in percent; a row a network.
        chance: accuracy of guessing, in percent.
    """
    residual, plain = (_by_seed(costs, kind, "cost") for kind in ("residual", "plain"))
    before = {kind: _by_seed(whole, kind, "error") for kind in ("residual", "plain")}
    words = (
        f"deleting one block costs {spread(residual)} points of accuracy with shortcuts and {spread(plain)} without, "
        f"medians over blocks; before that the error was {spread(before['residual'])} % with and "
        f"{spread(before['plain'])} % without"
    )
    worse = max(before, key=lambda kind: before[kind].mean())
    learned = 100 - before[worse].mean() - chance
    if learned < LARGE_COST:
        return Verdict(
            claim=OPEN,
            words=f"{words}: the {worse} twin is only {learned:.1f} points better than guessing, and has too little to "
            "lose. Give more budget, or a smaller depth",
        )
    found = {
        f"with shortcuts from {SMALL_COST:g}": above(residual, SMALL_COST),
        f"without from {LARGE_COST:g}": above(plain, LARGE_COST),
    }
    expected = dict(zip(found, ("below", "above"), strict=True))
    return weigh(found, expected, f"{words}. From the bounds of the claim the costs differ by")


def _by_seed(rows: pd.DataFrame, kind: str, column: str) -> np.ndarray:
    """Returns the median of a column of one kind of network, one value a seed."""
    of_kind = rows.loc[rows["network"] == kind]
    by_seed = (of_kind.loc[of_kind["seed"] == seed, column] for seed in sorted(set(of_kind["seed"])))
    return np.array([np.median(values.to_numpy(dtype=float)) for values in by_seed])


def _lesions(lab: Lab, run: Run, seed: int, draws: int) -> pd.DataFrame:
    """Returns a row a changed network: lesion, name, kind, number, tau, error and cost, in points."""
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
    exchangeable = alike(model)
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
    """Returns a row a number of blocks on a path: length, gradient (norm of one path's, mean of images and draws)."""
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
    """Returns a row a length: gradient of one path, mean over seeds, share of all paths, share of their gradient."""
    found = over_seeds(paths, ("length",), ("gradient",))
    found["paths"] = share_of_paths(len(found) - 1)
    total = found["gradient"] * found["paths"]
    return found.assign(carried=total / total.sum())


def _words_on_paths(carried: pd.DataFrame) -> str:
    paths, gradient = carried["paths"].to_numpy(dtype=float), carried["carried"].to_numpy(dtype=float)
    (first, last), (low, high) = central(paths), central(gradient)
    return (
        f"Of {len(carried) - 1} blocks 95 % of the paths go through {first} to {last}; 95 % of the gradient comes back "
        f"along paths of {low} to {high}, which are {paths[low : high + 1].sum():.1%} of all"
    )


def _some(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"


def _counts(most: int) -> list[int]:
    return sorted({round(number) for number in np.linspace(1, most, min(most, _MOST_COUNTS))})


def _table(rows: pd.DataFrame) -> pd.DataFrame:
    labels = ["network", "lesion", "name", "kind", "number"]
    values = ("tau", "error", "cost")
    table = over_seeds(over_seeds(rows, [*labels, "seed"], values), labels, values)  # of draws, then of seeds
    shown = table.loc[:, ["network", "name", "kind", "tau", "error", "error_sd", "cost", "cost_sd", "seeds"]]
    return shown.rename(columns={"name": "lesion", "kind": "shortcut", "tau": "kendall_tau"})
