"""A network altered by hand is refused before it is trained or saved; surgery that keeps its configuration is not."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import MethodType

import pytest
import torch
from tests.conftest import TINY
from tests.facts import refuses
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm

import resnetlab
from resnetlab.data.storage.store import ImageData
from resnetlab.models.blocks import BasicBlock, Flow
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.models.surgery import adapt_input_channels, deepen, freeze, reset_head
from resnetlab.training.fit import fit
from resnetlab.training.lr_finder import find_lr
from resnetlab.training.overfit import overfit_one_batch
from resnetlab.weights.file import load, save


def _model(**fields: object) -> ResNet:
    torch.manual_seed(0)
    return ResNet(dataclasses.replace(TINY, **fields))


def _head(model: ResNet) -> None:
    model.fc = nn.Sequential(nn.Dropout(), nn.Linear(8, 10))


def _group_norm(model: ResNet) -> None:
    model.layer1[0].bn1 = nn.GroupNorm(2, 4)


def _pruned(model: ResNet) -> None:
    prune.l1_unstructured(model.layer2[0].conv1, "weight", 0.5)


def _spectral(model: ResNet) -> None:
    spectral_norm(model.fc)


def _parametrized(model: ResNet) -> None:
    parametrizations.weight_norm(model.fc)


def _leaky(model: ResNet) -> None:
    model.layer1[0].act1 = nn.LeakyReLU(0.01)


def _max_pooled(model: ResNet) -> None:
    model.avgpool = nn.AdaptiveMaxPool2d(1)


def _hooked(model: ResNet) -> None:
    model.layer1.register_forward_hook(lambda _, __, output: output * 0.5)


def _hooked_in_training(model: ResNet) -> None:
    model.layer2.register_forward_hook(lambda module, _, output: output * 0.5 if module.training else output)


def _another_forward(model: ResNet) -> None:
    model.layer2[0].forward = MethodType(lambda _, x: torch.zeros(len(x), 8, 4, 4, dtype=x.dtype), model.layer2[0])


def _momentum(model: ResNet) -> None:
    model.bn1.momentum = 0.01


def _shared(model: ResNet) -> None:
    model.layer2[0].bn2 = model.layer2[0].bn1


def _deeper(model: ResNet) -> None:
    model.layer1.append(copy.deepcopy(model.layer1[0]))


def _more_classes(model: ResNet) -> None:
    model.fc = nn.Linear(8, 11)


ALTERED: dict[str, tuple[Callable[[ResNet], None], str]] = {
    "a head of two layers": (_head, "fc is Sequential"),
    "group normalization": (_group_norm, "layer1.0.bn1 is GroupNorm"),
    "pruning": (_pruned, "layer2.0.conv1.weight"),
    "spectral normalization": (_spectral, "fc.weight"),
    "a parametrization": (_parametrized, "fc is"),
    "leaky ReLU": (_leaky, "layer1.0.act1 is LeakyReLU"),
    "maximum pooling": (_max_pooled, "avgpool is AdaptiveMaxPool2d"),
    "a hook": (_hooked, "layer1 computes other values"),
    "a hook that acts in training": (_hooked_in_training, "layer2 computes other values in training"),
    "another forward method": (_another_forward, "layer2.0"),
    "another momentum": (_momentum, "bn1 is BatchNorm2d(4, eps=1e-05, momentum=0.01"),
    "a layer used twice": (_shared, "layer2.0.bn2"),
    "one more block": (_deeper, "layer1.1 is BasicBlock"),
    "one more class": (_more_classes, "fc is Linear(in_features=8, out_features=11"),
}


@pytest.mark.parametrize(("alter", "place"), ALTERED.values(), ids=ALTERED)
def test_an_altered_network_is_refused_before_the_first_step(
    digits: ImageData, tmp_path: Path, alter: Callable[[ResNet], None], place: str
):
    model = _model()
    alter(model)
    facts = (place, "ResNetConfig", "register_block", "fit(nn.Sequential(model)")
    with refuses(*facts):
        fit(model, digits, out=tmp_path / "run", quiet=True)
    with refuses(*facts):
        overfit_one_batch(model, digits)
    with refuses(*facts):
        find_lr(model, digits)
    with refuses(*facts):
        save(tmp_path / "model.safetensors", model)
    assert list(tmp_path.iterdir()) == []


class Subclass(ResNet):
    """A network that doubles its logits."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        return 2 * super().forward(images)


