"""`save` and `load`: a network with its architecture, classes and preprocessing in one safetensors file."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resnetlab.core.checks import check_class_names, check_number, check_schema, from_mapping, known_arguments
from resnetlab.core.console import notice
from resnetlab.core.errors import UserError, brief
from resnetlab.core.files import printable
from resnetlab.core.foreign import WEIGHTS, model_hint, weights_hint
from resnetlab.core.hub import is_hub_name
from resnetlab.core.imports import MissingImportError, asking_for, imports_to_record
from resnetlab.core.packaged import packaged_names, packaged_weights
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.runs import Run
from resnetlab.models.adapters import materialize
from resnetlab.models.architectures import read_architecture, rebuild
from resnetlab.models.catalog import CATALOG
from resnetlab.models.config import ResNetConfig
from resnetlab.models.configured import check_configured
from resnetlab.models.network import Architecture, Network, sections_of
from resnetlab.models.resnet import ResNet
from resnetlab.weights.foreign import check_finite_weights, read_head, refuse_exported, weights_in
from resnetlab.weights.gluon.params import is_params
from resnetlab.weights.hub import hub_weights
from resnetlab.weights.pickled import is_pickled
from resnetlab.weights.report import listed
from resnetlab.weights.tensors import (
    DamagedFileError,
    ForeignFileError,
    is_checkpoint,
    read_description,
    read_header,
    read_network,
    read_tensors,
    refuse_damage,
    shown,
    write_tensors,
)

SCHEMA_VERSION = 1


def save(path: str | Path, model: Network, *, provenance: Mapping[str, Any] | None = None) -> None:
    """Writes a network to one self-describing safetensors file, atomically.

    Tensors keep the names of the library that the network is from, so timm can read the file of a timm network.

    Args:
        path: the file.
        model: the network; its `class_names` and `preprocessing` are saved with it if they are known, and its
            `temperature`.
        provenance: how it was made, as values that JSON can hold.

    Raises:
        UserError: the network is not what its configuration builds.
    """
    sections_of(model)
    check_configured(model)
    _check_agreement("the network", model.config, model.class_names, model.preprocessing)
    training = None if model.stopped_at is None else dict(zip(("epoch", "epochs"), model.stopped_at, strict=True))
    write_network(Path(path), model, {"provenance": dict(provenance or {}), "training": training})


def write_network(path: Path, model: Network, origin: Mapping[str, Any]) -> None:
    """Writes what `save` writes, without checking the network again: `fit` checks it before training."""
    write_tensors(path, model.saved_module.state_dict(), describe_network(model, origin))


def describe_network(model: Network, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the header of a file with a network: how to build and use it, and where it comes from.

    Args:
        model: the network.
        origin: its "provenance", and its "training": complete epochs (epoch), planned ones (epochs) and history.
    """
    return {
        "schema": SCHEMA_VERSION,
        "config": model.config.to_dict(),
        "class_names": None if model.class_names is None else list(model.class_names),
        "preprocessing": None if model.preprocessing is None else dataclasses.asdict(model.preprocessing),
        "temperature": model.temperature,
        **({"imports": imports} if (imports := imports_to_record(names_only=True)) else {}),
        **{key: value for key, value in origin.items() if value is not None},
    }


@known_arguments(WEIGHTS)
def load(source: str | Path | Run, *, model: str | Architecture | nn.Module | None = None) -> Network:
    """Returns the network of a weights file or run folder, in evaluation mode and float32, on the CPU.

    It has the `class_names`, `preprocessing` and `temperature` that it was saved with. The random state of the program
    is not changed. No code from outside ResNetLab and timm runs unless you pass `model`.

    Args:
        source: `model.safetensors`, the run folder that contains it, the name of a packaged network, "digits" or
            "fashion_mnist" (a file or folder with that name takes precedence), or "hub:USER/NAME". The newest
            checkpoint stands in for an unfinished run, see `weights_path`; the network's `stopped_at` then says at
            which epoch.
        model: for a network of your own only: "FILE.py:NAME" or "package.module:NAME", whose code is then executed,
            or an object of your class, which receives the weights.

    Raises:
        UserError: the file does not exist, is damaged, was written by a newer version, contains NaN or infinite
            weights, or is of your own network and `model` is missing.
    """
    path = weights_path(source)
    tensors, description = _read_ours(path, str(source) if is_hub_name(source) else str(path))
    header = described(path, description)
    announce_unfinished(path, description, header)
    if isinstance(header.config, ResNetConfig):
        if model is not None:
            raise UserError(
                f"{path} already contains the architecture of its network, so `model` is not needed. Omit it."
            )
        network = _load_resnet(path, header.config, tensors)
    else:
        check_finite_weights(tensors, path)
        size = sum(tensor.numel() for tensor in tensors.values())
        if max(header.config.in_channels, header.config.num_classes) > size:  # it could fill the memory
            raise DamagedFileError(
                f"{path} is damaged: the network that it describes is larger than the weights that it contains."
            )
        with torch.random.fork_rng(devices=[]):
            network = rebuild(header.config, model, str(path))
            if header.preprocessing is not None:
                materialize(network, header.preprocessing.channels, header.preprocessing.image_size)
        _check_same_tensors(path, tensors, network)
        network.saved_module.load_state_dict(tensors)
    network.class_names, network.preprocessing = header.class_names, header.preprocessing
    network.temperature = header.temperature
    network.stopped_at = header.stopped_at
    return network.float().requires_grad_(True).eval()


