"""Tensors and their description in one safetensors file, with a digest that proves both.

No pickle is ever written or read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from resnetlab.core.errors import UserError
from resnetlab.core.files import atomic

_KEY = "resnetlab"


class DamagedFileError(UserError):
    """A file of tensors that is truncated, altered, or none of ours."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Writes tensors and a JSON-ready description atomically.

    Tensors are stored contiguous: whoever restores them copies into memory of the layout needed.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {**description, "digest": digest_of(stored, description)}
    with atomic(path) as temporary:
        save_file(stored, temporary, metadata={_KEY: json.dumps(header)})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors and the description, once their digest is verified.

    Raises:
        DamagedFileError: the file is truncated or altered, or was not written by `write_tensors`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except (SafetensorError, OSError) as error:
        raise DamagedFileError(f"{path} cannot be read as safetensors: {error}.") from error
    if header is None:
        raise DamagedFileError(f"{path} holds tensors but no description by resnetlab; it is another program's.")
    try:
        description = json.loads(header)
        digest = description.pop("digest", None)
    except (ValueError, AttributeError) as error:
        raise DamagedFileError(f"{path} is damaged: its description cannot be read. Use another copy.") from error
    if digest != digest_of(tensors, description):
        raise DamagedFileError(f"{path} is damaged: its content does not match its digest. Use another copy.")
    return tensors, description


def digest_of(tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of the sorted (name, type, shape, bytes) and the canonical description.

    Never of the file: safetensors promises no order within its header.
    """
    digest = hashlib.sha256(json.dumps(description, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
