"""Parts of your own: registered by kind and name, found by configurations, and removed again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from tests.facts import refuses
from torch import nn

import resnetlab
from resnetlab.core.registry import Registry
from resnetlab.training.registration import REGISTRIES


def mish2(x: torch.Tensor) -> torch.Tensor:
    """Twice the mish of x."""
    return 2 * nn.functional.mish(x)


class Wavy(nn.Module):
    """x plus its sine, times a learned factor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x + x.sin())


@pytest.fixture
def registered() -> Iterator[None]:
    resnetlab.register("activation", "mish2", mish2)
    assert resnetlab.register("activation", "wavy")(Wavy) is Wavy
    yield
    for name in ("mish2", "wavy"):
        resnetlab.unregister("activation", name)


@pytest.mark.parametrize("parts", ["torch", "scratch"])
@pytest.mark.parametrize("name", ["mish2", "wavy"])
def test_a_registered_activation_makes_networks(name: str, parts: str, registered: None, tmp_path):
    model = resnetlab.create_model("quick_resnet", activation=name, parts=parts, num_classes=4).eval()
    images = torch.randn(2, 3, 16, 16)
    resnetlab.save(tmp_path / "model.safetensors", model)
    assert torch.equal(resnetlab.load(tmp_path / "model.safetensors")(images), model(images))
    summary = str(resnetlab.summarize(model, (3, 16, 16)))
    assert "quick" in summary or "ResNet" in summary


def test_a_part_can_be_registered_before_anything_else():
    code = "import resnetlab; resnetlab.register('activation', 'mish2', lambda x: x); "
    code += "print(resnetlab.summarize(resnetlab.create_model('quick_resnet', activation='mish2'), (3, 8, 8)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_its_registration_a_file_says_what_is_missing(tmp_path):
    resnetlab.register("activation", "mish2", mish2)
    model = resnetlab.create_model("quick_resnet", activation="mish2", num_classes=4)
    resnetlab.save(tmp_path / "model.safetensors", model)
    resnetlab.unregister("activation", "mish2")
    with refuses("mish2", "resnetlab.register"):
        resnetlab.load(tmp_path / "model.safetensors")
    with refuses("mish2", "activation"):
        resnetlab.create_model("quick_resnet", activation="mish2")


def test_what_cannot_be_registered_or_removed(registered: None):
    with refuses("activations", "activation"):
        resnetlab.register("activations", "x", mish2)
    with refuses("'relu'", "another"):
        resnetlab.register("activation", "relu", mish2)
    with refuses("'mish2'", "unregister"):
        resnetlab.register("activation", "mish2", lambda x: x)
    with refuses("'a b'"):
        resnetlab.register("activation", "a b", mish2)
    with refuses("3", "class or a function"):
        resnetlab.register("activation", "three", 3)
    with refuses("'relu'", "built in"):
        resnetlab.unregister("activation", "relu")
    with refuses("'wavi'", "'wavy'"):
        resnetlab.unregister("activation", "wavi")


def test_the_same_definition_replaces_the_old_one(registered: None):
    again = type("Wavy", (Wavy,), {"__module__": Wavy.__module__, "__qualname__": Wavy.__qualname__})
    resnetlab.register("activation", "wavy", again)
    assert type(resnetlab.create_model("quick_resnet", activation="wavy").get_submodule("act1")) is again


def test_a_registry_reads_like_a_dict_and_describes_its_parts():
    registry = Registry("activation", {"relu": nn.ReLU})
    registry.add("mish2", mish2)
    assert list(registry) == ["relu", "mish2"]
    assert (registry["mish2"], registry.added, len(registry)) == (mish2, ("mish2",), 2)
    assert registry.describe("mish2") == "Twice the mish of x."
    registry.remove("mish2")
    assert dict(registry) == {"relu": nn.ReLU}


@pytest.mark.parametrize(("kind", "name"), [("activation", "relu"), ("loss", "focal")])
def test_a_built_in_name_cannot_be_replaced(kind: str, name: str):
    with refuses(name, "built in", "another name") as message:
        resnetlab.register(kind, name, lambda *values: values[0])
    assert "unregister" not in message()
    with refuses("'nope'", "none"):
        resnetlab.unregister(kind, "nope")


def test_the_options_of_a_part_are_those_that_can_be_set():
    def scaled(logits: torch.Tensor, labels: torch.Tensor, scale: float = 1.0, reduction: str = "none") -> torch.Tensor:
        return scale * nn.functional.cross_entropy(logits, labels, reduction=reduction)

    resnetlab.register("loss", "scaled", scaled)
    try:
        assert resnetlab.Recipe(loss="scaled(scale=2)").loss == "scaled(scale=2)"
        for option in ("scal", "logits"):
            with refuses(f"'{option}'", "Its options: scale.") as message:
                resnetlab.Recipe(loss=f"scaled({option}=2)")
            assert ("Did you mean 'scale'" in message()) == (option == "scal")
    finally:
        resnetlab.unregister("loss", "scaled")
    with refuses("unknown entry of augment.steps 'nope'", "invert"):
        resnetlab.Augmentation(steps=["nope"])  # type: ignore[arg-type]  # a list is a sequence too


@pytest.mark.parametrize("kind", ["normalization", "attention", "activation"])
def test_layers_are_checked_for_how_they_are_called(kind: str):
    class Awkward(nn.Module):
        def __init__(self, *, width: int) -> None:
            super().__init__()

    with refuses("'awkward'", "width" if kind == "activation" else "channels"):
        resnetlab.register(kind, "awkward", Awkward)
    assert "awkward" not in REGISTRIES[kind]


@pytest.mark.parametrize(("kind", "field"), [("normalization", "norm"), ("attention", "attention")])
def test_a_factory_must_return_a_module(kind: str, field: str):
    resnetlab.register(kind, "empty", lambda channels: None)
    try:
        with refuses("'empty'", "nn.Module", "None"):
            resnetlab.create_model("quick_resnet", **{field: "empty"})  # type: ignore[arg-type]  # the field varies
    finally:
        resnetlab.unregister(kind, "empty")


def test_arguments_of_the_wrong_type_are_refused(tmp_path):
    with refuses("on_epoch", "3"):
        resnetlab.fit("quick_resnet", "digits", on_epoch=3, out=tmp_path / "run")  # type: ignore[arg-type]
    with refuses("pattern", "5"):
        resnetlab.list_models(5)  # type: ignore[arg-type]
    data = resnetlab.load_data("digits", limit=20)
    for wrong in ("stripes", {"rotation": 10}, mish2):
        with refuses("augment", "Augmentation"):
            data.loader("train", batch_size=8, augment=wrong)  # type: ignore[arg-type]
