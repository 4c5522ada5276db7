"""Exceptions in code of yours: the shell says where they were raised, and does not call them a bug of the program."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from tests.conftest import TINY
from tests.facts import refuses
from torch import nn
from torch.nn import functional as F

import resnetlab
from resnetlab import Convolution, ResidualBlock
from resnetlab.cli.main import guarded
from resnetlab.core.imports import forget_import
from resnetlab.core.own_code import part_that_raised, place_in_your_code, recording_code, remember_code
from resnetlab.core.randomness import Draws
from resnetlab.core.registry import Call
from resnetlab.data.augment.policy import STEPS
from resnetlab.data.augment.steps import apply_step
from resnetlab.data.storage.store import ImageData
from resnetlab.models.adapters import ModuleConfig, ModuleNetwork
from resnetlab.training.losses import loss_for, losses_of
from resnetlab.training.registration import REGISTRIES
from resnetlab.training.schedule import read_schedule

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
    assert (code, f"mine.py:{line}: {kind}" in words, "my own mistake" in words) == (2, True, True), said
    assert "This is a bug" not in words
    assert "mistaken" in words or "Network" in words  # the part


WRONG: dict[str, Callable[[torch.Tensor], Any]] = {
    "None": lambda x: None,
    "str": lambda x: "text",
    "numpy.ndarray": lambda x: x.detach().numpy(),
    "int64": lambda x: x.long(),
    "float64": lambda x: x.double(),
    "tuple": lambda x: (x, x),
    "(1,": lambda x: x[:1],
}
"""What parts return instead of a tensor like `x`, by a fact of the message."""


class Mine:
    """Parts of each kind that return what `wrong` makes of a right value."""

    def __init__(self, wrong: Callable[[torch.Tensor], Any]) -> None:
        class Layer(nn.Module):
            def __init__(self, channels: int) -> None:
                super().__init__()

            def forward(self, x: torch.Tensor) -> Any:
                return wrong(x)

        class Activation(nn.Module):
            def forward(self, x: torch.Tensor) -> Any:
                return wrong(x)

        class Block(ResidualBlock):
            @classmethod
            def layout(cls, config: Any, site: Any) -> Any:
                return (Convolution(out_channels=config.output_width(site.width), kernel_size=3, stride=site.stride),)

        class NoFlow(Block):
            def flow(self, x: torch.Tensor) -> Any:
                return wrong(x)

        class Output(Block):
            def flow(self, x: torch.Tensor) -> Any:
                flow = super().flow(x)
                return flow._replace(output=wrong(flow.output))

        class Plain(nn.Module):
            def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: Any = None) -> None:
                super().__init__()
                self.conv = nn.Conv2d(inplanes, planes, 1, stride)

            def forward(self, x: torch.Tensor) -> Any:
                return wrong(self.conv(x))

        self.of_network = {
            "norm": ("normalization", Layer),
            "attention": ("attention", Layer),
            "activation": ("activation", Activation),
            "activation ": ("activation", lambda x: wrong(x)),
            "block": ("block", NoFlow),
            "block ": ("block", Output),
            "block  ": ("block", Plain),
        }


@pytest.fixture
def registered() -> Iterator[None]:
    yield
    for registry in REGISTRIES.values():
        for name in registry.added:
            registry.remove(name)


@pytest.mark.parametrize("fact", WRONG)
def test_a_part_that_returns_a_wrong_value_is_named(fact: str, registered: None):
    wrong = WRONG[fact]
    for number, (field, (kind, part)) in enumerate(Mine(wrong).of_network.items()):
        if fact == "tuple" and kind == "block":
            continue
        resnetlab.register(kind, f"mine{number}", part)
        overrides: dict[str, Any] = {"in_channels": 1, "num_classes": 3, field.strip(): f"mine{number}"}
        model = resnetlab.create_model("quick_resnet", **overrides)
        with refuses(kind, f"mine{number}", "test_own_code.py:", fact):
            model(torch.rand(2, 1, 8, 8))
        if fact not in ("numpy.ndarray", "(1,"):  # one image without values
            with refuses(kind, f"mine{number}", "test_own_code.py:", fact):
                resnetlab.summarize(model, (1, 8, 8))


@pytest.mark.parametrize("fact", [fact for fact in WRONG if fact != "float64"])
def test_a_wrong_value_of_a_recipe_is_named(fact: str, registered: None):
    wrong, logits, labels = WRONG[fact], torch.rand(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    resnetlab.register("loss", "mine", lambda x, y: wrong(F.cross_entropy(x, y, reduction="none")))
    with refuses("loss 'mine'", "test_own_code.py:", "(4,)", fact):
        losses_of(loss_for("mine", 0.0), logits, labels, "mine")
    resnetlab.register("augmentation", "mine", lambda x, generator: wrong(x > 0 if fact == "int64" else x))
    if fact != "int64":  # which has the values of an image
        with refuses("augmentation 'mine'", "test_own_code.py:", "(4, 1, 8, 8)", fact):
            apply_step(STEPS, Call("mine"), torch.rand(4, 1, 8, 8), Draws(0, epoch=0, step=0))
    resnetlab.register("schedule", "mine", lambda progress: wrong(torch.ones(2)) if progress else 1.0)
    with refuses("schedule 'mine'", "test_own_code.py:", fact):
        read_schedule("mine").learning_rate(0.1, 5, 10, epochs=2, warmup=0)


class Trained(nn.Module):
    """A network whose outputs in training are not its outputs in evaluation."""

    def __init__(self, num_classes: int, wrong: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.head, self.wrong = nn.Linear(64, num_classes), wrong

    def forward(self, x: torch.Tensor) -> Any:
        logits = self.head(input=x.flatten(1))
        return self.wrong(logits) if self.training else logits


@pytest.mark.parametrize("fact", [fact for fact in WRONG if fact != "float64"])
def test_a_network_that_returns_a_wrong_value_in_training_is_named(fact: str):
    network = ModuleNetwork(Trained(10, WRONG[fact]), ModuleConfig(factory="mine:Trained", num_classes=10)).train()
    with refuses("Trained", "training mode", "(N, 10)", fact):
        network(torch.rand(2, 1, 8, 8))
    assert network.eval()(torch.rand(2, 1, 8, 8), return_features=True)[1].shape == (2, 64)


def test_parts_without_a_gradient_are_named(registered: None, digits: ImageData, tmp_path: Path):
    settings = {"epochs": 1, "batch_size": 512, "quiet": True}

    class Reshaped(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            parameter = self.param_groups[0]["params"][0]
            parameter.data = parameter.data[:1]

    def detached(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.detach(), labels, reduction="none")

    def in_place(x: torch.Tensor) -> torch.Tensor:
        return x.sigmoid().mul_(2).sigmoid_().mul_(x)

    resnetlab.register("activation", "in_place", in_place)
    with refuses("loss 'detached'", "without a gradient"):
        resnetlab.fit(TINY, digits, out=tmp_path / "a", loss=detached, **settings)
    with refuses("optimizer 'Reshaped'", "shape"):
        resnetlab.fit(TINY, digits, out=tmp_path / "b", optimizer=Reshaped, **settings)
    with refuses("network", "without a gradient"):
        resnetlab.fit(Trained(10, torch.Tensor.detach), digits, out=tmp_path / "c", **settings)
    with pytest.raises(RuntimeError, match="inplace") as caught:
        resnetlab.fit(dataclasses.replace(TINY, activation="in_place"), digits, out=tmp_path / "d", **settings)
    assert "activation 'in_place'" in str(part_that_raised(caught.value))


PLAIN = """import sys, torch, resnetlab
resnetlab.register("normalization", "mine", torch.nn.LayerNorm)
resnetlab.register("loss", "mine", torch.nn.CrossEntropyLoss(weight=torch.ones(3)))
@resnetlab.register("activation", "mine")
def activation(x):
    sys.exit(3)
