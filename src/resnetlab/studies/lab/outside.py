"""Networks of the library timm with what our training and evaluation need of a network."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resnetlab.core.checks import from_mapping
from resnetlab.core.errors import UserError, unknown
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.randomness import torch_seeded
from resnetlab.models.network import Network
from resnetlab.models.surgery import adapted_kernel
from resnetlab.training.machine import Machine
from resnetlab.weights.file import weights_path
from resnetlab.weights.foreign import check_finite_weights, read_weights_file
from resnetlab.weights.maps.keymap import COUNTERS
from resnetlab.weights.maps.timm import description_beside, preprocessing_of, timm_weights
from resnetlab.weights.report import listed

HUB = "hub"
"""Asks for the weights that timm itself publishes."""
_NEAREST = 5


@dataclass(frozen=True, kw_only=True)
class OutsideConfig:
    """The architecture of a network of timm.

    Attributes:
        name: timm's.
        in_channels: of the images.
        num_classes: outputs.
    """

    name: str
    in_channels: int
    num_classes: int

    def build(self, seed: int = 0) -> OutsideNetwork:
        """Returns the network with initial weights that depend on the seed alone."""
        with torch_seeded(seed, "initial weights"):
            network = _timm().create_model(self.name, in_chans=self.in_channels, num_classes=self.num_classes)
        return OutsideNetwork(network)


class OutsideNetwork(Network):
    """A network of timm with what our training and evaluation need: two parts, "encoder" and "head", the classifier.

    Args:
        network: as `timm.create_model` returns it.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the logits (N, num_classes), and with `return_features` what the classifier sees too, (N, D)."""
        if not return_features:
            return self.network(images)
        features = self.network.forward_features(images)
        embedding = self.network.forward_head(features, pre_logits=True).flatten(1)
        return self.network.forward_head(features), embedding

    def sections(self) -> dict[str, list[nn.Module]]:
        """Returns the layers by "encoder" and "head"."""
        head = self._classifiers()
        of_head = {layer for classifier in head for layer in classifier.modules()}
        # Modules around the classifier, such as the network itself, are no layers of the encoder: what they hold is.
        others = [module for module in self.network.modules() if module not in of_head]
        around = [module for module in others if of_head.intersection(module.modules())]
        encoder = [child for module in around for child in module.children() if child not in {*around, *of_head}]
        own = [parameter for module in around for parameter in module.parameters(recurse=False)]
        return {"encoder": [*encoder, nn.ParameterList(own)], "head": head}

    def is_of_head(self, name: str) -> bool:
        """Whether a tensor of timm's names belongs to the classifier."""
        head = self._classifiers()
        return name.startswith(tuple(f"{place}." for place, layer in self.network.named_modules() if layer in head))

    def _classifiers(self) -> list[nn.Module]:
        found = self.network.get_classifier()
        return list(found) if isinstance(found, (tuple, list)) else [found]  # distilled networks have two


def outside_config(name: str, *, image_size: int, in_channels: int, num_classes: int) -> OutsideConfig:
    """Returns the architecture of a network of timm, once it has taken an image of this size.

    Args:
        name: timm's, such as "efficientnet_b0", or with "timm/" before it.
        image_size: height and width in pixels.
        in_channels: of the images.
        num_classes: outputs.

    Raises:
        UserError: timm is not installed, has no such network, or the network does not take such images.
    """
    timm, name = _timm(), str(name).removeprefix("timm/")
    if not timm.is_model(name):
        names = timm.list_models()
        near = difflib.get_close_matches(name, names, n=_NEAREST, cutoff=0.0)
        more = f"and {len(names) - len(near):,} more that timm.list_models() lists"
        raise unknown("network of timm", name, [*near, more])
    config = OutsideConfig(name=name, in_channels=in_channels, num_classes=num_classes)
    try:
        with torch.inference_mode():
            config.build().eval()(torch.zeros(1, in_channels, image_size, image_size), return_features=True)
    except Exception as error:  # timm checks by assertions, and torch by errors of several kinds
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UserError(
            f"{name} of timm does not take images of {in_channels} channels and {image_size}x{image_size} pixels: "
            f"{reason}. Choose another network of timm, or another image_size."
        ) from error
    return config


def suited_machine(machine: Machine) -> Machine:
    """Returns how a network of timm is trained on a machine chosen for ours: on a CPU in float32, channels last.

    In bfloat16 oneDNN (torch 2.15) gives a depthwise convolution that strides over a map of one pixel whatever is in
    the memory for a gradient of its weights. Nor is it worth having: on a core of an Intel Xeon EfficientNet-B0
    takes 15.4 ms for an image of 28 pixels in bfloat16, as in contiguous float32, and 6.6 ms with channels last.
    """
    if machine.device != "cpu" or machine.precision == "float64":
        return machine
    return replace(machine, precision="float32", memory_format="channels_last")


def load_encoder(model: OutsideNetwork, source: str | Path) -> Preprocessing | None:
    """Loads weights of the same network of timm in place, all but those of the classifier.

    The first convolution is fitted to the network's channels as `load_weights` does it.

    Args:
        model: the network.
        source: a file of safetensors or of `torch.save`, of which nothing is executed; a run of `train_outside`; or
            "hub" for what timm publishes.

    Returns:
        What the images went through for these weights, where that is known.

    Raises:
        UserError: the weights cannot be read or got, or do not fit; the network was not changed.
    """
    known = model.network.pretrained_cfg
    path = _from_hub(known) if source == HUB else weights_path(source)
    file = read_weights_file(path)
    check_finite_weights(file.tensors, path)
    expected = {name: value for name, value in model.network.state_dict().items() if not model.is_of_head(name)}
    given = {name: value for name, value in file.tensors.items() if not model.is_of_head(name)}
    first = known.get("first_conv") or ()
    for name in (f"{layer}.weight" for layer in ([first] if isinstance(first, str) else first)):
        if name in given and name in expected and given[name].ndim == expected[name].ndim == 4:
            given[name] = adapted_kernel(given[name].float(), expected[name].shape[1])
    _check_fits(path, known["architecture"], expected, given)
    model.network.load_state_dict(given, strict=False)  # the classifier is not given, nor counters of older files
    if file.description is not None and file.description.get("preprocessing"):
        return from_mapping(Preprocessing, file.description["preprocessing"], str(path))
    return preprocessing_of(description_beside(path) or known)


def _from_hub(known: dict[str, Any]) -> Path:
    repository = known.get("hf_hub_id") or ""
    if not repository.startswith("timm/"):
        raise UserError(
            f"timm publishes no weights of {known['architecture']} on its hub. Give a file of weights as "
            "baseline_weights, or leave it out."
        )
    return timm_weights(repository.removeprefix("timm/"))[0]


def _check_fits(path: Path, name: str, expected: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    """Raises unless the tensors of a file are those that a network has before its classifier."""
    missing = [key for key in expected if key not in given and not key.endswith(COUNTERS)]
    wrong = [
        f"{key}: {tuple(given[key].shape)} there, {tuple(value.shape)} here"
        for key, value in expected.items()
        if key in given and given[key].shape != value.shape
    ]
    more = [key for key in given if key not in expected]
    if missing or wrong or more:
        raise UserError(
            f"{path} does not fit {name} of timm before its classifier: {len(missing)} tensors are missing, "
            f"{len(wrong)} have another shape, and {len(more)} are not of this network. Give weights of {name} as timm "
            "names them." + listed("missing", missing) + listed("of another shape", wrong) + listed("too many", more)
        )


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise UserError(
            "a network of timm needs the package timm, which is not installed. Install it: pip install timm"
        ) from error
    return timm
