"""`read_weights_file`: the tensors in a file of any known program, recognized by its content."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from resnetlab.core.checks import check_shape
from resnetlab.core.errors import UserError
from resnetlab.core.files import printable, read_json
from resnetlab.weights.gluon.params import is_params, read_params
from resnetlab.weights.pickled import is_pickled, read_pickled
from resnetlab.weights.tensors import (
    DamagedFileError,
    is_ours,
    is_safetensors,
    read_header,
    read_network,
    read_safetensors,
    shown,
)

T = TypeVar("T")

_NESTS = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema", "model_ema")
"""Keys under which training scripts save a state dict; trained weights come before averaged ones."""
_DEEPEST_NEST = 2
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")
"""Prefixes of all names, from DataParallel, torch.compile, or a module that has the network as an attribute."""
_MOST_WRAPPERS = 8
_INDEX = ".safetensors.index.json"
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}\.safetensors")
_HUB_FILES = ("model.safetensors", f"model{_INDEX}", "pytorch_model.bin")
_HUB_OTHERS = (".bin.index.json", "tf_model.h5", "flax_model.msgpack", ".gguf")
_DTYPES = frozenset(
    {
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
        *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    }
)
MOST_SHARING = 4
"""Names that may share the same memory, on average."""


@dataclass(frozen=True, kw_only=True)
class ForeignWeights:
    """The tensors in a file.

    Attributes:
        tensors: dense, on the CPU, in the file's types, by name without the prefixes of wrappers.
        description: the header, if ResNetLab wrote the file.
        form: "safetensors", "torch" or "gluon".
        nesting: what was unwrapped, such as "'state_dict', names without 'module.'"; or empty.
        ignored: what else the file contains, such as "epoch" and "optimizer".
    """

    tensors: dict[str, Tensor]
    description: dict[str, Any] | None = None
    form: str
    nesting: str = ""
    ignored: tuple[str, ...] = ()


def read_weights_file(path: str | Path) -> ForeignWeights:
    """Reads a file of weights; nothing in it is executed. The file's suffix does not matter.

    Args:
        path: a safetensors file, a checkpoint of `torch.save`, or Gluon's `.params`.

    Raises:
        DamagedFileError: the file is in none of these formats, truncated or altered.
        UserError: the file does not exist, has no weights, or has objects that cannot be read safely.
    """
    path = Path(path)
    head = read_head(path)
    if path.name.endswith(_INDEX) or _SHARD.fullmatch(path.name):
        return _read_shards(path)
    if is_safetensors(head):
        return _read_safetensors(path)
    if is_params(head):
        return ForeignWeights(tensors=_check_tensors(path, read_params(path)), form="gluon")
    if is_pickled(head):
        return _read_checkpoint(path)
    if head.startswith(b"version https://git-lfs"):
        raise UserError(
            f"{printable(path)} is not the file itself, but Git LFS's pointer to it. Download it: git lfs pull"
        )
    refuse_exported(path)
    problem = "is empty" if not head else "is not a file of weights"
    raise DamagedFileError(
        f"{printable(path)} {problem}. Supported are safetensors files, checkpoints of torch.save and Gluon's "
        ".params. Unpack an archive first, and download a damaged file again."
    )


def refuse_exported(path: Path) -> None:
    """Raises `UserError` for a file that was exported for another program."""
    if path.suffix in (".onnx", ".xml") and not is_safetensors(read_head(path)):
        raise UserError(
            f"{printable(path)} is an exported network, not a file of weights. Give the run that was exported. "
            "`predict`, `evaluate` and `serve` also take .onnx files."
        )


def read_head(path: Path) -> bytes:
    """Returns the first bytes of a file; raises `UserError` if it cannot be read."""
    try:
        if path.is_dir():
            raise UserError(f"{printable(path)} is a folder, not a file of weights. Name the file in it.")
        if not path.is_file():
            raise UserError(f"there is no file {printable(path)}. Give a file of weights.")
        with path.open("rb") as file:
            return file.read(512)
    except OSError as error:
        raise UserError(f"{printable(path)} cannot be read: {error.strerror}. Check its permissions.") from error


def weights_in(folder: Path) -> Path | None:
    """Returns the file of weights in a folder that was downloaded from a model hub, or None.

    Raises:
        UserError: the folder has weights only in forms that cannot be read.
    """
    if found := next((folder / name for name in _HUB_FILES if (folder / name).is_file()), None):
        return found
    if others := sorted(path.name for path in folder.iterdir() if path.name.endswith(_HUB_OTHERS)):
        raise UserError(
            f"{printable(folder)} has weights only as {printable(', '.join(others[:3]))}, which cannot be read. "
            f"Expected {' or '.join(_HUB_FILES)}. Convert them: load them in their own library, and call "
            "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')."
        )
    return None


def check_finite_weights(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Raises `UserError` if tensors of a file contain NaN or infinite values."""
    counts = {name: value.numel() - int(value.isfinite().sum()) for name, value in tensors.items()}
    if bad := {name: count for name, count in counts.items() if count}:
        listed = [f"{name[:80]!r} ({count:,} of {tensors[name].numel():,})" for name, count in bad.items()]
        more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
        raise UserError(
            f"{printable(path)} contains NaN or infinite values in {len(bad)} of its {len(tensors)} tensors: "
            f"{', '.join(listed[:5])}{more}. Its training diverged, or the file was converted incorrectly. Use earlier "
            "weights."
        )


