"""Learning rates by section: those of sections without an entry, and the tutorial's in one option."""

from __future__ import annotations

import pytest
import torch

import resnetlab
from resnetlab.cli.options import read_assignments
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.data.batches import Batch
from resnetlab.models.resnet import ResNet
from resnetlab.training.machine import Machine
from resnetlab.training.optimizers import build_optimizer
from resnetlab.training.recipes import resolve_recipe
from resnetlab.training.sections import TrainedSections, recipe_rates
from resnetlab.training.step import training_step

TUTORIAL = "rates={stem=0, stage1=1e-5, stage2=2e-5, stage3=5e-5, stage4=1e-4, head=1e-3}"
SECTIONS = ("stem", "stage1", "stage2", "stage3", "stage4", "head")


@pytest.fixture
def model() -> ResNet:
    return resnetlab.create_model("resnet18", widths=(4, 8, 8, 8), num_classes=4)


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({"head": 0.1, "stage3": 0.01}, (0.01, 0.01, 0.01, 0.01, 0.05, 0.1)),
        ({"head": 0.01}, (0.01, 0.01, 0.01, 0.01, 0.01, 0.01)),
        ({"stage4": 0, "stage3": 0.02}, (0.02, 0.02, 0.02, 0.02, 0, 0.05)),
        ({"stem": 0.2}, (0.2, 0.05, 0.05, 0.05, 0.05, 0.05)),
        ({"layer_decay": 0.5}, (0.05 / 32, 0.05 / 16, 0.05 / 8, 0.05 / 4, 0.05 / 2, 0.05)),
        ({"layer_decay": 0.5, "stage3": 0.004}, (0.0005, 0.001, 0.002, 0.004, 0.025, 0.05)),
        ({"layer_decay": 0.5, "head": 0.2}, (0.05 / 32, 0.05 / 16, 0.05 / 8, 0.05 / 4, 0.05 / 2, 0.2)),
    ],
)
def test_earlier_sections_never_learn_faster_unless_you_say_so(
    model: ResNet, rates: dict[str, float], expected: tuple[float, ...]
):
    found = recipe_rates(resnetlab.Recipe(lr=0.05, rates=rates), model)
    assert tuple(found) == SECTIONS
    assert tuple(found.values()) == pytest.approx(expected)


def test_the_tutorials_rates_are_one_option(model: ResNet):
    recipe = resolve_recipe("imagenette-tutorial", **read_assignments([TUTORIAL]))
    machine = Machine(device="cpu", precision="float32", memory_format="contiguous", threads=torch.get_num_threads())
    TrainedSections(model, recipe).begin(0)
    optimizer = build_optimizer(model, recipe)
    training_step(
        model.train(),
        optimizer,
        Batch(step=0, images=torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8), labels=torch.arange(4)),
        preprocessing=Preprocessing(image_size=32, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3),
        recipe=recipe,
        machine=machine,
        lr=recipe.learning_rate(0, 100),
    )
    found = {group["name"].partition(" ")[0]: group["lr"] for group in optimizer.param_groups}
    expected = {"stage1": 1e-5, "stage2": 2e-5, "stage3": 5e-5, "stage4": 1e-4, "head": 1e-3}
    assert found == pytest.approx(expected, rel=1e-12)
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(p) for name, p in model.named_parameters() if not name.startswith(("conv1", "bn1"))}
    assert model.frozen == {"stem"}
