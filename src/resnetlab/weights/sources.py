"""Where weights come from: a run, a file in any known format, or a name published by torchvision or timm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from resnetlab.core.errors import UserError
from resnetlab.core.hub import PREFIX
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.runs import Run
from resnetlab.models.adapters import TimmConfig, pretrained_config
from resnetlab.models.config import ResNetConfig
from resnetlab.models.network import Architecture
from resnetlab.weights import published
from resnetlab.weights.file import announce_unfinished, described, weights_path
from resnetlab.weights.foreign import check_finite_weights, read_weights_file
from resnetlab.weights.gluon.names import gluon_key_map
from resnetlab.weights.maps import KeyMap, cifar_key_map, timm_key_map, torchvision_key_map

_DEEPEST_PREFIX, _ALMOST = 3, 0.9
_COPIES = ("encoder_k", "momentum", "teacher", "target", "ema")
"""What training scripts call a second copy of a network that follows the trained one."""
TIMM_DEFAULT = "timm:DEFAULT"
"""The weights that timm publishes for a network of its own."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Weights that were read.

    Attributes:
        where: what messages call it.
        path: the file.
        tensors: by the names in the file.
        kind: "safetensors", "torch" or "gluon".
        others: what else the file contains, such as the state of an optimizer.
        network: the network's name in the catalog, if the source says it.
        config: its architecture, if ResNetLab wrote the file.
        class_names: what the outputs mean, if the source says it.
        preprocessing: how the training images were prepared, if the source says it.
        lineage: the trainings that made them, newest first, or the name of the source if it says no more.
        stopped_at: complete and planned epochs, if the training was stopped before its end.
        temperature: of the network's probabilities; valid only for exactly these weights.
    """

    where: str
    path: Path
    tensors: Mapping[str, Tensor]
    kind: str
    others: Sequence[str] = ()
    network: str | None = None
    config: Architecture | None = None
    class_names: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    lineage: tuple[str, ...] = ()
    stopped_at: tuple[int, int] | None = None
    temperature: float = 1.0


def open_weights(source: str | Path | Run, config: Architecture | None = None) -> Source:
    """Reads weights; nothing in a file is executed.

    Args:
        source: a run or its folder, a file, "torchvision:NAME", "timm:NAME" or "hub:USER/NAME".
        config: the architecture that will take them; "torchvision:NAME" and "timm:DEFAULT" need it.

    Raises:
        UserError: the weights do not exist or cannot be read.
    """
    name = source if isinstance(source, str) else ""
    if name.startswith("torchvision:"):
        if not isinstance(config, ResNetConfig):
            raise UserError(
                f"{name!r} exists for several networks. Choose one with --model NAME; `resnetlab "
                "list models` lists the names."
            )
        path, preprocessing, class_names = published.torchvision_weights(config, name.removeprefix("torchvision:"))
        return _read(path, name, class_names=class_names, preprocessing=preprocessing)
    if name.startswith("timm:"):
        path, description = published.timm_weights(_published(config) if name == TIMM_DEFAULT else name[len("timm:") :])
    else:
        path = weights_path(source)
        description = published.description_of(path)
    if not description and isinstance(config, TimmConfig):
        description = pretrained_config(config)
    stated = {"network": published.architecture(description), "preprocessing": published.preprocessing_of(description)}
    return _read(path, name if name.startswith(("timm:", PREFIX)) else str(path), **stated)


def key_map(source: Source, config: Architecture, names: Sequence[str]) -> KeyMap:
    """Returns the map from a network's tensors of these names to the file: of the known forms, the one that fits best.

    Networks of other libraries keep the names of their library.
    """
    if not isinstance(config, ResNetConfig):
        # Reading a file removed a prefix that all of its names share, such as "net.".
        shared = f"{names[0].partition('.')[0]}." if names else ""
        prefix = shared if all(name.startswith(shared) for name in names) and names[0] not in source.tensors else ""
        return KeyMap(form=source.kind, names={name: name.removeprefix(prefix) for name in names})
    if source.kind == "gluon":
        return gluon_key_map(config, source.tensors, source.path)
    forms = [torchvision_key_map(names), cifar_key_map(names)]
    if config.preactivation:
        forms.append(timm_key_map(names))
    found = source.tensors.keys()

    def count(one: KeyMap) -> int:
        return len(found & set(one.names.values()))

    by_prefix = [
        max((form.below(prefix) for form in forms), key=count) for prefix in _prefixes(found)
    ]  # the copy of a network may have a head that the network itself lacks
    enough = _ALMOST * max(map(count, by_prefix))
    return next(one for one in by_prefix if count(one) >= enough)


def _prefixes(names: Iterable[str]) -> list[str]:
    """Returns the prefixes that a network's names may have in a file, such as "module.encoder_q.", the likely first."""
    found = {"": None}
    for name in names:
        parts = name.split(".")
        found |= {".".join(parts[:depth]) + ".": None for depth in range(1, min(len(parts), _DEEPEST_PREFIX + 1))}
    return sorted(found, key=lambda prefix: (any(word in prefix for word in _COPIES), prefix.count(".")))


def _published(config: Architecture | None) -> str:
    """Returns the name of the weights that timm publishes for one of its networks."""
    if not isinstance(config, TimmConfig):
        raise UserError(f"{TIMM_DEFAULT!r} is for networks of timm. Use it with --model timm:NAME.")
    repository = pretrained_config(config).get("hf_hub_id") or ""
    if not repository.startswith("timm/"):
        raise UserError(f"timm publishes no weights of {config.name}. Give a file of weights instead.")
    return repository.removeprefix("timm/")


def _read(path: Path, where: str, **stated) -> Source:
    file = read_weights_file(path)
    check_finite_weights(file.tensors, path)
    if file.description is not None:
        described_as = described(path, file.description)
        announce_unfinished(path, file.description, described_as)
        stated |= vars(described_as)
    stated["lineage"] = stated.get("lineage") or (Path(where).name if where == str(path) else where,)
    return Source(where=where, path=path, tensors=file.tensors, kind=file.form, others=file.ignored, **stated)
