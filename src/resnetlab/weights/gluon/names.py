"""Weights of Gluon (MXNet): the map between our names and Gluon's.

`save_parameters` names a tensor by its layer's place, "features.4.0.body.0.weight". `export` names it by the kind of
its layer and a counter, "arg:conv7_weight", and the counter may have begun anywhere: the layer is known by the graph
that `export` writes beside the file, or else by the order of execution, never by the number.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnetlab.core.errors import UserError
from resnetlab.core.files import printable
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.weights.gluon.graph import Layer, kind_of_convolution, read_graph
from resnetlab.weights.maps import COUNTERS, KeyMap


@dataclass(frozen=True, kw_only=True)
class Network:
    """One of Gluon's networks, as `save_parameters` names its layers.

    Attributes:
        fields: the values that each field of a configuration of such a network can have.
        stem: their layers before the stages, by ours.
        stage: the name of a stage; "{}" is its number.
        first: the number of the first stage.
        block: their layers in a block, by ours, in the order of the file.
        end: their layers behind the stages, by ours; "{0}" is the number after the last stage's, "{1}" the next.
        constants: our tensors whose values Gluon ignores, and the value that it takes instead.
    """

    fields: Mapping[str, tuple[Any, ...]]
    stem: Mapping[str, str]
    stage: str
    first: int
    block: Mapping[str, str]
    end: Mapping[str, str]
    constants: Mapping[str, float] = field(default_factory=dict)


NETWORKS = {
    "d2l": Network(
        fields={"block": ("basic",), "conv_bias": ("all",), "shortcut_norm": (False,), "input_norm": (False,)},
        stem={"conv1": "0", "bn1": "1"},
        stage="{}",
        first=4,
        block={"conv1": "conv1", "conv2": "conv2", "downsample.0": "conv3", "bn1": "bn1", "bn2": "bn2"},
        end={"fc": "{1}"},
    ),
    "zoo_v1": Network(
        fields={"block": ("basic", "bottleneck"), "shortcut_norm": (True,), "input_norm": (False,)},
        stem={"conv1": "features.0", "bn1": "features.1"},
        stage="features.{}",
        first=4,
        block={
            **{"conv1": "body.0", "bn1": "body.1", "conv2": "body.3", "bn2": "body.4", "conv3": "body.6"},
            **{"bn3": "body.7", "downsample.0": "downsample.0", "downsample.1": "downsample.1"},
        },
        end={"fc": "output"},
    ),
    "zoo_v2": Network(
        fields={
            **{"block": ("basic", "bottleneck"), "shortcut_norm": (False,), "input_norm": (True,)},
            **{"conv_bias": ("none",), "stride_on": ("3x3",)},
        },
        stem={"input_norm": "features.0", "conv1": "features.1", "bn1": "features.2"},
        stage="features.{}",
        first=5,
        block={
            **{"bn1": "bn1", "conv1": "conv1", "bn2": "bn2", "conv2": "conv2", "bn3": "bn3", "conv3": "conv3"},
            "downsample.0": "downsample",
        },
        end={"norm": "features.{0}", "fc": "output"},
        constants={"input_norm.weight": 1.0},
    ),
}
"""The network of d2l (Gluon), and the model zoo's two versions."""
_FIELDS_OF_ALL = {
    **{"stem": ("imagenet",), "stem_norm": (True,), "stem_activation": (True,), "shortcut": ("B",)},
    **{"avg_down": (False,), "activation": ("relu",), "attention": ("none",), "dilate": ((),)},
    **{"bottleneck_multiplier": (0.25,), "groups": (1,), "width_per_group": (64,), "group_width": (None,)},
    **{"norm": ("batch",), "weight_standardization": (False,), "antialias": ("none",), "stem_pool": ("max",)},
    **{"first_reduction": (1,), "shortcut_kernel": (1,)},
}
_FIELDS_OF_ZOO_V1 = {
    "basic": {"conv_bias": ("none",)},
    "bottleneck": {"conv_bias": ("pointwise",), "stride_on": ("1x1",)},
}
_PARTS_OF_NORMALIZATION = {
    **{"weight": "gamma", "bias": "beta"},
    **{"running_mean": "running_mean", "running_var": "running_var"},
}
_OUR_PARTS = {**{theirs: ours for ours, theirs in _PARTS_OF_NORMALIZATION.items()}, "weight": "weight", "bias": "bias"}
_EXPORTED = re.compile(rf"(?:arg:|aux:)?([^.]+)_({'|'.join(_OUR_PARTS)})")


