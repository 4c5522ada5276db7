"""Checkpoints of `torch.save`, of which nothing is ever executed.

torch's restricted unpickler alone reads them. It still makes whatever a few allowed functions return, of any size;
so the instructions of a pickle are gone through first, without carrying out any, and the sizes that a file declares
are held against its own.
"""

from __future__ import annotations

import io
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from resnetlab.core.errors import UserError
from resnetlab.core.files import printable
from resnetlab.weights.tensors import DamagedFileError, refuse_damage, shown

_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."  # two pickles: torch's own number, and 1001
_LEGACY_PICKLES = 5  # these, the writer's machine, the object, the names of its storages
_PICKLE = b"\x80"

_LONGEST_DIRECTORY = 2**23  # bytes, of a zip archive
_MOST_OPERATIONS, _LARGEST, _DEEPEST = 2_000_000, 20_000_000, 200
"""Of a pickle: its operations, and what a value in it may unfold to. A checkpoint of our largest network, resnet1202,
with its optimizer and an average, has under a million operations and a directory of under two million bytes."""

_ALLOWED = frozenset(
    {
        *("collections.OrderedDict", "collections.Counter", "builtins.set", "__builtin__.set"),
        *("torch.Size", "torch.device", "torch.nn.parameter.Parameter", "torch._utils._rebuild_parameter"),
        *("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"),
    }
)
"""What makes tensors and plain containers, next to torch's types and storages.

torch's own list is longer: some functions on it fill memory (bytearray, encode), some print all that they are given.
"""
_STORAGE = re.compile(r"torch\.(storage\.|cuda\.)?\w+Storage")
_KINDS = {
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_qtensor": "quantized",
    "torch._utils._rebuild_meta_tensor_no_storage": "without values (on the device meta)",
}
_GLOBALS = ("GLOBAL", "STACK_GLOBAL", "INST")
_CALLS = ("REDUCE", "NEWOBJ")
_REBUILD = "torch._utils._rebuild_"
_MOST_SHARING = 4
"""Sizes of a tensor, as a multiple of the file's bytes; names may share memory."""
_FILLS = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
_PUTS, _GETS = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")

_WAY_OUT = (
    "If you trust the file, load it in the program that wrote it and save only the state dict: "
    'safetensors.torch.save_file(model.state_dict(), "weights.safetensors") '
    'or torch.save(model.state_dict(), "weights.pt").'
)


def is_pickled(head: bytes) -> bool:
    """Whether a file that starts with these bytes is a checkpoint of `torch.save`, or another zip archive or pickle."""
    return head.startswith((*_ZIP, _PICKLE))


def read_pickled(path: Path) -> Any:
    """Returns the content of a checkpoint: tensors on the CPU, numbers, text and plain containers.

    Args:
        path: a file of `torch.save`, in its zip format or in that before torch 1.6.

    Raises:
        DamagedFileError: it is truncated or altered, or declares more than it contains.
        UserError: it contains anything else, such as an object of a class, or is a TorchScript program.
    """
    with refuse_damage(path, "a checkpoint of torch.save"), path.open("rb") as file:
        head = file.read(len(_LEGACY))
        file.seek(0)
        if head.startswith(_ZIP):
            _check_pickles(path, _pickles_of_archive(path, file))
        elif head == _LEGACY:
            _check_pickles(path, [file] * _LEGACY_PICKLES)
        else:
            _check_pickles(path, [file])
            raise UserError(
                f"{printable(path)} is a pickle that torch.save did not write, so it is not loaded. {_WAY_OUT}"
            )
        file.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)


