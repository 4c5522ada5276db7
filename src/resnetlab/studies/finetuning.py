"""Do weights pretrained on other classes lower the error? Compares four ways to train, from scratch to all layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import pandas as pd
from matplotlib.figure import Figure

from resnetlab.core.errors import UserError
from resnetlab.core.fields import check_fields, documented, setting
from resnetlab.core.randomness import torch_seeded
from resnetlab.data.storage.store import ImageData
from resnetlab.models.adapters import AdaptedNetwork, check_takes_images
from resnetlab.models.architectures import build, is_path_to_network, open_architecture, with_sizes
from resnetlab.models.config import ResNetConfig
from resnetlab.models.network import Architecture
from resnetlab.studies.lab.comparison import against, difference, verdict_on
from resnetlab.studies.lab.conduct import Finding, conduct
from resnetlab.studies.lab.drawing import two_errors
from resnetlab.studies.lab.lab import Lab
from resnetlab.studies.lab.measure import errors, over_seeds
from resnetlab.studies.lab.networks import catalog_network, cells_of
from resnetlab.studies.lab.plan import Cell
from resnetlab.studies.lab.question import Question, StudyResult, Verdict
from resnetlab.studies.lab.setup import SetUp
from resnetlab.studies.lab.views import few_of_each, of_classes
from resnetlab.studies.regularization import BASELINE, regularized
from resnetlab.training.recipes import resolve_recipe
from resnetlab.weights.load import load_weights
from resnetlab.weights.sources import open_weights

QUESTION = Question(
    name="finetuning",
    title="Do weights pretrained on other classes lower the error?",
    claim=(
        "With few images, pretrained weights give a lower test error than training from scratch: with a frozen "
        "backbone, with a learning rate for each stage, and with one learning rate for the whole network."
    ),
    source=(
        "Yosinski et al. 2014, How transferable are features in deep neural networks?; Howard and Ruder 2018, "
        "Universal Language Model Fine-tuning, for the learning rates"
    ),
    protocol="none with few images of some classes only",
)
SCRATCH, PRETRAINING, TWO_RATES = "from scratch", "pretraining", "two rates"
_WORK = 0.1
"""Images that a fine-tuning sees, as a fraction of those of the pretraining."""
_STEPS_PER_EPOCH = 5
_ENCODER = 0.1
"""Learning rate of the baseline's backbone, as a fraction of that of its head."""
_RATES = {"drop_path": 0.2, "drop_block": 0.1, "block_size": 3}


