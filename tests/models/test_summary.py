from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import resnetlab
from resnetlab.core.errors import UserError


def test_a_summary_leaves_no_trace():
    model = resnetlab.create_model("resnet20")
    model.train()
    model.layer1.eval()
    calls: list[int] = []
    model.layer2.register_forward_hook(lambda *_: calls.append(1))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    resnetlab.summarize(model, (3, 32, 32))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert calls == []
    assert len(model.layer2._forward_hooks) == 1


@pytest.mark.parametrize("name", ["resnet18", "resnet56", "plain34"])
def test_macs_are_half_of_torchs_flops(name: str):
    model = resnetlab.create_model(name).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 47, 33))
    assert resnetlab.summarize(model, (3, 47, 33)).macs * 2 == counter.get_total_flops()


def test_the_table_tells_shapes_and_totals_within_a_hundred_columns():
    text = str(resnetlab.summarize(resnetlab.create_model("resnet50"), (3, 224, 224)))
    assert "layer2.0" in text
    assert "512x28x28" in text
    assert "25,557,032" in text
    assert "4,089,184,256" in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_input_shape_is_checked():
    model = resnetlab.create_model("resnet20")
    with pytest.raises(UserError, match=r"input_shape must be \(C, H, W\), got \(32, 32\)"):
        resnetlab.summarize(model, (32, 32))
    with pytest.raises(UserError, match=r"input_shape must be \(C, H, W\), got 32"):
        resnetlab.summarize(model, 32)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="summarize takes a network, got 'resnet20'"):
        resnetlab.summarize("resnet20", (3, 32, 32))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"expected images of shape \(N, 3, H, W\), got \(1, 1, 32, 32\)"):
        resnetlab.summarize(model, (1, 32, 32))
