"""Running statistics that match the weights: after few steps, of averaged weights, and in frozen sections."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tests.conftest import TINY
from torch import Tensor, nn

from resnetlab.core.randomness import generator
from resnetlab.data.load import load_data
from resnetlab.data.storage.store import ImageData
from resnetlab.models.resnet import ResNet
from resnetlab.models.surgery import freeze
from resnetlab.training.batch_norm import LEAST, MOST, SHARE, match_statistics
from resnetlab.training.fit import fit
from resnetlab.training.machine import Machine
from resnetlab.training.recipe import Recipe

EXACT = Machine(device="cpu", precision="float64", memory_format="contiguous", threads=torch.get_num_threads())


def matched(model: ResNet, data: ImageData, epoch: int = 0, **changes: int) -> ResNet:
    recipe = Recipe(batch_size=50).changed(**changes)
    EXACT.place(model)
    match_statistics(model, data, data.preprocessing, recipe, EXACT, seed=1, epoch=epoch)
    return model


@pytest.mark.parametrize("changes", [{}, {"parts": "scratch"}, {"running_variance": "biased"}], ids=str)
def test_the_statistics_are_the_means_over_batches(digits: ImageData, changes: dict):
    model = matched(ResNet(dataclasses.replace(TINY, drop_path=0.5, **changes)), digits)
    images = len(digits.split("train"))
    assert LEAST < images // SHARE < MOST
    order = generator(1, "statistics").permutation(images)[: images // SHARE]
    squares = digits.squares("train", torch.from_numpy(order))
    inputs = model.get_submodule("conv1")(digits.preprocessing.normalize(squares, torch.float64)).detach()
    parts = inputs.split(50)
    weights = [len(part) / len(inputs) for part in parts]
    assert len(parts) > 2
    unbiased = changes.get("running_variance") != "biased"
    mean = sum(share * part.mean((0, 2, 3)) for share, part in zip(weights, parts, strict=True))
    variance = sum(share * part.var((0, 2, 3), unbiased=unbiased) for share, part in zip(weights, parts, strict=True))
    torch.testing.assert_close(model.get_buffer("bn1.running_mean"), mean)
    torch.testing.assert_close(model.get_buffer("bn1.running_var"), variance)
    assert model.get_submodule("bn1").momentum == 0.1
    assert all(layer.training for layer in model.modules())


def test_they_depend_on_seed_and_epoch_alone_and_frozen_sections_keep_theirs(digits: ImageData):
    def of(model: nn.Module) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in model.named_buffers() if "running" in name}

    model = freeze(ResNet(TINY), "stem")
    before, first = of(model), of(matched(model, digits))
    assert {name.split(".")[0] for name in before if torch.equal(before[name].double(), first[name])} == {"bn1"}
    torch.manual_seed(5)
    assert all(torch.equal(first[name], value) for name, value in of(matched(model, digits)).items())
    assert not all(torch.equal(first[name], value) for name, value in of(matched(model, digits, epoch=1)).items())
    parameters = [parameter.clone() for parameter in model.parameters()]
    matched(model, digits, accumulate=5)
    assert all(torch.equal(one, other) for one, other in zip(parameters, model.parameters(), strict=True))


@pytest.mark.parametrize("average", [0.0, 0.996])
def test_two_epochs_validate_and_test_as_well_as_they_train(tmp_path: Path, average: float):
    digits = load_data("digits")
    run = fit("resnet20", digits, out=tmp_path / "run", epochs=2, average=average, precision="float32", quiet=True)
    rows = run.history_rows()
    assert all(row["val_top1"] > row["train_top1"] - 0.05 for row in rows)
    assert run.summary is not None
    assert run.summary["top1"] > rows[-1]["train_top1"] - 0.05
