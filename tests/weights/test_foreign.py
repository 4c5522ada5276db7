from __future__ import annotations

import json
import math
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.conftest import TINY, unprivileged

import resnetlab
from resnetlab import weights
from resnetlab.core.errors import UserError
from resnetlab.models.resnet import ResNet
from resnetlab.weights.foreign import check_finite_weights, read_weights_file
from resnetlab.weights.tensors import (
    DamagedFileError,
    TensorInfo,
    read_header,
    read_tensors,
    write_tensors,
)

WEIGHTS = {"conv.weight": torch.arange(12.0).reshape(4, 3), "conv.bias": torch.tensor([1.0, -2.0, 3.0, 4.0])}
OTHERS = {"epoch": 3, "optimizer": {"lr": 0.1}}


def saved(tmp_path: Path, content: Any) -> Path:
    torch.save(content, tmp_path / "checkpoint.pt")
    return tmp_path / "checkpoint.pt"


def under(prefix: str, tensors: dict[str, torch.Tensor] = WEIGHTS) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


def safetensors(path: Path, header: Any, data: bytes = b"") -> Path:
    """A safetensors file with a header of our making: an object of JSON, or its bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(shape: list, offsets: list, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def is_weights(tensors: dict[str, torch.Tensor]) -> bool:
    return tensors.keys() == WEIGHTS.keys() and all(torch.equal(tensors[name], WEIGHTS[name]) for name in WEIGHTS)


def test_every_kind_is_told_by_its_content(tmp_path: Path):
    path = tmp_path / "weights.onnx"
    save_file(WEIGHTS, path)
    found = read_weights_file(path)
    assert (found.form, found.description, found.nesting, found.ignored) == ("safetensors", None, "", ())
    assert is_weights(found.tensors)
    for is_zip in (True, False):
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=is_zip)
        found = read_weights_file(str(path))
        assert (found.form, found.description, found.nesting, found.ignored) == ("torch", None, "", ())
        assert is_weights(found.tensors)
    torch.save(WEIGHTS, tmp_path / "weights.safetensors")
    assert is_weights(read_weights_file(tmp_path / "weights.safetensors").tensors)


def test_a_file_of_ours_comes_with_its_description(tmp_path: Path):
    model = ResNet(TINY)
    weights.save(tmp_path / "m.safetensors", model, provenance={"why": "test"})
    found = read_weights_file(tmp_path / "m.safetensors")
    assert found.form == "safetensors"
    assert found.description == read_tensors(tmp_path / "m.safetensors")[1]
    assert found.description["provenance"] == {"why": "test"}
    assert list(found.tensors) == sorted(model.state_dict())
    content = bytearray((tmp_path / "m.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(DamagedFileError, match="digest"):
        read_weights_file(tmp_path / "m.safetensors")


def test_a_file_of_gluon_is_read(gluon_files: Path):
    found = read_weights_file(gluon_files / "zoo_v1_basic_narrow.params")
    assert (found.form, found.nesting, found.ignored) == ("gluon", "", ())
    assert len(found.tensors) > 20
    check_finite_weights(found.tensors, "zoo_v1_basic_narrow.params")


@pytest.mark.parametrize(
    ("content", "nesting", "ignored"),
    [
        (OrderedDict(WEIGHTS), "", ()),
        ({**WEIGHTS, **OTHERS}, "", ("epoch", "optimizer")),
        ({"state_dict": WEIGHTS, **OTHERS}, "'state_dict'", ("epoch", "optimizer")),
        ({"model_state_dict": WEIGHTS, "loss": 0.5}, "'model_state_dict'", ("loss",)),
        ({"net": WEIGHTS, "acc": 93.0, "epoch": 3}, "'net'", ("acc", "epoch")),
        ({"model_ema": WEIGHTS}, "'model_ema'", ()),
        (
            {"state_dict_ema": under("x."), "epoch": 3, "state_dict": WEIGHTS},
            "'state_dict'",
            ("state_dict_ema", "epoch"),
        ),
        ({"model_ema": under("x."), "model": WEIGHTS}, "'model'", ("model_ema",)),
        ({"model": {"state_dict": WEIGHTS, "step": 5}, **OTHERS}, "'model.state_dict'", (*OTHERS, "model.step")),
        ({"rng": torch.ones(3), "state_dict": WEIGHTS}, "'state_dict'", ("rng",)),
        ({"state_dict": {"name": "x"}, "model": WEIGHTS}, "'model'", ("state_dict",)),
        ({"state_dict": {**WEIGHTS, 5: torch.ones(1)}}, "'state_dict'", ("state_dict.a key of type int",)),
        (under("module."), "names without 'module.'", ()),
        (under("model."), "names without 'model.'", ()),
        (under("module._orig_mod.net."), "names without 'module._orig_mod.net.'", ()),
        ({"state_dict": under("_orig_mod.module.")}, "'state_dict', names without '_orig_mod.module.'", ()),
    ],
)
def test_what_is_around_the_tensors_is_unwrapped(
    tmp_path: Path, content: dict[str, Any], nesting: str, ignored: tuple[str, ...]
):
    found = read_weights_file(saved(tmp_path, content))
    assert (found.nesting, found.ignored) == (nesting, ignored)
    assert is_weights(found.tensors)


def test_prefixes_that_not_all_names_share_stay(tmp_path: Path):
    content = {**under("module."), "other": torch.ones(1)}
    found = read_weights_file(saved(tmp_path, content))
    assert (list(found.tensors), found.nesting) == (list(content), "")
    content = {"module.": torch.ones(1)}
    assert list(read_weights_file(saved(tmp_path, content)).tensors) == ["module."]
    save_file(under("module."), tmp_path / "m.safetensors")
    found = read_weights_file(tmp_path / "m.safetensors")
    assert found.nesting == "names without 'module.'"
    assert is_weights(found.tensors)


def test_parameters_and_small_types_come_as_plain_tensors(tmp_path: Path):
    content = {"w": torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16)), "n": torch.tensor(3)}
    found = read_weights_file(saved(tmp_path, content)).tensors
    assert {name: (type(value), value.dtype, value.requires_grad) for name, value in found.items()} == {
        "w": (torch.Tensor, torch.bfloat16, False),
        "n": (torch.Tensor, torch.int64, False),
    }


def test_attributes_that_a_file_gives_a_dict_are_not_asked(tmp_path: Path):
    class Odd:
        def __reduce__(self) -> tuple:
            names = ("items", "keys", "values", "get")
            return OrderedDict, (), dict.fromkeys(names, "no method"), None, iter(WEIGHTS.items())

    assert is_weights(read_weights_file(saved(tmp_path, {"state_dict": Odd()})).tensors)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"epoch": 3, "names": ["a"]},
            r"dict of epoch \(int\), names \(list\)\. Expected a dict of named tensors",
        ),
        ({f"k{at}": at for at in range(10)}, r"dict of k0 \(int\), .*, k7 \(int\) and 2 more\. Expected"),
        ({}, "empty dict"),
        ([torch.ones(1)], "list of 1 entries"),
        (torch.ones(2), "one tensor without a name"),
        (5, "one int"),
        ({"a": {"b": {"c": torch.ones(1)}}}, r"dict of a \(dict\)"),
        ({"model": {"model": {"model": WEIGHTS}}}, r"dict of model \(dict\)"),
    ],
)
def test_a_file_without_weights_says_what_it_holds(tmp_path: Path, content: Any, words: str):
    with pytest.raises(UserError, match=rf"checkpoint\.pt .*{words}"):
        read_weights_file(saved(tmp_path, content))


def test_dicts_within_themselves_end(tmp_path: Path):
    content: dict[str, Any] = {"epoch": 1}
    content["model"] = content
    with pytest.raises(UserError, match=r"epoch \(int\), model \(dict\)"):
        read_weights_file(saved(tmp_path, content))


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.ones(2, dtype=torch.complex64), "complex64"),
        (torch.ones(2).to(torch.float8_e4m3fn), "float8_e4m3fn"),
    ],
)
def test_tensors_of_other_kinds_are_refused_by_name(tmp_path: Path, tensor: torch.Tensor, words: str):
    message = rf"'odd' .*{words}.*strided"
    with pytest.raises(UserError, match=message):
        read_weights_file(saved(tmp_path, {**WEIGHTS, "odd": tensor}))
    save_file({"odd": tensor}, tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match=message):
        read_weights_file(tmp_path / "odd.safetensors")


def test_sparse_tensors_are_refused_by_name(tmp_path: Path):
    with pytest.raises(UserError, match="'odd' is sparse"):
        read_weights_file(saved(tmp_path, {**WEIGHTS, "odd": torch.eye(2).to_sparse()}))


def test_tensors_that_repeat_little_memory_are_refused(tmp_path: Path):
    shared = torch.ones(100)
    found = read_weights_file(saved(tmp_path, {"a": shared, "b": shared})).tensors
    assert torch.equal(found["b"], shared)
    for size, fact in ((10**12, "larger than the file"), (1_500, "12,000 bytes")):
        content = {"state_dict": {"x": torch.ones(1).expand(size), "y": torch.ones(1).expand(1_500)}}
        with pytest.raises(DamagedFileError, match=fact):
            read_weights_file(saved(tmp_path, content))


def test_no_file_a_folder_and_one_of_nobody_are_told(tmp_path: Path):
    with pytest.raises(UserError, match=r"gone\.pt"):
        read_weights_file(tmp_path / "gone.pt")
    with pytest.raises(UserError, match="folder"):
        read_weights_file(tmp_path)
    path = tmp_path / "weights.pt"
    path.write_bytes(b"")
    with pytest.raises(DamagedFileError, match=r"weights\.pt is empty"):
        read_weights_file(path)
    for content in (b"<html>", b"\x07\x91\xe3" * 100, b"\x1f\x8b" + bytes(50), bytes(257) + b"ustar"):
        path.write_bytes(b"\0" + content)
        with pytest.raises(DamagedFileError, match="not a file of weights"):
            read_weights_file(path)
    save_file({}, path)
    with pytest.raises(UserError, match=r"weights\.pt .*no tensors"):
        read_weights_file(path)


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path):
    path = saved(tmp_path, WEIGHTS)
    path.chmod(0)
    with unprivileged(tmp_path), pytest.raises(UserError, match="Permission denied"):
        read_weights_file(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_that_are_not_finite_are_named(dtype: torch.dtype):
    tensors = {f"layer{at}": torch.ones(10, dtype=dtype) for at in range(9)} | {"count": torch.tensor(5)}
    check_finite_weights(tensors, "m.pt")
    tensors["layer2"][3:5] = math.nan
    tensors["layer4"][1] = -math.inf
    with pytest.raises(UserError, match=r"m\.pt .* 2 of its 10 tensors: 'layer2' \(2 of 10\), 'layer4' \(1 of 10\)\."):
        check_finite_weights(tensors, Path("m.pt"))
    for at in range(9):
        tensors[f"layer{at}"][0] = math.inf
    with pytest.raises(
        UserError, match=r"in 9 of its 10 tensors: 'layer0' \(1 of 10\), .* 'layer4' \(2 of 10\) and 4 more\."
    ):
        check_finite_weights(tensors, "m.pt")


def test_networks_that_are_not_finite_are_not_loaded_and_checkpoints_are(tmp_path: Path):
    model = ResNet(TINY)
    with torch.no_grad():
        model.conv1.weight[0, 0, 0, 0] = math.nan
    weights.save(tmp_path / "m.safetensors", model)
    with pytest.raises(UserError, match=r"NaN .* 1 of its \d+ tensors: 'conv1\.weight' \(1 of 36"):
        resnetlab.load(tmp_path / "m.safetensors")
    assert read_tensors(tmp_path / "m.safetensors")[0]["conv1.weight"][0, 0, 0, 0].isnan()


def ours(path: Path, changes: dict[str, Any], tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """A file of ours whose description was changed by somebody who made its digest again."""
    weights.save(path, ResNet(TINY))
    found, description = read_tensors(path)
    write_tensors(path, found | (tensors or {}), description | changes)
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"config": None},
        {"config": []},
        {"config": {"widths": [10**30] * 2, "depths": [1, 1], "stem": "cifar"}},
        {"config": {"bottleneck_multiplier": 1e308, "block": "bottleneck", "groups": 10**30}},
        {"config": {"depths": [10**12], "widths": [4]}},
        {"config": {**TINY.to_dict(), "num_classes": 11}},
        {"class_names": 5},
        {"preprocessing": 5},
    ],
)
def test_descriptions_of_another_kind_are_damaged(tmp_path: Path, changes: dict[str, Any]):
    with pytest.raises(DamagedFileError, match=r"m\.safetensors .*(a network|the description of a n)"):
        resnetlab.load(ours(tmp_path / "m.safetensors", changes))


def test_a_wrong_field_of_the_preprocessing_is_named(tmp_path: Path):
    changes = {"preprocessing": {"image_size": 8, "channels": 1, "mean": 0.5, "std": [1.0]}}
    with pytest.raises(UserError, match=r"mean .*0\.5"):
        resnetlab.load(ours(tmp_path / "m.safetensors", changes))


def test_networks_without_some_tensor_or_with_another_are_damaged(tmp_path: Path):
    odd = {"conv1.weight": torch.ones(5), "more": torch.ones(1)}
    with pytest.raises(
        DamagedFileError, match=r"Unexpected key\(s\) in state_dict: \"more\"\. size mismatch for conv1"
    ):
        resnetlab.load(ours(tmp_path / "m.safetensors", {}, odd))


ONE = entry([1], [0, 4])


def test_a_header_is_read_without_tensors(tmp_path: Path):
    content = {
        "b": torch.ones(2, 3, dtype=torch.bfloat16),
        "a": torch.tensor(1),
        "c": torch.ones(1).to(torch.float8_e5m2),
    }
    save_file(content, tmp_path / "x.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "x.safetensors")
    assert header.metadata == {"format": "pt"}
    assert header.tensors == (
        TensorInfo(name="a", dtype="int64", shape=()),
        TensorInfo(name="b", dtype="bfloat16", shape=(2, 3)),
        TensorInfo(name="c", dtype="F8_E5M2", shape=(1,)),
    )


@pytest.mark.parametrize("reader", [read_tensors, read_header, read_weights_file])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (struct.pack("<Q", 2**60) + b"{}", "header too large"),
        (struct.pack("<Q", 2**63 + 5) + b"{}", "header too large"),
        (struct.pack(">Q", 8) + b"{}      ", "header too large"),
        (struct.pack("<Q", 90) + b"{}", "invalid header length"),
        (struct.pack("<Q", 3) + b"{}\xff", "invalid UTF-8"),
        (struct.pack("<Q", 2) + b"{]", "invalid JSON"),
    ],
)
def test_lengths_of_a_header_that_are_wrong_are_damage(tmp_path: Path, reader: Any, content: bytes, words: str):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=rf"x\.safetensors .*{words}"):
        reader(path)


@pytest.mark.parametrize("reader", [read_tensors, read_header, read_weights_file])
@pytest.mark.parametrize(
    ("header", "size", "words"),
    [
        ({"a": ONE, "b": ONE}, 4, "invalid offset"),
        ({"a": ONE, "b": entry([1], [2, 6])}, 6, "invalid offset"),
        ({"a": ONE}, 3, "file not fully covered"),
        ({"a": ONE}, 9, "file not fully covered"),
        ({"a": entry([1], [2**64 - 4, 0])}, 4, "invalid offset"),
        ({"a": entry([1], [0, 2**70])}, 4, "invalid JSON"),
        ({"a": entry([2**32, 2**32], [0, 0])}, 0, "overflow"),
        ({"a": entry([2**62, 2**62, 0], [0, 0])}, 0, "overflow"),
        ({"a": entry([-1], [0, 4])}, 4, "invalid JSON"),
        ({"a": entry([2], [0, 4])}, 4, "invalid shape"),
        ({"a": entry([1], [0, 4], "F31")}, 4, "unknown variant"),
        ({"a": [1]}, 4, "invalid JSON"),
        ({"a": {}}, 4, "invalid JSON"),
        ({"__metadata__": {"a": 1}}, 0, "invalid JSON"),
        ({"__metadata__": [1]}, 0, "invalid JSON"),
        (b'{"a":' + b"[" * 100_000, 0, "invalid JSON"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":' + b"[" * 100_000, 0, "recursion limit"),
        (b'{"a":%(one)s,"a":%(one)s}' % {b"one": json.dumps(ONE).encode()}, 4, "its header has the same name twice"),
        (b'{"__metadata__":{"k":"1","k":"2"}}', 0, "its header has the same name twice"),
    ],
)
def test_headers_that_are_wrong_are_damage(tmp_path: Path, reader: Any, header: Any, size: int, words: str):
    path = safetensors(tmp_path / "x.safetensors", header, bytes(size))
    with pytest.raises(DamagedFileError, match=rf"x\.safetensors .*{words}"):
        reader(path)


def test_shapes_that_no_tensor_can_have_are_damage(tmp_path: Path):
    path = safetensors(tmp_path / "x.safetensors", {"a": entry([2**63, 0], [0, 0])})
    for reader in (read_tensors, read_weights_file):
        with pytest.raises(DamagedFileError, match="Overflow"):
            reader(path)
    assert read_header(path).tensors[0].shape == (2**63, 0)


@pytest.mark.parametrize("text", ["[1]", "5", "{", "[" * 100_000, '{"a":' * 990 + "1" + "}" * 990, "1" * 5000])
def test_descriptions_that_are_no_json_of_ours_are_damage(tmp_path: Path, text: str):
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors", metadata={"resnetlab": text})
    with pytest.raises(DamagedFileError, match=r"x\.safetensors"):
        read_tensors(tmp_path / "x.safetensors")
    with pytest.raises(DamagedFileError, match=r"x\.safetensors"):
        resnetlab.load(tmp_path / "x.safetensors")
