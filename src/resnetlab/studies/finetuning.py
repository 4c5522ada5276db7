"""Does it help to begin with what was learned from other classes? From scratch, frozen, rates by stage, and full."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import pandas as pd
from matplotlib.figure import Figure

from resnetlab.core.checks import check_integer
from resnetlab.core.errors import UserError
from resnetlab.data.store import ImageData
from resnetlab.models.config import ResNetConfig
from resnetlab.studies.comparison import against, cells_of, named_network, weigh
from resnetlab.studies.conduct import Finding, conduct
from resnetlab.studies.drawing import two_errors
from resnetlab.studies.lab import Lab
from resnetlab.studies.measure import errors, over_seeds
from resnetlab.studies.noise import difference
from resnetlab.studies.plan import Cell
from resnetlab.studies.question import Question, StudyResult, Verdict
from resnetlab.studies.regularization import BASELINE, regularized
from resnetlab.studies.setup import SetUp
from resnetlab.studies.views import few_of_each, of_classes
from resnetlab.training.recipes import resolve_recipe
from resnetlab.weights.sources import open_weights

QUESTION = Question(
    name="finetuning",
    title="Does it help to begin with what was learned from other classes?",
    claim=(
        "With few images, pretrained weights have a lower test error than training from scratch: with the backbone "
        "frozen, with a learning rate for each stage, and with all of it trained at one rate."
    ),
    source=(
        "Yosinski et al. 2014, How transferable are features in deep neural networks?; Howard and Ruder 2018, "
        "Universal Language Model Fine-tuning, for the rates"
    ),
    protocol="an exercise: there is no published figure for few images of some classes",
)
SCRATCH, PRETRAINING = "from scratch", "pretraining"
_WORK = 0.1
"""Images that a fine-tuning sees, as a share of what is planned for pretraining."""
_STEPS_AN_EPOCH = 5
_RATES = {"drop_path": 0.2, "drop_block": 0.1, "block_size": 3}


def finetuning(
    data: str | Path | ImageData = "digits",
    *,
    model: str = "resnet20",
    per_class: int = 10,
    pretrained: str | None = None,
    **setup: Unpack[SetUp],
) -> StudyResult:
    """Trains on few images of each class: from scratch, with and without regularisation, and from pretrained weights.

    Without weights the classes are halved: a network is pretrained on the first half, all their images, and the study
    is about the second. With weights, it is about all classes.

    Args:
        data: what `load_data` takes, or returned.
        model: a network of the catalogue; with weights, the one that they are of.
        per_class: training images of each class; 0 for all. Each seed draws its own.
        pretrained: weights to begin with, as `fit` takes them.
        **setup: see `SetUp`.

    Raises:
        UserError: there are too few classes to halve, no such network, weights that cannot be read, or see `conduct`.
    """
    options = {"per_class": check_integer("per_class", per_class, 0), "pretrained": pretrained or ""}
    return conduct(QUESTION, data, setup, _answer, model=model, **options)


def ways(config: ResNetConfig) -> dict[str, dict[str, Any]]:
    """Returns how pretrained weights are trained on: what is changed of the study's recipe, by name."""
    recipe = resolve_recipe("finetune")
    backbone = ("stem", *(f"stage{number}" for number, _ in enumerate(config.depths, 1)))
    return {
        "frozen": {"freeze": backbone},
        "rates by stage": {"layer_decay": recipe.layer_decay, "head_epochs": recipe.head_epochs},
        "full": {},
    }


