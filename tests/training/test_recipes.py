"""What each field of a recipe does to a training, and the named recipes."""

from __future__ import annotations

import inspect
import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import typer
from tests.conftest import TINY
from tests.training.stepping import Step, around_steps, run_of
from torch import Tensor

import resnetlab
from resnetlab.cli.main import app
from resnetlab.cli.options import split_assignments
from resnetlab.core.errors import UserError
from resnetlab.core.runs import Run
from resnetlab.data.augment import Augmentation
from resnetlab.data.batches import Batch, training_batches
from resnetlab.data.storage.store import ImageData
from resnetlab.models.catalog import model_config
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.report.comparison.compare import compare
from resnetlab.training.checkpoint import TrainingState, restore_checkpoint, save_checkpoint
from resnetlab.training.fit import fit
from resnetlab.training.loop import Training
from resnetlab.training.machine import Machine
from resnetlab.training.optimizers import WeightAverage, build_optimizer
from resnetlab.training.prepare import recipe_for
from resnetlab.training.recipe import Recipe
from resnetlab.training.recipes import RECIPES, resolve_recipe
from resnetlab.training.step import balanced_weights, training_step
from resnetlab.weights.tensors import read_tensors

EXACT = Machine(device="cpu", precision="float64", memory_format="contiguous", threads=torch.get_num_threads())
PLAIN = Augmentation(crop_padding=0.0, flip=False)


def a_batch(data: ImageData, size: int = 32) -> Batch:
    return next(training_batches(data.splits["train"], batch_size=size, policy=PLAIN, seed=0, epoch=0))


def one_step(data: ImageData, recipe: Recipe, batch: Batch, **settings: object) -> tuple[ResNet, float]:
    torch.manual_seed(0)
    model = ResNet(TINY)
    EXACT.place(model).train()
    arguments = {"preprocessing": data.preprocessing, "recipe": recipe, "machine": EXACT, "lr": 0.1, **settings}
    loss, _ = training_step(model, build_optimizer(model, recipe), batch, **arguments)
    return model, loss.item()


def test_the_rate_falls_in_steps():
    recipe = Recipe(lr=0.1, schedule="steps(0.5, 0.75)", epochs=182)
    rates = [recipe.learning_rate(step, 64_000) for step in (0, 31_999, 32_000, 47_999, 48_000, 63_999)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_the_rate_is_halved_every_third_epoch():
    recipe = Recipe(lr=0.01, schedule="every(3, factor=0.5)", epochs=10)
    by_epoch = [recipe.learning_rate(7 * epoch + step, 70) for epoch in range(10) for step in (0, 6)]
    assert by_epoch == pytest.approx([0.01] * 6 + [0.005] * 6 + [0.0025] * 6 + [0.00125] * 2)


def test_the_rate_can_stay_or_rise_straight():
    assert {Recipe(schedule="constant").learning_rate(step, 10) for step in range(10)} == {0.1}
    rates = [Recipe(schedule="cosine", warmup=0.5).learning_rate(step, 100) for step in range(100)]
    assert rates[25] == pytest.approx((0.1 / 25 + 0.1) / 2)
    assert rates[75] == pytest.approx(0.05)


def test_images_grow_in_whole_multiples():
    recipe = Recipe(epochs=10, start_size=0.5, grow_until=0.5)
    assert [recipe.image_size(epoch, 128) for epoch in range(10)] == [64, 76, 88, 104, 116, 128, 128, 128, 128, 128]
    assert [Recipe().image_size(epoch, 27) for epoch in range(20)] == [27] * 20
    assert Recipe(start_size=0.01).image_size(0, 28) == 16
    assert Recipe(start_size=0.5).image_size(0, 8) == 8


def test_a_growing_training_sees_small_images_first(tmp_path: Path):
    sizes = []

    def seen(step: Step, training: Training, batch: Batch) -> Tensor:
        sizes.append(batch.images.shape[-1])
        return step(training, batch)

    settings = {"epochs": 2, "batch_size": 1000, "start_size": 0.5, "grow_until": 1.0}
    with around_steps(seen):
        fit(TINY, "digits", image_size=32, out=tmp_path / "run", quiet=True, **settings)
    assert sizes == [16, 16, 24, 24]


def test_micro_batches_add_up_to_the_gradient_of_the_batch(digits: ImageData):
    """Without normalization, which sees one micro-batch at a time, accumulation changes nothing."""
    batch = a_batch(digits, 33)
    whole, parts = ResNet(TINY).double().eval(), ResNet(TINY).double().eval()
    parts.load_state_dict(whole.state_dict())
    losses = []
    for model, accumulate in ((whole, 1), (parts, 4)):
        recipe = Recipe(accumulate=accumulate, label_smoothing=0.1, weight_decay=0.0)
        settings = {"preprocessing": digits.preprocessing, "recipe": recipe, "machine": EXACT, "lr": 0.1}
        losses.append(training_step(model, build_optimizer(model, recipe), batch, **settings)[0].item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)
    for first, second in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(first, second, atol=1e-12, rtol=0)


def test_balanced_classes_count_the_same_in_total():
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    weights = balanced_weights(labels, 3)
    totals = torch.stack([weights[labels[labels == label]].sum() for label in range(3)])
    torch.testing.assert_close(totals, torch.full((3,), 10 / 3, dtype=torch.float64))
    assert weights[labels].mean().item() == pytest.approx(1)


def test_class_weights_weigh_the_loss(digits: ImageData):
    batch, weights = a_batch(digits), torch.linspace(0.5, 2, 10, dtype=torch.float64)
    torch.manual_seed(0)
    model = ResNet(TINY).double().train()
    logits = model(digits.preprocessing.normalize(batch.images, torch.float64))
    expected = (F.cross_entropy(logits, batch.labels, reduction="none") * weights[batch.labels]).mean()
    _, loss = one_step(digits, Recipe(), batch, class_weights=weights)
    assert loss == pytest.approx(expected.item(), abs=1e-12)


def test_decay_on_everything_moves_scales(digits: ImageData):
    batch = a_batch(digits)
    spared, _ = one_step(digits, Recipe(weight_decay=0.1, momentum=0.0, nesterov=False), batch)
    decayed, _ = one_step(digits, Recipe(weight_decay=0.1, decay_all=True, momentum=0.0, nesterov=False), batch)
    torch.testing.assert_close(decayed.bn1.weight, spared.bn1.weight - 0.1 * 0.1 * 1.0)  # type: ignore


def test_adamw_is_torchs(digits: ImageData):
    recipe = Recipe(optimizer="adamw", momentum=0.8, weight_decay=0.1)
    model, _ = one_step(digits, recipe, a_batch(digits))
    optimizer = build_optimizer(model, recipe)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.999)


