"""Networks that were designed elsewhere, as `Network`: those of timm, and your own `nn.Module`."""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from resnetlab.core.checks import MOST_CLASSES, check_integer
from resnetlab.core.errors import UserError, brief, unknown
from resnetlab.core.files import printable
from resnetlab.core.own_code import mark, place_in_your_code, received
from resnetlab.models.network import Network

TIMM, MODULE = "timm", "module"
"""The values of "library" in the record of an architecture; a record without it is of a `ResNetConfig`."""
_NEAREST = 5


@dataclass(frozen=True, kw_only=True)
class TimmConfig:
    """The architecture of a network of timm.

    Attributes:
        name: its name in timm, such as "efficientnet_b0".
        in_channels: channels of the images; 0 takes them from the data.
        num_classes: number of logits; 0 takes it from the data.
    """

    name: str
    in_channels: int = 0
    num_classes: int = 0

    def __post_init__(self) -> None:
        _check_text("name", self.name)
        _check_sizes(self)

    def build(self) -> TimmNetwork:
        """Returns the network, freshly initialized from torch's global generator.

        Raises:
            UserError: timm is not installed or has no such network.
        """
        check_timm_name(self.name)
        sizes = {"in_chans": self.in_channels, "num_classes": self.num_classes}
        return TimmNetwork(call(name_of(self), import_timm().create_model, self.name, **sizes), self)

    def to_dict(self) -> dict[str, Any]:
        """Returns the record, ready for a file."""
        return _record(self, TIMM)


@dataclass(frozen=True, kw_only=True)
class ModuleConfig:
    """The architecture of your own network: which callable returns it, and with which arguments.

    Attributes:
        factory: "FILE.py:NAME" or "package.module:NAME"; for a module that was passed as an object, its class.
        in_channels: channels of the images; 0 takes them from the data.
        num_classes: number of logits; 0 takes it from the data.
        arguments: further keyword arguments of the callable.
        sha256: digest of FILE.py when it was executed; empty for a package or an object.
        callable: the imported callable. It is not recorded, so that reading a record never executes your code.
    """

    factory: str
    in_channels: int = 0
    num_classes: int = 0
    arguments: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""
    callable: Callable[..., Any] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_text("factory", self.factory)
        _check_text("sha256", self.sha256)
        _check_sizes(self)
        if not isinstance(self.arguments, Mapping) or not all(isinstance(key, str) for key in self.arguments):
            raise UserError(f"arguments must map names to values, got {brief(self.arguments)}.")

    def build(self) -> ModuleNetwork:
        """Returns the network, freshly initialized from torch's global generator.

        Raises:
            UserError: the callable was not imported, or did not return a module.
        """
        if self.callable is None:
            raise UserError(f"building {self.factory} runs your code. Pass {_how_to_pass(self)} to allow it.")
        module = call(self.factory, self.callable, **_sizes_taken(self.callable, self), **self.arguments)
        if not isinstance(module, nn.Module):
            raise UserError(f"{self.factory} must return an nn.Module, got {type(module).__name__}.")
        return ModuleNetwork(module, self)

    def to_dict(self) -> dict[str, Any]:
        """Returns the record, ready for a file."""
        return _record(self, MODULE)


class AdaptedNetwork(Network):
    """A module of another library as a `Network` with two sections: "encoder", and "head" for the classifier.

    Args:
        network: the module.
        config: how to build it again.
    """

    config: TimmConfig | ModuleConfig

    def __init__(self, network: nn.Module, config: TimmConfig | ModuleConfig) -> None:
        super().__init__()
        self.network: Any = network
        self.config = config
        if isinstance(config, ModuleConfig):
            mark(self, f"the network {config.factory}")

    def _checked(self, logits: Any, images: Tensor) -> Tensor:
        """Returns logits (N, num_classes); raises `UserError` for anything else that the module returned."""
        if torch.compiler.is_compiling():
            return logits
        classes = self.config.num_classes
        if (
            not isinstance(logits, Tensor)
            or logits.ndim != 2
            or len(logits) != len(images)
            or (classes and logits.shape[1] != classes)
            or not logits.is_floating_point()
            or logits.device != images.device
        ):
            mode = "training" if self.training else "evaluation"
            raise UserError(
                f"{name_of(self.config)} must return logits of shape (N, {classes or 'num_classes'}) and a "
                f"floating-point type, got {received(logits)} for {len(images)} images in {mode} mode. Add an "
                "argument num_classes to it, or change what its forward method returns."
            )
        return logits

    @property
    def saved_module(self) -> nn.Module:
        """The module of the other library."""
        return self.network

    @property
    def first_convolutions(self) -> tuple[str, ...]:
        """Names of the convolutions of `saved_module` that see the images."""
        raise NotImplementedError

    def classifiers(self) -> list[nn.Module]:
        """Returns the layers that compute the logits; an empty list if they are not known."""
        raise NotImplementedError

    def sections(self) -> dict[str, list[nn.Module]]:
        """Returns the layers by "encoder" and "head"; all of them are "head" if the classifier is not known."""
        head = self.classifiers()
        if not head:
            return {"head": [self.network]}
        of_head = {layer for classifier in head for layer in classifier.modules()}
        # Modules around the classifier, such as the network itself, belong to no section: their other children do.
        others = [module for module in self.network.modules() if module not in of_head]
        around = [module for module in others if of_head.intersection(module.modules())]
        encoder = [child for module in around for child in module.children() if child not in {*around, *of_head}]
        own = [parameter for module in around for parameter in module.parameters(recurse=False)]
        return {"encoder": [*encoder, nn.ParameterList(own)], "head": head}

    def is_of_head(self, name: str) -> bool:
        """Whether a tensor of `saved_module` belongs to the classifier."""
        head = self.classifiers()
        return name.startswith(tuple(f"{place}." for place, layer in self.network.named_modules() if layer in head))

    def rebuilt(self) -> Network:
        """Returns a freshly initialized network of the same architecture."""
        return self.config.build()


