# ruff: noqa: E501 -- sources are replaced by whole lines
"""Right networks have no fault, in whatever style they are written."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torchvision
from learners import BY_HAND, D2L, NESTED, RESNET18, RESNET50, UNITS, changed
from tests.sampling import sampled
from torch import nn

import resnetlab
from resnetlab.checking.check import check

HAND_CONV = """

class HandConv(nn.Module):
    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, bias=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size) * 0.05)
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x):
        n, c, h, w = x.shape
        columns = F.unfold(x, self.kernel_size, padding=self.padding, stride=self.stride)
        height = (h + 2 * self.padding - self.kernel_size) // self.stride + 1
        out = self.weight.flatten(1) @ columns
        return out.view(n, -1, height, out.shape[-1] // height)
"""
HAND_NORM = """

class HandNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))
        self.register_buffer("moving_mean", torch.zeros(channels))
        self.register_buffer("moving_var", torch.ones(channels))

    def forward(self, x):
        if self.training:
            mean = x.mean((0, 2, 3))
            var = x.var((0, 2, 3), unbiased=False)
            self.moving_mean.mul_(0.9).add_(mean.detach(), alpha=0.1)
            self.moving_var.mul_(0.9).add_(var.detach(), alpha=0.1)
        else:
            mean, var = self.moving_mean, self.moving_var
        x = (x - mean[None, :, None, None]) / torch.sqrt(var[None, :, None, None] + 1e-5)
        return x * self.gamma[None, :, None, None] + self.beta[None, :, None, None]
