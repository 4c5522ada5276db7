"""Weights of torchvision, whose tensors have the same names as ours, and its published files."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError

import torch

from resnetlab.core.errors import UserError, unknown
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.models.catalog import CATALOG
from resnetlab.models.config import ResNetConfig
from resnetlab.weights.maps.keymap import KeyMap
from resnetlab.weights.tensors import DamagedFileError

NETWORKS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
)
"""The networks of the catalog that torchvision has under the same names."""
_WITHOUT_WEIGHTS = ("init", "zero_init_residual", "drop_path", "drop_block", "parts", "in_channels", "num_classes")
"""Fields that do not affect which tensors a network has and what they mean."""


def torchvision_key_map(names: Sequence[str]) -> KeyMap:
    """Returns the map for these tensors: the names are equal."""
    return KeyMap(form="torchvision", names={name: name for name in names})


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
    network = network_among(config, NETWORKS)
    if network is None:
        raise UserError(
            f"torchvision has no network like this one ({config.block}, depths {config.depths}); it has "
            f"{', '.join(NETWORKS)}. Build one of these by its name, or load weights from a file."
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
