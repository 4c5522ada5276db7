from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from resnetlab import create_model, load_data
from resnetlab.core.errors import UserError
from resnetlab.core.randomness import torch_seeded
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.studies.gradients import (
    STATES,
    autocorrelation,
    block_gradients,
    gradients,
    judge,
    line_gradients,
    settled,
)
from resnetlab.studies.lab.plan import Plan
from resnetlab.studies.lab.question import FAILS, HOLDS, OPEN

CONFIG = ResNetConfig(depths=(2, 1), widths=(4, 8), stem="cifar", shortcut="A", in_channels=1, num_classes=3)
PLAN = Plan(images=64, epochs=1)


@pytest.fixture
def model() -> ResNet:
    with torch_seeded(0, "test"):
        return ResNet(CONFIG).double()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(32, 1, 8, 8)))


@pytest.mark.slow
def test_the_study_measures_before_and_after_training(tmp_path: Path):
    few = load_data("digits", limit=64, validation_fraction=0.0)
    result = gradients(few, depths=(14, 8), out=tmp_path / "s", seeds=1, plan=PLAN, quiet=True)
    table = result.table
    assert len(table) == 8
    assert set(table["state"]) == set(STATES)
    assert table["test_error"].notna().tolist() == (table["state"] == "trained").tolist()
    assert table["autocorrelation"].between(-1, 1).all()
    assert (table["norm_ratio"] > 0).all()
    start = table[table["state"] == STATES[0]].set_index(["network", "depth"])["autocorrelation"]
    assert start["residual", 14] > start["plain", 14]
    assert result.verdict.claim == OPEN  # of one seed nothing is certain
    assert "autocorrelation" in result.verdict.reason
    assert {path.name for path in result.folder.glob("*.png")} == {"gradients.png", "norms.png"}


def test_equal_gradients_correlate_and_white_noise_does_not():
    equal = torch.ones(9, 5, dtype=torch.float64)
    np.testing.assert_allclose(autocorrelation(equal), 1)
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 20_000)))
    found = autocorrelation(noise)
    assert found[0] == 1
    assert abs(found[1:]).max() < 0.03


def test_alternating_gradients_correlate_with_alternating_signs():
    signs = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    np.testing.assert_allclose(autocorrelation(signs), [1, -1, 1, -1])


def test_gradients_along_a_line_are_those_of_each_place(model: ResNet, images: torch.Tensor):
    model = settled(model, images)
    found = line_gradients(model, images[0], images[1], 5, 2)
    assert found.shape == (5, 64)
    for place, fraction in ((0, 0.0), (1, 0.25), (4, 1.0)):
        image = ((1 - fraction) * images[:1] + fraction * images[1:2]).requires_grad_()
        model(image)[0, 2].backward()
        assert image.grad is not None
        torch.testing.assert_close(found[place], image.grad.flatten(), rtol=1e-9, atol=1e-12)


def test_settled_statistics_are_those_of_the_images(model: ResNet, images: torch.Tensor):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = settled(model, images)
    assert not found.training
    stem = torch.nn.functional.conv2d(images, model.get_submodule("conv1").weight, padding=1)  # type: ignore[arg-type]
    torch.testing.assert_close(found.get_submodule("bn1").running_mean, stem.mean((0, 2, 3)))
    torch.testing.assert_close(found.get_submodule("bn1").running_var, stem.transpose(0, 1).flatten(1).var(1))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_block_gradients_are_norms_by_image(model: ResNet, images: torch.Tensor):
    model, labels = settled(model, images), torch.arange(4) % 3
    found = block_gradients(model, images[:4], labels)
    assert list(found) == ["stem", "stage1.block1", "stage1.block2", "stage2.block1"]
    norms = []
    for image, label in zip(images[:4], labels, strict=True):
        taps = model.features(image[None])
        loss = torch.nn.functional.cross_entropy(taps["logits"], label[None])
        norms.append(float(torch.autograd.grad(loss, taps["stage1.block2"])[0].norm()))
    assert found["stage1.block2"] == pytest.approx(np.mean(norms))


def test_gradients_of_a_deep_plain_network_shatter():
    """Balduzzi et al. on digits: at 56 layers those of the plain network are white noise, the residual's are not."""
    data = load_data("digits", limit=64, validation_fraction=0.0)
    images = data.preprocessing.normalize(data.squares("train", torch.arange(64)), torch.float32)
    near = {}
    for name in ("plain56", "resnet56"):
        with torch_seeded(0, "test"):
            model = settled(create_model(name, in_channels=1), images)
        curves = [autocorrelation(line_gradients(model, images[at], images[at + 1], 33, 0)) for at in range(6)]
        near[name] = np.mean(curves, axis=0)[1]
    assert abs(near["plain56"]) < 0.1
    assert near["resnet56"] > 0.25


def rows(plain: tuple[float, float], residual: tuple[float, float], noise: float = 0.01) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "network": kind, "depth": depth, "state": state, "autocorrelation": value + sign * noise,
                "norm_ratio": 2.0,
            }
            for kind, values in (("plain", plain), ("residual", residual))
            for depth, value in zip((8, 56), values, strict=True)
            for state in STATES
            for sign in (-1, 1)
        ]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("plain", "residual", "claim"),
    [
        ((0.7, 0.0), (0.8, 0.3), HOLDS),
        ((0.7, 0.0), (0.8, -0.3), FAILS),
        ((0.3, 0.7), (0.8, 0.9), FAILS),
        ((0.7, 0.3), (0.8, 0.305), OPEN),
    ],
)
def test_the_verdict_is_by_what_depth_and_shortcuts_do_at_initialization(plain: tuple, residual: tuple, claim: str):
    assert judge(rows(plain, residual), [8, 56]).claim == claim


def test_one_seed_is_never_certain():
    one = rows((0.7, 0.0), (0.8, 0.3)).drop_duplicates(["network", "depth", "state"])
    assert judge(one, [8, 56]).claim == OPEN


def test_one_depth_is_refused():
    with pytest.raises(UserError, match=r"depths .* 2 .*\[20\]"):
        gradients(depths=(20,))
