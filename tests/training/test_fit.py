# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.cells import cell_len
from tests.conftest import TINY
from tests.data.idx_files import write_mnist
from tests.facts import refuses
from tests.training.stepping import Step, around_steps
from torch import Tensor

import resnetlab
from resnetlab.core.errors import UserError
from resnetlab.core.randomness import generator
from resnetlab.core.runs import HISTORY_COLUMNS, Run
from resnetlab.data.batches import Batch
from resnetlab.data.storage.store import ImageData
from resnetlab.models.resnet import ResNet
from resnetlab.models.surgery import fold_batch_norm, freeze
from resnetlab.training.checkpoint import Progress
from resnetlab.training.fit import fit, resume
from resnetlab.training.guard import StepResult, take_results
from resnetlab.training.loop import Training
from resnetlab.training.recipe import Recipe
from resnetlab.weights.tensors import read_tensors


def test_a_run_folder_holds_all_that_later_verbs_need(digits_run: Run, digits: ImageData):
    present = {path.relative_to(digits_run.path).as_posix() for path in digits_run.path.rglob("*") if path.is_file()}
    assert present >= {
        "run.toml", "environment.json", "history.csv", "model.safetensors", "evaluation/summary.json",
        "evaluation/per_class.parquet", "evaluation/per_image.parquet", "evaluation/embeddings.parquet",
    }  # fmt: skip
    assert not [path for path in present if path.endswith(".part")]
    settings = digits_run.settings
    assert settings["schema"] == 1
    assert settings["data"]["fingerprint"] == digits.fingerprint
    assert settings["data"]["counts"] == {"train": 1293, "validation": 144, "test": 360}
    assert settings["model"]["config"]["in_channels"] == 1
    assert settings["recipe"]["augment"]["flip"] is False  # a mirrored digit is another sign
    assert "data_root" not in settings["data"]
    assert digits_run.environment["packages"]["torch"] == torch.__version__.partition("+")[0]


def test_the_history_has_a_row_an_epoch(digits_run: Run):
    history = digits_run.history
    assert list(history.columns) == list(HISTORY_COLUMNS)
    assert history["epoch"].tolist() == [1, 2, 3, 4]
    assert history["step"].tolist() == [11, 22, 33, 44]
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0]
    assert history["train_top1"].between(0, 1).all()
    assert (history["images_per_second"] > 0).all()
    assert history["seconds"].is_monotonic_increasing


def test_the_final_validation_row_is_the_saved_networks(digits_run: Run, digits: ImageData):
    evaluation = resnetlab.evaluate(resnetlab.load(digits_run), digits, split="validation")
    assert evaluation.summary["top1"] == digits_run.history["val_top1"].iloc[-1]
    assert evaluation.summary["loss"] == pytest.approx(digits_run.history["val_loss"].iloc[-1], rel=1e-4)


def test_two_trainings_are_equal_and_another_seed_is_not(digits: ImageData, tmp_path: Path):
    runs = [
        fit(TINY, digits, out=tmp_path / str(n), epochs=1, seed=seed, quiet=True) for n, seed in enumerate((0, 0, 1))
    ]
    first, second, other = (resnetlab.load(run).state_dict() for run in runs)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_fit_does_not_touch_the_programs_random_state(digits: ImageData, tmp_path: Path):
    state = torch.get_rng_state()
    fit("resnet20", digits, out=tmp_path / "run", epochs=1, batch_size=1000, quiet=True)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_network_of_the_user_is_trained_in_place(digits: ImageData, tmp_path: Path):
    torch.manual_seed(0)
    model = ResNet(TINY)
    before = model.conv1.weight.detach().clone()
    run = fit(model, digits, out=tmp_path / "run", epochs=1, quiet=True)
    assert not torch.equal(model.conv1.weight, before)
    assert torch.equal(model.conv1.weight, resnetlab.load(run).conv1.weight)
    assert not model.training
    assert model.class_names == digits.class_names
    assert resnetlab.predict(model, digits.splits["test"].images[:3]).shape[0] == 3


def test_the_best_weights_are_those_of_the_best_epoch(digits: ImageData, tmp_path: Path):
    run = fit(TINY, digits, out=tmp_path / "run", epochs=5, lr=1.5, keep="best", precision="float32", quiet=True)
    evaluation = resnetlab.evaluate(resnetlab.load(run), digits, split="validation")
    assert evaluation.summary["top1"] == run.history["val_top1"].max()


