from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import TINY
from tests.training.stepping import Step, around_steps, before_step
from torch import Tensor, nn

import resnetlab
from resnetlab.core.errors import UserError
from resnetlab.core.runs import TIMING_COLUMNS, Run
from resnetlab.data.batches import Batch
from resnetlab.data.storage.store import ImageData
from resnetlab.models.resnet import ResNet
from resnetlab.models.surgery import freeze
from resnetlab.training import find_lr as finder
from resnetlab.training import overfit as sanity
from resnetlab.training.distributed import restore_batch_norm
from resnetlab.training.find_lr import find_lr
from resnetlab.training.fit import fit, resume
from resnetlab.training.loop import Training
from resnetlab.training.machine import Machine
from resnetlab.training.optimizers import build_optimizer
from resnetlab.training.overfit import overfit_one_batch
from resnetlab.training.recipe import SCHEDULES, Recipe
from resnetlab.training.recipes import resolve_recipe
from resnetlab.training.schedule import learning_rate
from resnetlab.training.sections import TrainedSections, check_sections, describe
from resnetlab.training.step import training_step
from resnetlab.weights.tensors import read_tensors

PARTS = {"conv1": "stem", "bn1": "stem", "layer1": "stage1", "layer2": "stage2", "fc": "head"}
SHORT: dict[str, Any] = {"batch_size": 1000, "precision": "float32", "quiet": True}  # two steps an epoch
EXACT = Machine(device="cpu", precision="float64", memory_format="contiguous", threads=torch.get_num_threads())


def network() -> ResNet:
    torch.manual_seed(0)
    return ResNet(TINY)


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The parts of which any parameter or running statistic has changed."""
    return {PARTS[name.partition(".")[0]] for name in before if not torch.equal(before[name], after[name])}


def rates_of(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Returns the learning rates of the last step by section."""
    return {group["name"].partition(" ")[0]: group["lr"] for group in optimizer.param_groups}


def rates_of_steps(monkeypatch: pytest.MonkeyPatch, module: Any) -> list[dict[str, float]]:
    """Collects the learning rates of all steps that a module takes from here on."""
    seen = []

    def noted(model: nn.Module, optimizer: torch.optim.Optimizer, *args: Any, **settings: Any) -> tuple[Tensor, Tensor]:
        result = training_step(model, optimizer, *args, **settings)
        seen.append(rates_of(optimizer))
        return result

    monkeypatch.setattr(module, "training_step", noted)
    return seen


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("own", "highest"),
    [
        ({"layer_decay": 0.5}, {"stem": 0.0125, "stage1": 0.025, "stage2": 0.05, "head": 0.1}),
        ({"rates": {"stem": 0.001, "head": 0.3}}, {"stem": 0.001, "stage1": 0.1, "stage2": 0.1, "head": 0.3}),
    ],
)
def test_parts_have_rates_of_their_own_under_every_schedule(
    digits: ImageData, tmp_path: Path, schedule: str, own: dict, highest: dict
):
    recipe = Recipe(epochs=2, schedule=schedule, decay_epochs=1, **own)
    seen = []

    def noted(step: Step, training: Training, batch: Batch) -> Tensor:
        loss = step(training, batch)
        seen.append(rates_of(training.state.optimizer))
        return loss

    with around_steps(noted):
        run = fit(network(), digits, recipe=recipe, out=tmp_path / "run", **SHORT)
    shares = [learning_rate(recipe, step, 4) / recipe.lr for step in range(4)]
    assert len(seen) == 4
    for rates, share in zip(seen, shares, strict=True):
        assert rates == pytest.approx({part: rate * share for part, rate in highest.items()}, rel=1e-12)
    assert run.history["lr"].tolist() == [learning_rate(recipe, step, 4) for step in (1, 3)]


def test_groups_by_part_train_as_two_groups_do(digits: ImageData, tmp_path: Path):
    settings = {"epochs": 2, "clip_norm": 0.5, "lr": 0.1, "average": 0.9, **SHORT}
    models = [network(), network()]
    fit(models[0], digits, out=tmp_path / "two", **settings)
    fit(models[1], digits, out=tmp_path / "parts", rates={"head": 0.1}, **settings)
    assert len(build_optimizer(models[0], Recipe()).param_groups) == 2
    assert len(build_optimizer(models[1], Recipe(rates={"head": 0.1})).param_groups) == 8
    assert moved(copied(models[0]), copied(models[1])) == set()