@dataclass(frozen=True, kw_only=True)
class Described:
    """What the header of a ResNetLab file says about its network; what is unknown is None or empty.

    Attributes:
        config: its architecture.
        network: its name in the catalog.
        class_names: what its outputs mean.
        preprocessing: how its images were prepared.
        lineage: the trainings that made it, newest first, such as "resnet20 on digits (2026-11-29)".
        temperature: see `Network`.
        stopped_at: complete and planned epochs, if its training was stopped before its end.
    """

    config: Architecture
    network: str | None
    class_names: tuple[str, ...] | None
    preprocessing: Preprocessing | None
    lineage: tuple[str, ...]
    temperature: float
    stopped_at: tuple[int, int] | None


def described(path: Path, description: Mapping[str, Any]) -> Described:
    """Returns the content of a header, checked.

    Raises:
        UserError: the file has no network, or a newer version wrote it.
    """
    check_schema(path, description.get("schema"), SCHEMA_VERSION)
    if "config" not in description:
        raise DamagedFileError(f"{path} contains tensors of resnetlab, but not a network. Give another file.")
    with refuse_damage(path, "the description of a network"):  # JSON of other types than were written
        names, preprocessing = description["class_names"], description["preprocessing"]
        training = description.get("training", {"epoch": 0, "epochs": 0})
        epoch, epochs = int(training["epoch"]), int(training["epochs"])
        if preprocessing is not None:
            preprocessing = from_mapping(Preprocessing, preprocessing, f"the preprocessing in {path}")
        made = description.get("provenance") or {}
        try:
            with asking_for(description.get("imports", ()), path):
                config = read_architecture(description["config"], "its config")
            _check_agreement("it", config, names, preprocessing)
        except MissingImportError:
            raise
        except UserError as error:
            raise DamagedFileError(
                f"{printable(path)} cannot be read as the description of a network: {error}"
            ) from error
        return Described(
            config=config,
            network=made["network"] if made.get("network") in list(CATALOG) else None,
            lineage=_lineage(made),
            class_names=None if names is None else tuple(names),
            preprocessing=preprocessing,
            temperature=check_number(f"the temperature in {path}", description.get("temperature", 1.0), 0, above=True),
            stopped_at=(epoch, epochs) if epoch < epochs else None,
        )


def _check_agreement(where: str, config: Architecture, class_names: Any, preprocessing: Preprocessing | None) -> None:
    """Raises `UserError` unless class names and preprocessing fit the outputs and the channels of a network."""
    if class_names is not None:
        count = len(check_class_names(class_names, f"class_names of {where}"))
        if config.num_classes and count != config.num_classes:
            raise UserError(f"{where} has {count:,} class names for {config.num_classes:,} outputs. Give one for each.")
    if preprocessing is not None and config.in_channels and preprocessing.channels != config.in_channels:
        raise UserError(
            f"{where} has a preprocessing for {preprocessing.channels} channels and a network for "
            f"{config.in_channels}. Both must be equal."
        )


