# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false, reportOptionalMemberAccess=false
"""Muon against its definition, worked out by singular values and by torch's own optimizers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.conftest import TINY
from torch import nn

from resnetlab.data.storage.store import ImageData
from resnetlab.models.resnet import ResNet
from resnetlab.training.fit import fit
from resnetlab.training.optimizers import build_optimizer
from resnetlab.training.recipe import Recipe
from resnetlab.training.step import check_memory_layout
from resnetlab.training.update_rules import Muon, orthogonal


@pytest.mark.parametrize("shape", [(8, 72), (64, 32), (30, 30), (1, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_orthogonal_matrix_has_the_same_singular_vectors_and_values_near_one(
    shape: tuple[int, int], dtype: torch.dtype
):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = orthogonal(matrix[None].to(dtype))[0].double()
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    clear = values > 0.05 * values.norm()
    found = torch.linalg.svdvals(got)[: clear.sum()]
    assert found.min() > 0.6 and found.max() < 1.25
    # In the basis of the singular vectors there is nothing off the diagonal.
    turned = left.T @ got @ right.T
    assert (turned - turned.diagonal().diag()).abs().max() < 1e-5
    assert not orthogonal(torch.zeros(2, *shape, dtype=dtype)).any()


def test_a_kernel_moves_by_the_rate_however_long_its_gradient_is():
    kernel = nn.Parameter(torch.randn(16, 8, 3, 3).to(memory_format=torch.channels_last))
    optimizer = Muon([kernel], lr=0.1, momentum=0.0, nesterov=False)
    gradient = torch.randn(16, 8, 3, 3)
    moves = []
    for length in (1e-4, 1e4):
        before = kernel.detach().clone()
        kernel.grad = length * gradient.to(memory_format=torch.channels_last)
        optimizer.step()
        moves.append((before - kernel.detach()) / 0.1)
    torch.testing.assert_close(*moves, rtol=1e-3, atol=1e-3)
    wanted = orthogonal(gradient.permute(0, 2, 3, 1).reshape(1, 16, -1)).reshape(16, 3, 3, 8).permute(0, 3, 1, 2)
    torch.testing.assert_close(moves[0], wanted, rtol=1e-3, atol=1e-3)
    tall = nn.Parameter(torch.zeros(64, 4, 1, 1))
    tall.grad = torch.randn(64, 4, 1, 1)
    Muon([tall], lr=1.0).step()
    values = torch.linalg.svdvals(tall.detach().flatten(1))
    assert ((values > 0.6 * 4) & (values < 1.25 * 4)).all()  # 4 is the root of 64 rows over 4 columns


@pytest.mark.parametrize("nesterov", [True, False])
def test_what_is_no_kernel_moves_as_in_gradient_descent(nesterov: bool):
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4)) for _ in range(2))
    muon = Muon([ours], lr=0.1, momentum=0.8, nesterov=nesterov)
    sgd = torch.optim.SGD([theirs], lr=0.1, momentum=0.8, nesterov=nesterov)
    for step in range(4):
        ours.grad = theirs.grad = torch.full((3, 4), 1.0 + step)
        muon.step()
        sgd.step()
    torch.testing.assert_close(ours, theirs)
    ours.grad = torch.zeros(3, 4)
    before = ours.detach().clone()
    Muon([{"params": [ours], "weight_decay": 0.5}], lr=0.1).step()
    torch.testing.assert_close(ours.detach(), 0.95 * before)


def test_kernels_of_a_shape_do_not_mix():
    gradients = [torch.randn(8, 4, 3, 3) for _ in range(3)]
    together, alone = ([nn.Parameter(torch.zeros(8, 4, 3, 3)) for _ in range(3)] for _ in range(2))
    for kernel, other, gradient in zip(together, alone, gradients, strict=True):
        kernel.grad, other.grad = gradient, gradient.clone()
        Muon([other], lr=1.0).step()
    Muon(together, lr=1.0).step()
    for kernel, other in zip(together, alone, strict=True):
        torch.testing.assert_close(kernel, other)


def test_tiny_singular_values_do_not_upset_it():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(size, 64, generator=generator))[0] for size in (64, 576))
    values = torch.logspace(0, -12, 64)
    got = torch.linalg.svdvals(orthogonal((left * values @ right.T)[None]))[0]
    assert got.max() < 1.25
    assert (got > 0.6).sum() >= (values > 0.003).sum()


def test_a_network_learns_with_it(digits: ImageData, tmp_path: Path):
    settings = {"optimizer": "muon", "lr": 0.1, "weight_decay": 0.01, "epochs": 8, "quiet": True}
    run = fit(TINY, digits, out=tmp_path / "run", **settings)
    assert run.history["train_top1"].iloc[-1] > 0.6
    model = ResNet(TINY).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, Recipe(optimizer="muon"))
    model(torch.randn(4, TINY.in_channels, 8, 8)).sum().backward()
    optimizer.step()
    check_memory_layout(optimizer)


@pytest.mark.parametrize("nesterov", [True, False])
def test_a_step_that_is_not_finite_is_left_out_without_looking_at_it(nesterov: bool):
    def moved(*, skips: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(8, 4, 3, 3)), nn.Parameter(torch.randn(5))]
        optimizer = Muon(parameters, lr=0.1, momentum=0.8, weight_decay=0.5, nesterov=nesterov)
        for step in range(3):
            is_bad = step == 1
            for parameter in parameters:
                gradient = torch.randn(parameter.shape)
                parameter.grad = gradient / 0 if is_bad else gradient
            if skips:
                optimizer.found_inf = torch.tensor(float(is_bad))  # type: ignore[attr-defined]
            if skips or not is_bad:
                optimizer.step()
        return [*parameters, *(optimizer.state[parameter]["momentum_buffer"] for parameter in parameters)]

    for ours, wanted in zip(moved(skips=True), moved(skips=False), strict=True):
        torch.testing.assert_close(ours, wanted)


def test_steps_do_not_import_the_compiler():
    program = """
import sys, torch
from resnetlab.training.update_rules import Muon
weight = torch.nn.Parameter(torch.ones(4, 4, 3, 3))
optimizer = Muon([weight], lr=0.1)
weight.sum().backward()
optimizer.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
