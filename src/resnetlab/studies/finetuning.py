"""Does it help to begin with what was learned from other classes? From scratch, frozen, rates by stage, and full."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import pandas as pd
from matplotlib.figure import Figure

from resnetlab.core.checks import check_integer
from resnetlab.core.errors import UserError
from resnetlab.data.storage.store import ImageData
from resnetlab.models.config import ResNetConfig
from resnetlab.studies.lab.comparison import against, cells_of, named_network, weigh
from resnetlab.studies.lab.conduct import Finding, conduct
from resnetlab.studies.lab.drawing import two_errors
from resnetlab.studies.lab.lab import Lab
from resnetlab.studies.lab.measure import errors, over_seeds
from resnetlab.studies.lab.noise import difference
from resnetlab.studies.lab.outside import OutsideConfig, load_encoder, outside_config
from resnetlab.studies.lab.plan import Cell
from resnetlab.studies.lab.question import Question, StudyResult, Verdict
from resnetlab.studies.lab.setup import SetUp
from resnetlab.studies.lab.views import few_of_each, of_classes
from resnetlab.studies.regularization import BASELINE, regularized
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
SCRATCH, PRETRAINING, TWO_RATES = "from scratch", "pretraining", "two rates"
_WORK = 0.1
"""Images that a fine-tuning sees, as a share of what is planned for pretraining."""
_STEPS_AN_EPOCH = 5
_ENCODER = 0.1
"""Rate of a timm network's encoder, as a share of that of its head."""
_RATES = {"drop_path": 0.2, "drop_block": 0.1, "block_size": 3}


def finetuning(
    data: str | Path | ImageData = "digits",
    *,
    model: str = "resnet20",
    per_class: int = 10,
    pretrained: str | None = None,
    baseline: str | None = None,
    baseline_weights: str | None = None,
    **setup: Unpack[SetUp],
) -> StudyResult:
    """Trains on few images of each class: from scratch, with and without regularization, and from pretrained weights.

    Without weights the classes are halved: a network is pretrained on the first half, all their images, and the study
    is about the second. With weights, it is about all classes.

    Args:
        data: what `load_data` takes, or returned.
        model: a network of the catalog; with weights, the one that they are of.
        per_class: training images of each class; 0 for all. Each seed draws its own.
        pretrained: weights to begin with, as `fit` takes them.
        baseline: a network of timm to train beside, such as "efficientnet_b0": from scratch, and from pretrained
            weights with a lower rate for its encoder than for its head. The verdict only tells how it did.
        baseline_weights: the weights that it begins with: a file, or "hub" for timm's own. Without them it is
            pretrained as our network is, and from scratch only where that is given weights.
        **setup: see `SetUp`.

    Raises:
        UserError: there are too few classes to halve, no such network, weights that cannot be read, timm is wanted
            and not installed, or see `conduct`.
    """
    options: dict[str, Any] = {"per_class": check_integer("per_class", per_class, 0), "pretrained": pretrained or ""}
    if baseline:  # not recorded elsewhere, so that a study that was begun before there were baselines goes on
        options |= {"baseline": baseline, "baseline_weights": baseline_weights or ""}
    elif baseline_weights:
        raise UserError(
            f"baseline_weights={baseline_weights!r} are of the network that baseline names, and it names none. Give "
            "baseline=NAME of timm too."
        )
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


def _answer(
    lab: Lab, model: str, per_class: int, pretrained: str, baseline: str = "", baseline_weights: str = ""
) -> Finding:
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
    before, weights = _to_begin_with(lab, PRETRAINING, config, half, pretrained)
    common = _common_changes(lab, config, per_class)
    after = _few_image_cells(lab, config, weights, common)
    beside = "no network of timm is trained as a baseline"
    if baseline:
        outside = outside_config(
            baseline, image_size=lab.image_size, in_channels=config.in_channels, num_classes=config.num_classes
        )
        baseline = outside.name
        if baseline_weights:
            load_encoder(outside.build(), baseline_weights)
        its_before, its_weights = _to_begin_with(lab, f"{baseline}, {PRETRAINING}", outside, half, baseline_weights)
        before += its_before
        after += _outside_cells(lab, outside, its_weights, common)
        how = f"pretrained with {baseline_weights}" if baseline_weights else f"pretrained as {model} is"
        beside = f"{baseline} of timm is trained beside, {how if its_weights else 'from scratch only'}"
    views = {seed: partial(_few, first=half, per_class=per_class, seed=seed) for seed in lab.seeds}
    cells = [*before, *(dataclasses.replace(cell, view=views[cell.seed]) for cell in after)]
    lab.prepare(cells)
    rows = errors(lab, cells, lab.train(cells))
    compared = rows.loc[~rows["network"].str.endswith(PRETRAINING)]
    few = f"{per_class} training images of each class, others for each seed" if per_class else "all training images"
    name = lab.data.name

    def draw(figure: Figure) -> None:
        two_errors(figure, compared, name, baseline=SCRATCH)

    others = f"; and {baseline} of timm" if baseline else ""
    words = (
        f"Training and test error on {classes - half} classes with {few}: from scratch, with three regularizations, "
        f"and from pretrained weights{others}. A dot a training, a diamond with a bar their mean and standard "
        "deviation."
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
        verdict=judge(compared, baseline),
        figures={"finetuning.png": (draw, words)},
        deviations=[source, steps, beside],
    )


