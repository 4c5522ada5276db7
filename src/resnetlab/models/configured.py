"""The proof that a network is what its configuration builds, so that its file and its run open as the same network."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from resnetlab.core.errors import UserError
from resnetlab.models.network import Network
from resnetlab.models.parts import Conv2d
from resnetlab.models.resnet import ResNet
from resnetlab.models.stochastic import DropBlock

_ROOT = "the network itself"


def check_configured(model: Network) -> None:
    """Raises `UserError` unless a `ResNet` is what its configuration builds; other kinds are not checked.

    Layers, names and shapes are compared with those of a new network. Then both compute the outputs of all layers for
    two random images from the same tensors, in float64 on the CPU, in evaluation and in training mode. The network, its
    buffers, its mode and the random state are not changed.
    """
    if model.altered:
        raise UserError(
            f"{model.altered}, so its configuration no longer describes the network, and a file saved from it "
            "could not be loaded. Use the network that it was made from."
        )
    check_has_weights(model)
    if not isinstance(model, ResNet):
        return
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        built = ResNet(model.config)
    if difference := _different_layer(model, built) or _different_output(model, built):
        raise UserError(
            "the network was changed after it was built, so a saved file of it could not be loaded: "
            f"{difference}. Set a field of ResNetConfig instead, or register your own block with "
            "register_block and name it in the configuration. Or train it as your own module: "
            "fit(nn.Sequential(model), ...). To load it, pass the module again: load(run, "
            "model=nn.Sequential(model))."
        )


def check_has_weights(model: Network) -> None:
    """Raises `UserError` for a network on torch's meta device."""
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UserError("the network is on the meta device and has no weights. Build it on a real device.")


def _different_layer(model: nn.Module, built: nn.Module, name: str = "") -> str:
    """Returns the first difference in layers, names and shapes, in the order of the layers, or ""."""
    where = name or _ROOT
    if name and not _is_same_kind(model, built):
        return f"{where} is {_described(model)}, and the configuration builds {_described(built)}"
    for kind in ("parameters", "buffers"):
        ours, theirs = (
            {key: tuple(value.shape) for key, value in getattr(module, f"named_{kind}")(recurse=False)}
            for module in (model, built)
        )
        for key in [*theirs, *ours]:
            if ours.get(key) != theirs.get(key):
                there, expected = ours.get(key, "missing"), theirs.get(key, "none of this name")
                return f"{_joined(name, key)} is {there}, and the configuration builds {expected}"
    children, expected_children = dict(model.named_children()), dict(built.named_children())
    for key, expected in expected_children.items():
        if key not in children:
            return f"{_joined(name, key)} is missing or shared with another place, and the configuration builds it"
        if difference := _different_layer(children[key], expected, _joined(name, key)):
            return difference
    for key in children:
        if key not in expected_children:
            return f"{_joined(name, key)} is {_described(children[key])}, which the configuration does not build"
    if not name:
        return _different_names(model, built)
    return ""


def _different_names(model: nn.Module, built: nn.Module) -> str:
    """Returns the first tensor or layer that only one network has in its list, as with layers used in two places."""
    listings = (
        [[key for key, _ in module.named_modules()] for module in (model, built)],
        [[key for key, _ in module.named_parameters()] for module in (model, built)],
        [list(module.state_dict()) for module in (model, built)],
    )
    for ours, theirs in listings:
        if different := [key for key in theirs if key not in ours] + [key for key in ours if key not in theirs]:
            return f"{different[0]} is shared between two places, or saved under another name"
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for key, value in model.state_dict().items():
        if value.data_ptr() != tensors[key].data_ptr():
            return f"{key} is saved with other values, by a hook"
    return ""


def _different_output(model: ResNet, built: ResNet) -> str:
    """Returns the first layer whose output differs for the same tensors, or ""."""
    progress = next((layer.progress for layer in model.modules() if isinstance(layer, DropBlock)), 1.0)
    built.set_drop_progress(progress)
    tensors = _copied(model)
    for size in (16 if model.config.stem == "cifar" else 32, 224):
        try:
            for training in (False, True):
                expected = _outputs(built, tensors, size, training)
                if not _equal(expected, _outputs(built, tensors, size, training)):
                    continue  # a registered block draws from random numbers that are not torch's
                if difference := _compared(model, expected, tensors, size, training):
                    return difference
        except _CannotRun:
            continue  # a registered block may need larger images
        return ""
    return ""


class _CannotRun(Exception):  # noqa: N818 -- not a fault of the network
    """The network that the configuration builds does not take these images."""


def _compared(
    model: ResNet, expected: list[tuple[str, Tensor]], tensors: dict[str, Tensor], size: int, training: bool
) -> str:
    try:
        found = _outputs(model, tensors, size, training)
    except _CannotRun as error:
        return f"its forward pass fails, {error}"
    mode = "training" if training else "evaluation"
    for (name, output), (expected_name, expected_output) in zip(found, expected, strict=False):
        if name != expected_name or not _close(output, expected_output):
            return f"{name or _ROOT} computes other values in {mode} mode, by a hook or another forward method"
    return "" if len(found) == len(expected) else f"{_ROOT} runs other layers in {mode} mode"


def _outputs(model: ResNet, tensors: dict[str, Tensor], size: int, training: bool) -> list[tuple[str, Tensor]]:
    """Returns the output of every layer for the same two images, in the order in which they were computed."""
    found: list[tuple[str, Tensor]] = []

    def record(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                found.append((name, output.clone()))

        return hook

    modes = {module: module.training for module in model.modules()}
    hooks = [module.register_forward_hook(record(name)) for name, module in model.named_modules()]
    generator = torch.Generator("cpu").manual_seed(0)
    shape = (2, model.config.in_channels, size, size)
    images = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    copies = {name: value.clone() for name, value in tensors.items()}
    try:
        for module in modes:
            module.training = training
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            torch.func.functional_call(model, copies, (images,))
    except Exception as error:  # a registered block, or a hook, can raise anything
        raise _CannotRun(f"{type(error).__name__}: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return found


def _copied(model: nn.Module) -> dict[str, Tensor]:
    """Returns copies of all tensors on the CPU, in float64 and contiguous."""
    return {
        name: value.detach().to("cpu", torch.float64 if value.is_floating_point() else value.dtype).contiguous()
        for name, value in [*model.named_parameters(), *model.named_buffers()]
    }


def _equal(some: list[tuple[str, Tensor]], others: list[tuple[str, Tensor]]) -> bool:
    pairs = zip(some, others, strict=False)
    return len(some) == len(others) and all(a[0] == b[0] and _close(a[1], b[1]) for a, b in pairs)


def _close(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9, equal_nan=True)


def _is_same_kind(model: nn.Module, built: nn.Module) -> bool:
    """Whether two layers have the same class and arguments; a convolution of torch computes what ours does."""
    same = type(model) is type(built) or {type(model), type(built)} == {nn.Conv2d, Conv2d}
    return same and _arguments(model) == _arguments(built)


def _arguments(module: nn.Module) -> str:
    return re.sub(r"(, )?inplace=True", "", module.extra_repr())


def _described(module: nn.Module) -> str:
    kind = type(module)
    name = (
        kind.__name__ if kind.__module__.startswith(("torch.", "resnetlab.")) else f"{kind.__module__}.{kind.__name__}"
    )
    return f"{name}({_arguments(module)})"


def _joined(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
