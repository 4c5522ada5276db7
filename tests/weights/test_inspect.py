from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.conftest import EMPTY_SETTINGS, TINY

from resnetlab import weights
from resnetlab.core.errors import UserError
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.runs import Run
from resnetlab.models import resnet
from resnetlab.models.resnet import ResNet
from resnetlab.weights.contents import inspect_weights
from resnetlab.weights.tensors import DamagedFileError, read_tensors, write_tensors

GOLDEN = Path(__file__).parents[1] / "golden" / "run"
PROVENANCE = {
    "created": "2026-01-02T03:04:05+00:00",
    "recipe": {"name": "quick", "epochs": 10, "augment": {"flip": False}},
    "data": {"name": "digits", "fingerprint": "abc123"},
    "versions": {"torch": "2.10"},
    "metrics": {"top1": 0.987654321},
}


def saved(tmp_path: Path) -> Path:
    model = ResNet(TINY)
    model.class_names = (*"abcdefghi", "ü[31m")
    model.preprocessing = Preprocessing(image_size=8, channels=1, mean=(0.3052325,), std=(0.5,), crop_mode="squash")
    weights.save(tmp_path / "m.safetensors", model, provenance=PROVENANCE)
    return tmp_path / "m.safetensors"


def lines(summary: Any) -> dict[str, str]:
    """The rows of what is printed before the table of tensors, by their titles."""
    rows = str(summary).split("\n\n")[0]
    return dict(re.split(r"\s{2,}", row, maxsplit=1) for row in rows.splitlines())


def test_a_file_of_ours_tells_all_of_its_network(tmp_path: Path):
    path = saved(tmp_path)
    summary = inspect_weights(path)
    found, description = read_tensors(path)
    assert (summary.form, summary.digest_matches, summary.description) == ("resnetlab", True, description)
    assert summary.architecture == {
        "depths": [1, 1], "widths": [4, 8], "stem": "cifar", "shortcut": "A", "in_channels": 1, "num_classes": 10,
    }  # fmt: skip
    assert summary.parameters == sum(value.numel() for value in ResNet(TINY).parameters())
    assert [(row.name, row.shape) for row in summary.tensors] == [
        (name, tuple(found[name].shape)) for name in sorted(found)
    ]
    shown = str(summary)
    rows = lines(summary)
    assert rows.pop("file").replace("\n", "") in str(path)
    assert rows["form"] == "a network of resnetlab, schema 1"
    assert rows["architecture"] == (
        "depths (1, 1), widths (4, 8), stem cifar, shortcut A, in channels 1, num classes 10"
    )
    assert rows["classes"] == "10: a, b, c, d, e, f, g, h, ..."
    assert {"image size 8", "channels 1", "crop mode squash"} <= set(rows["preprocessing"].split(", "))
    assert rows["created"] == "2026-01-02T03:04:05+00:00"
    assert rows["recipe"] == "name quick, epochs 10, augment (flip False)"
    assert rows["data"] == "name digits, fingerprint abc123"
    assert rows["versions"] == "torch 2.10"
    assert rows["metrics"] == "top1 0.987654"
    assert rows["digest"] == f"{summary.digest}, matches the content"
    floats, counters = summary.dtypes["float32"], summary.dtypes["int64"]
    assert rows["tensors"] == f"{floats + counters}: {floats} float32, {counters} int64"
    assert rows["parameters"] == f"{summary.parameters:,}"
    assert rows["size"] == f"{path.stat().st_size:,} bytes"
    assert "conv1.weight" not in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_what_is_missing_or_long_is_told_so(tmp_path: Path):
    weights.save(tmp_path / "m.safetensors", ResNet(TINY), provenance={"notes": "x" * 1000, "nothing": None})
    rows = lines(inspect_weights(tmp_path / "m.safetensors"))
    assert (rows["classes"], rows["preprocessing"], rows["nothing"]) == ("none", "none", "none")
    assert rows["notes"].startswith("xxx")
    assert str(inspect_weights(tmp_path / "m.safetensors")).count("x") < 400
    network = tmp_path / "default.safetensors"
    write_tensors(
        network, {"x": torch.ones(1)}, {"schema": 1, "config": {"block": "basic", "widths": [64, 128, 256, 512]}}
    )
    assert lines(inspect_weights(network))["architecture"] == "defaults of ResNetConfig"


def test_no_network_is_built_and_no_tensor_loaded_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: Any, **named: Any) -> None:
        raise AssertionError("not to be called")

    path = saved(tmp_path)
    monkeypatch.setattr(resnet.ResNet, "__init__", refuse)
    assert inspect_weights(path).digest_matches
    monkeypatch.setattr("resnetlab.weights.contents.read_safetensors", refuse)
    summary = inspect_weights(path, verify=False)
    assert summary.digest_matches is None
    assert lines(summary)["digest"].endswith("not checked")
    assert len(summary.tensors) > 10