class TimmNetwork(AdaptedNetwork):
    """A network of timm."""

    config: TimmConfig

    @property
    def first_convolutions(self) -> tuple[str, ...]:
        """Names of the layers that see the images, as timm has them."""
        found = self.network.pretrained_cfg.get("first_conv") or ()
        return (found,) if isinstance(found, str) else tuple(found)

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the logits (N, num_classes), and with `return_features` the input of the classifier too, (N, D)."""
        if not return_features:
            return self._checked(self.network(images), images)
        features = self.network.forward_features(images)
        embedding = self.network.forward_head(features, pre_logits=True).flatten(1)
        return self.network.forward_head(features), embedding

    def classifiers(self) -> list[nn.Module]:
        """Returns timm's classifier; distilled networks have two."""
        found = self.network.get_classifier()
        return list(found) if isinstance(found, (tuple, list)) else [found]


class ModuleNetwork(AdaptedNetwork):
    """Your own module, which maps images (N, C, H, W) to logits (N, num_classes).

    Its head is the last layer with a weight matrix of `num_classes` rows, and the embedding is the input of that
    layer. Memory is contiguous, so that `view` works in `forward`.
    """

    config: ModuleConfig
    channels_last: ClassVar[bool] = False

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the logits, and with `return_features` the embedding too; without a known head, the logits twice."""
        # With one channel both memory formats count as contiguous, and only fresh strides tell them apart.
        images = images.contiguous().flatten().view(images.shape)
        head = self.classifiers() if return_features else []
        if not head:
            logits = self._checked(self.network(images), images)
            return (logits, logits) if return_features else logits
        arrived: list[Tensor] = []
        hook = head[0].register_forward_pre_hook(
            lambda _, inputs, named: arrived.extend((*inputs, *named.values())[:1]), with_kwargs=True
        )
        try:
            logits = self._checked(self.network(images), images)
        finally:
            hook.remove()
        embedding = arrived[-1] if arrived and isinstance(arrived[-1], Tensor) else logits
        return logits, embedding.mean((2, 3)) if embedding.ndim == 4 else embedding.flatten(1)

    @property
    def first_convolutions(self) -> tuple[str, ...]:
        """The name of the first convolution, if there is any."""
        return tuple(name for name, layer in self.network.named_modules() if isinstance(layer, nn.Conv2d))[:1]

    def classifiers(self) -> list[nn.Module]:
        """Returns the last layer with `num_classes` outputs, or nothing."""
        layers = [layer for layer in self.network.modules() if not list(layer.children())]
        return [layer for layer in layers if _outputs(layer) == self.config.num_classes][-1:]

    def rebuilt(self) -> Network:
        """Returns a freshly initialized network; of a module passed as an object, a copy whose layers are reset."""
        if self.config.callable is not None:
            return self.config.build()
        other = copy.deepcopy(self)
        for layer in other.modules():
            if callable(reset := getattr(layer, "reset_parameters", None)):
                reset()
        return other


def adapted(module: nn.Module) -> ModuleNetwork:
    """Returns a module that was passed as an object as a `Network`; its channels and classes come from the data."""
    return ModuleNetwork(module, ModuleConfig(factory=f"{type(module).__module__}.{type(module).__qualname__}"))


def materialize(model: Network, channels: int, image_size: int) -> None:
    """Gives lazy layers, such as `nn.LazyConv2d`, their shapes, by a pass of an image of zeros in evaluation mode.

    Their initial weights are drawn from torch's global generator. Other networks are not changed.

    Raises:
        UserError: the network does not accept such images.
    """
    if not any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        return
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, channels, image_size, image_size))
    except Exception as error:  # a forward pass can raise anything
        raise UserError(
            f"the network does not accept images of {channels} channels and {image_size}x{image_size} pixels: "
            f"{reason(error)}. Load the images with another image_size or other channels."
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training


def check_takes_images(model: AdaptedNetwork, image_size: int) -> None:
    """Raises `UserError` unless the network maps images of its channels and this size to its number of logits."""
    config, name = model.config, name_of(model.config)
    channels = "1 channel" if config.in_channels == 1 else f"{config.in_channels} channels"
    size = f"{channels} and {image_size}x{image_size} pixels"
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise UserError(f"{name} has no parameters, so there is nothing to train.")
    modes = {module: module.training for module in model.modules()}
    images = torch.zeros(2, config.in_channels, image_size, image_size, dtype=parameter.dtype, device=parameter.device)
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            model.eval()(images, return_features=True)
    except UserError:
        raise
    except Exception as error:  # a forward pass can raise anything
        raise UserError(
            f"{name} does not accept images of {size}: {reason(error)}. Load the images with another image_size or "
            "other channels, or choose another network."
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    state = model.saved_module.state_dict()
    if wrong := [key for key, value in state.items() if not isinstance(value, Tensor)]:
        raise UserError(
            f"the state of {name} contains {wrong[0]!r}, {received(state[wrong[0]])}. A file of weights holds tensors "
            "only: use register_buffer, and leave get_extra_state out."
        )


def name_of(config: TimmConfig | ModuleConfig) -> str:
    """Returns the name under which `--model` finds an architecture."""
    return f"timm:{config.name}" if isinstance(config, TimmConfig) else config.factory


def import_timm() -> Any:
    """Returns the package timm, or raises `UserError` if it is not installed."""
    try:
        import timm
    except ImportError as error:
        raise UserError("timm:NAME needs the package timm, which is not installed: pip install timm") from error
    return timm


def check_timm_name(name: str) -> str:
    """Returns the name, or raises `UserError` if timm has no such network."""
    timm = import_timm()
    if timm.is_model(name):  # timm.create_model would also take names that download something
        return name
    names = timm.list_models()
    near = difflib.get_close_matches(str(name), names, n=_NEAREST, cutoff=0.0)
    raise unknown("network of timm", name, [*near, f"and {len(names) - len(near):,} more (timm.list_models())"])


def pretrained_config(config: TimmConfig) -> dict[str, Any]:
    """Returns what timm says about the weights that it publishes for a network, such as "mean" and "hf_hub_id"."""
    found = import_timm().get_pretrained_cfg(config.name, allow_unregistered=True)
    return {} if found is None else found.to_dict()


def call(name: str, function: Callable[..., Any], *positional: Any, **arguments: Any) -> Any:
    """Returns what a function of somebody else returns; whatever it raises becomes a `UserError`."""
    try:
        return function(*positional, **arguments)
    except UserError:  # it used ResNetLab, whose message says what is wrong
        raise
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise UserError(f"{name}({given}) raised {reason(error)}. Check the arguments of the network.") from error


def _sizes_taken(function: Callable[..., Any], config: ModuleConfig) -> dict[str, int]:
    """Returns in_channels and num_classes as far as a callable takes them; **kwargs take num_classes."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # built-in callables have no signature
        return {}
    takes_more = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())
    taken = {}
    if "num_classes" in parameters or takes_more:
        taken["num_classes"] = config.num_classes
    if "in_channels" in parameters:
        taken["in_channels"] = config.in_channels
    return {name: value for name, value in taken.items() if name not in config.arguments}


def _outputs(layer: nn.Module) -> int:
    weight = getattr(layer, "weight", None)
    return weight.shape[0] if isinstance(weight, Tensor) and weight.ndim > 1 else -1


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str) or printable(value) != value:
        raise UserError(f"{name} must be text without control characters, got {printable(brief(value))}.")


def _check_sizes(config: TimmConfig | ModuleConfig) -> None:
    for name in ("in_channels", "num_classes"):
        check_integer(name, getattr(config, name), 0, MOST_CLASSES)


def _record(config: TimmConfig | ModuleConfig, library: str) -> dict[str, Any]:
    fields = {name: value for name, value in vars(config).items() if name != "callable" and value not in ("", {})}
    return {"library": library, **fields}


def _how_to_pass(config: ModuleConfig) -> str:
    if ":" in config.factory:
        return f"model={config.factory!r} (in the shell, --model {config.factory})"
    return f"model=..., an object of {config.factory}"


def reason(error: BaseException) -> str:
    """Returns kind and message of an exception in one line, and where in your code it was raised, if it was there."""
    place = place_in_your_code(error)
    words = f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.')[:300]}"
    return f"{words} ({place})" if place else words
