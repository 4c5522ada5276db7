"""`convert`: from one program's file of weights to another's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from resnetlab.core.checks import check_choice
from resnetlab.core.errors import UserError
from resnetlab.core.files import atomic
from resnetlab.core.runs import Run
from resnetlab.models.catalog import CATALOG, model_config
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.weights.file import save
from resnetlab.weights.gluon.names import gluon_key_map_for
from resnetlab.weights.gluon.params import write_params
from resnetlab.weights.load import load_source
from resnetlab.weights.maps import timm, torchvision
from resnetlab.weights.maps.cifar import cifar_key_map
from resnetlab.weights.maps.keymap import COUNTERS, KeyMap
from resnetlab.weights.report import LoadReport
from resnetlab.weights.sources import Source, key_map, open_weights

FORMS = ("resnetlab", "torchvision", "timm", "cifar", "gluon")
_BY_SUFFIX = {".safetensors": "resnetlab", ".params": "gluon", ".pth": "torchvision", ".pt": "torchvision"}


def convert(
    source: str | Path | Run,
    destination: str | Path,
    *,
    model: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    to: str | None = None,
) -> LoadReport:
    """Writes weights in the form of another program, and tells what was taken.

    Everything must fit: a conversion re-initializes nothing and leaves nothing over.

    Args:
        source: as `load_weights` takes it.
        destination: the file to write; one that is there is replaced.
        model: the network's name in the catalog, where the source is not ours. Without it the catalog is
            searched for a network of these tensors, and channels and classes are the file's.
        overrides: fields of `ResNetConfig` to change in it.
        to: "resnetlab", "torchvision", "timm", "cifar" (for the common training scripts) or "gluon". Without it the
            suffix decides: `.safetensors` is ours, `.params` Gluon's, `.pth` and `.pt` torchvision's.
            `.safetensors` can hold timm's too.

    Raises:
        UserError: the weights cannot be read, no network fits them, or the other program has no such network.
    """
    path = Path(destination)
    if to is None and path.suffix not in _BY_SUFFIX:
        raise UserError(
            f"the suffix of {path.name} says of no form: it may be {', '.join(_BY_SUFFIX)}. Or name the form with "
            f"--to: {', '.join(FORMS)}."
        )
    form = check_choice("form", to or _BY_SUFFIX[path.suffix], FORMS)
    named = None if model is None else model_config(model, overrides)
    found = open_weights(source, named)
    if found.config is not None and not isinstance(found.config, ResNetConfig):
        raise UserError(f"{found.where} is not of a ResNet, so its tensors have the names of its own library already.")
    # If a network is named that does not fit, loading reports what does not.
    config = found.config or (recognize(found) if named is None else _fitted(found, named) or named)
    network = ResNet(config)
    report = load_source(network, found)
    if report.reinitialized or report.adapted:
        raise UserError(f"{found.where} does not fit {model} as it is, so it was not converted.\n{report}")
    if form == "resnetlab":
        save(path, network.eval(), provenance={"source": found.where, "form": report.form})
    else:
        tensors = _map_to(form, network).to_theirs(network.state_dict())
        _write(path, form, {name: value.contiguous() for name, value in tensors.items()})
    return report


def recognize(found: Source) -> ResNetConfig:
    """Returns the architecture of the first network of the catalog that has exactly these tensors.

    Its channels and classes are those of the tensors.

    Raises:
        UserError: there is none.
    """
    kernels = sum(tensor.ndim == 4 for tensor in found.tensors.values())
    order = list(CATALOG)
    if found.kind == "gluon":  # its networks move their statistics by another rule than those of the same tensors
        order.sort(key=lambda name: CATALOG[name].config.running_variance != "biased")
    if found.network:
        order.insert(0, found.network)
    for name in order:
        config = CATALOG[name].config
        blocks = sum(config.depths)
        if 2 * blocks <= kernels <= 6 * blocks + 4 and (fitted := _fitted(found, config)) is not None:
            return fitted
    raise UserError(
        f"{found.where} has the tensors of no network of the catalog. Name the network that it is of and what is "
        "different about it, such as --model resnet50 --set stem=deep."
    )


def _fitted(found: Source, config: ResNetConfig) -> ResNetConfig | None:
    """Returns the architecture with the tensors' channels and classes, or None where other tensors do not fit."""
    with torch.device("meta"):
        state = ResNet(config).state_dict()
    try:
        keys = key_map(found, config, list(state))
    except UserError:  # it is no file of such a network
        return None
    first = "conv1.weight" if "conv1.weight" in state else "conv1.0.weight"
    given = keys.to_ours(found.tensors)
    if keys.leftovers(found.tensors) or not {first, "fc.weight"} <= given.keys():
        return None
    ends = {"in_channels": given[first].shape[1], "num_classes": given["fc.weight"].shape[0]}
    with torch.device("meta"):
        state = ResNet(dataclasses.replace(config, **ends)).state_dict()
    needed = {name: value.shape for name, value in state.items() if not name.endswith(COUNTERS)}
    fits = all(name in given and given[name].shape == shape for name, shape in needed.items())
    return dataclasses.replace(config, **ends) if fits else None


def _map_to(form: str, network: ResNet) -> KeyMap:
    """Returns the map to another program's form, which must have such a network."""
    config, names = network.config, list(network.state_dict())
    if form == "gluon":
        return gluon_key_map_for(config)
    if form == "cifar":
        if config.stem != "cifar":
            raise UserError(f"checkpoints for small images are of networks with stem 'cifar', not {config.stem!r}.")
        return cifar_key_map(names)
    known = torchvision.NETWORKS if form == "torchvision" else timm.NETWORKS
    if torchvision.network_among(config, known) is None:
        raise UserError(
            f"{form} has no network like this one ({config.block}, depths {config.depths}, stem {config.stem!r}); it "
            f"has {', '.join(known)}. Convert to a file of ours: --to resnetlab."
        )
    is_timms = form == "timm" and config.preactivation
    return timm.timm_key_map(names) if is_timms else torchvision.torchvision_key_map(names)


def _write(path: Path, form: str, tensors: dict[str, Tensor]) -> None:
    if form == "gluon":
        write_params(path, tensors)
        return
    with atomic(path) as temporary:
        if path.suffix == ".safetensors":
            save_file(tensors, temporary, metadata={"format": "pt"})
        else:
            torch.save(tensors, temporary)