def test_a_damaged_file_of_ours_is_told_where_it_can_be_read(tmp_path: Path):
    path = saved(tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    summary = inspect_weights(path)
    assert summary.digest_matches is False
    assert "DOES NOT MATCH the content: the file is damaged" in " ".join(str(summary).split())
    path.write_bytes(content[:-5])
    with pytest.raises(DamagedFileError, match=r"m\.safetensors cannot be read as safetensors"):
        inspect_weights(path)


def test_every_tensor_is_listed_where_asked_for(tmp_path: Path):
    path = saved(tmp_path)
    table = str(inspect_weights(path, tensors=True)).split("\n\n")[1].splitlines()
    found, _ = read_tensors(path)
    assert [row.split() for row in table] == [
        ["tensor", "type", "shape"],
        *(
            [name, str(found[name].dtype).removeprefix("torch."), "x".join(map(str, found[name].shape)) or "scalar"]
            for name in sorted(found)
        ),
    ]


@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_a_file_of_others_tells_what_it_is(tmp_path: Path, form: str):
    path = tmp_path / "weights"
    content = {f"module.layer{at}.weight": torch.ones(2, at) for at in range(9)}
    content["module.bn.running_mean"] = torch.ones(100)
    content["module.half"] = torch.ones((), dtype=torch.float16)
    if form == "torch":
        torch.save({"state_dict": content, "epoch": 5, "optimizer": {}}, path)
    else:
        save_file(content, path)
    summary = inspect_weights(path)
    rows = lines(summary)
    assert (summary.form, summary.description, summary.digest, summary.digest_matches) == (form, None, None, None)
    assert {"torch": "torch.save", "safetensors": "safetensors"}[form] in rows["form"]
    nested = "'state_dict', " if form == "torch" else ""
    assert rows["unwrapped"] == f"{nested}names without 'module.'"
    assert rows.get("ignored") == ("epoch, optimizer" if form == "torch" else None)
    assert rows["tensors"] == "11: 10 float32, 1 float16"
    assert rows["parameters"] == "73"
    table = str(summary).split("\n\n")[1].splitlines()
    assert [row.split()[0] for row in table] == ["tensor", *(row.name for row in summary.tensors[:3]), "...",
                                                 *(row.name for row in summary.tensors[-3:])]  # fmt: skip
    listed = str(inspect_weights(path, tensors=True)).split("\n\n")[1].splitlines()
    assert len(listed) == 12


def test_a_file_of_gluon_tells_what_it_is(gluon_files: Path):
    summary = inspect_weights(gluon_files / "zoo_v1_basic_narrow.params")
    assert (summary.form, lines(summary)["form"]) == ("gluon", "a .params file of Gluon")
    assert 0 < summary.parameters < summary.size / 4


def test_a_run_and_other_tensors_are_inspected_too(tmp_path: Path):
    summary = inspect_weights(GOLDEN)
    assert summary.path == GOLDEN / "model.safetensors"
    assert summary.digest_matches
    assert lines(summary)["architecture"] == "depths (1), widths (4), stem cifar, in channels 1, num classes 10"
    write_tensors(tmp_path / "step.safetensors", {"x": torch.ones(1)}, {"schema": 1, "note": {"epoch": 3}})
    rows = lines(inspect_weights(tmp_path / "step.safetensors"))
    assert "without a network" in rows["form"] and "schema 1" in rows["form"]
    assert rows["note"] == "epoch 3"
    assert "architecture" not in rows


@pytest.mark.parametrize(
    "description",
    [
        {"schema": [1], "config": 5, "class_names": 5, "preprocessing": [5], "provenance": 5},
        {"config": {"depths": {"a": 1}, "mystery": [[]]}, "class_names": {}, "provenance": {"recipe": [{"a": [1]}]}},
        {
            "x" * 200: 1,
            "nested": json.loads("[" * 500 + "]" * 500),
            "config": json.loads('{"a":' * 500 + "1" + "}" * 500),
        },
        {
            "config": None,
            "class_names": [[1], None],
            "preprocessing": 0.5,
            "provenance": None,
            "\ud800[red]": "\x1b[0m\ud800",
        },
    ],
)
def test_a_description_of_other_types_is_shown_as_it_is(tmp_path: Path, description: dict[str, Any]):
    write_tensors(tmp_path / "m.safetensors", {"\x1b[31m": torch.ones(1)}, description)
    shown = str(inspect_weights(tmp_path / "m.safetensors", tensors=True))
    assert "matches the content" in shown
    assert "\x1b" not in shown
    shown.encode()
    assert r"\x1b[31m" in shown


def test_no_file_and_no_run_are_told(tmp_path: Path):
    with pytest.raises(UserError, match=r"there is no file .*gone\.pt"):
        inspect_weights(tmp_path / "gone.pt")
    with pytest.raises(UserError, match=r"is not a run: no run\.toml found"):
        inspect_weights(tmp_path)
    Run.create(tmp_path / "run", EMPTY_SETTINGS, {})
    with pytest.raises(UserError, match="before its first checkpoint"):
        inspect_weights(tmp_path / "run")