def gluon_form(config: ResNetConfig) -> str:
    """Returns which of Gluon's `NETWORKS` a configuration is of: "d2l", "zoo_v1" or "zoo_v2".

    Raises:
        UserError: Gluon has no such network; the fields are named.
    """
    form = "zoo_v2" if config.preactivation else "d2l" if config.conv_bias == "all" else "zoo_v1"
    possible = {**_FIELDS_OF_ALL, **NETWORKS[form].fields}
    if form == "zoo_v1":
        possible |= _FIELDS_OF_ZOO_V1.get(config.block, {})
    fields = {**vars(config), "dilate": config.dilate if any(config.dilate) else ()}
    wrong = [
        f"{name}={fields[name]!r} instead of {' or '.join(map(repr, values))}"
        for name, values in possible.items()
        if fields[name] not in values
    ]
    if wrong:
        raise UserError(
            f"Gluon has no network like this one; the nearest, {form}, differs in {'; '.join(wrong)}. Build one that "
            "Gluon has: d2l_resnet18, or a zoo_resnet of either version."
        )
    return form


def gluon_key_map_for(config: ResNetConfig) -> KeyMap:
    """Returns the map to the file that `save_parameters` writes of such a network, in that file's order.

    Raises:
        UserError: Gluon has no such network.
    """
    network = NETWORKS[gluon_form(config)]
    theirs = dict(network.stem)
    for number, depth in enumerate(config.depths):
        for block in range(depth):
            place = f"{network.stage.format(network.first + number)}.{block}"
            theirs |= {f"layer{number + 1}.{block}.{ours}": f"{place}.{name}" for ours, name in network.block.items()}
    after = network.first + len(config.depths)
    theirs |= {ours: name.format(after, after + 1) for ours, name in network.end.items()}
    layers = {layer.name: layer for layer in _our_layers(config)}
    names = {}
    for ours, name in theirs.items():
        if ours in layers:
            parts = _PARTS_OF_NORMALIZATION if layers[ours].kind == "normalization" else {}
            names |= {tensor: f"{name}.{parts.get(part, part)}" for part, tensor in layers[ours].tensors.items()}
    return KeyMap(form="Gluon save_parameters", names=names, constants=network.constants)


def gluon_key_map(config: ResNetConfig, tensors: Mapping[str, Tensor], path: Path | None = None) -> KeyMap:
    """Returns the map between a network and a `.params` file, by the form of the names in the file.

    The head is mapped whether the network has one or not. A file of `save_parameters` may lack tensors or have more.

    Args:
        config: of the network.
        tensors: of the file, in its order.
        path: the file; `export` writes the graph into the same folder.

    Raises:
        UserError: Gluon has no such network, or the file is of another one.
        DamagedFileError: the graph of the file cannot be read.
    """
    where = printable(path or "the file")
    if any(_EXPORTED.fullmatch(name) for name in tensors):
        return _exported_key_map(where, config, tensors, symbol_of(path) if path else None)
    saved = gluon_key_map_for(config)
    if (first := saved.names["layer1.0.conv1.weight"]) not in tensors:
        raise UserError(
            f"this network is Gluon's {gluon_form(config)}, but {where} belongs to another one: the file lacks "
            f"{first!r}; its first tensors are {', '.join(map(repr, list(tensors)[:3]))}. Build the network "
            "that the file belongs to."
        )
    return saved


def symbol_of(path: Path) -> Path | None:
    """Returns the graph `NAME-symbol.json` that `export` wrote with `NAME-0000.params`, or None."""
    exported = re.fullmatch(r"(.+)-\d{4,}\.params", path.name)
    if exported is None:
        return None
    symbol = path.with_name(f"{exported[1]}-symbol.json")
    return symbol if symbol.is_file() else None