def judge(rows: pd.DataFrame, baseline: str = "") -> Verdict:
    """Returns the verdict by the test errors against those from scratch without regularization.

    Args:
        rows: network ("from scratch", what it is regularized with, and the ways of fine-tuning) and test_error, a row
            a training.
        baseline: what the names of rows begin with that are no part of the claim: the network of timm.
    """
    differences = against(rows, SCRATCH)
    beside = {name: differences.pop(name) for name in list(differences) if name.startswith(f"{baseline}, ")}
    expected = {name: "below" for name in differences if not name.startswith(SCRATCH)}
    verdict = weigh(differences, expected, f"test error against {SCRATCH}, in points")
    errors_of = {str(kind): group["test_error"].to_numpy() for kind, group in rows.groupby("network")}
    best = min(expected, key=lambda name: errors_of[name].mean())
    rival = min(errors_of.keys() - expected.keys() - beside.keys(), key=lambda name: errors_of[name].mean())
    gain = difference(errors_of[best], errors_of[rival])
    words = f"{verdict.words}. Of the best with pretrained weights, {best}, to the best without, {rival}, it is {gain}"
    if beside:
        told = ", ".join(f"{kind} {found}" for kind, found in beside.items())
        words += f". Beside the claim, against {SCRATCH} too: {told}"
    return dataclasses.replace(verdict, words=words)


def _to_begin_with(
    lab: Lab, kind: str, network: ResNetConfig | OutsideConfig, half: int, given: str
) -> tuple[list[Cell], dict[int, str]]:
    """Returns the pretrainings of a network on the first half of the classes, and where each seed's weights are.

    There are none where weights are given, and none of both where no class is for pretraining.
    """
    if given or not half:
        return [], dict.fromkeys(lab.seeds, given) if given else {}
    view = partial(of_classes, classes=range(half))
    cells = cells_of(lab, {kind: dataclasses.replace(network, num_classes=half)}, view=view)
    return cells, {cell.seed: str(lab.folder / "runs" / cell.name) for cell in cells}


def _common_changes(lab: Lab, config: ResNetConfig, per_class: int) -> dict[str, Any]:
    """Returns what is changed of the study's recipe in every training on few images."""
    size = lab.recipe.batch_size
    if per_class:
        size = max(2, min(size, per_class * config.num_classes // _STEPS_AN_EPOCH))
    return {"lr": resolve_recipe("finetune").lr, "batch_size": size}


def _few_image_cells(
    lab: Lab, config: ResNetConfig, weights: Mapping[int, str], common: Mapping[str, Any]
) -> list[Cell]:
    """Returns the trainings from scratch, plain and regularized, and those from weights, by seed, in each way."""
    networks = {
        SCRATCH if kind == BASELINE else f"{SCRATCH}, {kind}": network
        for kind, network in regularized(config, **_RATES).items()
    }
    cells = cells_of(lab, networks, work=_WORK, changes=common)
    for way, changes in ways(config).items():
        cells += _from_weights(cells_of(lab, {way: config}, work=_WORK, changes={**common, **changes}), weights)
    return cells


def _outside_cells(
    lab: Lab, network: OutsideConfig, weights: Mapping[int, str], common: Mapping[str, Any]
) -> list[Cell]:
    """Returns the trainings of the network of timm from scratch, and where there are weights from those."""
    cells = cells_of(lab, {f"{network.name}, {SCRATCH}": network}, work=_WORK, changes=common)
    if weights:
        changes = {**common, "rates": {"encoder": _ENCODER * common["lr"]}}
        tuned = cells_of(lab, {f"{network.name}, {TWO_RATES}": network}, work=_WORK, changes=changes)
        cells += _from_weights(tuned, weights)
    return cells


def _from_weights(cells: Sequence[Cell], weights: Mapping[int, str]) -> list[Cell]:
    return [dataclasses.replace(cell, pretrained=weights[cell.seed]) for cell in cells]


def _few(data: ImageData, *, first: int, per_class: int, seed: int) -> ImageData:
    """Returns the classes from `first` on, with so many training images of each, or all."""
    part = of_classes(data, range(first, data.num_classes))
    return few_of_each(part, per_class, seed=seed) if per_class else part
