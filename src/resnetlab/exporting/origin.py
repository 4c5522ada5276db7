"""What an export says about its network, and where it is written."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from resnetlab.core.files import file_name
from resnetlab.core.runs import Run
from resnetlab.evaluation.forward import trained_on
from resnetlab.exporting.card import NOT_STATED
from resnetlab.exporting.session import FLOAT32, SCHEMA_VERSION
from resnetlab.models.adapters import ModuleConfig
from resnetlab.models.network import Architecture, Network
from resnetlab.weights.file import load


def opened(source: str | Path | Run | Network, model: Any = None) -> tuple[Run | None, Network]:
    """Returns the network of a source, and its run if it is one."""
    if isinstance(source, Network):
        return None, source
    if isinstance(source, Run):
        return source, load(source, model=model)
    run = Run(source) if Path(source).is_dir() else None
    return run, load(run or source, model=model)


def default_folder(source: str | Path | Run | Network, run: Run | None) -> Path:
    """Returns RUN/export; for a file NAME-export next to it; for a network "export" in this folder."""
    if run is not None:
        return run.path / "export"
    if isinstance(source, (str, Path)):
        file = Path(source)
        return (file if file.is_file() else Path(file.name)).with_name(f"{file.stem}-export")
    return Path("export")


def describe(
    source: Any, run: Run | None, network: Network, license: str | None, packages: Sequence[str]
) -> dict[str, Any]:
    """Returns what a file says about the network; no path of this machine is in it.

    Args:
        source: what was exported.
        run: its run.
        network: its network.
        license: of the weights.
        packages: whose versions are recorded.
    """
    preprocessing, class_names = trained_on(network)
    name = run.path.resolve().name if run is not None else "network"
    if isinstance(source, (str, Path)) and run is None:
        name = Path(source).stem
    digest = hashlib.sha256()
    for key, value in network.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().data)
    provenance: dict[str, Any] = {
        "run": name,
        "weights_sha256": digest.hexdigest(),
        "architecture": without_path(network.config).to_dict(),
        "versions": {package: metadata.version(package) for package in packages},
        "license": license or NOT_STATED,
    }
    if run is not None:
        recorded = run.settings["data"]
        provenance["data"] = {"name": Path(str(recorded["source"])).name, "fingerprint": recorded["fingerprint"]}
    if network.stopped_at is not None:
        provenance["epoch"], provenance["epochs"] = network.stopped_at
    return {
        "schema": SCHEMA_VERSION,
        "name": file_name(name) or "network",
        "class_names": list(class_names),
        "preprocessing": asdict(preprocessing),
        "temperature": network.temperature,
        "precision": FLOAT32,
        "provenance": provenance,
    }


def without_path(config: Architecture) -> Architecture:
    """Returns an architecture for others; of your own network, it names the file without its folder."""
    return replace(config, factory=without_folder(config.factory)) if isinstance(config, ModuleConfig) else config


def without_folder(name: str) -> str:
    """Returns the name of a network; of FOLDER/FILE.py:NAME without the folder."""
    place, _, attribute = name.rpartition(":")
    return f"{Path(place).name}:{attribute}" if place.endswith(".py") else name