def _read_safetensors(path: Path) -> ForeignWeights:
    if is_ours(read_header(path).metadata):
        tensors, description = read_network(path)
        return ForeignWeights(tensors=_check_tensors(path, tensors), description=description, form="safetensors")
    tensors, prefix = without_wrappers(read_safetensors(path)[0])
    return ForeignWeights(tensors=_check_tensors(path, tensors), form="safetensors", nesting=_nesting((), prefix))


def _read_shards(path: Path) -> ForeignWeights:
    """Reads all files of weights that were split into several; any of them, or their index, is named."""
    part = _SHARD.fullmatch(path.name)
    index = path if part is None else path.with_name(f"{part['stem']}{_INDEX}")
    if not index.is_file():
        raise UserError(
            f"{printable(path)} is one of several files with the weights, and {printable(index.name)}, which lists "
            "them, is not in its folder. Download that file and the others too."
        )
    content = read_json(index)
    check_shape(printable(index), content, {"weight_map": {str: str}})
    names: dict[str, str] = content["weight_map"]
    files = sorted(set(names.values()))
    tensors: dict[str, Tensor] = {}
    for name in files:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise DamagedFileError(
                f"{printable(index)} refers to {shown(name)!r}, but it may refer only to safetensors files in "
                "its own folder."
            )
        if not (index.parent / name).is_file():
            raise UserError(f"{printable(index)} lists {shown(name)}, which is not in its folder. Download it too.")
        tensors |= read_safetensors(index.parent / name)[0]
    if missing := [name for name in names if name not in tensors]:
        raise DamagedFileError(f"{printable(index)} lists {shown(missing[0])!r}, which is in none of its files.")
    tensors, prefix = without_wrappers(tensors)
    size = sum((index.parent / name).stat().st_size for name in files)
    return ForeignWeights(tensors=_check_tensors(path, tensors, size), form="safetensors", nesting=_nesting((), prefix))


def _read_checkpoint(path: Path) -> ForeignWeights:
    content = read_pickled(path)
    keys = _way_to_tensors(content)
    if keys is None:
        raise UserError(
            f"{printable(path)} has no weights: it contains {_kind(content)}. Expected a dict of named tensors, or one "
            f"that contains such a dict under one of {', '.join(map(repr, _NESTS))}."
        )
    ignored: list[str] = []
    for depth, key in enumerate(keys):
        ignored += [".".join([*keys[:depth], _key(other)]) for other, _ in _items(content) if other != key]
        content = dict(_items(content))[key]
    named = {key: value for key, value in _items(content) if isinstance(key, str) and isinstance(value, Tensor)}
    ignored += [".".join([*keys, _key(key)]) for key, _ in _items(content) if key not in named]
    tensors, prefix = without_wrappers(named)
    return ForeignWeights(
        tensors=_check_tensors(path, tensors),
        form="torch",
        nesting=_nesting(keys, prefix),
        ignored=tuple(ignored),
    )


def _way_to_tensors(content: Any, depth: int = 0) -> tuple[str, ...] | None:
    """Returns the keys that lead to a dict of tensors, or None."""
    if not isinstance(content, dict):
        return None
    entries = dict(_items(content))
    for key in _NESTS if depth < _DEEPEST_NEST else ():
        below = _way_to_tensors(entries.get(key), depth + 1)
        if below is not None:
            return (key, *below)
    return () if any(isinstance(value, Tensor) for value in entries.values()) else None


def _items(content: dict) -> Iterable[tuple[Any, Any]]:
    """Returns the entries of a dict from a pickle, which may have set an attribute called `items` on it."""
    return dict.items(content)


def without_wrappers(tensors: Mapping[str, T]) -> tuple[dict[str, T], str]:
    """Returns entries without the prefix that wrappers gave all of their names, and the prefix."""
    prefix = ""
    for _ in range(_MOST_WRAPPERS):
        for wrapper in _WRAPPERS:
            longer = prefix + wrapper
            if tensors and all(name.startswith(longer) and name != longer for name in tensors):
                prefix = longer
                break
    return {name.removeprefix(prefix): value for name, value in tensors.items()}, prefix


def _check_tensors(path: Path, tensors: Mapping[str, Tensor], size: int | None = None) -> dict[str, Tensor]:
    if not tensors:
        raise UserError(f"{printable(path)} has no tensors. Give a file of weights.")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in _DTYPES:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(
                f"{printable(path)}: its tensor {name[:80]!r} is of type {kind} and of layout {tensor.layout}, and a "
                "network needs dense floats of 16 to 64 bits, or integers. Convert it in the program that wrote it."
            )
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    size = path.stat().st_size if size is None else size
    if claimed > MOST_SHARING * size:
        raise DamagedFileError(
            f"{printable(path)} has tensors of {claimed:,} bytes in a file of {size:,} bytes. It is damaged, or made "
            "to fill the memory. Use another copy."
        )
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _nesting(keys: tuple[str, ...], prefix: str) -> str:
    inside = [repr(".".join(keys))] if keys else []
    return ", ".join([*inside, *([f"names without {prefix!r}"] if prefix else [])])


def _kind(content: Any) -> str:
    if isinstance(content, dict):
        entries = [f"{_key(key)} ({type(value).__name__})" for key, value in _items(content)]
        more = f" and {len(entries) - 8} more" if len(entries) > 8 else ""
        return f"a dict of {', '.join(entries[:8])}{more}" if entries else "an empty dict"
    if isinstance(content, (list, tuple, set)):
        return f"a {type(content).__name__} of {len(content):,} entries"
    return "one tensor without a name" if isinstance(content, Tensor) else f"one {type(content).__name__}"


def _key(key: Any) -> str:
    text = key if isinstance(key, str) else f"a key of type {type(key).__name__}"
    return repr(text[:80])[1:-1]
