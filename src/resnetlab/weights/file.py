"""One file holds a network: its weights, architecture, classes and preprocessing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from resnetlab.core.checks import check_schema, from_mapping
from resnetlab.core.errors import UserError, resume_command
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.runs import Run
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet, check_network
from resnetlab.weights.foreign import check_finite_weights
from resnetlab.weights.tensors import DamagedFileError, read_tensors, refuse_damage, write_tensors

SCHEMA_VERSION = 1


def save(path: str | Path, model: ResNet, *, provenance: Mapping[str, Any] | None = None) -> None:
    """Writes a network to one self-describing safetensors file, atomically.

    Args:
        path: the file.
        model: its `class_names` and `preprocessing` go with it where they are known.
        provenance: how it came to be, ready for JSON.

    Raises:
        UserError: surgery made the network one that no configuration describes.
    """
    if check_network(model).altered:
        raise UserError(
            f"{model.altered}, so no configuration describes the network and it could not be loaded again. "
            "Save the network that it was made from."
        )
    description = {
        "schema": SCHEMA_VERSION,
        "config": model.config.to_dict(),
        "class_names": None if model.class_names is None else list(model.class_names),
        "preprocessing": None if model.preprocessing is None else dataclasses.asdict(model.preprocessing),
        "provenance": dict(provenance or {}),
    }
    write_tensors(Path(path), model.state_dict(), description)


def load(source: str | Path | Run) -> ResNet:
    """Returns the network of a weights file or of a run folder, in evaluation mode and float32, on the CPU.

    Its `class_names` and `preprocessing` are what it was trained with. Nothing else is needed, and
    the random state of the program is not touched.

    Args:
        source: `model.safetensors`, or the run folder that holds it.

    Raises:
        UserError: there is no such file, it is damaged, a newer version wrote it, or it holds NaN or infinite
            weights.
    """
    path = weights_path(source)
    tensors, description = read_tensors(path)
    told = described(path, description)
    with refuse_damage(path, "a network"):
        check_finite_weights(tensors, path)
        if sum(told.config.depths) > len(tensors):  # or building them would take whatever time a file asks for
            raise ValueError(f"it tells of {sum(told.config.depths)} blocks and has {len(tensors)} tensors")
        with torch.device("meta"):
            model = ResNet(told.config)
        model.load_state_dict(tensors, strict=True, assign=True)
    model.class_names, model.preprocessing = told.class_names, told.preprocessing
    return model.float().requires_grad_(True).eval()


@dataclass(frozen=True, kw_only=True)
class Described:
    """What the header of a file of ours says of its network; the last two are None where they are not known."""

    config: ResNetConfig
    class_names: tuple[str, ...] | None
    preprocessing: Preprocessing | None


def described(path: Path, description: Mapping[str, Any]) -> Described:
    """Returns what a header says, checked.

    Raises:
        UserError: it is of no network, or a newer version wrote it.
    """
    check_schema(path, description.get("schema"), SCHEMA_VERSION)
    if "config" not in description:
        raise DamagedFileError(f"{path} is a checkpoint or another file of tensors, not a network.")
    with refuse_damage(path, "the description of a network"):  # JSON of other types than were written
        names, preprocessing = description["class_names"], description["preprocessing"]
        if preprocessing is not None:
            preprocessing = from_mapping(Preprocessing, preprocessing, f"the preprocessing in {path}")
        return Described(
            config=from_mapping(ResNetConfig, description["config"], f"the config in {path}"),
            class_names=None if names is None else tuple(names),
            preprocessing=preprocessing,
        )


def weights_path(source: str | Path | Run) -> Path:
    """Returns the file of weights that a path or a run means; `UserError` where there is none."""
    if not isinstance(source, (str, Path, Run)):
        raise UserError(f"expected a weights file or a run folder, got {source!r}.")
    run = source if isinstance(source, Run) else None
    path = source.path if isinstance(source, Run) else Path(source)
    if path.is_dir() and run is None:
        run = Run(path)
    if run is None:
        if not path.is_file():
            raise UserError(f"there is no file {path}. Give a model.safetensors, or the run folder that holds one.")
        return path
    if not run.is_complete:
        raise UserError(
            f"{run.path} has no trained network yet: its training did not reach the end. "
            f"Continue it with: {resume_command(run.path)}"
        )
    return run.weights
