"""Weights that torchvision and timm publish for networks of the catalog."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch

from resnetlab.core.errors import UserError, unknown
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.models.catalog import CATALOG, TIMM_NETWORKS
from resnetlab.models.config import ResNetConfig
from resnetlab.weights.tensors import DamagedFileError

TORCHVISION_NETWORKS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
)
"""The networks of the catalog that torchvision has under the same names."""
_WITHOUT_WEIGHTS = (
    "init",
    "zero_init_residual",
    "drop_path",
    "drop_block",
    "dropout",
    "parts",
    "in_channels",
    "num_classes",
)
"""Fields that do not affect which tensors a network has and what they mean."""
_TIMM_FILES = ("model.safetensors", "pytorch_model.bin")


def network_among(config: ResNetConfig, names: Sequence[str]) -> str | None:
    """Returns the first of these catalog names with the same architecture, or None."""
    wanted = _essence(config)
    return next((name for name in names if _essence(CATALOG[name].config) == wanted), None)


def torchvision_weights(config: ResNetConfig, name: str) -> tuple[Path, Preprocessing, tuple[str, ...]]:
    """Returns the file of published weights, downloaded if necessary, its preprocessing and its classes.

    Args:
        config: of the network that wants them; torchvision must have it.
        name: of the weights, such as "IMAGENET1K_V2", or "DEFAULT" for the best.

    Raises:
        UserError: torchvision has no such network or weights, or the download failed.
        DamagedFileError: the file's hash is not the one in its name.
    """
    network = network_among(config, TORCHVISION_NETWORKS)
    if network is None:
        raise UserError(
            f"torchvision has no network like this one ({config.block}, depths {config.depths}); it has "
            f"{', '.join(TORCHVISION_NETWORKS)}. Build one of these by its name, or load weights from a file."
        )
    import torchvision  # slow, and other weights do not need it

    entries = torchvision.models.get_model_weights(network)
    if name not in (known := [*entries.__members__, "DEFAULT"]):
        raise unknown(f"weights of torchvision's {network}", name, known)
    entry = entries[name]
    path = Path(torch.hub.get_dir()) / "checkpoints" / entry.url.rpartition("/")[2]
    if not path.is_file():
        try:
            entry.get_state_dict(progress=True, check_hash=True, weights_only=True)
        except (URLError, OSError) as error:
            raise UserError(
                f"{entry.url} could not be downloaded ({error}). Download it on another machine and put it "
                f"at {path}, or give the path of the file instead of {f'torchvision:{name}'!r}."
            ) from error
    _check_hash(path)
    shown = entry.transforms()
    preprocessing = Preprocessing(
        image_size=shown.crop_size[0],
        channels=3,
        mean=shown.mean,
        std=shown.std,
        interpolation=shown.interpolation.value,
        crop_pct=shown.crop_size[0] / shown.resize_size[0],
    )
    return path, preprocessing, tuple(entry.meta["categories"])


def timm_weights(name: str) -> tuple[Path, dict[str, Any]]:
    """Returns the file of weights published under a name, and its description.

    Safetensors are preferred. Files that were downloaded before are used without a connection.

    Args:
        name: as in timm, such as "resnet50.a1_in1k".

    Raises:
        UserError: huggingface_hub is not installed, or the download failed.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
    except ModuleNotFoundError as error:
        raise UserError(
            f"'timm:{name}' needs the package huggingface_hub, which is not installed: "
            "pip install 'resnetlab[hub]'. Or download the file yourself and give its path."
        ) from error
    repository = f"timm/{name}"
    reason: Exception | None = None
    for file in _TIMM_FILES:
        try:
            path = Path(hf_hub_download(repository, file))
            description = Path(hf_hub_download(repository, "config.json"))
        except LocalEntryNotFoundError as error:  # before its base class: it says that nothing could be asked
            reason = error
        except EntryNotFoundError as error:
            reason = error
        except (HfHubHTTPError, OSError, ValueError) as error:
            reason = error
            break
        else:
            return path, _read_description(description)
    raise UserError(
        f"'timm:{name}' could not be downloaded ({type(reason).__name__}): no connection, or no such name. Download "
        f"https://huggingface.co/{repository}/resolve/main/{_TIMM_FILES[0]} on another machine, keep its "
        "config.json in the same folder, and give the path of the file instead of the name."
    ) from reason


def description_of(path: Path) -> dict[str, Any]:
    """Returns the content of timm's `config.json` in the folder of a file of weights; empty if there is none."""
    config = path.parent / "config.json"
    return _read_description(config) if config.is_file() else {}


def architecture(description: Mapping[str, Any]) -> str | None:
    """Returns the name of the described network, if the catalog has it."""
    name = description.get("architecture")
    return name if name in TIMM_NETWORKS else None


def preprocessing_of(description: Mapping[str, Any]) -> Preprocessing | None:
    """Returns the preprocessing in a description, or None."""
    found = description.get("pretrained_cfg", description)
    try:
        return Preprocessing(
            image_size=found["input_size"][-1],
            channels=found["input_size"][0],
            mean=tuple(found["mean"]),
            std=tuple(found["std"]),
            interpolation=found.get("interpolation", "bilinear"),
            crop_pct=found.get("crop_pct", 1.0),
        )
    except (KeyError, TypeError, IndexError, UserError):
        return None


def _check_hash(path: Path) -> None:
    """Checks the SHA-256, whose first digits end the file name; torch checks it on download only."""
    expected = re.search(r"-([0-9a-f]{8,})\.[^.]+$", path.name)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if expected and not digest.startswith(expected[1]):
        raise DamagedFileError(
            f"{path} is damaged or another file: its SHA-256 starts with {digest[: len(expected[1])]}, and its name "
            f"says {expected[1]}. Delete it to download it again."
        )


def _essence(config: ResNetConfig) -> dict[str, object]:
    return {key: value for key, value in dataclasses.asdict(config).items() if key not in _WITHOUT_WEIGHTS}


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return {}
    return description if isinstance(description, dict) else {}