"""


@pytest.mark.parametrize(
    ("option", "part"),
    [("model.norm=mine", "normalization 'mine'"), ("loss=mine", "loss 'mine'"), ("model.activation=mine", "exit code")],
)
def test_a_layer_of_torch_that_does_not_fit_is_named(option: str, part: str, mine: Path, tmp_path: Path, cli: Cli):
    mine.write_text(PLAIN)
    code, _, said = cli("train", "digits", *SHORT, "--import", mine, "--set", option, "--out", tmp_path / "run")
    words = " ".join(said.split())
    assert (code, part in words.lower(), "This is a bug" in words) == (2, True, False), said


@pytest.mark.parametrize(
    ("error", "facts"),
    [
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), ("libtorch_cpu.so", "ulimit -v")),
        (ImportError("x.so: cannot open shared object file: Too many open files"), ("x.so", "ulimit -n")),
    ],
)
def test_a_limit_of_the_system_is_named(error: Exception, facts: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    def verb() -> None:
        raise error

    with pytest.raises(typer.Exit) as stop:
        guarded(verb)()
    said = capsys.readouterr().err
    assert (stop.value.exit_code, all(fact in said for fact in facts)) == (2, True), said


def test_the_code_that_a_command_executes_is_recorded():
    with recording_code() as outer:
        remember_code("outer.py")
        with recording_code() as inner:
            remember_code("inner.py")
        assert outer is inner and inner == ["outer.py", "inner.py"]
    remember_code("later.py")
    with recording_code() as fresh:
        assert fresh == []


def test_a_file_that_ends_the_program_is_named(tmp_path: Path, cli: Cli):
    (tmp_path / "mine.py").write_text("import sys\nsys.exit(0)\n")
    code, _, said = cli("list", "parts", "--import", tmp_path / "mine.py")
    assert (code, "mine.py:2" in " ".join(said.split())) == (2, True), said


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