def test_a_subclass_that_computes_something_else_is_refused(tmp_path: Path):
    with refuses("the network itself computes other values"):
        save(tmp_path / "model.safetensors", Subclass(TINY))


class Drawing(BasicBlock):
    """A registered block that counts, and draws random numbers of its own."""

    def flow(self, x: Tensor) -> Flow:
        self.passes = getattr(self, "passes", 0) + 1
        return super().flow(nn.functional.dropout(x, 0.1, self.training))


def _registered() -> ResNet:
    resnetlab.register_block("drawing", Drawing)
    return _model(block="drawing")


def _loaded_weights() -> ResNet:
    model = _model()
    model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()})
    return model


def _initialized() -> ResNet:
    model = _model()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def _observed() -> ResNet:
    model, seen = _model(), []
    model.layer1.register_forward_hook(lambda _, __, output: seen.append(output.mean()))
    return model


def _torchs_convolution() -> ResNet:
    model = _model()
    model.conv1 = nn.Conv2d(1, 4, 3, padding=1, bias=False)
    return model


def _partly_frozen() -> ResNet:
    model = _model()
    model.layer1.requires_grad_(False)
    return model


HONEST: dict[str, Callable[[], ResNet]] = {
    "as built": _model,
    "another head": lambda: reset_head(_model(num_classes=3), 10),
    "other channels": lambda: adapt_input_channels(_model(in_channels=3), 1),
    "frozen": lambda: freeze(_model(), "stem", "stage1"),
    "deepened": lambda: deepen(_model(drop_path=0.3, drop_block=((0.2, 3), (0.1, 2))), 1),
    "a registered block": _registered,
    "loaded weights": _loaded_weights,
    "weights drawn by hand": _initialized,
    "in evaluation mode": lambda: _model().eval(),
    "float64": lambda: _model().double(),
    "bfloat16": lambda: _model().bfloat16(),
    "channels_last": lambda: _model().to(memory_format=torch.channels_last),  # type: ignore[call-overload]
    "parameters without gradients": _partly_frozen,
    "a hook that only observes": _observed,
    "torch's own convolution": _torchs_convolution,
    "from scratch": lambda: _model(parts="scratch"),
    "a deep copy": lambda: copy.deepcopy(_model()),
}


@pytest.mark.parametrize("make", HONEST.values(), ids=HONEST)
def test_a_network_that_its_configuration_builds_is_saved_and_left_unchanged(
    tmp_path: Path, make: Callable[[], ResNet]
):
    model = make()
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    torch.manual_seed(7)
    state = torch.get_rng_state()
    save(tmp_path / "model.safetensors", model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())
    images = torch.randn(2, model.config.in_channels, 8, 8)
    torch.testing.assert_close(load(tmp_path / "model.safetensors")(images), model.float().eval()(images))


@pytest.mark.parametrize("make", HONEST.values(), ids=HONEST)
def test_it_is_trained(digits: ImageData, make: Callable[[], ResNet]):
    assert len(overfit_one_batch(make(), digits, steps=1, batch_size=64).losses) == 1


def test_an_altered_network_trains_as_a_module_of_the_user(digits: ImageData, tmp_path: Path):
    model = _model()
    _head(model)
    run = fit(nn.Sequential(model), digits, out=tmp_path / "run", epochs=1, batch_size=256, quiet=True)
    other = _model()
    _head(other)
    loaded = resnetlab.load(run, model=nn.Sequential(other))
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(loaded(images), model.float().eval()(images))


def test_configurations_of_every_stem_are_proven(tmp_path: Path):
    for stem in ("imagenet", "deep"):
        config = ResNetConfig(depths=(1, 1, 1), widths=(4, 4, 4), stem=stem, num_classes=0, preactivation=True)
        save(tmp_path / f"{stem}.safetensors", ResNet(config))
        assert (tmp_path / f"{stem}.safetensors").is_file()
