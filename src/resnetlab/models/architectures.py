"""From a name, a record or an object to a network of any of the three kinds."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from resnetlab.core.checks import from_mapping
from resnetlab.core.console import notice
from resnetlab.core.environment import available_memory
from resnetlab.core.errors import UserError, unknown
from resnetlab.core.files import printable
from resnetlab.core.own_code import remember_code
from resnetlab.models.adapters import (
    MODULE,
    TIMM,
    ModuleConfig,
    ModuleNetwork,
    TimmConfig,
    adapted,
    check_timm_name,
    reason,
)
from resnetlab.models.config import ResNetConfig
from resnetlab.models.network import Architecture, Network
from resnetlab.models.resnet import ResNet

_PREFIX = "timm:"


def build(config: Architecture) -> Network:
    """Returns the network of an architecture, freshly initialized from torch's global generator."""
    if isinstance(config, ResNetConfig):
        return ResNet(config)
    assert isinstance(config, (TimmConfig, ModuleConfig))
    return config.build()


def open_architecture(name: str, arguments: Mapping[str, Any] | None = None) -> TimmConfig | ModuleConfig:
    """Returns the architecture that "timm:NAME", "FILE.py:NAME" or "package.module:NAME" names.

    The last two execute your code: FILE.py, or the module. Channels and classes are taken from the data later.

    Raises:
        UserError: there is no such network, file, module or name in it.
    """
    arguments = dict(arguments or {})
    if name.startswith(_PREFIX):
        if arguments:
            raise UserError(f"{name} takes no model fields, got {', '.join(arguments)}. Leave them out.")
        return TimmConfig(name=check_timm_name(name.removeprefix(_PREFIX)))
    if name.endswith(".py"):
        raise UserError(f"say which class or function of {name} returns the network: --model {name}:NAME")
    place, _, attribute = name.rpartition(":")
    sha256 = ""
    if place.endswith(".py"):
        path = Path(place)
        if not path.is_file():
            raise UserError(f"{place} was not found. Give the path of a Python file: --model FILE.py:NAME.")
        source = path.read_bytes()
        sha256 = hashlib.sha256(source).hexdigest()
        notice(f"executing {place} to get {attribute}")
        module = execute(path, sha256)
    else:
        module = _import(place)
    found = module
    for part in attribute.split("."):
        names = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")]
        if not hasattr(found, part):
            raise unknown(f"name in {place}", part, names)
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"{name} must be a class or a function that returns an nn.Module, got {type(found).__name__}.")
    return ModuleConfig(factory=name, arguments=arguments, sha256=sha256, callable=found)


def with_sizes(config: Architecture, **sizes: int) -> Architecture:
    """Returns an architecture with other `in_channels` or `num_classes`."""
    return dataclasses.replace(config, **sizes)  # type: ignore[type-var]  # all three are dataclasses


def is_path_to_network(name: str) -> bool:
    """Whether a name is of the form that `open_architecture` opens, rather than a name of the catalog."""
    return ":" in name or name.endswith(".py")


def read_architecture(record: Mapping[str, Any], where: str) -> Architecture:
    """Returns the architecture that `to_dict` recorded; nothing is imported or executed.

    Raises:
        UserError: the record has unknown or missing fields.
    """
    kinds: dict[str | None, Any] = {None: ResNetConfig, TIMM: TimmConfig, MODULE: ModuleConfig}
    fields = dict(record)
    library = fields.pop("library", None)
    if not isinstance(library, str | None) or library not in kinds:
        raise unknown(f"library in {where}", library, [TIMM, MODULE])
    if "callable" in fields:
        raise UserError(f"{where} has no field 'callable'.")
    try:
        return from_mapping(kinds[library], fields, where)
    except UserError as error:
        raise error if where in str(error) else UserError(f"{where}: {error}") from error