def test_decay_on_everything_holds_for_parts_too():
    groups = build_optimizer(network(), Recipe(layer_decay=0.5, weight_decay=0.1, decay_all=True)).param_groups
    assert {group["weight_decay"] for group in groups} == {0.1}
    groups = build_optimizer(network(), Recipe(layer_decay=0.5, weight_decay=0.1)).param_groups
    assert {group["name"]: group["weight_decay"] for group in groups if "head" in group["name"]} == {
        "head": 0.1,
        "head scales and shifts": 0.0,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"average": 0.9, "weight_decay": 0.1, "decay_all": True, "clip_norm": 0.1},
        {"optimizer": "adamw", "weight_decay": 0.1, "keep": "best"},
        {"optimizer": "scratch_sgd", "weight_decay": 0.1, "layer_decay": 0.5},
        {"precision": "bfloat16", "accumulate": 2, "augment.mixup": 0.2},
    ],
    ids=lambda changes: ", ".join(changes),
)
def test_what_is_frozen_stays_to_the_last_bit(digits: ImageData, tmp_path: Path, changes: dict):
    model = network()
    before = copied(model)
    settings = {**SHORT, "epochs": 2, "lr": 0.1, "freeze": ("stem", "stage1"), **changes}
    run = fit(model, digits, out=tmp_path / "run", **settings)
    assert moved(before, copied(model)) == {"stage2", "head"}
    assert moved(before, copied(resnetlab.load(run))) == {"stage2", "head"}
    tensors, _ = read_tensors(max(run.checkpoints.iterdir()))
    kept = [name for name in tensors if name.startswith("optimizer.")]
    assert kept
    assert not [name for name in kept if PARTS[name.split(".")[1]] in ("stem", "stage1")]


def test_frozen_normalization_stays_in_evaluation_within_another_module():
    model = network()
    parent = nn.Sequential(model)
    parts = TrainedSections(model, Recipe(freeze=("stage1",), head_epochs=1))
    for epoch, training in ((0, {"fc"}), (1, {"conv1", "bn1", "layer2", "fc"})):
        parts.begin(epoch)
        parent.eval()
        parent.train()
        assert {name for name in PARTS if model.get_submodule(name).training} == training
    before = copied(model)
    parent(torch.randn(4, 1, 8, 8))
    assert moved(before, copied(model)) == {"stem", "stage2"}


@pytest.mark.parametrize(
    ("changes", "order"),
    [
        ({"head_epochs": 2}, ["head", "head", "stem stage1 stage2 head", "stem stage1 stage2 head"]),
        ({"unfreeze_epochs": 1}, ["stage2 head", "stage1 stage2 head"] + 2 * ["stem stage1 stage2 head"]),
        (
            {"head_epochs": 1, "unfreeze_epochs": 1},
            ["head", "stage2 head", "stage1 stage2 head", "stem stage1 stage2 head"],
        ),
        ({"head_epochs": 1, "unfreeze_epochs": 2}, ["head", *2 * ["stage2 head"], "stage1 stage2 head"]),
        (
            {"head_epochs": 1, "unfreeze_epochs": 2, "freeze": "stage2"},
            ["head", *2 * ["stage1 head"], "stem stage1 head"],
        ),
        ({"head_epochs": 9, "freeze": "stem"}, 4 * ["head"]),
    ],
)
def test_parts_are_unfrozen_from_the_last_to_the_first(
    digits: ImageData, tmp_path: Path, changes: dict, order: list[str]
):
    model, states = network(), []

    def noted(step: Step, training: Training, batch: Batch) -> Tensor:
        if batch.step == 0:
            states.append(copied(model))
        return step(training, batch)

    with around_steps(noted):
        fit(model, digits, out=tmp_path / "run", epochs=4, lr=0.1, **changes, **SHORT)
    states.append(copied(model))
    epochs = [moved(before, after) for before, after in itertools.pairwise(states)]
    assert epochs == [set(sections.split()) for sections in order]