def _exported_key_map(where: str, config: ResNetConfig, tensors: Mapping[str, Tensor], graph: Path | None) -> KeyMap:
    """Returns the map to a file of `export`: the layers of both in the same order, if they are of the same kinds."""
    constants = dict(NETWORKS[gluon_form(config)].constants)
    ours = _our_layers(config)
    theirs = read_graph(graph, tensors) if graph else _layers_in_order(tensors)
    for order in (ours,) if graph else (ours, _shortcut_first(ours)):
        if [layer.kind for layer in order] == [layer.kind for layer in theirs]:
            names = {}
            for mine, other in zip(order, theirs, strict=True):
                names |= {tensor: other.tensors[part] for part, tensor in mine.tensors.items() if part in other.tensors}
                if other.fixed_scale:
                    constants[f"{mine.name}.weight"] = 1.0
            return KeyMap(form="Gluon export", names=names, constants=constants)
    raise _mismatch(where, ours, theirs)


def _our_layers(config: ResNetConfig) -> list[Layer]:
    """Returns the layers of our network in the order of execution, the shortcut last in its block."""
    with torch.device("meta"):
        state = ResNet(dataclasses.replace(config, num_classes=max(1, config.num_classes))).state_dict()
    named = [(*name.rpartition("."), name) for name in state if not name.endswith(COUNTERS)]
    return _grouped([(layer, part, name) for layer, _, part, name in named], state)


def _layers_in_order(tensors: Mapping[str, Tensor]) -> list[Layer]:
    """Returns the layers of an exported file in the file's order."""
    found = [(name, _EXPORTED.fullmatch(name)) for name in tensors]
    return _grouped([(match[1], _OUR_PARTS[match[2]], name) for name, match in found if match], tensors)


def _grouped(named: Sequence[tuple[str, str, str]], tensors: Mapping[str, Tensor]) -> list[Layer]:
    """Returns layers of (layer, part, name of the tensor), in the order in which each layer is first named."""
    layers: dict[str, dict[str, str]] = {}
    for layer, part, name in named:
        layers.setdefault(layer, {})[part] = name
    return [
        Layer(name=name, kind=_kind({part: tensors[tensor] for part, tensor in parts.items()}), tensors=parts)
        for name, parts in layers.items()
    ]


def _kind(parts: Mapping[str, Tensor]) -> str:
    if "running_mean" in parts:
        return "normalization"
    shape = parts["weight"].shape if "weight" in parts else ()
    return kind_of_convolution(shape[2:]) if len(shape) == 4 else "dense layer"


def _shortcut_first(layers: Sequence[Layer]) -> list[Layer]:
    """Returns the layers with every shortcut before its block's first convolution.

    The graphs of the zoo's first version add the branch to the shortcut, in basic blocks, which executes it first.
    """
    moved: list[Layer] = []
    for layer in layers:
        block, is_shortcut, _ = layer.name.partition(".downsample.")
        at = [known.name for known in moved].index(f"{block}.conv1") if is_shortcut else len(moved)
        moved.insert(at, layer)
    return moved


def _mismatch(where: str, ours: Sequence[Layer], theirs: Sequence[Layer]) -> UserError:
    counts = [Counter(layer.kind for layer in layers) for layers in (ours, theirs)]
    if counts[0] != counts[1]:
        here, there = (", ".join(f"{kind}: {number}" for kind, number in count.items()) for count in counts)
        return UserError(
            f"{where} is of another architecture: this network has {len(ours)} layers with weights ({here}), the file "
            f"{len(theirs)} ({there}). Build the network that the file belongs to."
        )
    at = next(place for place, (mine, other) in enumerate(zip(ours, theirs, strict=True)) if mine.kind != other.kind)
    return UserError(
        f"{where} does not list its layers in the order of execution: layer {at + 1} is a {theirs[at].kind} "
        f"({theirs[at].name!r}) in the file and a {ours[at].kind} ({ours[at].name!r}) in the network. Put the "
        "graph that export wrote, NAME-symbol.json, into the folder of NAME-0000.params."
    )
