from __future__ import annotations

import io
import json
import os
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from tests.conftest import TINY

import resnetlab
from resnetlab import weights
from resnetlab.core.errors import UserError
from resnetlab.models.resnet import ResNet
from resnetlab.weights.contents import inspect_weights
from resnetlab.weights.foreign import MOST_SHARING, read_weights_file
from resnetlab.weights.gluon.params import write_params
from resnetlab.weights.tensors import DamagedFileError, read_tensors, write_tensors

MEMORY = 300 * 2**20  # bytes that the whole of this file may add to the process, whatever the files say
WEIGHTS = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.tensor([1.0, -2.0])}
EXTREME = (0, -1, 1, 2**31, 2**32 - 1, 2**53, 2**63, 2**64 - 1, 2**64, 10**30)
ODD = (
    *EXTREME,
    0.5,
    1e308,
    float("nan"),
    None,
    True,
    "",
    "conv1.weight",
    "\ud800",
    [],
    {},
    [[[]]],
    [2**40, 2**40],
    {"": 0},
)


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


def quick(examples: int) -> settings:
    return settings(max_examples=examples, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY


@pytest.fixture(scope="module")
def marker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What a bomb in any of the files would leave."""
    path = tmp_path_factory.mktemp("bomb") / "marker"
    yield path
    assert not path.exists()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, marker: Path) -> dict[str, bytes]:
    """A small sound file of every form, and a bomb in every form that has pickles."""
    folder = tmp_path_factory.mktemp("sound")
    checkpoint = {"state_dict": {f"module.{name}": value for name, value in WEIGHTS.items()}, "epoch": 3}
    weights.save(folder / "ours", ResNet(TINY))
    (folder / "safetensors").write_bytes(save(WEIGHTS, {"format": "pt"}))
    write_params(folder / "gluon", WEIGHTS)
    for name, is_zip in (("zip", True), ("legacy", False)):
        torch.save(checkpoint, folder / name, _use_new_zipfile_serialization=is_zip)
        bomb = checkpoint | {"bomb": Bomb(marker)}
        torch.save(bomb, folder / f"{name} bomb", _use_new_zipfile_serialization=is_zip)
    (folder / "pickle bomb").write_bytes(pickle.dumps(Bomb(marker)))
    with zipfile.ZipFile(folder / "zip") as source:
        (folder / "stream").write_bytes(source.read("zip/data.pkl"))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def check(path: Path, content: bytes, read: Callable[[Path], Any] = read_weights_file) -> Any:
    """Reads a file of this content; whatever is wrong with it must be a `UserError`."""
    path.write_bytes(content)
    try:
        return read(path)
    except UserError:
        return None


def archive(stream: bytes) -> bytes:
    """A zip archive as torch.save writes it, its checksums right, with a pickle of our making."""
    target = io.BytesIO()
    parts = {"data.pkl": stream, "version": b"3\n", "byteorder": b"little", "data/0": bytes(24), "data/1": bytes(8)}
    with zipfile.ZipFile(target, "w") as file:
        for name, content in parts.items():
            file.writestr(f"archive/{name}", content)
    return target.getvalue()


def legacy(stream: bytes) -> bytes:
    """A file as torch.save wrote it before version 1.6, with a pickle of our making and two storages."""
    numbers = [pickle.dumps(number, protocol=2) for number in (0x1950A86A20F9469CFC6C, 1001, {})]
    storages = struct.pack("<q", 6) + bytes(24) + struct.pack("<q", 2) + bytes(8)
    return b"".join([*numbers, stream, pickle.dumps(["0", "1"], protocol=2), storages])


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """One to three damages: a flip, a cut, bytes left out, copied or put in, a number made extreme."""
    kinds = ("flip", "cut", "leave out", "copy", "put in", "number")
    steps = draw(
        st.lists(
            st.tuples(st.sampled_from(kinds), st.integers(0, 2**16), st.integers(0, 2**16), st.sampled_from(EXTREME)),
            min_size=1,
            max_size=3,
        )
    )

    def damage(content: bytes) -> bytes:
        for kind, first, second, number in steps:
            at, length = first % (len(content) + 1), second % 40
            there, before, after = content[at : at + 1], content[:at], content[at + length :]
            if kind == "flip":
                content = before + bytes(byte ^ (1 << second % 8) for byte in there) + content[at + 1 :]
            elif kind == "cut":
                content = before
            elif kind == "leave out":
                content = before + after
            elif kind == "copy":
                other = second % (len(content) + 1)
                content = before + content[other : other + length] + content[at:]
            elif kind == "put in":
                content = before + second.to_bytes(4, "little") + content[at + 4 :]
            else:
                width = 4 if second % 2 else 8
                content = before + (number % 2 ** (8 * width)).to_bytes(width, "little") + content[at + width :]
        return content

    return damage


@pytest.mark.parametrize(
    "name", ["ours", "safetensors", "gluon", "zip", "legacy", "zip bomb", "legacy bomb", "pickle bomb"]
)
def test_damaged_files(tmp_path: Path, files: dict[str, bytes], name: str):
    assert "bomb" in name or check(tmp_path / "file", files[name]) is not None

    @quick(50)
    @given(damage=damages())
    def with_damage(damage: Callable[[bytes], bytes]) -> None:
        found = check(tmp_path / "file", damage(files[name]))
        assert found is None or "bomb" not in name
        if name == "ours":
            check(tmp_path / "file", damage(files[name]), resnetlab.load)

    with_damage()


@pytest.mark.parametrize("wrap", [archive, legacy])
def test_damaged_pickles_in_sound_files(tmp_path: Path, files: dict[str, bytes], wrap: Callable[[bytes], bytes]):
    """The checksums of a zip archive are made after the damage, so that its pickle is reached."""

    @quick(100)
    @given(damage=damages())
    def with_damage(damage: Callable[[bytes], bytes]) -> None:
        check(tmp_path / "file", wrap(damage(files["stream"])))

    with_damage()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


FUNCTIONS = (
    *("collections OrderedDict", "collections Counter", "__builtin__ set", "torch Size", "torch device"),
    *("torch.nn.parameter Parameter", "torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2"),
    *("torch._utils _rebuild_tensor_v3", "torch._utils _rebuild_parameter", "torch.storage UntypedStorage"),
)
CONSTANTS = ("torch FloatStorage", "torch LongStorage", "torch float32", "torch bfloat16", "__builtin__ bytearray")


def named(name: str) -> bytes:
    return b"c%s\n" % name.replace(" ", "\n").encode()


def storage(kind: bytes, key: bytes, count: bytes, end: bytes) -> bytes:
    return b"(" + text("storage") + kind + key + text("cpu") + count + end


def all_of(start: bytes, parts: list[bytes], end: bytes) -> bytes:
    return start + b"".join(parts) + end


NUMBERS = st.sampled_from([*EXTREME, 2, 3, 6, 24, -(2**63), 0.5]).map(
    lambda number: pickle.dumps(number, protocol=2)[2:-1]
)
KEYS = st.sampled_from(["0", "1", "2", "state_dict", "w", "cuda:0"]).map(text)
PLAIN = st.sampled_from([b"N", b"\x88", b"\x89", b")", b"]", b"}", *map(named, CONSTANTS)])
STORAGES = st.builds(
    storage,
    st.sampled_from(CONSTANTS[:2]).map(named),
    st.sampled_from("01").map(text) | KEYS,
    st.sampled_from([b"K\x02", b"K\x06"]) | NUMBERS,
    st.sampled_from([b"tQ", b"NtQ"]),  # of a zip archive, of the older form
)
VALUES = st.recursive(
    NUMBERS | KEYS | PLAIN | STORAGES,
    lambda values: (
        st.builds(all_of, st.just(b"("), st.lists(values, max_size=7), st.just(b"t"))
        | st.builds(all_of, st.just(b"]("), st.lists(values, max_size=4), st.just(b"e"))
        | st.builds(all_of, st.just(b"}("), st.lists(st.builds(bytes.__add__, KEYS, values), max_size=3), st.just(b"u"))
        | st.builds(
            lambda function, arguments, end: named(function) + all_of(b"(", arguments, end),
            st.sampled_from(FUNCTIONS),
            st.lists(values, max_size=7),
            st.sampled_from([b"tR", b"t\x81", b"tR}b", b"tRq\x00h\x00\x86"]),
        )
        | st.builds(
            lambda held, offset, shape, strides: (
                named("torch._utils _rebuild_tensor_v2") + b"(" + held + offset + shape + strides + b"\x89}tR"
            ),
            STORAGES | values,
            NUMBERS,
            st.builds(all_of, st.just(b"("), st.lists(NUMBERS, max_size=3), st.just(b"t")),
            st.builds(all_of, st.just(b"("), st.lists(NUMBERS, max_size=3), st.just(b"t")),
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("wrap", [archive, legacy])
def test_pickles_of_random_values(tmp_path: Path, files: dict[str, bytes], wrap: Callable[[bytes], bytes]):
    """What is read lies within the file, and a sound file of the same form is still read."""

    @quick(100)
    @given(value=VALUES, key=KEYS)
    def with_value(value: bytes, key: bytes) -> None:
        content = wrap(b"\x80\x02}" + key + value + b"s.")
        found = check(tmp_path / "file", content)
        tensors = [] if found is None else found.tensors.values()
        assert found is None or tensors
        assert sum(tensor.numel() * tensor.element_size() for tensor in tensors) <= MOST_SHARING * len(content)

    with_value()
    sound = check(tmp_path / "file", archive(files["stream"]) if wrap is archive else files["legacy"])
    assert {name: tuple(value.shape) for name, value in sound.tensors.items()} == {
        name: tuple(value.shape) for name, value in WEIGHTS.items()
    }


@pytest.mark.parametrize("wrap", [archive, legacy])
@pytest.mark.parametrize("function", ["__builtin__ set", "collections Counter", "torch Size"])
def test_iterating_over_a_tensor_without_memory_takes_none(
    tmp_path: Path, wrap: Callable[[bytes], bytes], function: str
):
    """A stride of 0 gives one number 2^31 rows, and a container of its rows would take 16 GiB."""
    held = storage(named("torch FloatStorage"), text("0"), b"K\x06", b"NtQ" if wrap is legacy else b"tQ")
    rows = pickle.dumps(2**31, protocol=2)[2:-1]
    tensor = named("torch._utils _rebuild_tensor_v2") + b"(" + held + b"K\x00(" + rows + b"t(K\x00t\x89}tR"
    content = wrap(b"\x80\x02}" + text("w") + named(function) + b"(" + tensor + b"tRs.")
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DamagedFileError, match="larger than the file"):
        read_weights_file(tmp_path / "file")


@given(
    magic=st.sampled_from(
        [b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02", b"\x80\x04", struct.pack("<Q", 0x112), b"\x93NUMPY"]
    ),
    content=st.binary(max_size=300),
)
@example(magic=b"", content=b"")
@example(magic=b"\x02" + bytes(7) + b"{}", content=b"")
@quick(100)
def test_random_bytes_behind_what_files_begin_with(tmp_path: Path, magic: bytes, content: bytes):
    for damaged in (magic + content, struct.pack("<Q", len(content)) + b"{" + content):
        (tmp_path / "file").write_bytes(damaged)
        with pytest.raises(UserError):
            read_weights_file(tmp_path / "file")


def leaves(value: Any, way: tuple = ()) -> Iterator[tuple]:
    """The ways to all values in JSON."""
    if way:
        yield way
    if isinstance(value, (dict, list)):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(entry, (*way, key))


def changed(value: Any, way: tuple, new: Any, new_key: str | None) -> Any:
    """A copy of JSON with another value, or under another key, at a place."""
    value = json.loads(json.dumps(value))
    inner = value
    for key in way[:-1]:
        inner = inner[key]
    if new_key is not None and isinstance(inner, dict):
        inner[new_key] = inner.pop(way[-1])
    else:
        inner[way[-1]] = new
    return value


CHANGES = {
    "place": st.integers(0, 2**16),
    "new": st.sampled_from(ODD),
    "new_key": st.none()
    | st.sampled_from(["", "dtype", "conv.bias", "conv1.weight", "__metadata__", "\x1b", "depths"]),
}


@pytest.mark.parametrize("name", ["ours", "safetensors"])
def test_changed_headers(tmp_path: Path, files: dict[str, bytes], name: str):
    content = files[name]
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    ways = list(leaves(header))

    @quick(100)
    @given(**CHANGES)
    def with_change(place: int, new: Any, new_key: str | None) -> None:
        found = changed(header, ways[place % len(ways)], new, new_key)
        text = json.dumps(found).encode()
        damaged = struct.pack("<Q", len(text)) + text + content[end:]
        for read in (read_weights_file, inspect_weights, resnetlab.load) if name == "ours" else (read_weights_file,):
            check(tmp_path / "file", damaged, read)

    with_change()


def test_changed_descriptions_with_a_right_digest(tmp_path: Path, files: dict[str, bytes]):
    (tmp_path / "sound").write_bytes(files["ours"])
    tensors, description = read_tensors(tmp_path / "sound")
    description |= {"class_names": list("abcdefghij"), "provenance": {"data": {"name": "digits"}}}
    description["preprocessing"] = {"image_size": 8, "channels": 1, "mean": [0.5], "std": [0.5], "crop_mode": "crop"}
    ways = list(leaves(description))

    @quick(60)
    @given(**CHANGES)
    def with_change(place: int, new: Any, new_key: str | None) -> None:
        write_tensors(tmp_path / "file", tensors, changed(description, ways[place % len(ways)], new, new_key))
        content = (tmp_path / "file").read_bytes()
        check(tmp_path / "file", content, resnetlab.load)
        summary = inspect_weights(tmp_path / "file")
        assert summary.digest_matches
        assert str(summary).encode()

    with_change()