def test_adamw_goes_on_from_a_checkpoint_with_its_count_of_steps(digits: ImageData, tmp_path: Path):
    recipe = Recipe(optimizer="adamw")
    torch.manual_seed(0)
    models = [ResNet(TINY).train() for _ in range(2)]
    for model in models:
        EXACT.place(model)
    optimizers = [build_optimizer(model, recipe) for model in models]
    settings = {"preprocessing": digits.preprocessing, "recipe": recipe, "machine": EXACT, "lr": 0.1}
    for _ in range(3):
        training_step(models[0], optimizers[0], a_batch(digits), **settings)
    first, second = (TrainingState(model=m, optimizer=o) for m, o in zip(models, optimizers, strict=True))
    run, origin = run_of(models[0], tmp_path / "run")
    save_checkpoint(run, first, 3, origin)
    restore_checkpoint(run, second)
    for model, optimizer in zip(models, optimizers, strict=True):
        training_step(model, optimizer, a_batch(digits), **settings)
        assert optimizer.state[model.conv1.weight]["step"].item() == 4  # type: ignore
    assert torch.equal(models[0].conv1.weight, models[1].conv1.weight)  # type: ignore


def test_the_average_is_the_textbooks():
    model = torch.nn.Linear(2, 1).double()
    average = WeightAverage(model, 0.9)
    expected = model.weight.detach().clone()
    for step in range(1, 200):
        with torch.no_grad():
            model.weight.add_(torch.randn(1, 2, generator=torch.Generator().manual_seed(step), dtype=torch.float64))
        keep = min(0.9, step / (step + 9))
        expected = keep * expected + (1 - keep) * model.weight.detach()
        average.update(step)
    torch.testing.assert_close(average.weights["weight"], expected)
    own = model.weight.detach().clone()
    with average.in_place():
        torch.testing.assert_close(model.weight.detach(), expected)
    assert torch.equal(model.weight, own)


def test_the_averaged_weights_are_validated_and_kept(digits: ImageData, tmp_path: Path):
    settings = {"epochs": 2, "average": 0.9, "precision": "float32", "keep_checkpoints": True, "quiet": True}
    run = fit(TINY, digits, out=tmp_path / "run", **settings)
    tensors, _ = read_tensors(max(run.checkpoints.iterdir()))
    kept = resnetlab.load(run)
    assert torch.equal(kept.conv1.weight, tensors["average.conv1.weight"])  # type: ignore
    assert not torch.equal(kept.conv1.weight, tensors["model.conv1.weight"])  # type: ignore
    evaluation = resnetlab.evaluate(kept, digits, split="validation")
    assert evaluation.summary["top1"] == run.history["val_top1"].iloc[-1]


