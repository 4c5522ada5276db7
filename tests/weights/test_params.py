from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resnetlab.core.errors import UserError
from resnetlab.weights.gluon.params import is_params, read_params, write_params
from resnetlab.weights.tensors import DamagedFileError

SIX = np.arange(6, dtype="<f4").reshape(2, 3)
HEADER = struct.pack("<QQ", 0x112, 0)
VERSION_1, VERSION_2, VERSION_3 = (struct.pack("<I", mark) for mark in (0xF993FAC8, 0xF993FAC9, 0xF993FACA))
DENSE = struct.pack("<i", 0)
DEVICE = struct.pack("<ii", 2, 5)
FLOAT = struct.pack("<i", 0)


def _shape(*lengths: int, ndim: int | None = None) -> bytes:
    return struct.pack(f"<i{len(lengths)}q", len(lengths) if ndim is None else ndim, *lengths)


def _named(*names: bytes) -> bytes:
    return struct.pack("<Q", len(names)) + b"".join(struct.pack("<Q", len(name)) + name for name in names)


def _content(arrays: Sequence[bytes], names: bytes | None = None) -> bytes:
    named = _named(*(f"array{place}".encode() for place in range(len(arrays)))) if names is None else names
    return HEADER + struct.pack("<Q", len(arrays)) + b"".join(arrays) + named


OF_VERSION = {
    0: struct.pack("<III", 2, 2, 3) + DEVICE + FLOAT + SIX.tobytes(),
    1: VERSION_1 + _shape(2, 3) + DEVICE + FLOAT + SIX.tobytes(),
    2: VERSION_2 + DENSE + _shape(2, 3) + DEVICE + FLOAT + SIX.tobytes(),
    3: VERSION_3 + DENSE + _shape(2, 3) + DEVICE + FLOAT + SIX.tobytes(),
}
SCALAR = VERSION_3 + DENSE + _shape() + DEVICE + struct.pack("<i", 6) + struct.pack("<q", -7)
WITHOUT_ELEMENTS = VERSION_3 + DENSE + _shape(0, 4) + DEVICE + FLOAT
FLAGS = VERSION_2 + DENSE + _shape(3) + DEVICE + struct.pack("<i", 7) + bytes([1, 0, 1])
EMPTY = (
    struct.pack("<I", 0),
    VERSION_1 + _shape(),
    VERSION_2 + DENSE + _shape(),
    VERSION_3 + DENSE + _shape(ndim=-1),
    VERSION_3 + DENSE + _shape(4, -1),
)
VALID = [
    _content([OF_VERSION[2], FLAGS]),
    _content([OF_VERSION[0], OF_VERSION[1], OF_VERSION[3], SCALAR, WITHOUT_ELEMENTS]),
    _content([OF_VERSION[2], *EMPTY, OF_VERSION[3]], names=_named()),
]


def _written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "x.params"
    path.write_bytes(content)
    return path