def test_without_a_validation_split_the_history_says_so(tmp_path: Path):
    data = resnetlab.load_data("digits", validation_fraction=0.0)
    run = fit(TINY, data, out=tmp_path / "run", epochs=1, quiet=True)
    assert math.isnan(run.history["val_top1"].iloc[0])
    assert run.summary is not None
    assert run.summary["split"] == "test"
    with refuses('keep="best"', 'keep="final"', "validation_fraction", "digits"):
        fit(TINY, data, out=tmp_path / "best", epochs=1, keep="best", quiet=True)


def test_a_name_takes_channels_classes_and_stem_from_the_data(image_folder: Path, tmp_path: Path):
    run = fit("resnet18", image_folder, out=tmp_path / "run", epochs=1, image_size=16, quiet=True)
    config = resnetlab.load(run).config
    assert (config.in_channels, config.num_classes, config.stem) == (3, 2, "cifar")
    assert resnetlab.load(run).class_names == ("blue", "red")


def test_images_of_bad_steps_are_text_for_a_spreadsheet(tmp_path: Path):
    split: Any = SimpleNamespace(paths=[f"={number}\x1b.png" for number in range(20)])
    run: Any = SimpleNamespace(path=tmp_path)
    result = StepResult(0, torch.tensor(math.nan), torch.tensor(0), np.array([3, 4]))
    take_results(Progress(), [result], run, split)
    assert pd.read_csv(tmp_path / "bad_steps.csv")["images"].tolist() == ["'=3\\x1b.png =4\\x1b.png"]


def test_a_loss_that_is_never_finite_stops_the_training(digits: ImageData, tmp_path: Path):
    out = tmp_path / "run"
    with refuses("10 consecutive", "step 11 of epoch 1", "--lr"):
        fit(TINY, digits, out=out, epochs=3, optimizer="sgd", batch_size=128, lr=1e30, precision="float32", quiet=True)
    bad = pd.read_csv(out / "bad_steps.csv")
    assert bad["step"].tolist() == list(range(2, 12))
    first = generator(0, "order", epoch=0).permutation(len(digits.splits["train"]))[128:256]
    assert list(map(int, bad["images"][0].split())) == digits.splits["train"].index[first].tolist()
    tensors, _ = read_tensors(max((out / "checkpoints").iterdir()))
    assert all(value.isfinite().all() for value in tensors.values())
    with refuses("10 consecutive"):
        resume(out, quiet=True)
    assert pd.read_csv(out / "bad_steps.csv")["step"].tolist() == list(range(2, 12))


def test_a_training_without_a_finite_step_fails(digits: ImageData, tmp_path: Path):
    resnetlab.register("activation", "overflowing", lambda x: x * math.inf)
    try:
        with refuses("not finite", "bad_steps.csv", "--lr"):
            network = dataclasses.replace(TINY, activation="overflowing")
            fit(network, digits, out=tmp_path / "run", epochs=1, quiet=True)
        assert not Run(tmp_path / "run").is_complete
        with refuses("not finite"):
            resume(tmp_path / "run", quiet=True)
    finally:
        resnetlab.unregister("activation", "overflowing")


