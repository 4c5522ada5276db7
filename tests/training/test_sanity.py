from __future__ import annotations

import pytest
import torch
from tests.conftest import TINY
from tests.facts import refuses

from resnetlab.data.storage.store import ImageData
from resnetlab.models.resnet import ResNet
from resnetlab.training.overfit import overfit_one_batch


def test_a_network_learns_one_batch_by_heart(digits: ImageData):
    result = overfit_one_batch("resnet20", digits, batch_size=32, precision="float32", overrides={"drop_path": 0.5})
    assert result.learned
    assert result.top1[-1] == 1
    assert result.images == 32
    assert len(result.losses) < 100
    assert f"32 images in {len(result.losses)} steps" in str(result)


def test_a_network_of_the_user_stays_as_it_is(digits: ImageData):
    torch.manual_seed(0)
    model = ResNet(TINY).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    overfit_one_batch(model, digits, steps=3, precision="float32")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training


def test_what_cannot_be_learned_is_told(digits: ImageData):
    result = overfit_one_batch(TINY, digits, lr=1e-6, steps=5, precision="float32")
    assert not result.learned
    assert "32 images in 5 steps" in str(result) or "256 images in 5 steps" in str(result)
    assert all(remedy in str(result) for remedy in ("find-lr", "inspect", "labels", "frozen"))


def test_overrides_are_for_a_network_given_by_name(digits: ImageData):
    with refuses("overrides", "name"):
        overfit_one_batch(TINY, digits, overrides={"shortcut": "B"})


@pytest.mark.slow
@pytest.mark.parametrize(("lr", "code", "fact"), [(0.2, 0, "learned 256 images"), (1e-6, 2, "find-lr")])
def test_the_command_line_tells_and_writes_nothing(cli, tmp_path, monkeypatch, lr: float, code: int, fact: str):
    monkeypatch.chdir(tmp_path)
    ended, _, err = cli("train", "digits", "--model", "quick_resnet", "--lr", lr, "--overfit-one-batch")
    assert ended == code
    assert fact in err
    assert not list(tmp_path.iterdir())