def _refused(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(DamagedFileError, match=rf"x\.params.*{words}"):
        read_params(_written(tmp_path, content))


@pytest.mark.parametrize("name", ["fmt_dtypes_v2", "fmt_dtypes_v3"])
def test_every_type_that_mxnet_wrote_is_read(gluon_files: Path, name: str):
    tensors = read_params(gluon_files / f"{name}.params")
    with np.load(gluon_files / f"{name}.npz") as expected:
        assert set(tensors) == set(expected)
        assert {str(tensor.dtype) for tensor in tensors.values()} == {
            f"torch.{kind}" for kind in ("float32", "float64", "float16", "uint8", "int32", "int8", "int64", "bool")
        }
        for key, tensor in tensors.items():
            assert tensor.numpy().dtype == expected[key].dtype
            assert np.array_equal(tensor.numpy(), expected[key])
            assert tensor.shape == expected[key].shape


@pytest.mark.parametrize("name", ["fmt_v0", "fmt_v1", "fmt_v2_gpuctx"])
def test_every_version_that_mxnet_wrote_is_read(gluon_files: Path, name: str):
    tensors = read_params(gluon_files / f"{name}.params")
    assert list(tensors) == ["arg:w"]
    assert torch.equal(tensors["arg:w"], torch.arange(6.0).reshape(2, 3))


def test_what_mxnet_wrote_is_written_to_the_byte(gluon_files: Path, tmp_path: Path):
    supplied = sorted(gluon_files.glob("*narrow*.params"))
    assert len(supplied) == 8
    for path in [*supplied, gluon_files / "fmt_dtypes_v2.params"]:
        write_params(tmp_path / "again.params", read_params(path))
        assert (tmp_path / "again.params").read_bytes() == path.read_bytes()


def test_versions_may_be_mixed_in_a_file(tmp_path: Path):
    tensors = read_params(_written(tmp_path, _content([*OF_VERSION.values(), SCALAR, WITHOUT_ELEMENTS, FLAGS])))
    assert list(tensors) == [f"array{place}" for place in range(7)]
    *alike, scalar, without, flags = tensors.values()
    assert all(torch.equal(tensor, torch.arange(6.0).reshape(2, 3)) for tensor in alike)
    assert torch.equal(scalar, torch.tensor(-7))
    assert without.shape == (0, 4)
    assert torch.equal(flags, torch.tensor([True, False, True]))


def test_a_byte_that_is_no_flag_is_read_as_true(tmp_path: Path):
    (flags,) = read_params(_written(tmp_path, _content([FLAGS[:-1] + b"\x80"]))).values()
    assert torch.equal(flags, torch.tensor([True, False, True]))
    assert flags.sum() == 2


def test_without_names_places_count_and_empty_entries_are_left_out(tmp_path: Path):
    tensors = read_params(_written(tmp_path, _content([EMPTY[2], OF_VERSION[2], *EMPTY, FLAGS], names=_named())))
    assert list(tensors) == ["1", "7"]


def test_names_are_any_unicode_in_the_order_given(tmp_path: Path):
    tensors = {"ü/1": torch.ones(2), "arg:b": torch.tensor([[1], [2]]), "": torch.zeros(1, dtype=torch.float16)}
    write_params(tmp_path / "n.params", tensors)
    read = read_params(tmp_path / "n.params")
    assert list(read) == list(tensors)
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    write_params(tmp_path / "n.params", {})
    assert read_params(tmp_path / "n.params") == {}


def test_tensors_of_any_layout_are_written_in_order_of_their_indices(tmp_path: Path):
    kernel = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    parameter = torch.nn.Parameter(torch.randn(3, 2).T)
    write_params(tmp_path / "n.params", {"kernel": kernel, "parameter": parameter})
    read = read_params(tmp_path / "n.params")
    assert torch.equal(read["kernel"], kernel)
    assert torch.equal(read["parameter"], parameter)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(2, dtype=torch.bfloat16), r"torch\.bfloat16, .*'w'\. Convert .* float\(\)"),
        (torch.tensor(1.0), r"'w' has the shape \(\), and a \.params file of version 2 stores neither scalars"),
        (torch.zeros(0, 3), r"'w' has the shape \(0, 3\), .* nor empty tensors\. Give it one dimension"),
    ],
)
def test_what_the_form_cannot_hold_is_not_written(tmp_path: Path, tensor: torch.Tensor, words: str):
    path = _written(tmp_path, b"old")
    with pytest.raises(UserError, match=words):
        write_params(path, {"fine": torch.ones(1), "w": tensor})
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_known_by_its_first_bytes():
    assert is_params(VALID[0])
    assert is_params(struct.pack("<Q", 0x112))
    assert is_params(struct.pack(">Q", 0x112))
    for head in (b"", b"\x12\x01", b"PK\x03\x04....", struct.pack("<Q", 0x113), struct.pack("<Q", 0x112)[:7]):
        assert not is_params(head)


def test_a_missing_file_is_told(tmp_path: Path):
    with pytest.raises(DamagedFileError, match=r"gone\.params cannot be read: .*No such file"):
        read_params(tmp_path / "gone.params")


def test_the_other_byte_order_is_told(tmp_path: Path):
    swapped = struct.pack(">QQQ", 0x112, 0, 1) + bytes(100)
    _refused(tmp_path, swapped, "big-endian.*byte 0.*little-endian")


def test_sparse_arrays_are_refused(tmp_path: Path):
    for storage in (1, 2):
        sparse = VERSION_2 + struct.pack("<i", storage) + bytes(80)
        _refused(
            tmp_path, _content([OF_VERSION[2], sparse]), r"sparse array, array 1 at byte 88, .* tostype\('default'"
        )