def test_a_step_that_is_not_finite_changes_nothing(
    digits: ImageData, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """One poisoned batch: the network after it is the one before it, and the training goes on."""
    states = []

    def poisoned(step: Step, training: Training, batch: Batch) -> Tensor:
        if batch.step in (2, 3):
            states.append({name: value.clone() for name, value in training.state.model.state_dict().items()})
        if batch.step == 2:
            images = torch.full(batch.images.shape, math.nan)
            batch = dataclasses.replace(batch, images=images, normalized=True)
        return step(training, batch)

    with around_steps(poisoned):
        run = fit(TINY, digits, out=tmp_path / "run", epochs=1, precision="float32")
    before, after = states
    assert all(torch.equal(before[name], after[name]) for name in before if "num_batches" not in name)
    assert "epoch 1, step 3: the loss is nan" in capfd.readouterr().err
    assert pd.read_csv(run.path / "bad_steps.csv")["step"].tolist() == [3]
    assert math.isfinite(run.history["train_loss"].iloc[0])
    assert math.isfinite(run.history["val_loss"].iloc[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "resnet21"}, "unknown model 'resnet21'"),
        ({"epochs": 0}, "epochs must be an integer of at least 1 and"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
        (
            {"model": "resnet20", "overrides": {"num_classes": 3}},
            r"num_classes=3, and digits has 1 channel and 10 classes",
        ),
        ({"overrides": {"shortcut": "B"}}, "overrid.* name"),
        ({"model": fold_batch_norm(ResNet(TINY))}, "batch normalization was folded"),
        (
            {"model": freeze(ResNet(TINY), *ResNet(TINY).sections())},
            "every part of the network is frozen",
        ),
        ({"image_size": 16}, "image_size and data_root .* load_data"),
        ({"data": lambda: None, "image_size": 16}, "image_size and data_root .* load_data"),
        ({"data": "digits", "image_size": 0}, "image_size must be an integer"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(digits: ImageData, tmp_path: Path, arguments: dict, message: str):
    with pytest.raises(UserError, match=message):
        fit(**{"model": TINY, "data": digits, "out": tmp_path / "run", "quiet": True, **arguments})
    assert not (tmp_path / "run" / "run.toml").exists()


def test_mistakes_are_told_before_images_are_read(tmp_path: Path):
    def never() -> ImageData:
        raise AssertionError("the images were read")

    for arguments in ({"model": "resnet21"}, {"epochs": 0}, {"model": "resnet20", "overrides": {"stam": "cifar"}}):
        with pytest.raises(UserError):
            fit(**{"model": TINY, "data": never, "out": tmp_path / "run", **arguments})


def test_one_class_is_too_few(image_folder: Path, tmp_path: Path):
    for path in (image_folder / "blue").iterdir():
        path.unlink()
    (image_folder / "blue").rmdir()
    with refuses("photos", "one class", "(red)"):
        fit("auto", image_folder, out=tmp_path / "run", quiet=True)


def test_a_plain_log_has_a_line_an_epoch(digits: ImageData, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    fit(TINY, digits, out=tmp_path / "run", epochs=2)
    lines = capfd.readouterr().err.splitlines()
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert [line.split()[1] for line in epochs] == ["1/2", "2/2"]
    header = lines[lines.index(epochs[0]) - 1]
    assert header.split() == ["loss", "top-1", "loss", "top-1", "images/s", "time", "left"]
    assert max(map(cell_len, [header, *epochs])) <= 80


def test_per_image_rows_are_the_test_split(digits_run: Run, digits: ImageData):
    rows = pd.read_parquet(digits_run.evaluation() / "per_image.parquet")
    split = digits.splits["test"]
    assert rows["index"].tolist() == split.index.tolist()
    assert rows["label"].tolist() == [digits.class_names[label] for label in split.labels.tolist()]
    summary = json.loads((digits_run.evaluation() / "summary.json").read_text())
    assert summary["top1"] == (rows["label"] == rows["prediction"]).mean()


def test_numbers_of_numpy_are_taken(digits: ImageData, tmp_path: Path):
    run = fit(TINY, digits, out=tmp_path / "run", seed=np.int64(3), epochs=np.int64(1), lr=np.float32(0.5), quiet=True)
    assert Run(run.path).settings["seed"] == 3


def test_recipes_can_be_objects(digits: ImageData, tmp_path: Path):
    run = fit(TINY, digits, recipe=Recipe(name="mine", epochs=1, lr=0.05), out=tmp_path / "run", quiet=True)
    assert run.settings["recipe"]["name"] == "mine"


@pytest.mark.slow
def test_training_and_resuming_import_neither_the_compiler_nor_torchvision(tmp_path: Path):
    """Each takes a second or more; torch's own optimizers import the compiler, and torchvision its whole package."""
    write_mnist(tmp_path / "MNIST" / "raw", counts=(40, 10))
    program = """
import sys
from resnetlab.training import estimate, fit
estimate._SHORT = 0  # so that the speed of the machine is measured
run = fit.fit("resnet20", "mnist", data_root=".", out="run", epochs=1, batch_size=20)
fit.resume(run, epochs=2)
print({"torchvision", "torch._dynamo"} & set(sys.modules))
"""
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8"
    )
    assert run.stdout.splitlines()[-1:] == ["set()"], run.stderr
    assert "MACs per image; 1 epoch takes about" in run.stderr + run.stdout
