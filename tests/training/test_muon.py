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
from resnetlab.training.update_rules import _POLYNOMIALS, Muon


def update(gradient: torch.Tensor, layout: torch.memory_format = torch.channels_last, **settings: int) -> torch.Tensor:
    """What a step with learning rate 1 subtracts from a kernel of zeros that has this gradient."""
    kernel = nn.Parameter(torch.zeros_like(gradient).contiguous(memory_format=layout))
    kernel.grad = gradient.contiguous(memory_format=layout)
    Muon([kernel], lr=1.0, momentum=0.0, nesterov=False, **settings).step()
    return -kernel.detach()


def by_singular_values(gradient: torch.Tensor, count: int) -> torch.Tensor:
    """The update of a kernel by its definition: each block's singular values, mapped by the polynomials as numbers."""
    blocks = []
    for block in gradient.flatten(1).chunk(count):
        left, values, right = torch.linalg.svd(block, full_matrices=False)
        values = values / (values**8).sum() ** (1 / 8)
        for first, third, fifth in _POLYNOMIALS:
            values = first * values + third * values**3 + fifth * values**5
        blocks.append(max(1.0, len(block) / block[0].numel()) ** 0.5 * left @ values.diag() @ right)
    return torch.cat(blocks).view(gradient.shape)


@pytest.mark.parametrize(
    ("shape", "block_rows", "count"),
    [
        ((8, 4, 3, 3), 64, 1),
        ((64, 3, 3, 3), 64, 1),  # more rows than columns
        ((128, 10, 3, 3), 64, 2),
        ((128, 10, 3, 3), 128, 1),
        ((96, 8, 3, 3), 64, 2),  # two blocks of 48
        ((67, 8, 3, 3), 64, 1),  # equal blocks would have a single row
        ((48, 4, 1, 1), 16, 3),  # blocks with more rows than columns
        ((5, 1, 3, 3), 1, 5),
    ],
)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_blocks_of_rows_become_orthogonal(
    shape: tuple[int, ...], block_rows: int, count: int, layout: torch.memory_format
):
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = by_singular_values(gradient, count)
    torch.testing.assert_close(update(gradient, layout, block_rows=block_rows), wanted, rtol=1e-8, atol=1e-8)
    single = update(gradient.float(), layout, block_rows=block_rows)
    torch.testing.assert_close(single, wanted.float(), rtol=1e-3, atol=1e-3)
    assert not update(torch.zeros(shape), layout, block_rows=block_rows).any()


def test_the_update_of_a_kernel_is_about_as_long_in_blocks_as_in_one_piece():
    gradient = torch.randn(256, 64, 3, 3, generator=torch.Generator().manual_seed(0))
    lengths = [update(gradient, block_rows=rows).norm() / 256**0.5 for rows in (16, 64, 128, 256)]
    assert all(0.8 < length < 1.2 for length in lengths)


def test_no_other_polynomials_of_their_degree_are_closer_to_one():
    low, high = 0.01, 1.0
    for first, third, fifth in _POLYNOMIALS:
        points = torch.linspace(low, high, 100_001, dtype=torch.float64)
        errors = 1 - (first * points + third * points**3 + fifth * points**5)
        inside = errors[1:-1]
        turns = inside[(inside - errors[:-2]) * (inside - errors[2:]) > 0]
        extremes = torch.cat([errors[:1], turns, errors[-1:]])
        largest = errors.abs().max()
        # Chebyshev: the largest error, reached four times with alternating signs, is the least possible one.
        torch.testing.assert_close(extremes, largest * torch.tensor([1.0, -1.0, 1.0, -1.0]).double(), rtol=1e-2, atol=0)
        low, high = 1 - float(largest), 1 + float(largest)
    assert high < 1.28


def test_a_kernel_in_any_memory_layout_moves():
    gradient = torch.randn(64, 8, 3, 3)
    kernel = nn.Parameter(torch.zeros(8, 64, 3, 3).transpose(0, 1))
    kernel.grad = gradient
    Muon([kernel], lr=1.0, momentum=0.0, nesterov=False).step()
    torch.testing.assert_close(-kernel.detach(), update(gradient))


def test_a_kernel_moves_by_the_rate_however_long_its_gradient_is():
    gradient = torch.randn(16, 8, 3, 3)
    for length in (1e-6, 1e4, 1e8):
        torch.testing.assert_close(update(length * gradient), update(gradient), rtol=1e-3, atol=1e-3)
    assert update(1e-14 * gradient).norm() < 0.01  # as good as zero
    kernel = nn.Parameter(torch.ones(16, 8, 3, 3))
    kernel.grad = gradient
    Muon([kernel], lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.5).step()
    torch.testing.assert_close(kernel.detach(), 0.95 - 0.1 * update(gradient))


def test_blocks_have_at_least_one_row():
    with pytest.raises(ValueError, match="block_rows"):
        Muon([nn.Parameter(torch.zeros(1))], lr=0.1, block_rows=0)
    model = ResNet(TINY)
    assert build_optimizer(model, Recipe(optimizer="muon(block_rows=8)")).param_groups[0]["block_rows"] == 8


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
    got = torch.linalg.svdvals(update((left * values @ right.T)[..., None, None]).flatten(1))
    assert got.max() < 1.3
    assert (got > 0.7).sum() >= (values > 0.011).sum()


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
