"""Files of Gluon (`.params`), read and written without MXNet.

Little-endian, nothing aligned: a mark, a count of arrays, the arrays, a count of names, the names. Each array begins
with a mark of its own, which tells the version of its header. Every number is held against the bytes that are left
before anything is made of it, so that a damaged file costs neither time nor memory.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from resnetlab.core.errors import UserError
from resnetlab.core.files import atomic, printable
from resnetlab.weights.tensors import DamagedFileError, own_memory

_FILE_MARK = 0x112
_REVERSED_FILE_MARK = 0x1201 << 48  # the same eight bytes from the last to the first
_VERSION_1, _VERSION_2, _VERSION_3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_DENSE, _ROW_SPARSE, _CSR = 0, 1, 2
_CPU = (1, 0)
_MOST_DIMENSIONS = 32  # of any array of MXNet
_TYPES = (
    ("<f4", torch.float32),
    ("<f8", torch.float64),
    ("<f2", torch.float16),
    ("u1", torch.uint8),
    ("<i4", torch.int32),
    ("i1", torch.int8),
    ("<i8", torch.int64),
    ("?", torch.bool),
)
"""The types of elements by their codes, from 0."""


def read_params(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a `.params` file of any version, in the file's order and their own types.

    Where the file has no names they are called "0", "1", ... by their places. Entries that are empty, the trace of a
    parameter that was never given a shape, are left out. The device that an array was on does not matter.

    Raises:
        DamagedFileError: the file cannot be read, is truncated or altered, is not Gluon's, or contains a sparse array.
            The message says at which byte.
    """
    try:
        with path.open("rb") as file:
            return _read_file(_Reader(path, file))
    except OSError as error:
        raise DamagedFileError(f"{printable(path)} cannot be read: {error.strerror}.") from error