def _pickles_of_archive(path: Path, file: IO[bytes]) -> list[IO[bytes]]:
    """Returns the pickles of an uncompressed zip archive with correct checksums."""
    size = file.seek(0, io.SEEK_END)
    _check_directory(file, size)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        names = [entry.filename.rpartition("/")[2].lower() for entry in entries]  # torch's reader ignores case
        if "constants.pkl" in names:
            raise UserError(
                f"{printable(path)} is a TorchScript program (torch.jit.save), whose weights can only be read by "
                f"running it, and ResNetLab never runs code from a file. {_WAY_OUT}"
            )
        if "data.pkl" not in names:
            raise UserError(
                f"{printable(path)} is a zip archive that torch.save did not write: it has no data.pkl. If the weights "
                "are a file within it, unpack it and give that file."
            )
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > size:
            raise DamagedFileError(
                f"{printable(path)} declares {unpacked:,} bytes of content, but has only {size:,} bytes, and "
                "torch.save does not compress. The file is damaged, or made to exhaust the memory. Use "
                "another copy."
            )
        pickles: list[IO[bytes]] = []
        for entry, name in zip(entries, names, strict=True):
            if entry.CRC == 0:  # torch can omit checksums
                entry.CRC = None  # type: ignore[assignment] # zipfile's word for one that is not known
            content = archive.read(entry)  # compares the checksum, as torch does not
            if name == "data.pkl":
                pickles.append(io.BytesIO(content))
        return pickles


def _check_directory(file: IO[bytes], size: int) -> None:
    """Raises unless the archive's directory is right before its end, where every reader finds it.

    zipfile, which checks the archive here, and torch search for it in different ways: an archive with two directories
    could show them different contents.
    """
    file.seek(max(0, size - 98))
    tail = file.read()
    end = tail[-22:]
    if end[:4] != b"PK\x05\x06" or end[-2:] != bytes(2):
        raise zipfile.BadZipFile("it does not end as a zip archive does")
    at, (length, start) = size - 22, struct.unpack("<II", end[12:20])
    if tail[-42:-38] == b"PK\x06\x07":  # sizes of 64 bits, as torch writes them
        at = size - 98
        if tail[:4] != b"PK\x06\x06" or struct.unpack("<Q", tail[-34:-26]) != (at,):
            raise zipfile.BadZipFile("its directory does not end where it says")
        length, start = struct.unpack("<QQ", tail[40:56])
    if start + length != at or length > _LONGEST_DIRECTORY:
        raise zipfile.BadZipFile("its directory is not where it says, or too long")


@dataclass(slots=True)
class _Value:
    """What is known about a value on the stack of a pickle; the value itself is never made.

    Attributes:
        text: of a string, or the name of a class or function.
        is_global: whether it is a class or function.
        size: number of values that it unfolds to.
        depth: of its nested containers.
        largest: the largest number in it.
    """

    text: str = ""
    is_global: bool = False
    size: int = 1
    depth: int = 1
    largest: int = 0


@dataclass(slots=True)
class _Needs:
    """What reading pickles requires.

    Attributes:
        refused: the classes and functions that are not allowed, in the order of the file.
        protocol: the newest pickle protocol that they use.
        calls_values: whether they call a value that is not a class or function.
    """

    refused: dict[str, None] = field(default_factory=dict)
    protocol: int = 0
    calls_values: bool = False


def _check_pickles(path: Path, pickles: Iterable[IO[bytes]]) -> None:
    """Raises unless pickles make only tensors and plain containers, in a number that fits their length."""
    needs = _Needs()
    for pickle in pickles:
        _follow(path, pickle, needs)
    if needs.refused:
        names = [shown(name[:100]) for name in needs.refused]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise UserError(
            f"{printable(path)} needs {', '.join(names[:3])}{more} to be read. That is code, and running code from a "
            "file is unsafe, so ResNetLab reads only tensors, numbers, text, lists and dicts. "
            f"{_WAY_OUT}"
        )
    if needs.protocol > 2:
        raise UserError(
            f"{printable(path)} was written with pickle protocol {needs.protocol}, but torch reads weights "
            "only in protocol 2. Save it again with torch.save, without the argument pickle_protocol."
        )
    if needs.calls_values:
        raise ValueError("its pickle calls a value that is not a function")


