"""`convert` writes the weights of one library in the form of another."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor

from resnetlab.core.checks import check_choice
from resnetlab.core.errors import UserError
from resnetlab.core.files import atomic
from resnetlab.core.runs import Run
from resnetlab.models.catalog import CATALOG, TIMM_NETWORKS, model_config
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.weights.file import save
from resnetlab.weights.gluon.names import gluon_key_map_for
from resnetlab.weights.gluon.params import write_params
from resnetlab.weights.load import load_source
from resnetlab.weights.maps import COUNTERS, KeyMap, cifar_key_map, timm_key_map, torchvision_key_map
from resnetlab.weights.published import TORCHVISION_NETWORKS, network_among
from resnetlab.weights.report import LoadReport
from resnetlab.weights.sources import Source, key_map, open_weights
from resnetlab.weights.structure import same_structure

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
    """Writes weights in the form of another library, and returns a report of the tensors.

    Every tensor must fit: a conversion neither re-initializes nor ignores any. If the file has other names than the
    programs that ResNetLab knows, its layers are matched by structure.

    Args:
        source: a run, a file or a name, as for `load_weights`.
        destination: the file to write; an existing file is replaced.
        model: the network's catalog name, if the source is not a resnetlab file. Default: the first network of the
            catalog that has these tensors, with the file's channels and classes.
        overrides: fields of `ResNetConfig` to change in that network.
        to: "resnetlab", "torchvision", "timm", "cifar" (the common training scripts) or "gluon". Default: what the
            suffix means: `.safetensors` resnetlab, `.params` gluon, `.pth` and `.pt` torchvision. Files for timm can
            end in `.safetensors` too.

    Raises:
        UserError: the weights cannot be read, no network fits them, or the other library has no such network.
    """
    path = Path(destination)
    if to is None and path.suffix not in _BY_SUFFIX:
        raise UserError(
            f"expected a file name that ends in {', '.join(_BY_SUFFIX)}, got {path.name}. Change the name, or "
            f"choose the format with --to: {', '.join(FORMS)}."
        )
    form = check_choice("form", to or _BY_SUFFIX[path.suffix], FORMS)
    named = None if model is None else model_config(model, overrides)
    found = open_weights(source, named)
    if found.config is not None and not isinstance(found.config, ResNetConfig):
        raise UserError(
            f"only a ResNet can be converted, and {found.where} is another network. Its tensors already have "
            "the names that its own library uses."
        )
    config, match = (found.config, "names") if found.config is not None else _recognized(found, named)
    network = ResNet(config)
    report = load_source(network, found, match=match)
    if report.reinitialized or report.adapted:
        raise UserError(f"{found.where} does not fit {model} exactly, so it was not converted.\n{report}")
    if form == "resnetlab":
        network.stopped_at, network.temperature = found.stopped_at, found.temperature
        save(path, network.eval(), provenance={"source": found.where, "form": report.form})
    else:
        write_form(path, form, form_map(form, network).to_theirs(network.state_dict()))
    return report


def _recognized(found: Source, named: ResNetConfig | None) -> tuple[ResNetConfig, str]:
    """Returns the architecture of a file, and whether its tensors are found by names or by structure.

    If a network is named that does not fit, loading reports what does not.
    """
    fitted = recognize(found) if named is None else _fitted(found, named)
    if fitted is not None:
        return fitted, "names"
    alike = same_structure(found.tensors, None if named is None else {"": named})
    if alike:
        return next(iter(alike.values())), "structure"
    if named is not None:
        return named, "names"
    raise UserError(
        f"no network of the catalog has the tensors of {found.where}. Name the network and the fields that differ, "
        "such as --model resnet50 --set stem=deep."
    )


def recognize(found: Source) -> ResNetConfig | None:
    """Returns the architecture of the first catalog network that has exactly these tensors, None without one.

    Channels and classes are those of the tensors.
    """
    kernels = sum(tensor.ndim == 4 for tensor in found.tensors.values())
    order = list(CATALOG)
    if found.kind == "gluon":  # Gluon's networks update running statistics by their own rule
        order.sort(key=lambda name: CATALOG[name].config.running_variance != "biased")
    if found.network:
        order.insert(0, found.network)
    for name in order:
        config = CATALOG[name].config
        blocks = sum(config.depths)
        if 2 * blocks <= kernels <= 6 * blocks + 4 and (fitted := _fitted(found, config)) is not None:
            return fitted
    return None


def _fitted(found: Source, config: ResNetConfig) -> ResNetConfig | None:
    """Returns the architecture with the tensors' channels and classes, or None if other tensors do not fit."""
    with torch.device("meta"):
        state = ResNet(config).state_dict()
    try:
        keys = key_map(found, config, list(state))
    except UserError:  # not a file of this network
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


def form_map(form: str, network: ResNet) -> KeyMap:
    """Returns the map to another library's form.

    Raises:
        UserError: that library does not have this network.
    """
    config, names = network.config, list(network.state_dict())
    if form == "gluon":
        return gluon_key_map_for(config)
    if form == "cifar":
        if config.stem != "cifar":
            raise UserError(
                f"the format 'cifar' needs a network with stem 'cifar', got stem {config.stem!r}. Choose "
                "another format."
            )
        return cifar_key_map(names)
    known = TORCHVISION_NETWORKS if form == "torchvision" else TIMM_NETWORKS
    if network_among(config, known) is None:
        raise UserError(
            f"{form} does not have this network ({config.block}, depths {config.depths}, stem {config.stem!r}). It "
            f"has {len(known)} networks of the catalog, such as {', '.join(known[:3])}. Export to a resnetlab file "
            "instead: --to resnetlab."
        )
    is_timms = form == "timm" and config.preactivation
    return timm_key_map(names) if is_timms else torchvision_key_map(names)


def write_form(path: Path, form: str, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors that have another library's names to a file of that library, atomically."""
    stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    if form == "gluon":
        write_params(path, stored)
        return
    # In memory first: with a full disk, the libraries' own writers raise errors that do not say so.
    content = BytesIO()
    if path.suffix == ".safetensors":
        content.write(save_safetensors(stored, metadata={"format": "pt"}))
    else:
        torch.save(stored, content)
    with atomic(path) as temporary:
        temporary.write_bytes(content.getbuffer())
