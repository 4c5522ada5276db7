from __future__ import annotations

import pytest
import torch
from tests.facts import refuses

import resnetlab
from resnetlab.models.surgery import freeze, parameter_groups


def _rates(groups: list[dict]) -> dict[str, float]:
    return {group["name"]: group["lr"] for group in groups if not group["name"].endswith("shifts")}


def test_every_stage_has_its_rate_in_the_optimizer_itself():
    model = resnetlab.create_model("resnet18", num_classes=10)
    freeze(model, "stem")
    rates = {"stage1": 1e-5, "stage2": 2e-5, "stage3": 5e-5, "stage4": 1e-4}
    optimizer = torch.optim.SGD(parameter_groups(model, 1e-3, rates=rates, weight_decay=0.1), lr=1.0)
    assert _rates(optimizer.param_groups) == {**rates, "head": 1e-3}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(
        [parameter for parameter in model.parameters() if parameter.requires_grad]
    )
    for group in optimizer.param_groups:
        assert group["weight_decay"] == (0 if group["name"].endswith("shifts") else 0.1)
        assert all((parameter.ndim <= 1) == group["name"].endswith("shifts") for parameter in group["params"])
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.zero_grad = None
    for group in optimizer.param_groups:
        group["weight_decay"] = 0
    optimizer.step()
    moved = {name: (before[name] - parameter).abs().max().item() for name, parameter in model.named_parameters()}
    assert moved["conv1.weight"] == 0
    assert moved["layer2.0.bn1.weight"] == pytest.approx(2e-5, rel=0.01)
    assert moved["layer4.1.conv2.weight"] == pytest.approx(1e-4, rel=0.01)
    assert moved["fc.bias"] == pytest.approx(1e-3, rel=0.01)


def test_layer_decay_falls_from_the_head_to_the_stem():
    model = resnetlab.create_model("resnetv2_18")
    rates = _rates(parameter_groups(model, 0.1, layer_decay=0.5))
    assert rates == pytest.approx(
        {"stem": 0.1 / 32, "stage1": 0.1 / 16, "stage2": 0.1 / 8, "stage3": 0.1 / 4, "stage4": 0.1 / 2, "head": 0.1}
    )


def test_every_parameter_is_in_one_group():
    model = resnetlab.create_model("seresnet50", preactivation=True, activation="prelu")
    parameters = [parameter for group in parameter_groups(model, 0.1) for parameter in group["params"]]
    assert len(parameters) == len(set(parameters)) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ({"rates": {"stage5": 0.1}}, ("section 'stage5'", "Did you mean 'stage")),
        ({"rates": {"stem": 0}}, ("stem", "above 0", "got 0")),
        ({"rates": {"stem": 0.1}, "layer_decay": 0.5}, ("rates", "layer_decay")),
        ({"layer_decay": 1.5}, ("layer_decay", "above 0 and at most 1", "got 1.5")),
        ({"lr": -1}, ("lr", "above 0", "got -1")),
    ],
)
def test_rates_are_checked(arguments: dict, facts: tuple[str, ...]):
    with refuses(*facts):
        parameter_groups(resnetlab.create_model("resnet18"), **{"lr": 0.1, **arguments})


def test_a_network_that_is_all_frozen_has_nothing_to_train():
    model = freeze(resnetlab.create_model("resnet20"), "stem", "stage1", "stage2", "stage3", "head")
    with refuses("frozen", "Unfreeze"):
        parameter_groups(model, 0.1)