def _lineage(provenance: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the trainings behind a network, newest first; none if its file does not say how it was made."""
    match provenance:
        case {"network": str(network), "data": {"name": str(data)}, "created": str(created)}:
            return (f"{network} on {data} ({created[:10]})", *map(str, provenance.get("lineage", ())))
    return ()


def weights_path(source: str | Path | Run) -> Path:
    """Returns the file with the network that a path, a run, or the name of a packaged or published network means.

    Of a finished run this is model.safetensors, and of an unfinished one the newest intact checkpoint. `network_prefix`
    says which of a checkpoint's weights are the network.

    Raises:
        UserError: the file does not exist, or the run has no checkpoint.
    """
    if not isinstance(source, (str, Path, Run)):
        does = weights_hint(source) or "Give a model.safetensors, or the run folder that contains one."
        raise UserError(f"expected a weights file or a run folder, got {brief(source)}. {does}".rstrip())
    if isinstance(source, (str, Path)) and is_hub_name(source):
        return hub_weights(source)
    run = source if isinstance(source, Run) else None
    path = source.path if isinstance(source, Run) else Path(source)
    if path.is_dir() and run is None:
        if not (path / "run.toml").exists() and (found := weights_in(path)):
            return found
        run = Run(path)
    if run is None:
        if not path.is_file():
            if packaged := packaged_weights(source):
                return packaged
            raise UserError(f"there is no file {path}. {_instead_of(str(source))}")
        refuse_exported(path)
        return path
    if run.is_complete:
        return run.weights
    if run.is_untrained:
        raise UserError(
            f"{run.path} has no network yet, because its training was stopped before its first checkpoint. "
            f"Start it again with: {run.resume_command}"
        )
    return read_newest(run)[0]


def read_newest(run: Run) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    """Returns the newest intact state of a run: its file, all of its tensors, and its description.

    Of a complete run this is model.safetensors, otherwise a checkpoint; an extension without one starts from
    model.safetensors. Damaged checkpoints are skipped with a warning.

    Raises:
        UserError: nothing is intact.
    """
    for path in [] if run.is_complete else checkpoint_files(run.checkpoints):
        try:
            tensors, description = read_tensors(path)
        except DamagedFileError as error:
            notice(f"warning: {error} Using the previous checkpoint instead.")
            continue
        check_schema(path, description.get("schema"), SCHEMA_VERSION)
        check_same_run(path, description, run)
        return path, tensors, description
    if not run.weights.is_file():
        raise UserError(
            f"{run.checkpoints} contains no intact checkpoint, so the run cannot be used or resumed. Start a new run."
        )
    tensors, description = read_tensors(run.weights)
    check_same_run(run.weights, description, run)
    return run.weights, tensors, description


def check_same_run(path: Path, description: Mapping[str, Any], run: Run) -> None:
    """Raises `UserError`, showing the differences, unless a file of weights belongs to the run that run.toml describes.

    Compared are when the run was created, its configuration, classes, preprocessing, recipe, seed, data and precision.

    Args:
        path: the file.
        description: its header.
        run: the run.
    """
    settings = run.settings
    with refuse_damage(path, "the weights of a run"):
        made = description["provenance"]
        found = {
            "created": made["created"],
            "seed": made["seed"],
            "model.config": description["config"],
            "data": {"fingerprint": made["data"]["fingerprint"], "class_names": description["class_names"]},
            "preprocessing": description["preprocessing"],
            "recipe": made["recipe"],
            "machine": _computed(made["machine"]),
        }
        if is_checkpoint(description):
            found["epochs"] = description["training"]["epochs"]
    found = {name: value for name, value in found.items() if value is not None}
    data = {name: settings["data"][name] for name, value in found["data"].items() if value is not None}
    expected = {
        **{name: settings.get(name) for name in found},
        "model.config": settings["model"]["config"],
        "data": data,
        "machine": _computed(settings["machine"]),
        **({"epochs": run.epochs} if "epochs" in found else {}),
    }
    ours, theirs = dict(_flat(expected)), dict(_flat(found))
    names = [name for name in dict.fromkeys([*ours, *theirs]) if ours.get(name) != theirs.get(name)]
    if names:
        shown_names = [f"{name} is {brief(theirs.get(name))}, not {brief(ours.get(name))}" for name in names[:5]]
        more = f", and {len(names) - 5} more differences" if len(names) > 5 else ""
        raise UserError(
            f"{printable(path)} belongs to another run than run.toml describes: {shown('; '.join(shown_names))}{more}. "
            "Restore the original run.toml, or start a new run."
        )


def _computed(machine: Any) -> Any:
    """Returns what changes the numbers of a training: a run can continue on another device, which is said."""
    return {name: machine.get(name) for name in ("precision", "memory_format")}


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the innermost values by dotted name, as JSON and TOML hold them: lists for tuples, and no None."""
    if isinstance(value, Mapping) and value:
        for key, entry in value.items():
            yield from _flat(entry, f"{name}.{key}" if name else str(key))
    elif value is not None:
        yield name, json.loads(json.dumps(value)) if isinstance(value, tuple) else value


def trained_epochs(run: Run) -> int:
    """Returns the number of complete epochs of a complete run; raises `UserError` if its file does not record it."""
    description = read_description(run.weights, read_header(run.weights).metadata)[0]
    if "training" not in description:
        raise UserError(f"{run.weights} does not record its training, so the run cannot be extended. Start a new run.")
    return description["training"]["epoch"]


def checkpoint_files(folder: Path) -> list[Path]:
    """Returns the checkpoints in a folder, the newest first."""
    return sorted((path for path in folder.glob("step-*.safetensors") if path.is_file()), reverse=True)


def announce_unfinished(path: Path, description: Mapping[str, Any], header: Described) -> None:
    """Prints at which epoch a checkpoint was written that stands in for a finished network."""
    if is_checkpoint(description) and header.stopped_at is not None:
        epoch, epochs = header.stopped_at
        _notice_once(f"the training is not finished: using the network of epoch {epoch} of {epochs}, from {path}")


@functools.cache  # evaluation and report open the same network
def _notice_once(message: str) -> None:
    notice(message)


def _instead_of(name: str) -> str:
    """Returns what to do if a file of this name does not exist: it may be the name of a network or of weights."""
    if name.startswith(("timm:", "torchvision:")):
        return f"Build its network with these weights: create_model(NAME, pretrained={name!r})."
    known = name if name in CATALOG else ""
    if not Path(name).suffix and (known or ((found := model_hint(name, CATALOG)) and (known := found[0]))):
        return (
            f"Build the network with create_model({known!r}, pretrained=WEIGHTS), where WEIGHTS is a file, a run or "
            "'torchvision:DEFAULT'."
        )
    packaged = f"or the name of a packaged network ({', '.join(packaged_names())})"
    return weights_hint(name).rstrip() or f"Give a model.safetensors, the run folder that contains one, {packaged}."


def _read_ours(path: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors and description of our file; of another program's file the error says how to use it."""
    head = read_head(path)
    try:
        if path.suffix != ".safetensors" and (is_pickled(head) or is_params(head)):
            raise ForeignFileError(f"{path} was written by another program.")
        return read_network(path)
    except ForeignFileError as error:
        parts = (path.stem, path.stem.rpartition("-")[0], path.stem.partition(".")[0])
        network = next((part for part in parts if part in CATALOG), None)
        raise ForeignFileError(
            f"{error} It does not say which network it belongs to. Build the network with these weights: "
            f"create_model({'NAME' if network is None else repr(network)}, pretrained={name!r}). Or convert the file: "
            f"resnetlab export {name} --to resnetlab --out {path.stem}-resnetlab.safetensors"
        ) from None


def _load_resnet(path: Path, config: ResNetConfig, tensors: Mapping[str, Tensor]) -> ResNet:
    with refuse_damage(path, "a network"):
        check_finite_weights(tensors, path)
        if sum(config.depths) > len(tensors):  # building them would take as long as the file says
            raise ValueError(f"it describes {sum(config.depths)} blocks and has {len(tensors)} tensors")
        with torch.device("meta"):
            network = ResNet(config)
        network.load_state_dict(tensors, strict=True, assign=True)
    return network


def _check_same_tensors(path: Path, tensors: Mapping[str, Tensor], network: Network) -> None:
    """Raises `UserError` unless a file has the tensors of a network that was built from somebody else's code."""
    expected = network.saved_module.state_dict()
    missing = [name for name in expected if name not in tensors]
    more = [name for name in tensors if name not in expected]
    wrong = [
        f"{name}: {tuple(tensors[name].shape)} in the file, {tuple(value.shape)} in the network"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if missing or more or wrong:
        raise UserError(
            f"{path} does not fit the network that was built: {len(missing)} tensors are missing, {len(more)} are not "
            f"in the network, and {len(wrong)} have another shape. Pass the model that was trained."
            + listed("missing in the file", missing)
            + listed("not in the network", more)
            + listed("of another shape", wrong)
        )