def write_params(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors to a `.params` file of version 2, which every MXNet since 1.0 reads, atomically.

    Args:
        path: the file.
        tensors: in the order of the file. Tensors on other devices are written from a copy.

    Raises:
        UserError: a tensor has a type that Gluon lacks, or is a scalar or empty, which version 2 cannot store.
    """
    for name, tensor in tensors.items():
        _check_writable(name, tensor)
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<QQQ", _FILE_MARK, 0, len(tensors)))
        for tensor in tensors.values():
            code = [kind for _, kind in _TYPES].index(tensor.dtype)
            file.write(struct.pack("<Iii", _VERSION_2, _DENSE, tensor.ndim))
            file.write(struct.pack(f"<{tensor.ndim}qiii", *tensor.shape, *_CPU, code))
            file.write(tensor.detach().cpu().contiguous().numpy().data)
        file.write(struct.pack("<Q", len(tensors)))
        for name in tensors:
            encoded = name.encode()
            file.write(struct.pack("<Q", len(encoded)) + encoded)


def is_params(head: bytes) -> bool:
    """Whether a file that starts with these bytes (8 or more) is a `.params` file, of either byte order."""
    return head[:8] in (struct.pack("<Q", mark) for mark in (_FILE_MARK, _REVERSED_FILE_MARK))


class _Reader:
    """A file that is read from start to end, with the number of bytes left."""

    def __init__(self, path: Path, file: BufferedReader) -> None:
        self.where = printable(path)
        self.file = file
        self.size = file.seek(0, 2)
        self.at = file.seek(0)

    @property
    def left(self) -> int:
        return self.size - self.at

    def fail(self, reason: str, at: int) -> NoReturn:
        raise DamagedFileError(f"{self.where} is damaged at byte {at}: {reason}. Use another copy of the file.")

    def fill(self, memory: Any, what: str) -> None:
        """Reads as many bytes as `memory` has."""
        size = memoryview(memory).nbytes
        if size > self.left or self.file.readinto(memory) != size:
            self.fail(f"the file ends within {what}", self.size)
        self.at += size

    def numbers(self, layout: str, what: str) -> tuple[int, ...]:
        """Returns the numbers of a struct layout."""
        memory = bytearray(struct.calcsize(layout))
        self.fill(memory, what)
        return struct.unpack(layout, memory)

    def count(self, what: str, smallest: int) -> int:
        """Returns a count of items that take at least `smallest` bytes each, checked against the bytes left."""
        at = self.at
        (number,) = self.numbers("<Q", f"the number of {what}")
        if number * smallest > self.left:
            self.fail(f"{number} {what} are declared, but only {self.left} bytes are left", at)
        return number


def _read_file(file: _Reader) -> dict[str, Tensor]:
    mark, reserved = file.numbers("<QQ", "its first 16 bytes")
    if mark == _REVERSED_FILE_MARK:
        raise DamagedFileError(
            f"{file.where} was written on a big-endian machine: from byte 0 on, the byte order is reversed. "
            "Save it again on a little-endian machine."
        )
    if mark != _FILE_MARK:
        file.fail(f"a .params file starts with the number {_FILE_MARK:#x}, this one with {mark:#x}", 0)
    if reserved:
        file.fail(f"expected the number 0, got {reserved}", 8)
    arrays = [_read_array(file, place) for place in range(file.count("arrays", 4))]
    names = _read_names(file, len(arrays))
    if file.left:
        file.fail(f"{file.left} bytes follow the end of the last name", file.at)
    return {
        name: own_memory(torch.from_numpy(array))
        for name, array in zip(names, arrays, strict=True)
        if array is not None
    }


def _read_array(file: _Reader, place: int) -> np.ndarray | None:
    """Returns the next array, or None for an empty entry."""
    start, what = file.at, f"the header of array {place}"
    (mark,) = file.numbers("<I", what)
    ndim, dimension = mark, "I"  # version 0 has no mark
    if mark in (_VERSION_2, _VERSION_3):
        _check_dense(file, *file.numbers("<i", what), place=place, start=start)
    if mark in (_VERSION_1, _VERSION_2, _VERSION_3):
        (ndim,), dimension = file.numbers("<i", what), "q"
    empty = -1 if mark == _VERSION_3 else 0
    if ndim == empty:
        return None
    if not 0 <= ndim <= _MOST_DIMENSIONS:
        reason = f"array {place} is of no known version, or has {ndim} dimensions where at most {_MOST_DIMENSIONS} are"
        file.fail(f"{reason} possible", start)
    shape = file.numbers(f"<{ndim}{dimension}", what)
    if mark == _VERSION_3 and -1 in shape:
        return None
    if min(shape, default=0) < 0:
        file.fail(f"array {place} has the shape {shape}, with a negative dimension", start)
    *_, code = file.numbers("<iii", what)
    if not 0 <= code < len(_TYPES):
        file.fail(f"array {place} has elements of the unknown type {code}", start)
    return _read_elements(file, place, shape, np.dtype(_TYPES[code][0]), start)


def _check_dense(file: _Reader, storage: int, *, place: int, start: int) -> None:
    if storage in (_ROW_SPARSE, _CSR):
        raise DamagedFileError(
            f"{file.where} has a sparse array, array {place} at byte {start}, which ResNetLab cannot read. "
            "Write the file again after tostype('default')."
        )
    if storage != _DENSE:
        file.fail(f"array {place} has the unknown storage type {storage}", start)


def _read_elements(file: _Reader, place: int, shape: tuple[int, ...], dtype: np.dtype, start: int) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    if size > file.left:
        file.fail(f"array {place} of shape {shape} takes {size} bytes, and {file.left} are left", start)
    if math.prod(max(1, length) for length in shape) * dtype.itemsize >= 2**63:  # empty, but for its other lengths
        file.fail(f"array {place} has the shape {shape}, which is too large", start)
    flags = dtype.kind == "b"  # read as bytes, of which only 0 and 1 would be flags
    elements = np.empty(shape, "u1" if flags else dtype)
    file.fill(elements.reshape(-1).view("u1").data, f"the elements of array {place}")
    return elements.astype(bool) if flags else elements


def _read_names(file: _Reader, arrays: int) -> list[str]:
    at = file.at
    number = file.count("names", 8)
    if number == 0:
        return [str(place) for place in range(arrays)]
    if number != arrays:
        file.fail(f"there are {number} names for {arrays} arrays", at)
    names: dict[str, None] = {}
    for place in range(number):
        at = file.at
        encoded = bytearray(file.count(f"bytes of name {place}", 1))
        file.fill(encoded, f"name {place}")
        try:
            name = encoded.decode()
        except UnicodeDecodeError:
            file.fail(f"name {place} is not valid UTF-8", at)
        if name in names:
            file.fail(f"the name {name!r} occurs twice", at)
        names[name] = None
    return list(names)


def _check_writable(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in [kind for _, kind in _TYPES]:
        raise UserError(f"Gluon has no type {tensor.dtype}, the type of {name!r}. Convert the network with float().")
    if tensor.numel() == 0 or tensor.ndim == 0:
        raise UserError(
            f"{name!r} has the shape {tuple(tensor.shape)}, and a .params file of version 2 stores neither scalars nor "
            "empty tensors. Give it one dimension, or leave it out."
        )