def test_a_network_is_left_with_what_its_owner_froze(digits: ImageData, tmp_path: Path):
    model = freeze(network(), "stem")
    model.layer2[0].conv1.weight.requires_grad_(False)
    before = copied(model)
    run = fit(model, digits, out=tmp_path / "run", epochs=3, lr=0.1, freeze="stage1", head_epochs=1, **SHORT)
    after = copied(model)
    assert moved(before, after) == {"stage2", "head"}
    assert torch.equal(before["layer2.0.conv1.weight"], after["layer2.0.conv1.weight"])
    assert model.frozen == {"stem"}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in dict(model.named_parameters()) if PARTS[name.partition(".")[0]] != "stem"} - {
        "layer2.0.conv1.weight"
    }
    assert run.settings["model"]["frozen_parts"] == ["stem"]
    assert run.settings["recipe"]["freeze"] == ["stage1"]


def _train_to_step(number: int, out: Path, data: ImageData, **settings: Any) -> None:
    """Starts a training that fails before a step, counted from 1, after a checkpoint of the step before."""

    def save_and_fail(training: Training) -> None:
        training.save()
        raise ConnectionError("the machine is gone")

    with pytest.raises(ConnectionError), before_step(number, save_and_fail):
        fit(_half_frozen(), data, out=out, **settings)


def _half_frozen() -> ResNet:
    model = network()
    model.layer1[0].conv1.weight.requires_grad_(False)
    return model


UNFREEZING: dict[str, dict[str, Any]] = {
    "sgd": {"average": 0.9, "layer_decay": 0.5, "clip_norm": 0.5},
    "adamw": {"optimizer": "adamw", "keep": "best", "lr": 0.01},
    "scratch_sgd": {"optimizer": "scratch_sgd", "rates": {"stage2": 0.05}},
}


