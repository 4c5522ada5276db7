"""Exceptions in code of yours: the shell says where they were raised, and does not call them a bug of the program."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import resnetlab
from resnetlab.core.imports import forget_import
from resnetlab.core.own_code import place_in_your_code
from resnetlab.training.registration import REGISTRIES

Cli = Callable[..., tuple[int, str, str]]
CODE = """import torch, resnetlab
@resnetlab.register("loss", "mistaken")
def loss(logits, labels):
    raise ValueError("my own mistake")
@resnetlab.register("optimizer", "mistaken")
class Optimizer(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
    def step(self):
        raise KeyError("my own mistake")
@resnetlab.register("augmentation", "mistaken")
def augmentation(images, generator):
    return open("my own mistake")
@resnetlab.register("schedule", "mistaken")
def schedule(progress):
    return 1 if progress == 0 else {}["my own mistake"]
class Network(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = torch.nn.Linear(64, num_classes)
    def forward(self, x):
        if len(x) > 2:
            raise IndexError("my own mistake")
        return self.head(x.flatten(1))
"""
SHORT = ("--limit", 40, "--epochs", 1, "--batch-size", 16)


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    yield path
    for registry in REGISTRIES.values():
        for name in registry.added:
            registry.remove(name)
    forget_import(str(path))


@pytest.mark.parametrize(
    ("options", "line", "kind"),
    [
        (["--set", "loss=mistaken"], 4, "ValueError"),
        (["--set", "optimizer=mistaken"], 10, "KeyError"),
        (["--set", 'augment.steps=["mistaken"]'], 13, "FileNotFoundError"),
        (["--set", "schedule=mistaken"], 16, "KeyError"),
        (["--model", "FILE:Network"], 23, "IndexError"),
    ],
)
def test_an_exception_in_your_code_is_shown_with_its_place(
    options: list[str], line: int, kind: str, mine: Path, tmp_path: Path, cli: Cli
):
    options = [option.replace("FILE", str(mine)) for option in options]
    code, _, said = cli("train", "digits", *SHORT, "--import", mine, *options, "--out", tmp_path / "run")
    words = " ".join(said.split())
    assert (code, f"mine.py:{line}: {kind}" in words, "my own mistake" in words) == (1, True, True), said
    assert "This is a bug" not in words


def test_a_file_that_cannot_be_imported_is_shown_with_its_line(tmp_path: Path, cli: Cli):
    path = tmp_path / "mine.py"
    path.write_text("\nimport nosuchmodule\n")
    code, _, said = cli("list", "parts", "--import", path)
    words = " ".join(said.split())
    assert (code, "mine.py:2" in words, "ModuleNotFoundError" in words) == (2, True, True), said
    assert "arguments of the network" not in words


def test_a_file_given_twice_is_executed_once(mine: Path, cli: Cli):
    code, _, said = cli("list", "parts", "--import", mine, "--import", mine)
    assert (code, said.count("executing")) == (0, 1), said


@pytest.mark.parametrize(
    "call", [partial(resnetlab.create_model, "none"), partial(json.loads, "{"), partial(np.stack, [])]
)
def test_code_of_python_and_packages_is_not_yours(call: Callable[[], object]):
    with pytest.raises(ValueError) as caught:
        call()
    here = caught.value.__traceback__
    assert here is not None
    assert str(place_in_your_code(caught.value)).startswith(__file__)
    assert place_in_your_code(caught.value.with_traceback(here.tb_next)) is None