def rebuild(config: Architecture, model: str | Architecture | nn.Module | None, where: str) -> Network:
    """Returns a network of a recorded architecture.

    Args:
        config: as `read_architecture` returned it.
        model: for a network of your own, permission to build it: the module itself, or its name, whose code is
            executed.
        where: what recorded it, for messages.

    Raises:
        UserError: your own network is to be built and `model` does not say how, or `model` is not needed.
    """
    if not isinstance(config, ModuleConfig):
        if model is not None:
            raise UserError(
                f"{where} already contains the architecture of its network, so `model` is not needed. Omit it."
            )
        _check_memory(config, where)
        return build(config)
    if model is None:
        again = config.factory if ":" in config.factory else "FILE.py:NAME"
        raise UserError(
            f"the network of {where} is your own ({config.factory}), and building it runs your code. Pass "
            f"model={again!r} or the module itself (in the shell, --model {again}) to allow it."
        )
    if isinstance(model, nn.Module):
        network = model if isinstance(model, Network) else ModuleNetwork(model, config)
        if not isinstance(network, ModuleNetwork):
            raise UserError(
                f"the network of {where} was built by {config.factory}, but model is a {type(model).__name__}. Pass a "
                "network that it built."
            )
        network.config = dataclasses.replace(config, callable=network.config.callable)
        return network
    opened = open_architecture(model, config.arguments) if isinstance(model, str) else model
    if not isinstance(opened, ModuleConfig):
        raise UserError(
            f"the network of {where} was built by {config.factory}, but model is {model!r}. Pass the class or function "
            "that built it."
        )
    if config.sha256 and opened.sha256 != config.sha256:
        warnings.warn(
            f"{opened.factory.rpartition(':')[0]} differs from the file that the network of {where} was trained with "
            f"(SHA-256 {config.sha256[:12]}, now {opened.sha256[:12]}), so it may compute something else.",
            stacklevel=3,
        )
    return dataclasses.replace(config, callable=opened.callable).build()


def _check_memory(config: Architecture, where: str) -> None:
    """Raises `UserError` if a network that a file describes does not fit into memory, before memory is taken."""
    free = available_memory()
    if not isinstance(config, ResNetConfig) or free is None:
        return
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        needed = 4 * sum(parameter.numel() for parameter in ResNet(config).parameters())
    if needed > 0.8 * free:
        raise UserError(
            f"the network that {where} describes takes {needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB "
            f"are free: depths {list(config.depths)}, widths {list(config.widths)}. Restore the file."
        )


def as_network(module: nn.Module) -> Network:
    """Returns a module as a `Network`; a `Network` is returned unchanged."""
    return module if isinstance(module, Network) else adapted(module)


def execute(path: Path, sha256: str = "") -> ModuleType:
    """Returns a Python file as a module; imports of files beside it work, as when Python runs it.

    Raises:
        UserError: executing the file raised an exception; the message has the line.
    """
    name = f"resnetlab_model_{path.stem}_{sha256[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look modules up there
    with _search_path(path.resolve().parent):
        try:
            remember_code(str(path))
            spec.loader.exec_module(module)
        except UserError:  # it used ResNetLab, whose message says what is wrong
            raise
        except SyntaxError as error:
            place = f"{printable(Path(error.filename or path).name)}, line {error.lineno}"
            raise UserError(f"{place}: {error.msg}. Python cannot read the file. Correct this line.") from error
        except (Exception, SystemExit) as error:
            raise UserError(f"executing {path} raised {reason(error)}. Correct this line.") from error
    return module


def _import(name: str) -> ModuleType:
    with _search_path(Path.cwd()):
        try:
            remember_code(name)
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UserError(
                f"there is no module {name!r} ({error}). --model takes a name of the catalog, timm:NAME, FILE.py:NAME "
                "or package.module:NAME."
            ) from error
        except (Exception, SystemExit) as error:
            raise UserError(f"importing {name} raised {reason(error)}. Correct this line.") from error


@contextlib.contextmanager
def _search_path(folder: Path) -> Iterator[None]:
    sys.path.append(str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