@pytest.mark.parametrize("name", UNFREEZING)
def test_a_run_resumes_exactly_at_every_step_around_an_unfreezing(digits: ImageData, tmp_path: Path, name: str):
    settings = {**SHORT, "epochs": 4, "head_epochs": 1, "unfreeze_epochs": 1, "lr": 0.1, **UNFREEZING[name]}
    whole = fit(_half_frozen(), digits, out=tmp_path / "whole", **settings)
    expected = read_tensors(whole.weights)[0]
    for number in range(2, 7):  # stage2 is trained from step 3 on, stage1 from step 5
        out = tmp_path / str(number)
        _train_to_step(number, out, digits, **settings)
        tensors, _ = read_tensors(max((out / "checkpoints").iterdir()))
        with_state = {PARTS[key.split(".")[1]] for key in tensors if key.startswith("optimizer.")}
        assert with_state == {"head"} | ({"stage2"} if number > 3 else set()) | ({"stage1"} if number > 5 else set())
        resumed = resume(out, data=digits, quiet=True)
        found = read_tensors(resumed.weights)[0]
        assert found.keys() == expected.keys()
        assert [key for key in found if not torch.equal(found[key], expected[key])] == []
        histories = [run.history.drop(columns=list(TIMING_COLUMNS)) for run in (resumed, whole)]
        assert histories[0].equals(histories[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": 3}, "freeze must be names of parts, such as stem,stage1, got 3"),
        ({"freeze": ("stem", 1)}, r"freeze must be names of parts, such as stem,stage1, got \('stem', 1\)"),
        ({"layer_decay": 0}, "layer_decay must be a finite number above 0 and at most 1, got 0"),
        ({"rates": 0.1}, r"rates must be learning rates by part, such as \{'stem': 0.001\}, got 0.1"),
        ({"rates.stem": "low"}, "rates.stem must be a finite number above 0, got 'low'"),
        (
            {"rates.stem": 0.1, "layer_decay": 0.7},
            "rates and layer_decay=0.7 both set the learning rates of the parts. Leave rates out, or set layer_decay=1",
        ),
        ({"head_epochs": -1}, "head_epochs must be an integer of at least 0, got -1"),
        ({"unfreeze_epochs": 0.5}, "unfreeze_epochs must be an integer of at least 0, got 0.5"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict, message: str):
    with pytest.raises(UserError, match=message):
        resolve_recipe("quick", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": "stem,stage9"}, r"unknown part of the network 'stage9'. Did you mean 'stage2'\? Available: stem, "),
        ({"rates.heat": 0.1}, r"unknown part of the network 'heat'. Did you mean 'head'\? Available: stem, stage1, "),
        ({"freeze": "stem", "rates.stem": 0.1}, "rates gives stem a learning rate, and it is frozen. Leave one of "),
        ({"freeze": "stem,stage1,stage2,head"}, "every part of the network is frozen, so there is nothing to train"),
        (
            {"freeze": "head", "head_epochs": 2},
            "head_epochs=2 and unfreeze_epochs=0 begin with parts that are frozen, so there is nothing to train at "
            "first. Set both to 0, or unfreeze the head",
        ),
    ],
)
def test_what_the_network_does_not_allow_is_refused_before_training(
    digits: ImageData, tmp_path: Path, changes: dict, message: str
):
    with pytest.raises(UserError, match=message):
        fit(TINY, digits, out=tmp_path / "run", quiet=True, **changes)
    assert not (tmp_path / "run").exists()
    for check in (find_lr, overfit_one_batch):
        with pytest.raises(UserError, match=message):
            check(TINY, digits, **changes)


def test_what_the_owner_froze_counts_too():
    model = freeze(network(), "head")
    with pytest.raises(UserError, match=r"nothing to train at first\. Set both to 0, or unfreeze the head"):
        check_sections(Recipe(head_epochs=1), model)
    check_sections(Recipe(unfreeze_epochs=1), model)
    with pytest.raises(UserError, match="every part of the network is frozen, so there is nothing to train"):
        check_sections(Recipe(freeze=("stem", "stage1", "stage2")), model)


def test_recipes_hold_parts_as_files_and_command_lines_write_them():
    recipe = resolve_recipe("quick", **{"freeze": " stem, stage1,", "rates.head": 1, "rates.stage2": 0.5})
    assert recipe.freeze == ("stem", "stage1")
    assert recipe.rates == {"head": 1.0, "stage2": 0.5}
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert resolve_recipe(recipe, **{"rates.head": 0.1}).rates == {"head": 0.1, "stage2": 0.5}
    assert hash(recipe) == hash(resolve_recipe(recipe, freeze=["stem", "stage1"]))
    old = {key: value for key, value in Recipe().to_dict().items() if key not in ("freeze", "layer_decay", "rates")}
    assert Recipe.from_dict(old) == Recipe()


def test_what_is_trained_is_said_before_training(digits: ImageData, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    settings = {"epochs": 3, "lr": 0.1, "batch_size": 1000, "precision": "float32"}
    changes = {"layer_decay": 0.5, "head_epochs": 1, "unfreeze_epochs": 1, "freeze": "stem"}
    fit(TINY, digits, out=tmp_path / "run", **settings, **changes)
    line = (
        "trained: head at 0.1; unfrozen later: stage2 at 0.05 (epoch 2), stage1 at 0.025 (epoch 3); frozen: stem; "
        "1,290 of 1,334 parameters learn"
    )
    assert line in capfd.readouterr().err.splitlines()
    fit(TINY, digits, out=tmp_path / "plain", **settings)
    assert "trained:" not in capfd.readouterr().err
    fit(TINY, digits, out=tmp_path / "quiet", quiet=True, **settings, **changes)
    assert capfd.readouterr().err == ""


def test_the_summary_counts_what_is_never_reached_or_frozen_by_the_owner():
    model = freeze(network(), "stem")
    model.layer1.requires_grad_(False)
    assert describe(Recipe(lr=0.1), model) == (
        "trained: stage2 at 0.1, head at 0.1; frozen: stem, stage1; 986 of 1,334 parameters learn"
    )
    assert describe(Recipe(lr=0.1, epochs=2, head_epochs=2), network()) == (
        "trained: head at 0.1; frozen: stem, stage1, stage2; 90 of 1,334 parameters learn"
    )
    assert describe(Recipe(lr=0.1, rates={"head": 0.1}), network()) == ""


def test_the_finder_trains_what_is_unfrozen_in_the_end(digits: ImageData, monkeypatch: pytest.MonkeyPatch):
    seen = rates_of_steps(monkeypatch, finder)
    states: list[ResNet] = []
    place = Machine.place
    monkeypatch.setattr(Machine, "place", lambda self, model: states.append(model) or place(self, model))
    model = network()
    before = copied(model)
    settings = {"layer_decay": 0.5, "head_epochs": 1, "unfreeze_epochs": 1, "freeze": "stem", "epochs": 3}
    find_lr(model, digits, steps=20, highest=0.1, batch_size=32, precision="float32", quiet=True, **settings)
    assert moved(before, copied(model)) == set()
    assert moved(before, copied(states[-1])) == {"stage1", "stage2", "head"}
    assert seen[-1] == pytest.approx({"stage1": 0.025, "stage2": 0.05, "head": 0.1})


def test_one_batch_is_learned_by_what_is_trained(digits: ImageData, monkeypatch: pytest.MonkeyPatch):
    seen = rates_of_steps(monkeypatch, sanity)
    settings = {"rates": {"head": 0.4}, "lr": 0.1, "freeze": "stem", "head_epochs": 2, "steps": 2}
    result = overfit_one_batch(TINY, digits, precision="float32", **settings)
    assert len(result.losses) == 2
    assert seen[-1] == pytest.approx({"stage1": 0.025, "stage2": 0.025, "head": 0.1})
    dropping = dataclasses.replace(TINY, drop_path=0.5)  # drops stay left out, whatever is frozen
    assert overfit_one_batch(dropping, digits, precision="float32", **settings).losses == result.losses


def test_synchronized_normalization_stays_frozen_and_gives_its_place_back():
    model = freeze(network(), "stage1").train()
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for _ in range(2):
        layers = {name: layer for name, layer in model.named_modules() if "bn" in name}
        assert {name for name, layer in layers.items() if not layer.training} == {"layer1.0.bn1", "layer1.0.bn2"}
        model.train()
        restore_batch_norm(model)
    assert not any(isinstance(layer, nn.SyncBatchNorm) for layer in model.modules())


def test_the_command_line_takes_parts(cli: Any, tmp_path: Path):
    short = ("digits", "--model", "quick_resnet", "--limit", 100, "--epochs", 1, "--precision", "float32")
    code, _, err = cli("train", *short, "--freeze", "stem,stage1", "--layer-decay", 0.5, "--out", tmp_path / "run")
    assert code == 0, err
    recipe = Recipe.from_dict(Run(tmp_path / "run").settings["recipe"])
    assert (recipe.freeze, recipe.layer_decay) == (("stem", "stage1"), 0.5)
    assert "frozen: stem, stage1; " in err
    assign = ("freeze=stem", "rates.head=0.1", "head_epochs=1")
    code, _, err = cli("train", *short, *(word for item in assign for word in ("--set", item)), "--overfit-one-batch")
    assert "learned by heart in 100 steps" in err or "images by heart in" in err
    code, _, err = cli("train", *short, "--freeze", "stem", "--set", "freeze=stem")
    assert (code, "freeze is set twice" in err) == (2, True)
    code, _, err = cli("train", *short, "--layer-decay", 0.5, "--set", "rates.head=0.1")
    assert (code, "rates and layer_decay=0.5 both set" in err) == (2, True)
    code, _, err = cli("train", "--resume", tmp_path / "run", "--freeze", "stem")
    assert (code, "does not take freeze" in err) == (2, True)


def test_the_recipe_for_finetuning_trains_the_head_first(digits: ImageData, tmp_path: Path):
    model = network()
    before = copied(model)
    fit(model, digits, recipe="finetune", out=tmp_path / "run", epochs=1, **SHORT)
    assert moved(before, copied(model)) == {"head"}
    config = dataclasses.replace(TINY, depths=(1,), widths=(4,))
    assert "unfrozen later: stem at " in describe(resolve_recipe("finetune"), ResNet(config))
