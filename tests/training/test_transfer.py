from __future__ import annotations

import dataclasses
import itertools
import json
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
from resnetlab.training import lr_finder
from resnetlab.training import overfit as sanity
from resnetlab.training.distributed import restore_batch_norm
from resnetlab.training.fit import fit, resume
from resnetlab.training.loop import Training
from resnetlab.training.lr_finder import find_lr
from resnetlab.training.machine import Machine
from resnetlab.training.optimizers import build_optimizer
from resnetlab.training.overfit import overfit_one_batch
from resnetlab.training.recipe import Recipe
from resnetlab.training.recipes import resolve_recipe
from resnetlab.training.sections import TrainedSections, check_sections, describe
from resnetlab.training.step import training_step
from resnetlab.weights.tensors import read_tensors

SECTIONS = {"conv1": "stem", "bn1": "stem", "layer1": "stage1", "layer2": "stage2", "fc": "head"}
SHORT: dict[str, Any] = {"batch_size": 1000, "precision": "float32", "quiet": True}  # two steps an epoch
EXACT = Machine(device="cpu", precision="float64", memory_format="contiguous", threads=torch.get_num_threads())


def network() -> ResNet:
    torch.manual_seed(0)
    return ResNet(TINY)


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Returns the sections in which a parameter or running statistic has changed."""
    return {SECTIONS[name.partition(".")[0]] for name in before if not torch.equal(before[name], after[name])}


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


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant", "steps(0.5)", "every(1)"])
@pytest.mark.parametrize(
    ("rates", "highest"),
    [
        ({"layer_decay": 0.5}, {"stem": 0.0125, "stage1": 0.025, "stage2": 0.05, "head": 0.1}),
        ({"stem": 0.001, "head": 0.3}, {"stem": 0.001, "stage1": 0.1, "stage2": 0.1, "head": 0.3}),
        ({"layer_decay": 0.5, "stage1": 0.2}, {"stem": 0.0125, "stage1": 0.2, "stage2": 0.05, "head": 0.1}),
    ],
)
def test_parts_have_rates_of_their_own_under_every_schedule(
    digits: ImageData, tmp_path: Path, schedule: str, rates: dict, highest: dict
):
    recipe = Recipe(epochs=2, schedule=schedule, rates=rates)
    seen = []

    def noted(step: Step, training: Training, batch: Batch) -> Tensor:
        loss = step(training, batch)
        seen.append(rates_of(training.state.optimizer))
        return loss

    with around_steps(noted):
        run = fit(network(), digits, recipe=recipe, out=tmp_path / "run", **SHORT)
    shares = [recipe.learning_rate(step, 4) / recipe.lr for step in range(4)]
    assert len(seen) == 4
    for found, share in zip(seen, shares, strict=True):
        assert found == pytest.approx({part: rate * share for part, rate in highest.items()}, rel=1e-12)
    assert run.history["lr"].tolist() == [recipe.learning_rate(step, 4) for step in (1, 3)]


def test_groups_by_part_train_as_two_groups_do(digits: ImageData, tmp_path: Path):
    settings = {"epochs": 2, "clip_norm": 0.5, "lr": 0.1, "average": 0.9, **SHORT}
    models = [network(), network()]
    fit(models[0], digits, out=tmp_path / "two", **settings)
    fit(models[1], digits, out=tmp_path / "parts", rates={"head": 0.1}, **settings)
    assert len(build_optimizer(models[0], Recipe()).param_groups) == 2
    assert len(build_optimizer(models[1], Recipe(rates={"head": 0.1})).param_groups) == 8
    assert moved(copied(models[0]), copied(models[1])) == set()


def test_decay_on_everything_holds_for_sections_too():
    recipe = Recipe(rates={"layer_decay": 0.5}, weight_decay=0.1, decay_all=True)
    groups = build_optimizer(network(), recipe).param_groups
    assert {group["weight_decay"] for group in groups} == {0.1}
    groups = build_optimizer(network(), recipe.changed(decay_all=False)).param_groups
    assert {group["name"]: group["weight_decay"] for group in groups if "head" in group["name"]} == {
        "head": 0.1,
        "head scales and shifts": 0.0,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"average": 0.9, "weight_decay": 0.1, "decay_all": True, "clip_norm": 0.1},
        {"optimizer": "adamw", "weight_decay": 0.1, "keep": "best"},
        {"optimizer": "scratch_sgd", "weight_decay": 0.1, "rates.layer_decay": 0.5},
        {"precision": "bfloat16", "accumulate": 2, "augment.mixup": 0.2},
    ],
    ids=lambda changes: ", ".join(changes),
)
def test_what_is_frozen_stays_to_the_last_bit(digits: ImageData, tmp_path: Path, changes: dict):
    model = network()
    before = copied(model)
    settings = {**SHORT, "epochs": 2, "lr": 0.1, "rates.stem": 0, "rates.stage1": 0, **changes}
    run = fit(model, digits, out=tmp_path / "run", keep_checkpoints=True, **settings)
    assert moved(before, copied(model)) == {"stage2", "head"}
    assert moved(before, copied(resnetlab.load(run))) == {"stage2", "head"}
    tensors, _ = read_tensors(max(run.checkpoints.iterdir()))
    kept = [name for name in tensors if name.startswith("optimizer.")]
    assert kept
    assert not [name for name in kept if SECTIONS[name.split(".")[1]] in ("stem", "stage1")]


def test_frozen_normalization_stays_in_evaluation_within_another_module():
    model = network()
    parent = nn.Sequential(model)
    parts = TrainedSections(model, Recipe(rates={"stage1": 0}, unfreeze=1))
    for epoch, training in ((0, {"fc"}), (1, {"conv1", "bn1", "layer2", "fc"})):
        parts.begin(epoch)
        parent.eval()
        parent.train()
        assert {name for name in SECTIONS if model.get_submodule(name).training} == training
    before = copied(model)
    parent(torch.randn(4, 1, 8, 8))
    assert moved(before, copied(model)) == {"stem", "stage2"}


@pytest.mark.parametrize(
    ("changes", "order"),
    [
        ({"unfreeze": 2}, ["head", "head", "stem stage1 stage2 head", "stem stage1 stage2 head"]),
        ({"unfreeze": [0, 1]}, ["stage2 head", "stage1 stage2 head"] + 2 * ["stem stage1 stage2 head"]),
        (
            {"unfreeze": [1, 1]},
            ["head", "stage2 head", "stage1 stage2 head", "stem stage1 stage2 head"],
        ),
        ({"unfreeze": [1, 2]}, ["head", *2 * ["stage2 head"], "stage1 stage2 head"]),
        (
            {"unfreeze": [1, 2], "rates.stage2": 0},
            ["head", *2 * ["stage1 head"], "stem stage1 head"],
        ),
        ({"unfreeze": 9, "rates.stem": 0}, 4 * ["head"]),
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
    model.layer2[0].conv1.weight.requires_grad_(False)  # type: ignore
    before = copied(model)
    run = fit(model, digits, out=tmp_path / "run", epochs=3, lr=0.1, rates={"stage1": 0}, unfreeze=1, **SHORT)
    after = copied(model)
    assert moved(before, after) == {"stage2", "head"}
    assert torch.equal(before["layer2.0.conv1.weight"], after["layer2.0.conv1.weight"])
    assert model.frozen == {"stem"}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {
        name for name in dict(model.named_parameters()) if SECTIONS[name.partition(".")[0]] != "stem"
    } - {"layer2.0.conv1.weight"}
    assert run.settings["model"]["frozen_sections"] == ["stem"]
    assert run.settings["recipe"]["rates"] == {"stage1": 0}


def _train_to_step(number: int, out: Path, data: ImageData, **settings: Any) -> None:
    """Starts a training that fails before a step, counted from 1, after a checkpoint of the step before."""

    def save_and_fail(training: Training) -> None:
        training.save()
        raise ConnectionError("the machine is gone")

    with pytest.raises(ConnectionError), before_step(number, save_and_fail):
        fit(_half_frozen(), data, out=out, **settings)


def _half_frozen() -> ResNet:
    model = network()
    model.layer1[0].conv1.weight.requires_grad_(False)  # type: ignore
    return model


UNFREEZING: dict[str, dict[str, Any]] = {
    "sgd": {"average": 0.9, "rates": {"layer_decay": 0.5}, "clip_norm": 0.5},
    "adamw": {"optimizer": "adamw", "keep": "best", "lr": 0.01},
    "scratch_sgd": {"optimizer": "scratch_sgd", "rates": {"stage2": 0.05}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", UNFREEZING)
def test_a_run_resumes_exactly_at_every_step_around_an_unfreezing(digits: ImageData, tmp_path: Path, name: str):
    settings = {**SHORT, "epochs": 4, "unfreeze": [1, 1], "lr": 0.1, **UNFREEZING[name]}
    whole = fit(_half_frozen(), digits, out=tmp_path / "whole", **settings)
    expected = read_tensors(whole.weights)[0]
    for number in range(2, 7):  # stage2 is trained from step 3 on, stage1 from step 5
        out = tmp_path / str(number)
        _train_to_step(number, out, digits, **settings)
        tensors, _ = read_tensors(max((out / "checkpoints").iterdir()))
        with_state = {SECTIONS[key.split(".")[1]] for key in tensors if key.startswith("optimizer.")}
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
        ({"rates.layer_decay": 0}, "rates.layer_decay.*above 0 and at most 1.*got 0"),
        ({"rates": 0.1}, "rates.*got 0.1"),
        ({"rates.stem": "low"}, "rates.stem.*number.*got 'low'"),
        ({"rates.stem": -0.1}, "rates.stem.*at least 0.*got -0.1"),
        ({"unfreeze": -1}, "unfreeze.*at least 0.*got -1"),
        ({"unfreeze": 0.5}, "unfreeze.*integer.*got 0.5"),
        ({"unfreeze": [1, 2, 3]}, r"unfreeze.*2 integers.*got \[1, 2, 3\]"),
        ({"unfreeze": [1, 0]}, "set unfreeze=1"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict, message: str):
    with pytest.raises(UserError, match=message):
        resolve_recipe("quick", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates.stem": 0, "rates.stage9": 0}, r"'stage9'.*'stage2'\?.*stem, stage1"),
        ({"rates.heat": 0.1}, r"'heat'.*'head'\?.*stem, stage1"),
        ({"rates": dict.fromkeys(("stem", "stage1", "stage2", "head"), 0)}, "all sections .* frozen"),
        ({"rates.head": 0, "unfreeze": 2}, "unfreeze=2.*unfreeze=0"),
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
    with pytest.raises(UserError, match=r"unfreeze=1.*unfreeze=0"):
        check_sections(Recipe(unfreeze=1), model)
    check_sections(Recipe(unfreeze=(0, 1)), model)
    with pytest.raises(UserError, match=r"all sections .* frozen"):
        check_sections(Recipe(rates=dict.fromkeys(("stem", "stage1", "stage2"), 0)), model)
    with pytest.raises(UserError, match=r"rates.*head.*frozen"):
        check_sections(Recipe(rates={"head": 0.1}), model)


def test_rates_can_be_given_one_by_one():
    recipe = resolve_recipe("quick", **{"rates.head": 1, "rates.stage2": 0.5, "unfreeze": [1, 2]})
    assert recipe.rates == {"head": 1.0, "stage2": 0.5}
    assert recipe.unfreeze == (1, 2)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert resolve_recipe(recipe, **{"rates.head": 0.1}).rates == {"head": 0.1, "stage2": 0.5}
    assert resolve_recipe("finetune", **{"rates.stem": 0}).rates == {"layer_decay": 0.7, "stem": 0.0}


def test_only_a_rate_turns_scaling_by_batch_size_off():
    assert resolve_recipe("quick", **{"rates.stem": 0, "rates.layer_decay": 0.5}).scale_lr
    assert resolve_recipe("quick", rates={"stem": 0}).scale_lr
    assert not resolve_recipe("quick", **{"rates.stem": 0.01}).scale_lr
    assert not resolve_recipe("quick", rates={"stem": 0.01}).scale_lr
    scaled = Recipe(lr=0.1, rates={"stem": 0.01, "head": 0, "layer_decay": 0.5}).with_scaled_rates(0.5)
    assert (scaled.lr, scaled.rates) == (0.05, {"stem": 0.005, "head": 0, "layer_decay": 0.5})


def test_what_is_trained_is_said_before_training(digits: ImageData, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    settings = {"epochs": 3, "lr": 0.1, "batch_size": 1000, "precision": "float32"}
    changes = {"rates": {"layer_decay": 0.5, "stem": 0}, "unfreeze": [1, 1]}
    fit(TINY, digits, out=tmp_path / "run", **settings, **changes)
    text = (
        "trained: head at 0.1; unfrozen later: stage2 at 0.05 (epoch 2), stage1 at 0.025 (epoch 3); frozen: stem; "
        "1,290 of 1,334 parameters learn"
    )
    said = capfd.readouterr().err
    assert text in " ".join(said.split())
    assert max(len(line) for line in said.splitlines() if line in text) <= 80
    fit(TINY, digits, out=tmp_path / "plain", **settings)
    assert "trained:" not in capfd.readouterr().err
    fit(TINY, digits, out=tmp_path / "quiet", quiet=True, **settings, **changes)
    assert capfd.readouterr().err == ""


def test_the_summary_counts_what_is_never_reached_or_frozen_by_the_owner():
    model = freeze(network(), "stem")
    model.layer1.requires_grad_(False)
    said = describe(Recipe(lr=0.1), model)
    assert all(fact in said for fact in ("stage2 at 0.1, head at 0.1", "frozen: stem, stage1;", "986 of 1,334"))
    said = describe(Recipe(lr=0.1, epochs=2, unfreeze=2), network())
    assert all(fact in said for fact in ("trained: head at 0.1;", "frozen: stem, stage1, stage2;", "90 of 1,334"))
    assert describe(Recipe(lr=0.1, rates={"head": 0.1}), network()) == ""


def test_the_finder_trains_what_is_unfrozen_in_the_end(digits: ImageData, monkeypatch: pytest.MonkeyPatch):
    seen = rates_of_steps(monkeypatch, lr_finder)
    states: list[ResNet] = []
    place = Machine.place
    monkeypatch.setattr(Machine, "place", lambda self, model: states.append(model) or place(self, model))
    model = network()
    before = copied(model)
    settings = {"rates": {"layer_decay": 0.5, "stem": 0}, "unfreeze": [1, 1], "epochs": 3}
    find_lr(model, digits, steps=20, highest=0.1, batch_size=32, precision="float32", quiet=True, **settings)
    assert moved(before, copied(model)) == set()
    assert moved(before, copied(states[-1])) == {"stage1", "stage2", "head"}
    assert seen[-1] == pytest.approx({"stage1": 0.025, "stage2": 0.05, "head": 0.1})


def test_one_batch_is_learned_by_what_is_trained(digits: ImageData, monkeypatch: pytest.MonkeyPatch):
    seen = rates_of_steps(monkeypatch, sanity)
    settings = {"rates": {"head": 0.4, "stem": 0}, "lr": 0.1, "unfreeze": 2, "steps": 2}
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


@pytest.mark.slow
def test_the_command_line_takes_sections(cli: Any, tmp_path: Path):
    short = ("digits", "--model", "quick_resnet", "--limit", 100, "--epochs", 1, "--precision", "float32")
    code, _, err = cli("train", *short, "--freeze", "stem,stage1", "--layer-decay", 0.5, "--out", tmp_path / "run")
    assert code == 0, err
    recipe = Recipe.from_dict(Run(tmp_path / "run").settings["recipe"])
    assert recipe.rates == {"layer_decay": 0.5, "stem": 0, "stage1": 0}
    assert "frozen: stem, stage1; " in " ".join(err.split())
    assign = ("rates.stem=0", "rates.head=0.1", "unfreeze=1")
    code, _, err = cli("train", *short, *(word for item in assign for word in ("--set", item)), "--overfit-one-batch")
    assert "steps" in err
    code, _, err = cli("train", *short, "--freeze", "stem", "--set", "rates.stem=0.1")
    assert (code, "rates.stem is set twice" in err) == (2, True)
    code, _, err = cli("train", "--resume", tmp_path / "run", "--freeze", "stem")
    assert (code, "does not take freeze" in err) == (2, True)


def test_the_recipe_for_finetuning_trains_the_head_first(digits: ImageData, tmp_path: Path):
    model = network()
    before = copied(model)
    fit(model, digits, recipe="finetune", out=tmp_path / "run", epochs=1, **SHORT)
    assert moved(before, copied(model)) == {"head"}
    config = dataclasses.replace(TINY, depths=(1,), widths=(4,))
    assert "unfrozen later: stem at " in describe(resolve_recipe("finetune"), ResNet(config))
