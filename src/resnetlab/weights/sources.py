"""Where weights come from: a run, a file of any known form, or a name of torchvision's or timm's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from resnetlab.core.errors import UserError
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.runs import Run
from resnetlab.models.config import ResNetConfig
from resnetlab.weights.file import described, weights_path
from resnetlab.weights.foreign import check_finite_weights, read_weights_file
from resnetlab.weights.gluon.names import gluon_key_map
from resnetlab.weights.maps import timm
from resnetlab.weights.maps.cifar import cifar_key_map
from resnetlab.weights.maps.keymap import KeyMap
from resnetlab.weights.maps.timm import timm_key_map
from resnetlab.weights.maps.torchvision import torchvision_key_map, torchvision_weights


@dataclass(frozen=True, kw_only=True)
class Source:
    """Weights as they were found.

    Attributes:
        where: what messages call it.
        path: the file.
        tensors: by the names that the file has for them.
        kind: "safetensors", "torch" or "gluon".
        others: what else the file holds, such as an optimizer's state.
        network: the name in the catalog of the network that they are of, where that is told.
        config: its architecture, where the file is ours.
        class_names: what the outputs mean, where that is told.
        preprocessing: what the images went through, where that is told.
    """

    where: str
    path: Path
    tensors: Mapping[str, Tensor]
    kind: str
    others: Sequence[str] = ()
    network: str | None = None
    config: ResNetConfig | None = None
    class_names: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None


def open_weights(source: str | Path | Run, config: ResNetConfig | None = None) -> Source:
    """Reads weights; nothing in a file is executed.

    Args:
        source: a run or its folder, a file, "torchvision:NAME" or "timm:NAME".
        config: of the network that wants them, which names of torchvision's need.

    Raises:
        UserError: there are no such weights, or they cannot be read.
    """
    if isinstance(source, str) and source.startswith("torchvision:"):
        if config is None:
            raise UserError(f"{source!r} names weights of several networks. Say which network, by its name.")
        path, preprocessing, class_names = torchvision_weights(config, source.removeprefix("torchvision:"))
        return _read(path, source, class_names=class_names, preprocessing=preprocessing)
    if isinstance(source, str) and source.startswith("timm:"):
        path, description = timm.timm_weights(source.removeprefix("timm:"))
    else:
        path = weights_path(source)
        description = timm.description_beside(path)
    where = source if isinstance(source, str) and source.startswith("timm:") else str(path)
    told = {"network": timm.architecture(description), "preprocessing": timm.preprocessing_of(description)}
    return _read(path, where, **told)


def key_map(source: Source, config: ResNetConfig, names: Sequence[str]) -> KeyMap:
    """Returns the map for a network's tensors of these names: of the forms, the one that finds the most of them."""
    if source.kind == "gluon":
        return gluon_key_map(config, source.tensors, source.path)
    forms = [torchvision_key_map(names), cifar_key_map(names)]
    if config.preactivation:
        forms.append(timm_key_map(names))
    return max(forms, key=lambda form: len(form.names.keys() & form.to_ours(source.tensors).keys()))


def _read(path: Path, where: str, **told) -> Source:
    file = read_weights_file(path)
    check_finite_weights(file.tensors, path)
    if file.description is not None:
        told |= vars(described(path, file.description))
    return Source(where=where, path=path, tensors=file.tensors, kind=file.form, others=file.ignored, **told)