def _follow(path: Path, pickle: IO[bytes], needs: _Needs) -> None:
    """Follows the operations of a pickle without executing them.

    A few hundred bytes can unfold to more than any memory holds, for example a pair that contains the same pair twice,
    and so on. So the size and depth of every value are limited.
    """
    stack: list[_Value] = []
    marks: list[int] = []
    memo: dict[Any, _Value] = {}
    most = _MOST_SHARING * path.stat().st_size
    for count, (code, argument, _) in enumerate(pickletools.genops(pickle)):
        needs.protocol = max(needs.protocol, code.proto)
        if code.name == "MARK":
            marks.append(len(stack))
        elif code.name in _PUTS:
            memo[argument] = stack[-1]
        elif code.name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif code.name in _GETS:
            stack.append(memo[argument])
        else:
            taken = _take(code, stack, marks)
            made = _make(code.name, argument, taken)
            if made.is_global and not _is_allowed(made.text):
                needs.refused[made.text] = None
            makes_tensor = code.name == "BINPERSID" or taken[0].text.startswith(_REBUILD) if taken else False
            if makes_tensor and any(value.largest > most for value in taken):
                # With a stride of 0 a tensor of 2^31 rows takes no memory, until something iterates over it.
                raise DamagedFileError(
                    f"{printable(path)} has a tensor that is larger than the file. It is damaged, or was made "
                    "on purpose to use up the memory. Use another copy."
                )
            if code.name in _CALLS:
                made.largest = 0
                _refuse_kinds(path, taken[0], stack)
                needs.calls_values |= not taken[0].is_global
            if count > _MOST_OPERATIONS or made.size > _LARGEST or made.depth > _DEEPEST:
                raise DamagedFileError(
                    f"{printable(path)} would expand to more objects than any checkpoint contains. It is "
                    "damaged, or was made on purpose to use up the memory. Use another copy."
                )
            stack += [made] * len(code.stack_after)


def _take(code: pickletools.OpcodeInfo, stack: list[_Value], marks: list[int]) -> list[_Value]:
    """Removes the operands of an operation from the stack and returns them."""
    before = code.stack_before
    if pickletools.markobject in before:
        start = marks.pop() - before.index(pickletools.markobject)
    else:
        start = len(stack) - len(before)
    if start < 0:
        raise ValueError("an operation of its pickle has too few arguments")
    taken, stack[start:] = stack[start:], []
    return taken


def _make(operation: str, argument: Any, taken: list[_Value]) -> _Value:
    """Returns the result of an operation on its operands."""
    if operation in _GLOBALS:
        by_name = operation != "STACK_GLOBAL"
        name = argument.replace(" ", ".", 1) if by_name else ".".join(value.text for value in taken)
        return _Value(name, is_global=True)
    if not taken:
        return _Value(
            text=argument if isinstance(argument, str) else "", largest=abs(argument) if type(argument) is int else 0
        )
    made = taken[0] if operation in _FILLS else _Value()  # a container that is filled may be in the memo already
    depth = max(value.depth for value in taken)
    made.size, made.largest = 1 + sum(value.size for value in taken), max(value.largest for value in taken)
    made.depth = depth if operation in _FILLS else depth + 1
    return made


def _refuse_kinds(path: Path, function: _Value, stack: list[_Value]) -> None:
    """Raises `UserError` if a function makes a tensor that is not dense; its name is below it on the stack."""
    if function.text in _KINDS:
        name = next((value.text for value in reversed(stack) if value.text and not value.is_global), "")
        raise UserError(
            f"{printable(path)}: its tensor {name[:80]!r} is {_KINDS[function.text]}, and a network needs dense "
            "tensors. Convert it in the program that wrote it."
        )


def _is_allowed(name: str) -> bool:
    if name in _ALLOWED or name in _KINDS or _STORAGE.fullmatch(name):
        return True
    return isinstance(vars(torch).get(name.removeprefix("torch.")), torch.dtype)
