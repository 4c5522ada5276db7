"""Weights of timm: its names, which differ from ours only with pre-activation, and its published files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resnetlab.core.errors import UserError
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.models.catalog import CATALOG
from resnetlab.weights.maps.keymap import KeyMap

_NAMES = r"(resnet(18|26|34|50|101|152)d?|seresnet\d+|resnetv2_\d+|wide_resnet\d+_2|resnext\d+_.*)"
NETWORKS = tuple(name for name in CATALOG if re.fullmatch(_NAMES, name) and name != "resnet26d")
"""The networks of the catalog that timm has under the same names."""
_PREACTIVATION = (
    (r"^conv1\.", "stem.conv."),
    (r"^layer(\d)\.(\d+)\.", lambda match: f"stages.{int(match[1]) - 1}.blocks.{match[2]}."),
    (r"\.bn(\d)\.", r".norm\1."),
    (r"\.downsample\.0\.", ".downsample.conv."),
    (r"^fc\.", "head.fc."),
)
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def timm_key_map(names: Sequence[str]) -> KeyMap:
    """Returns the map for these tensors of a network with pre-activation.

    Its head in timm is a 1x1 convolution. All other networks of timm have torchvision's names.
    """
    renamed = {}
    for name in names:
        theirs = name
        for pattern, replacement in _PREACTIVATION:
            theirs = re.sub(pattern, replacement, theirs)
        renamed[name] = theirs
    return KeyMap(form="timm", names=renamed, pointwise=frozenset({"fc.weight"}) & renamed.keys())


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
    for file in _WEIGHTS:
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
        f"https://huggingface.co/{repository}/resolve/main/{_WEIGHTS[0]} on another machine, keep its "
        "config.json in the same folder, and give the path of the file instead of the name."
    ) from reason


def description_of(path: Path) -> dict[str, Any]:
    """Returns the content of timm's `config.json` in the folder of a file of weights; empty if there is none."""
    config = path.parent / "config.json"
    return _read_description(config) if config.is_file() else {}


def architecture(description: Mapping[str, Any]) -> str | None:
    """Returns the name of the described network, if the catalog has it."""
    name = description.get("architecture")
    return name if name in NETWORKS else None


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


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return {}
    return description if isinstance(description, dict) else {}