def test_truncation_is_noticed_at_every_length(tmp_path: Path):
    for content in VALID:
        for length in range(len(content)):
            _refused(tmp_path, content[:length], r"damaged at byte \d+: .*Use another copy of the file")
    _refused(tmp_path, b"", "damaged at byte 0: the file ends within its first 16 bytes")
    _refused(tmp_path, VALID[0] + b"\0", "1 bytes follow the end of the last name")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04" + bytes(40), "byte 0: a .params file starts with the number 0x112, this one with 0x4034b50"),
        (struct.pack("<QQQ", 0x112, 9, 0), "byte 8: expected the number 0, got 9"),
        (HEADER + struct.pack("<Q", 2**60), f"byte 16: {2**60} arrays .* 0 bytes"),
        (_content([struct.pack("<I", 99) + bytes(400)]), "byte 24: array 0 is of no known version, or has 99 dimen"),
        (
            _content([VERSION_1 + struct.pack("<i", -2)]),
            "byte 24: .* or has -2 dimensions where at most 32 are poss",
        ),
        (_content([VERSION_2 + struct.pack("<i", 3) + bytes(9)]), "byte 24: array 0 .* 3"),
        (_content([VERSION_1 + _shape(2, -3) + bytes(99)]), r"byte 24: .*shape \(2, -3\), with a negative dimension"),
        (_content([VERSION_3 + DENSE + _shape(-2) + bytes(99)]), r"shape \(-2,\), with a negative dimension"),
        (_content([VERSION_1 + _shape(1) + DEVICE + struct.pack("<i", 8)]), "elements of the unknown type 8"),
        (_content([VERSION_1 + _shape(1) + DEVICE + struct.pack("<i", -1)]), "elements of the unknown type -1"),
        (
            _content([VERSION_1 + _shape(2**62, 2**62) + DEVICE + FLOAT]),
            rf"byte 24: array 0 of shape .* takes {2**126} bytes, and 22 are left",
        ),
        (_content([VERSION_3 + DENSE + _shape(0, 2**62, 2**62) + DEVICE + FLOAT]), "byte 24: .*, which is too large"),
        (_content([OF_VERSION[2]], names=_named(b"a", b"b")), "byte 88: there are 2 names for 1 arrays"),
        (_content([FLAGS, FLAGS], names=_named(b"a", b"a")), "byte 111: .*'a'"),
        (_content([FLAGS], names=_named(b"\xff")), "byte 67: name 0 is not valid UTF-8"),
        (_content([FLAGS], names=struct.pack("<QQ", 1, 2**63)), f"byte 67: {2**63} bytes of name 0 "),
        (_content([FLAGS], names=struct.pack("<Q", 2**61)), f"byte 59: {2**61} names .* 0 bytes"),
    ],
)
def test_what_is_wrong_is_named_with_its_byte(tmp_path: Path, content: bytes, words: str):
    _refused(tmp_path, content, words)


NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
)


@st.composite
def _mutations(draw: st.DrawFn) -> bytes:
    content = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(content)))
        kind = draw(st.sampled_from(["flip", "cut", "splice", "number"]))
        if kind == "flip" and at < len(content):
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del content[at : at + draw(st.integers(1, 16))]
        elif kind == "splice":
            other = draw(st.sampled_from(VALID))
            begin = draw(st.integers(0, len(other) - 1))
            content[at:at] = other[begin : begin + draw(st.integers(1, 64))]
        elif kind == "number":
            size = draw(st.sampled_from([4, 8]))
            content[at : at + size] = struct.pack("<Q", draw(NUMBERS))[:size]
    return bytes(content)


@settings(max_examples=400)
@given(content=st.one_of(_mutations(), st.binary(max_size=200), st.binary(max_size=200).map(HEADER.__add__)))
def test_any_bytes_are_read_or_refused_within_their_own_size(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    path = tmp_path_factory.getbasetemp() / "fuzzed.params"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        tensors = read_params(path)
    except DamagedFileError as error:
        assert "byte " in str(error)
    else:
        assert sum(tensor.nbytes for tensor in tensors.values()) <= len(content)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 64 * 1024 + 4 * len(content)


def test_declared_sizes_cost_nothing_and_real_ones_once(tmp_path: Path):
    """A megabyte that declares a gigabyte is refused in the memory of a buffer; ten honest ones take ten."""
    honest = np.ones(10 * 2**20 // 4, "<f4")
    declaring = VERSION_2 + DENSE + _shape(2**28) + DEVICE + FLOAT + bytes(2**20)
    fitting = VERSION_2 + DENSE + _shape(len(honest)) + DEVICE + FLOAT + honest.tobytes()
    for arrays, most in (([declaring], 2**17), ([fitting], 11 * 2**20)):
        path = _written(tmp_path, _content(arrays))
        tracemalloc.start()
        try:
            assert len(read_params(path)) == 1
        except DamagedFileError as error:
            assert arrays == [declaring]
            assert f"takes {2**30} bytes" in str(error)
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < most