def _answer(lab: Lab, model: str, per_class: int, pretrained: str) -> Finding:
    classes = lab.channels_and_classes["num_classes"]
    half = 0 if pretrained else classes // 2
    if not pretrained and half < 2:
        raise UserError(
            f"finetuning halves the classes, and there are {classes}: it needs at least 4. Give weights to begin with "
            "instead: pretrained=FILE."
        )
    config = named_network(lab, model, num_classes=classes - half)
    if pretrained:
        open_weights(pretrained, config)  # a mistake is told before anything is trained
        before, weights = [], dict.fromkeys(lab.seeds, pretrained)
    else:
        view = partial(of_classes, classes=range(half))
        before = cells_of(lab, {PRETRAINING: dataclasses.replace(config, num_classes=half)}, view=view)
        weights = {cell.seed: str(lab.folder / "runs" / cell.name) for cell in before}
    views = {seed: partial(_few, first=half, per_class=per_class, seed=seed) for seed in lab.seeds}
    after = _few_image_cells(lab, config, weights, per_class)
    cells = [*before, *(dataclasses.replace(cell, view=views[cell.seed]) for cell in after)]
    lab.prepare(cells)
    rows = errors(lab, cells, lab.train(cells))
    compared = rows.loc[rows["network"] != PRETRAINING]
    few = f"{per_class} training images of each class, others for each seed" if per_class else "all training images"
    name = lab.data.name

    def draw(figure: Figure) -> None:
        two_errors(figure, compared, name, baseline=SCRATCH)

    words = (
        f"Training and test error on {classes - half} classes with {few}: from scratch, with three regularisations, "
        "and from pretrained weights. A dot a training, a diamond with a bar their mean and standard deviation."
    )
    source = f"pretrained with {pretrained}"
    if not pretrained:
        source = f"pretrained on the first {half} classes, once for each seed; the study is about the others"
    steps = (
        f"every way sees as many images, {_WORK:g} of what pretraining sees, at the same highest rate; what "
        "pretraining took comes on top"
    )
    return Finding(
        table=over_seeds(rows, ("network",), ("train_error", "test_error")),
        verdict=judge(compared),
        figures={"finetuning.png": (draw, words)},
        deviations=[source, steps, "no network of timm is trained as a baseline"],
    )


def judge(rows: pd.DataFrame) -> Verdict:
    """Returns the verdict by the test errors against those from scratch without regularisation.

    Args:
        rows: network ("from scratch", what it is regularised with, and the ways of fine-tuning) and test_error, a row
            a training.
    """
    differences = against(rows, SCRATCH)
    expected = {name: "below" for name in differences if not name.startswith(SCRATCH)}
    verdict = weigh(differences, expected, f"test error against {SCRATCH}, in points")
    errors_of = {str(kind): group["test_error"].to_numpy() for kind, group in rows.groupby("network")}
    best = min(expected, key=lambda name: errors_of[name].mean())
    rival = min(errors_of.keys() - expected.keys(), key=lambda name: errors_of[name].mean())
    gain = difference(errors_of[best], errors_of[rival])
    words = f"{verdict.words}. Of the best with pretrained weights, {best}, to the best without, {rival}, it is {gain}"
    return dataclasses.replace(verdict, words=words)


def _few_image_cells(lab: Lab, config: ResNetConfig, weights: Mapping[int, str], per_class: int) -> list[Cell]:
    """Returns the trainings from scratch, plain and regularised, and those from weights, by seed, in each way."""
    size = lab.recipe.batch_size
    if per_class:
        size = max(2, min(size, per_class * config.num_classes // _STEPS_AN_EPOCH))
    common = {"lr": resolve_recipe("finetune").lr, "batch_size": size}
    networks = {
        SCRATCH if kind == BASELINE else f"{SCRATCH}, {kind}": network
        for kind, network in regularized(config, **_RATES).items()
    }
    cells = cells_of(lab, networks, work=_WORK, changes=common)
    for way, changes in ways(config).items():
        for cell in cells_of(lab, {way: config}, work=_WORK, changes={**common, **changes}):
            cells.append(dataclasses.replace(cell, pretrained=weights[cell.seed]))
    return cells


def _few(data: ImageData, *, first: int, per_class: int, seed: int) -> ImageData:
    """Returns the classes from `first` on, with so many training images of each, or all."""
    part = of_classes(data, range(first, data.num_classes))
    return few_of_each(part, per_class, seed=seed) if per_class else part