"""
IMPORT = "import torch.nn.functional as F\n"
STYLES = {
    "as written": (RESNET18, "resnet18"),
    "nearest": (RESNET18, "auto"),
    "a course's ResNet-50": (RESNET50, "resnet50"),
    "functional activations": (changed(RESNET18, ("self.relu(", "F.relu("), ("        self.relu = nn.ReLU()\n", "")), "resnet18"),
    "sum in place": (changed(RESNET18, ("out = out + identity", "out += identity")), "resnet18"),
    "torch.add": (changed(RESNET18, ("out = out + identity", "out = torch.add(identity, out)")), "resnet18"),
    "shortcut first": (changed(RESNET18, ("out = out + identity", "out = identity + out")), "resnet18"),
    "mean over places": (changed(RESNET18, ("x = self.avgpool(x)\n        x = torch.flatten(x, 1)", "x = x.mean(dim=(2, 3))")), "resnet18"),
    "mean twice": (changed(RESNET18, ("x = self.avgpool(x)\n        x = torch.flatten(x, 1)", "x = x.mean(3).mean(2)")), "resnet18"),
    "view": (changed(RESNET18, ("torch.flatten(x, 1)", "x.view(x.size(0), -1)")), "resnet18"),
    "squeeze": (changed(RESNET18, ("torch.flatten(x, 1)", "x.squeeze(3).squeeze(2)")), "resnet18"),
    "average pooling of the whole map": (changed(RESNET18, ("x = self.avgpool(x)", "x = F.avg_pool2d(x, x.shape[-1])")), "resnet18"),
    "blocks in a ModuleList": (
        changed(RESNET18, ("return nn.Sequential(*layers)", "return nn.ModuleList(layers)"),
                *((f"        x = self.layer{n}(x)\n", f"        for block in self.layer{n}:\n            x = block(x)\n") for n in (1, 2, 3, 4))),
        "resnet18",
    ),
    "explicit padding": (changed(RESNET18, ("self.conv1(x))))", "self.conv1(F.pad(x, (3, 3, 3, 3))))))"), ("stride=2, padding=3,", "stride=2,")), "resnet18"),
    "padding as text": (changed(RESNET18, ("out_channels, out_channels, 3, padding=1", 'out_channels, out_channels, 3, padding="same"')), "resnet18"),
    "activations in place": (changed(RESNET18, ("nn.ReLU()", "nn.ReLU(inplace=True)")), "resnet18"),
    "clamp": (changed(RESNET18, ("return self.relu(out)", "return out.clamp(min=0)")), "resnet18"),
    "hand-written convolution": (changed(RESNET18, (IMPORT, IMPORT + HAND_CONV), ("nn.Conv2d(out", "HandConv(out"), ("nn.Conv2d(in", "HandConv(in")), "resnet18"),
    "hand-written normalization": (changed(RESNET18, (IMPORT, IMPORT + HAND_NORM), ("nn.BatchNorm2d(", "HandNorm(")), "resnet18"),
    "dropout in the head": (changed(RESNET18, ("return self.fc(x)", "return self.fc(F.dropout(x, 0.2, self.training))")), "resnet18"),
    "zero-initialized branches": (changed(RESNET18, ("        self.bn2 = nn.BatchNorm2d(out_channels)\n", "        self.bn2 = nn.BatchNorm2d(out_channels)\n        nn.init.zeros_(self.bn2.weight)\n")), "resnet18"),
    "d2l": (D2L, "auto"),
    "d2l against the paper": (D2L, "resnet18"),
    "units": (UNITS, "resnet18"),
    "nested": (NESTED, "resnet18"),
    "by hand, with a product of matrices": (BY_HAND, "resnet50"),
    "sum by name": (changed(UNITS, ("F.relu(h + skip)", "F.relu(torch.add(h, other=skip))")), "resnet18"),
    "Python's sum": (changed(UNITS, ("F.relu(h + skip)", "F.relu(sum([h, skip]))")), "resnet18"),
    "sum of a stack": (changed(UNITS, ("F.relu(h + skip)", "F.relu(torch.stack([h, skip]).sum(0))")), "resnet18"),
    "rectified by a mask": (changed(UNITS, ("return F.relu(h + skip)", "h = h + skip\n        return h * (h > 0)")), "resnet18"),
    "rectified by where": (changed(UNITS, ("return F.relu(h + skip)", "h = h + skip\n        return torch.where(h > 0, h, 0.0)")), "resnet18"),
    "average as a sum": (changed(UNITS, ("h.mean(dim=(-2, -1))", "h.sum((2, 3)) / (h.shape[2] * h.shape[3])")), "resnet18"),
    "einsum": (changed(UNITS, ("return self.head(h)", 'return torch.einsum("nd,cd->nc", h, self.head.weight) + self.head.bias')), "resnet18"),
    "also features": (changed(RESNET18, ("return self.fc(x)", "return self.fc(x), x")), "resnet18"),
    "computed weights": (
        changed(BY_HAND, ("return F.conv2d(X, self.W,", "W = self.W - self.W.mean((1, 2, 3), keepdim=True)\n        return F.conv2d(X, W,")), "resnet50",
    ),
    "number of classes": (changed(RESNET18, ("num_classes=10", "num_classes")), "resnet18"),
}  # fmt: skip

# One network for each way of writing a whole one, and those that no other case resembles.
KINDS = ("a course's ResNet-50", "d2l", "units", "nested", "hand-written convolution", "computed weights")


@pytest.mark.slow
@pytest.mark.parametrize("style", sampled(STYLES, 12, keep=KINDS))
def test_a_style_is_no_fault(style: str, tmp_path: Path):
    source, like = STYLES[style]
    path = tmp_path / "right.py"
    path.write_text(source)
    report = check(str(path), like, image_size=64)
    assert report.ok, report
    if style == "computed weights":
        assert "not compared" in report.verdict
    elif like == "resnet18" and source is not D2L and "dropout" not in style:
        assert report.findings == [], report
        assert len(report.key_map) >= 62


@pytest.mark.slow
@pytest.mark.parametrize("name", sampled(["resnet18", "resnext50_32x4d", "wide_resnet50_2", "resnet50"], 3))
def test_torchvision_is_right(name: str):
    report = check(getattr(torchvision.models, name), name, image_size=32)
    assert report.findings == [], report


@pytest.mark.slow
@pytest.mark.parametrize("name", sampled(["resnet18d", "resnet26", "seresnet18", "resnet18", "resnetv2_18"], 3))
def test_timm_is_right(name: str):
    known = {"resnetv2_18": "resnetv2_18", "seresnet18": "seresnet18"}
    if known.get(name, name) not in timm.list_models():
        pytest.skip("this timm does not have it")
    report = check(timm.create_model(known.get(name, name)), name, image_size=64)
    assert report.ok, report


OURS = ["resnet18", "resnetv2_18", "seresnet18", "resnet18d", "resnet20", "plain20", "scratch_resnet50"]


@pytest.mark.parametrize("network", sampled([f"{name} {parts}" for name in OURS for parts in ("torch", "scratch")], 9))
def test_ours_is_right(network: str):
    name, parts = network.split()
    model = resnetlab.create_model(name, parts=parts)
    assert check(model, name, image_size=32).findings == []


def own_design():
    """A network of basic blocks for small images, wider than resnet20 and with fewer blocks."""
    config = resnetlab.ResNetConfig(block="basic", depths=(2, 2, 2), widths=(32, 64, 128), stem="cifar", shortcut="B")
    return resnetlab.ResNet(config)


def test_a_design_of_its_own_is_not_called_wrong():
    report = resnetlab.check(own_design)
    assert report.ok
    assert {finding.title for finding in report.findings} >= {"2 blocks instead of 1"}
    named = resnetlab.check(own_design, like="resnet20")
    assert {finding.found for finding in named.faults} == {"2 blocks", "32 channels", "64 channels", "128 channels"}
    assert all(finding.proved for finding in named.faults)


def test_a_network_that_resembles_nothing_is_not_compared():
    report = resnetlab.check(
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    )
    assert report.ok
    assert not report.key_map


@pytest.mark.slow
def test_another_architecture_is_named_once():
    report = resnetlab.check(torchvision.models.resnet18(num_classes=10), like="resnet50", image_size=64)
    assert [finding.title for finding in report.findings] == ["another architecture than resnet50"]
    assert "resnet18" in report.faults[0].suggestion
