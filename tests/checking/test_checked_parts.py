# ruff: noqa: E501, N803 -- lambdas in the styles of their authors
"""Single parts by hand: right ones pass, and typical faults are named."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnetlab import scratch
from resnetlab.checking.check import check


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0, **how: Any
) -> Tensor:
    kernel = weight.shape[-1]
    x = F.pad(x, (0, 2 * padding, 0, 2 * padding) if how.get("one_side") else (padding,) * 4)
    if how.get("flipped"):
        weight = weight.flip(2, 3)
    windows = x.unfold(2, kernel, stride).unfold(3, kernel, stride)
    y = torch.einsum("nchwij,ocij->nohw", windows, weight)
    return y if bias is None else y + bias[:, None, None]


class StridelessGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        context.save_for_backward(x, weight)
        context.stride, context.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        x, weight = context.saved_tensors
        gradient = gradients[0].repeat_interleave(context.stride, 2).repeat_interleave(context.stride, 3)
        gradient = gradient[:, :, : x.shape[2], : x.shape[3]]
        return (
            F.interpolate(gradient, x.shape[2:])[:, :1].expand_as(x) * weight.mean(),
            torch.zeros_like(weight),
            None,
            None,
        )


def strideless(x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    return StridelessGradient.apply(x, weight, stride, padding)  # type: ignore[return-value]


class Norm(nn.Module):
    how: str = ""
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, num_features, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, num_features, 1, 1))
        self.register_buffer("running_mean", torch.zeros(1, num_features, 1, 1))
        self.register_buffer("running_var", torch.ones(1, num_features, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return (x - self.running_mean) / (self.running_var + 1e-5).sqrt() * self.gamma + self.beta
        mean = x.mean((0, 2, 3), keepdim=True)
        centered = x - (mean.detach() if self.how == "cut" else mean)
        var = (centered**2).mean((0, 2, 3), keepdim=True)
        count = x.numel() / x.shape[1]
        unbiased = var * count / (count - 1)
        kept = 0.1 if self.how == "reversed" else 0.9
        with torch.no_grad():
            self.running_mean.copy_(kept * self.running_mean + (1 - kept) * mean)
            self.running_var.copy_(kept * self.running_var + (1 - kept) * (var if self.how == "biased" else unbiased))
        scale = (unbiased if self.how == "unbiased" else var).add(0 if self.how == "outside" else 1e-5).sqrt()
        return centered / (scale + (1e-5 if self.how == "outside" else 0)) * self.gamma + self.beta


class ByGradients(Norm):
    def forward(self, x: Tensor) -> Tensor:
        self.training = torch.is_grad_enabled()
        return super().forward(x)


class Biasless(nn.Module):
    def __init__(self, in_ch: int, out_ch: int, kernel_size: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_ch, in_ch, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_ch))
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, None, self.stride, self.padding)


def norm(how: str) -> type[Norm]:
    return type("Norm", (Norm,), {"how": how})


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    shifted = logits - logits.amax(1, keepdim=True)
    return -(shifted - shifted.exp().sum(1, keepdim=True).log())[range(len(labels)), labels].mean()


class AllTies(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        y = F.max_pool2d(x, 2)
        context.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        x, y = context.saved_tensors
        spread = [value.repeat_interleave(2, 2).repeat_interleave(2, 3) for value in (y, gradients[0])]
        spread = [F.pad(value, (0, x.shape[3] - value.shape[3], 0, x.shape[2] - value.shape[2])) for value in spread]
        return (x == spread[0]) * spread[1]


class MaxPool(nn.Module):
    kernel_size, stride, padding = 2, 2, 0

    def forward(self, x: Tensor) -> Tensor:
        return AllTies.apply(x)  # type: ignore[return-value]


class SGD:
    how: str = ""

    def __init__(self, params: Any, lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        self.params, self.lr, self.momentum, self.weight_decay = list(params), lr, momentum, weight_decay
        self.velocity = [torch.zeros_like(one) for one in self.params]

    def step(self) -> None:
        with torch.no_grad():
            for one, velocity in zip(self.params, self.velocity, strict=True):
                sign = -1 if self.how == "decay" else 1
                gradient = one.grad + sign * self.weight_decay * one
                if self.how == "damped":
                    gradient = gradient * (1 - self.momentum)
                velocity.mul_(self.momentum).add_(gradient)
                one -= (-1 if self.how == "ascent" else 1) * self.lr * velocity


def plain_sgd(params: Any, lr: float, batch_size: int) -> None:
    with torch.no_grad():
        for one in params:
            one -= lr * one.grad / batch_size
            one.grad.zero_()


class DropBlock(nn.Module):
    """As in a tutorial: one mask for all channels, centers anywhere, and twice the rate."""

    def __init__(self, block_size: int = 5, drop_prob: float = 0.25) -> None:
        super().__init__()
        self.block_size, self.drop_prob = block_size, drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        gamma = 2 * self.drop_prob / self.block_size**2
        centers = (torch.rand(x.shape[0], 1, *x.shape[2:]) < gamma).float()
        mask = 1 - F.max_pool2d(centers, self.block_size, 1, self.block_size // 2)
        return x * mask * mask.numel() / mask.sum()


def drop_path(x: Tensor, drop_prob: float = 0.0, training: bool = False) -> Tensor:
    if not training:
        return x
    keep = 1 - drop_prob
    return x * (torch.rand(len(x), 1, 1, 1) < keep) / keep


RIGHT: dict[str, list[Any]] = {
    "conv2d": [conv2d, nn.Conv2d, scratch.Conv2d, nn.Conv2d(2, 3, 3, 2, 1)],
    "linear": [nn.Linear, scratch.Linear, lambda x, w, b: x @ w.t() + b, lambda X, W, b: X @ W + b],
    "max_pool2d": [nn.MaxPool2d, scratch.MaxPool2d],
    "avg_pool2d": [nn.AvgPool2d],
    "batch_norm": [Norm, nn.BatchNorm2d, scratch.BatchNorm],
    "relu": [nn.ReLU, lambda x: x.clamp(min=0), nn.ReLU()],
    "softmax": [lambda x: x.softmax(1), lambda X: (X - X.amax(1, keepdim=True)).softmax(1)],
    "cross_entropy": [cross_entropy, nn.CrossEntropyLoss],
    "sgd": [SGD, torch.optim.SGD, plain_sgd],
    "drop_path": [drop_path],
}
WRONG: dict[str, tuple[str, Any, str]] = {
    "flipped": ("conv2d", lambda x, w, b, stride, padding: conv2d(x, w, b, stride, padding, flipped=True), "flipped"),
    "one side": ("conv2d", lambda x, w, b, stride, padding: conv2d(x, w, b, stride, padding, one_side=True), "one side"),
    "stride in the gradient": ("conv2d", strideless, "gradients"),
    "eps outside": ("batch_norm", norm("outside"), "outside the root"),
    "unbiased": ("batch_norm", norm("unbiased"), "unbiased"),
    "momentum": ("batch_norm", norm("reversed"), "other way round"),
    "cut gradient": ("batch_norm", norm("cut"), "through the mean"),
    "overflow": ("cross_entropy", lambda z, y: -(z.exp() / z.exp().sum(1, keepdim=True)).log()[range(len(y)), y].mean(), "overflow"),
    "bias that is not added": ("conv2d", Biasless, "bias"),
    "mode by gradients": ("batch_norm", ByGradients, "gradients are enabled"),
    "probabilities": ("cross_entropy", lambda p, y: -p[range(len(y)), y].log().mean(), "expects probabilities"),
    "classes": ("cross_entropy", lambda z, y: cross_entropy(z, y) / z.shape[1], "over classes"),
    "sum": ("cross_entropy", lambda z, y: cross_entropy(z, y) * len(y), "summed"),
    "softmax overflow": ("softmax", lambda x: x.exp() / x.exp().sum(1, keepdim=True), "overflow"),
    "softmax over images": ("softmax", lambda x: x.softmax(0), "images"),
    "all ties": ("max_pool2d", MaxPool(), "ties"),
    "ascent": ("sgd", type("S", (SGD,), {"how": "ascent"}), "added"),
    "damped": ("sgd", type("S", (SGD,), {"how": "damped"}), "damped"),
    "decay": ("sgd", type("S", (SGD,), {"how": "decay"}), "wrong sign"),
    "drop block": ("drop_block", DropBlock, "measured rate"),
    "whole batch": ("drop_path", lambda x, p, training: x * (torch.rand(1) < 1 - p) / (1 - p) if training else x, "each sample"),
    "not rescaled": ("drop_path", lambda x, p, training: x * (torch.rand(len(x), 1, 1, 1) < 1 - p) if training else x, "rescaled"),
    "keep": ("drop_path", lambda x, p, training: x * (torch.rand(len(x), 1, 1, 1) < p) / p if training else x, "to keep"),
    "random in evaluation": ("drop_path", lambda x, p, training: drop_path(x, p, True), "evaluation mode"),
}  # fmt: skip


@pytest.mark.parametrize(("part", "obj"), [(part, obj) for part, found in RIGHT.items() for obj in found])
def test_right_parts_have_no_fault(part: str, obj: Callable[..., Any]):
    report = check(obj, part)
    assert report.ok, report
    assert report.like == part


@pytest.mark.parametrize("name", WRONG)
def test_a_fault_is_named(name: str):
    part, obj, words = WRONG[name]
    report = check(obj, part)
    assert not report.ok
    assert words in " ".join(f"{finding.title} {finding.found}" for finding in report.faults[:2]), report
    assert report.faults[0].kind == "part"


def test_the_smallest_failing_input_is_shown():
    report = check(lambda x, w, b, stride, padding: conv2d(x, w.flip(2, 3), b, stride, padding), "conv2d")
    assert "(1, 1, 3, 3)" in report.faults[0].why
    assert math.isfinite(float(report.faults[0].found.rpartition(" ")[2]))


def test_gluon_is_a_variant():
    report = check(norm("biased"), "BatchNorm2d")
    assert report.ok and "biased" in report.findings[0].title