@documented
@dataclass(frozen=True, kw_only=True)
class Options:
    """The arguments of this study."""

    model: str = setting("resnet20", "network of the catalog; with `pretrained`, the one that these weights belong to")
    per_class: int = setting(10, "training images per class, drawn for each seed; 0 for all", minimum=0)
    pretrained: str | None = setting(None, "weights to start from, as for `fit`")
    baseline: str | None = setting(
        None,
        'network to train for comparison, such as "timm:efficientnet_b0" or "FILE.py:NAME" (which executes FILE.py): '
        "from scratch, and from pretrained weights with a lower learning rate for its backbone than for its head; its "
        "results do not decide the verdict",
    )
    baseline_weights: str | None = setting(
        None,
        'pretrained weights of `baseline`: a file, or "timm:DEFAULT" for those that timm publishes; by default the '
        "study pretrains it as it does `model`, or, if `pretrained` is given, trains it only from scratch",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.baseline_weights and not self.baseline:
            raise UserError(
                f"baseline_weights={self.baseline_weights!r} needs to know which network the weights belong "
                "to. Add baseline=NAME."
            )


def finetuning(
    data: str | Path | ImageData = "digits",
    *,
    model: str = Options.model,
    per_class: int = Options.per_class,
    pretrained: str | None = Options.pretrained,
    baseline: str | None = Options.baseline,
    baseline_weights: str | None = Options.baseline_weights,
    **setup: Unpack[SetUp],
) -> StudyResult:
    """Trains on few images per class: from scratch, with and without regularization, and from pretrained weights.

    Without `pretrained`, the classes are halved: a network is pretrained on all images of the first half, and the
    study uses the second half. With `pretrained`, it uses all classes.

    Args:
        data: a source for `load_data`, or its result.
        model: see `Options`, also for the others.
        per_class: training images per class.
        pretrained: weights to start from.
        baseline: network to compare with.
        baseline_weights: its pretrained weights.
        **setup: see `SetUp`.

    Raises:
        UserError: there are too few classes to halve, the network is unknown, the weights cannot be read, timm is
            needed and not installed, or see `conduct`.
    """
    options = Options(
        model=model,
        per_class=per_class,
        pretrained=pretrained,
        baseline=baseline,
        baseline_weights=baseline_weights,
    )
    return conduct(QUESTION, data, setup, _answer, options)


def ways(config: ResNetConfig) -> dict[str, dict[str, Any]]:
    """Returns the ways to train pretrained weights: changes of the study's recipe, by name."""
    recipe = resolve_recipe("finetune")
    backbone = ("stem", *(f"stage{number}" for number, _ in enumerate(config.depths, 1)))
    return {
        "frozen": {"rates": dict.fromkeys(backbone, 0.0)},
        "rates by stage": {"rates": recipe.rates, "unfreeze": recipe.unfreeze},
        "full": {},
    }


def _answer(lab: Lab, options: Options) -> Finding:
    model, per_class, pretrained = options.model, options.per_class, options.pretrained
    baseline, baseline_weights = options.baseline or "", options.baseline_weights
    classes = lab.channels_and_classes["num_classes"]
    half = 0 if pretrained else classes // 2
    if not pretrained and half < 2:
        raise UserError(
            "finetuning pretrains on half of the classes and fine-tunes on the other half, so it needs at "
            f"least 4 classes, got {classes}. Start from pretrained weights instead: pretrained=FILE."
        )
    config = catalog_network(lab, model, num_classes=classes - half)
    if pretrained:
        open_weights(pretrained, config)  # an error must come before anything is trained
    before, weights = _pretraining(lab, PRETRAINING, config, half, pretrained)
    common = _common_changes(lab, config, per_class)
    after = _few_image_cells(lab, config, weights, common)
    compared_with = "no baseline is trained"
    if baseline:
        other = _baseline(lab, baseline, config, baseline_weights)
        baseline = Path(baseline).name
        its_before, its_weights = _pretraining(lab, f"{baseline}, {PRETRAINING}", other, half, baseline_weights)
        before += its_before
        after += _baseline_cells(lab, baseline, other, its_weights, common)
        how = f"pretrained weights {baseline_weights}" if baseline_weights else f"pretrained like {model}"
        compared_with = f"baseline: {baseline}, {how if its_weights else 'from scratch only'}"
    views = {seed: partial(_few, first=half, per_class=per_class, seed=seed) for seed in lab.seeds}
    cells = [*before, *(dataclasses.replace(cell, view=views[cell.seed]) for cell in after)]
    lab.prepare(cells)
    rows = errors(lab, cells, lab.train(cells))
    compared = rows.loc[~rows["network"].str.endswith(PRETRAINING)]
    few = f"{per_class} training images per class, drawn for each seed" if per_class else "all training images"
    name = lab.data.name

    def draw(figure: Figure) -> None:
        two_errors(figure, compared, name, baseline=SCRATCH)

    others = f"; and the baseline {baseline}" if baseline else ""
    caption = (
        f"Training and test error on {classes - half} classes with {few}: from scratch, with three regularizations, "
        f"and from pretrained weights{others}. Dots are trainings, diamonds with bars their mean and standard "
        "deviation."
    )
    source = f"pretrained weights: {pretrained}"
    if not pretrained:
        source = f"pretrained weights: from the first {half} classes, once per seed; the study uses the other classes"
    steps = (
        f"every way sees the same number of images, {_WORK:g} of those of the pretraining, with the same maximum "
        "learning rate; the compute of the pretraining is not counted"
    )
    return Finding(
        table=over_seeds(rows, ("network",), ("train_error", "test_error")),
        verdict=judge(compared, baseline),
        figures={"finetuning.png": (draw, caption)},
        deviations=[source, steps, compared_with],
    )


def judge(rows: pd.DataFrame, baseline: str = "") -> Verdict:
    """Returns the verdict, by the test errors compared with those from scratch without regularization.

    Args:
        rows: one row per training, with the columns network ("from scratch", with its regularization, and the ways of
            fine-tuning) and test_error.
        baseline: rows of networks whose names start with it are not part of the claim.
    """
    differences = against(rows, SCRATCH)
    others = {name: differences.pop(name) for name in list(differences) if name.startswith(f"{baseline}, ")}
    expected = {name: "below" for name in differences if not name.startswith(SCRATCH)}
    lead = f"test error compared with {SCRATCH}, in points"
    verdict = verdict_on(differences, expected, lead, baseline=SCRATCH)
    errors_of = {str(kind): group["test_error"].to_numpy() for kind, group in rows.groupby("network")}
    best = min(expected, key=lambda name: errors_of[name].mean())
    rival = min(errors_of.keys() - expected.keys() - others.keys(), key=lambda name: errors_of[name].mean())
    gain = difference(errors_of[best], errors_of[rival])
    reason = f"{verdict.reason}. The best with pretrained weights, {best}, minus the best without, {rival}: {gain}"
    if others:
        shown = ", ".join(f"{kind} {found}" for kind, found in others.items())
        reason += f". Not part of the claim, also compared with {SCRATCH}: {shown}"
    return dataclasses.replace(verdict, reason=reason)


def _pretraining(
    lab: Lab, kind: str, network: Architecture, half: int, given: str | None
) -> tuple[list[Cell], dict[int, str]]:
    """Returns the pretrainings of a network on the first half of the classes, and the weights for each seed.

    If weights are given, there are no pretrainings; without them and without classes to pretrain on, no weights.
    """
    if given or not half:
        return [], dict.fromkeys(lab.seeds, given) if given else {}
    view = partial(of_classes, classes=range(half))
    cells = cells_of(lab, {kind: with_sizes(network, num_classes=half)}, view=view)
    return cells, {cell.seed: str(lab.folder / "runs" / cell.name) for cell in cells}


def _common_changes(lab: Lab, config: ResNetConfig, per_class: int) -> dict[str, Any]:
    """Returns the changes of the study's recipe for every training on few images."""
    size = lab.recipe.batch_size
    if per_class:
        size = max(2, min(size, per_class * config.num_classes // _STEPS_PER_EPOCH))
    return {"lr": resolve_recipe("finetune").lr, "batch_size": size}


def _few_image_cells(
    lab: Lab, config: ResNetConfig, weights: Mapping[int, str], common: Mapping[str, Any]
) -> list[Cell]:
    """Returns the trainings from scratch, plain and regularized, and from each seed's weights in each way."""
    networks = {
        SCRATCH if kind == BASELINE else f"{SCRATCH}, {kind}": network
        for kind, network in regularized(config, **_RATES).items()
    }
    cells = cells_of(lab, networks, work=_WORK, changes=common)
    for way, changes in ways(config).items():
        cells += _from_weights(cells_of(lab, {way: config}, work=_WORK, changes={**common, **changes}), weights)
    return cells


def _baseline(lab: Lab, name: str, config: ResNetConfig, weights: str | None) -> Architecture:
    """Returns the architecture of the baseline; mistakes are errors before anything is trained."""
    sizes = {"in_channels": config.in_channels, "num_classes": config.num_classes}
    if not is_path_to_network(name):
        return catalog_network(lab, name, **sizes)
    other = with_sizes(open_architecture(name), **sizes)
    with torch_seeded(0, "baseline"):
        network = build(other)
    assert isinstance(network, AdaptedNetwork)
    check_takes_images(network, lab.image_size)
    if weights:
        load_weights(network, weights, class_names=())
    return other


def _baseline_cells(
    lab: Lab, name: str, network: Architecture, weights: Mapping[int, str], common: Mapping[str, Any]
) -> list[Cell]:
    """Returns the trainings of the baseline from scratch and, if there are any, from each seed's weights."""
    cells = cells_of(lab, {f"{name}, {SCRATCH}": network}, work=_WORK, changes=common)
    if weights:
        backbone = ways(network)["frozen"]["rates"] if isinstance(network, ResNetConfig) else ("encoder",)
        changes = {**common, "rates": dict.fromkeys(backbone, _ENCODER * common["lr"])}
        tuned = cells_of(lab, {f"{name}, {TWO_RATES}": network}, work=_WORK, changes=changes)
        cells += _from_weights(tuned, weights)
    return cells


def _from_weights(cells: Sequence[Cell], weights: Mapping[int, str]) -> list[Cell]:
    return [dataclasses.replace(cell, pretrained=weights[cell.seed]) for cell in cells]


def _few(data: ImageData, *, first: int, per_class: int, seed: int) -> ImageData:
    """Returns the classes from `first` on, with `per_class` training images each, or all if it is 0."""
    chosen = of_classes(data, range(first, data.num_classes))
    return few_of_each(chosen, per_class, seed=seed) if per_class else chosen
