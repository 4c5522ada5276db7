"""Tensors and their description in one safetensors file, with a digest that proves both.

No pickle is ever written or read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from resnetlab.core.errors import UserError, outside_cause
from resnetlab.core.files import atomic, printable

T = TypeVar("T")

_KEY = "resnetlab"
_NETWORKS_IN_CHECKPOINT = ("best", "average", "model")
_DTYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"},
    **{f"{kind}{bits}": f"{name}{bits}" for kind, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)},
}
"""torch's names for safetensors' types; other types keep their names."""


class DamagedFileError(UserError):
    """A file of tensors that is truncated, altered or not in a known format."""


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """What a file says about one tensor; `dtype` is torch's name, such as "float32"."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Header:
    """The header of a safetensors file.

    Attributes:
        tensors: in the order of their names.
        metadata: the free part of the header.
    """

    tensors: tuple[TensorInfo, ...]
    metadata: Mapping[str, str]


class ForeignFileError(DamagedFileError):
    """A file of tensors that another program wrote."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Writes tensors and a JSON-ready description atomically.

    Tensors are stored contiguous. Copy them into a network to restore its memory format.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {**description, "digest": digest_of(stored, description)}
    # Not `save_file`, which writes to a temporary file with a name of its own that a killed process would leave.
    with atomic(path) as temporary:
        temporary.write_bytes(save(stored, metadata={_KEY: json.dumps(header)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors and the description, once their digest is verified.

    Raises:
        DamagedFileError: the file is truncated or altered.
        ForeignFileError: it was not written by `write_tensors`.
    """
    tensors, metadata = read_safetensors(path)
    if not is_ours(metadata):
        raise ForeignFileError(f"{path} has no ResNetLab header: another program wrote it.")
    description, digest = read_description(path, metadata)
    if not matches_digest(path, tensors, description, digest):
        raise DamagedFileError(f"{path} is damaged: its content does not match its digest. Use another copy.")
    return tensors, description


def read_network(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns what `read_tensors` returns, of a checkpoint only the tensors of the network that it stands for."""
    tensors, description = read_tensors(path)
    prefix = network_prefix(tensors, description)
    return without_prefix(tensors, prefix), description


def network_prefix(names: Iterable[str], description: Mapping[str, Any]) -> str:
    """Returns the prefix that the tensors of the network have in a file.

    In a checkpoint these are the weights that the training would keep if it ended there: those of the best epoch if the
    recipe keeps them and an epoch was validated; otherwise the averaged weights if the recipe averages them; otherwise
    the weights after the last step. A file of a network has no prefix.
    """
    if not is_checkpoint(description):
        return ""
    found = {name.partition(".")[0] for name in names}
    return next((f"{part}." for part in _NETWORKS_IN_CHECKPOINT if part in found), "")


def is_checkpoint(description: Mapping[str, Any]) -> bool:
    """Whether a description is that of a checkpoint: the state of a training, not only a network."""
    return "progress" in description


def without_prefix(tensors: Mapping[str, T], prefix: str) -> dict[str, T]:
    """Returns the entries whose names have a prefix, by the names without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors of any program's safetensors file, and the free part of its header.

    Raises:
        DamagedFileError: the file is truncated, or its header is not one of safetensors.
    """
    with refuse_damage(path, "safetensors"), safe_open(path, framework="pt") as file:
        _refuse_doubles(path)
        tensors = {name: own_memory(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118, not a dict
        return tensors, file.metadata() or {}


def own_memory(tensor: Tensor) -> Tensor:
    """Returns a copy in memory of its own, aligned as torch allocates it.

    A tensor mapped from a file starts wherever the file has it. On memory that is not aligned, oneDNN picks other
    kernels, and the last bits of a network's logits change.
    """
    return tensor.clone(memory_format=torch.preserve_format)


def read_header(path: Path) -> Header:
    """Reads the header of any program's safetensors file, without loading tensors.

    Raises:
        DamagedFileError: the file is truncated, or its header is not one of safetensors.
    """
    with refuse_damage(path, "safetensors"), safe_open(path, framework="pt") as file:
        _refuse_doubles(path)
        tensors = []
        for name in sorted(file.keys()):
            part = file.get_slice(name)
            dtype = str(part.get_dtype())
            tensors.append(TensorInfo(name=name, dtype=_DTYPES.get(dtype, dtype), shape=tuple(part.get_shape())))
        return Header(tensors=tuple(tensors), metadata=file.metadata() or {})


def is_safetensors(head: bytes) -> bool:
    """Whether a file that starts with these bytes is safetensors: eight bytes of length, then a JSON header."""
    return head[8:9] == b"{"


def is_ours(metadata: Mapping[str, str]) -> bool:
    """Whether `write_tensors` wrote the file of this header."""
    return _KEY in metadata


def read_description(path: Path, metadata: Mapping[str, str]) -> tuple[dict[str, Any], Any]:
    """Returns the description in a ResNetLab header, and the digest that was written with it.

    Raises:
        DamagedFileError: it is not the JSON that `write_tensors` writes.
    """
    try:
        description = json.loads(metadata[_KEY])
        digest = description.pop("digest", None)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:  # TypeError: a list's pop
        raise DamagedFileError(f"{path} is damaged: its description cannot be read. Use another copy.") from error
    return description, digest


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


def weights_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Returns a digest of a network's tensors that does not depend on device, memory format or floating-point type."""
    return digest_of(
        {name: (value.float() if value.is_floating_point() else value).cpu() for name, value in tensors.items()}, {}
    )


def matches_digest(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any], digest: Any) -> bool:
    """Whether the content of a ResNetLab file matches its digest."""
    with refuse_damage(path, "a file of resnetlab"):  # a description may be nested deeper than JSON can be written
        return digest == digest_of(tensors, description)


def shown(text: str) -> str:
    """Returns text from a file in a form that every terminal can show; see `printable`."""
    return printable(text.encode("utf-8", "backslashreplace").decode())


@contextmanager
def refuse_damage(path: Path, form: str) -> Iterator[None]:
    """Turns every exception that a reader raises on damaged data into a `DamagedFileError`.

    What has another cause, such as missing permission or too little memory, becomes a `UserError` that names it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # TypeError, MemoryError, RecursionError, ...: readers raise anything
        reason = " ".join(str(error).split())[:300].rstrip(" .:") or type(error).__name__
        raise outside_cause(error, printable(path)) or DamagedFileError(
            f"{printable(path)} cannot be read as {form}: {shown(reason)}. It is damaged or another kind of file; "
            "use another copy."
        ) from error


def _refuse_doubles(path: Path) -> None:
    """Raises `ValueError` if a header names a tensor twice; safetensors would silently take the last."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = dict(pairs)
        if len(names) < len(pairs):
            raise ValueError("its header has the same name twice")
        return names

    with path.open("rb") as file:  # its length is already known to be in bounds
        json.loads(file.read(int.from_bytes(file.read(8), "little")), object_pairs_hook=unique)