def test_training_ends_when_patience_does(
    digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    scores = iter([0.3, 0.5, 0.4, 0.5, 0.2, 0.9, 0.9])
    monkeypatch.setattr(Training, "validate", lambda training: {"loss": 1.0, "top1": next(scores)})
    settings = {"epochs": 7, "patience": 3, "keep": "best", "batch_size": 1000, "average": 0.0}
    run = fit(TINY, digits, out=tmp_path / "run", keep_checkpoints=True, **settings)
    assert run.history["val_top1"].tolist() == [0.3, 0.5, 0.4, 0.5, 0.2]
    assert "stopped after 5 of 7 epochs" in capfd.readouterr().err
    best = resnetlab.load(run).conv1.weight  # type: ignore
    tensors, _ = read_tensors(max(run.checkpoints.iterdir()))
    assert torch.equal(best, tensors["best.conv1.weight"])  # type: ignore
    assert not torch.equal(best, tensors["model.conv1.weight"])  # type: ignore


def test_validation_is_measured_as_often_as_the_recipe_says(digits: ImageData, tmp_path: Path):
    few, every = (
        fit(TINY, digits, out=tmp_path / name, epochs=5, validate_every=validate_every, batch_size=1000, quiet=True)
        for name, validate_every in (("few", 2), ("every", 1))
    )
    measured = few.history["val_top1"].notna()
    assert measured.tolist() == [False, True, False, True, True]
    pd.testing.assert_frame_equal(
        few.history.loc[measured, ["val_loss", "val_top1"]], every.history.loc[measured, ["val_loss", "val_top1"]]
    )
    assert (few.history["train_loss"] == every.history["train_loss"]).all()  # type: ignore
    assert compare([few, every])["best_val_top1"].notna().all()  # type: ignore


@pytest.mark.parametrize(
    ("changes", "batch_size", "lr"),
    [
        ({"epoch_steps": 6}, 200, 0.4),  # 1,293 images are 6 steps of 200
        ({"epoch_steps": 7}, 100, 0.4),
        ({"epoch_steps": 7, "scale_lr": True}, 100, 0.4 / math.sqrt(2)),
        ({"epoch_steps": 1000}, 100, 0.4),  # a batch of 50 would be too small
        ({"epoch_steps": 1000, "accumulate": 60}, 200, 0.4),
    ],
)
def test_few_images_make_smaller_batches(digits: ImageData, changes: dict[str, Any], batch_size: int, lr: float):
    recipe = recipe_for(Recipe(batch_size=200, lr=0.4, **changes), digits, ResNet(TINY))
    assert recipe.batch_size == batch_size
    assert recipe.lr == pytest.approx(lr)


def test_what_is_given_is_taken_for_few_images_too(
    digits: ImageData, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    def taken(**changes: Any) -> tuple[int, float]:
        recipe = recipe_for(resolve_recipe("quick", **changes), digits, ResNet(TINY))
        return recipe.batch_size, recipe.lr

    usual = RECIPES["quick"]()
    assert taken() == (64, pytest.approx(usual.lr / math.sqrt(usual.batch_size / 64)))
    assert taken(batch_size=512) == (512, usual.lr)
    assert taken(lr=0.3) == (64, 0.3)
    assert taken(**{"rates.head": 0.1}) == (64, usual.lr)
    run = fit(TINY, digits, out=tmp_path / "run", epochs=1)
    assert run.settings["recipe"]["batch_size"] == 64
    assert "batches of 64 instead of 256 images" in capfd.readouterr().err


def test_an_optimizer_takes_the_rates_of_a_recipe_in_its_own_scale():
    usual = RECIPES["quick"]()
    assert (usual.optimizer, usual.lr, usual.weight_decay) == ("muon", 0.2, 0.01)
    same = resolve_recipe("quick", optimizer="muon")
    assert same == usual
    plain = resolve_recipe("quick", optimizer="sgd")
    assert (plain.lr, plain.weight_decay) == (0.2, pytest.approx(5e-4))
    assert plain.scale_lr, "a rate that was not given still suits the batch"
    adam = resolve_recipe("finetune", optimizer="adamw", weight_decay=0.3)
    assert (adam.lr, adam.weight_decay) == (pytest.approx(0.05 / 0.2 * 1e-3), 0.3)
    parts = resolve_recipe(Recipe(lr=0.1, rates={"stem": 0.02}), optimizer="adamw")
    assert (parts.lr, parts.rates) == (pytest.approx(5e-4), {"stem": pytest.approx(1e-4)})
    with pytest.raises(UserError, match=r"optimizer"):
        resolve_recipe("quick", optimizer=["sgd"])


def test_patience_needs_a_validation_split(tmp_path: Path):
    data = resnetlab.load_data("digits", validation_fraction=0.0)
    with pytest.raises(UserError, match=r"patience=2.*patience=0"):
        fit(TINY, data, out=tmp_path / "run", patience=2, quiet=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "cosin"}, r"unknown schedule 'cosin'.*'cosine'\?.*steps\("),
        ({"schedule": 3}, "schedule.*got 3"),
        ({"schedule": "steps(0.5"}, r"'steps\(0.5'"),
        ({"schedule": "steps(0.5) + 1"}, r"'steps\(0.5\) \+ 1'"),
        ({"schedule": "steps"}, r"schedule 'steps'.*steps\(0.5, 0.75, factor=0.1\)"),
        ({"schedule": "steps(0.5, gamma=2)"}, "gamma=2.*factor=0.1"),
        ({"schedule": "steps(0.5, 2)"}, "schedule.*at most 1, got 2"),
        ({"schedule": "every(0)"}, "schedule.*at least 1, got 0"),
        ({"schedule": "every(3, 6)"}, r"every\(3, 6\).*every\(30, factor=0.1\)"),
        ({"schedule": "every(3, factor=0)"}, "schedule.*above 0.*got 0"),
        ({"schedule": "cosine(0.1)"}, r"'cosine\(0.1\)'"),
        ({"warmup": 1.5}, "warmup.*at most 1.*got 1.5"),
        ({"accumulate": 0}, "accumulate must be an integer of at least 1, got 0"),
        ({"accumulate": 65}, "batch_size=128.*accumulate=65"),
        ({"start_size": 0}, "start_size must be a finite number above 0 and at most 1, got 0"),
        ({"grow_until": 1.5}, "grow_until must be a finite number at least 0 and at most 1, got 1.5"),
        ({"average": 1}, "average must be a finite number at least 0 and below 1, got 1"),
        ({"epoch_steps": -1}, "epoch_steps must be an integer of at least 0, got -1"),
        ({"networks": "resnet20"}, "networks.*got 'resnet20'"),
        ({"networks": ["resnet20"]}, "networks.*2.*got"),
        ({"validate_every": 0}, "validate_every must be an integer of at least 1, got 0"),
        (
            {"validate_every": 3, "patience": 2},
            "patience=2.*validate_every=3",
        ),
        ({"patience": -1}, "patience must be an integer of at least 0, got -1"),
        ({"class_weights": "heavy"}, "unknown class_weights 'heavy'"),
        ({"decay_all": 1}, "decay_all must be true or false, got 1"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict, message: str):
    with pytest.raises(UserError, match=message):
        Recipe(**changes)


def test_a_schedule_has_one_spelling():
    assert Recipe(schedule=" steps(.5,0.75) ").schedule == "steps(0.5, 0.75, factor=0.1)"
    assert Recipe(schedule="every( 3, factor=1e-3)").schedule == "every(3, factor=0.001)"
    assert Recipe(schedule="cosine") == Recipe(schedule="cosine()")
    assert Recipe(schedule="steps(0.123456789)").schedule == "steps(0.123456789, factor=0.1)"


def test_every_schedule_can_warm_up():
    rates = [Recipe(schedule="steps(0.5)", warmup=0.2).learning_rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1 / 25)
    assert rates[10] == pytest.approx((0.1 / 25 + 0.1) / 2)
    assert (rates[20], rates[49], rates[50]) == (0.1, 0.1, pytest.approx(0.01))


@pytest.mark.parametrize("name", RECIPES)
def test_named_recipes_survive_a_file(name: str):
    recipe = resolve_recipe(name)
    assert recipe.name == name
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize("name", RECIPES)
def test_the_commands_that_a_recipe_documents_can_be_run(name: str):
    """Every option exists, and network, recipe and changes are valid; the measured figures belong to a command."""
    text = " ".join((inspect.getdoc(RECIPES[name]) or "").split())
    commands = [shlex.split(command) for command in re.findall(r"`resnetlab (train .+?)`", text)]
    assert commands
    train = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    for _, *words in commands:
        options = train.make_context("train", words).params
        assert options["recipe"] == name
        if options["model"] != "auto":
            model_config(options["model"])
        changes, overrides = split_assignments(options["assign"] or [])
        resolve_recipe(options["recipe"], **changes)
        assert set(overrides) <= set(ResNetConfig.__dataclass_fields__)


@pytest.mark.parametrize("name", RECIPES)
def test_named_recipes_train(name: str, digits: ImageData, tmp_path: Path):
    """Each recipe trains a tiny network for one epoch."""
    limited = resnetlab.load_data("digits", limit=200)
    run = fit(TINY, limited, recipe=name, out=tmp_path / "run", epochs=1, batch_size=64, quiet=True)
    assert math.isfinite(run.history["train_loss"].iloc[0])
    assert Run(run.path).settings["recipe"]["name"] == name
