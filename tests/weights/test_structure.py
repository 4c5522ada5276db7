"""Files with other names: their layers are found by structure, or the file is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.checking.learners import D2L, RESNET18, changed
from tests.facts import refuses
from tests.oracles import assert_same_logits, randomized
from torch import Tensor, nn

import resnetlab
from resnetlab import weights
from resnetlab.checking.check import check
from resnetlab.core.errors import UserError
from resnetlab.weights.contents import inspect_weights

SMALL: dict[str, Any] = {"depths": (2, 3), "widths": (8, 16), "num_classes": 5}
ROLES = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "downsample.0", "downsample.1")


def _plain(stage: int, block: int, local: str) -> str:
    return f"stage{stage}.{block}.{local}"


def _local(names: Mapping[str, str], place: str = "stage{stage}.{block}.") -> Callable[[int, int, str], str]:
    return lambda stage, block, local: place.format(stage=stage, block=block) + names.get(local, local)


SEQUENTIAL = {"conv1": "body.0", "bn1": "body.1", "conv2": "body.3", "bn2": "body.4", "downsample.0": "skip.0",
              "downsample.1": "skip.1"}  # fmt: skip
NUMBERED = {"downsample.0": "conv3", "downsample.1": "bn3"}
LETTERS = {"conv1": "conv_a", "bn1": "norm_a", "conv2": "conv_b", "bn2": "norm_b", "downsample.0": "conv_sc",
           "downsample.1": "norm_sc"}  # fmt: skip
UNITS = {"conv1": "first.conv", "bn1": "first.norm", "conv2": "second.conv", "bn2": "second.norm",
         "downsample.0": "match.conv", "downsample.1": "match.norm"}  # fmt: skip
WORDS = {"conv1": "inner", "bn1": "calm", "conv2": "outer", "bn2": "still", "downsample.0": "short.x",
         "downsample.1": "short.y"}  # fmt: skip
BOTTLENECK = {f"{kind}{n}": f"{kind[0]}{n}" for kind in ("conv", "bn") for n in (1, 2, 3)} | {
    "downsample.0": "c4", "downsample.1": "b4",
}  # fmt: skip
STYLES: dict[str, tuple[str, Callable[[int, int, str], str], tuple[str, ...]]] = {
    "torchvision's": ("resnet18", _plain, ROLES),
    "in a Sequential": ("resnet18", _local(SEQUENTIAL, "{stage}.{block}."), ROLES),
    "shortcut first": ("resnet18", _local(SEQUENTIAL), ("downsample.0", "downsample.1", *ROLES[:6])),
    "convolutions first": (
        "resnet18", _local(NUMBERED, "b{stage}.{block}."),
        ("conv1", "conv2", "downsample.0", "bn1", "bn2", "downsample.1"),
    ),
    "letters": ("resnet18", _local(LETTERS), ROLES),
    "units": ("resnet18", _local(UNITS), ROLES),
    "blocks in one list": ("resnet18", lambda s, b, local: f"blocks.{2 * (s - 1) + b}.{SEQUENTIAL[local]}", ROLES),
    "one flat list": (
        "resnet18", lambda s, b, local: re.sub(r"(\D+)(\d?)", rf"\g<1>{s}_{b}_\2", NUMBERED.get(local, local)), ROLES,
    ),
    "bottlenecks": ("resnet50", _local(BOTTLENECK), ROLES),
    "bottlenecks, shortcut first": ("resnet50", _local(BOTTLENECK), (*ROLES[6:], *ROLES[:6])),
    "pre-activation": (
        "resnetv2_18", _local({"downsample.0": "side"}), ("bn1", "conv1", "bn2", "conv2", "downsample.0"),
    ),
}  # fmt: skip


def _renamed(state: Mapping[str, Tensor], style: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns a state dict as a network in another style has it, and our names by its names."""
    _, name_of, order = STYLES[style]
    found: list[tuple[tuple, str, str]] = []
    for place, ours in enumerate(state):
        match = re.match(r"layer(\d)\.(\d)\.(.+)\.(\w+)$", ours)
        if match is None:
            theirs = ours.replace("conv1.", "0.").replace("bn1.", "1.").replace("fc.", "classifier.")
            found.append((((9 if ours.startswith(("fc", "norm")) else 0), place), theirs, ours))
        else:
            stage, block, local, role = int(match[1]), int(match[2]), match[3], match[4]
            found.append(((stage, block, order.index(local), place), f"{name_of(stage, block, local)}.{role}", ours))
    return {theirs: state[ours] for _, theirs, ours in sorted(found)}, {theirs: ours for _, theirs, ours in found}


@pytest.mark.parametrize("form", ["registered", "sorted"])
@pytest.mark.parametrize("style", STYLES)
def test_layers_are_found_whatever_their_names(style: str, form: str, tmp_path: Path):
    theirs = randomized(resnetlab.create_model(STYLES[style][0], **SMALL))
    state, names = _renamed(theirs.state_dict(), style)
    if form == "sorted":
        save_file(state, tmp_path / "w.safetensors")
    else:
        torch.save(state, tmp_path / "w.safetensors")
    ours = resnetlab.create_model(STYLES[style][0], **SMALL)
    report = resnetlab.load_weights(ours, tmp_path / "w.safetensors", match="structure")
    assert report.form == "structure"
    assert dict(report.key_map) == names
    assert not report.reinitialized and not report.ignored and not report.adapted
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_words_without_numbers_need_the_order_of_registration(tmp_path: Path):
    theirs = randomized(resnetlab.create_model("resnet18", **SMALL))
    STYLES["words"] = ("resnet18", _local(WORDS), ROLES)
    state, names = _renamed(theirs.state_dict(), "words")
    del STYLES["words"]
    ours = resnetlab.create_model("resnet18", **SMALL)
    torch.save(state, tmp_path / "in-order.pt")
    report = resnetlab.load_weights(ours, tmp_path / "in-order.pt", match="structure")
    assert dict(report.key_map) == names
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    save_file(state, tmp_path / "sorted.safetensors")
    with refuses("layer1.0.", "inner or", "--map"):
        resnetlab.load_weights(ours, tmp_path / "sorted.safetensors", match="structure")
    assert all(torch.equal(before[name], value) for name, value in ours.state_dict().items())


@pytest.mark.parametrize("order", [ROLES, (*ROLES[6:], *ROLES[:6])])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_numbers_alone_tell_blocks_and_layers(name: str, order: tuple[str, ...], tmp_path: Path):
    theirs = randomized(resnetlab.create_model(name, **SMALL))
    state = theirs.state_dict()
    layers = list(dict.fromkeys(key.rpartition(".")[0] for key in state))
    places = {}
    for place, layer in enumerate(layers):
        found = re.match(r"layer(\d)\.(\d)\.(.+)", layer)
        within = (int(found[1]), int(found[2]), order.index(found[3])) if found else (9 * (layer == "fc"), 0, place)
        places[layer] = within
    numbers = {layer: place for place, layer in enumerate(sorted(layers, key=lambda layer: places[layer]))}
    renamed = {f"layers.{numbers[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": key for key in state}
    save_file({theirs: state[ours] for theirs, ours in renamed.items()}, tmp_path / "w.safetensors")
    ours = resnetlab.create_model(name, **SMALL)
    report = resnetlab.load_weights(ours, tmp_path / "w.safetensors", match="structure")
    assert dict(report.key_map) == renamed


def _built(source: str, name: str, channels: int) -> nn.Module:
    names: dict[str, Any] = {}
    exec(source, names)
    network = names[name]()
    network(torch.zeros(2, channels, 64, 64))
    return randomized(network)


def test_a_file_of_d2l_loads_with_equal_logits_and_converts(tmp_path: Path):
    theirs = _built(D2L, "ResNet", 1)
    torch.save(theirs.state_dict(), tmp_path / "d2l.pt")
    ours = resnetlab.create_model("d2l_resnet18", num_classes=10, in_channels=1).eval()
    report = resnetlab.load_weights(ours, tmp_path / "d2l.pt", match="structure")
    assert report.key_map["b3.0.conv3.weight"] == "layer2.0.downsample.0.weight"
    images = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))
    converted = weights.convert(tmp_path / "d2l.pt", tmp_path / "ours.safetensors")
    assert converted.form == "structure"
    with torch.no_grad():
        assert torch.equal(resnetlab.load(tmp_path / "ours.safetensors").eval()(images), theirs(images))


def test_the_tutorials_resnet18_is_recognized_and_goes_to_torchvision(tmp_path: Path):
    source = changed(RESNET18, ("self.fc", "self.classifier"), ("self.layer", "self.stage"))
    theirs = _built(source, "MyResNet", 3)
    torch.save(theirs.state_dict(), tmp_path / "resnet18_dict.pth")
    summary = inspect_weights(tmp_path / "resnet18_dict.pth")
    assert (summary.networks[0], summary.sizes) == ("resnet18", (3, 10))
    weights.convert(tmp_path / "resnet18_dict.pth", tmp_path / "tv.pth", to="torchvision")
    ours = resnetlab.create_model("resnet18", num_classes=10, pretrained=tmp_path / "tv.pth").eval()
    assert_same_logits(ours, theirs, (64, 64))


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"depths": (2, 2)}, ("layer2.2.conv1", "16x16x3x3", "has 3 of 5")),
        ({"widths": (8, 24)}, ("layer2.0.conv1", "weight 16x8x3x3", "weight 24x8x3x3")),
        ({"conv_bias": "all"}, ("conv1 (weight 8x3x7x7)", "weight 8x3x7x7, bias 8")),
        ({"stem": "cifar"}, ("conv1", "8x3x7x7", "8x3x3x3")),
        ({"shortcut": "C"}, ("no further layer", "stage1.0.downsample.0")),
    ],
)
def test_another_structure_is_refused_with_the_first_difference(changes: dict, facts: tuple[str, ...], tmp_path: Path):
    state, _ = _renamed(resnetlab.create_model("resnet18", **{**SMALL, **changes}).state_dict(), "torchvision's")
    torch.save(state, tmp_path / "other.pt")
    ours = resnetlab.create_model("resnet18", **SMALL)
    with refuses("First difference", *facts):
        resnetlab.load_weights(ours, tmp_path / "other.pt", match="structure")


def test_other_classes_and_channels_are_adapted_as_by_names(tmp_path: Path):
    theirs = randomized(resnetlab.create_model("resnet18", **SMALL))
    torch.save(_renamed(theirs.state_dict(), "units")[0], tmp_path / "w.pt")
    ours = resnetlab.create_model("resnet18", **{**SMALL, "num_classes": 7, "in_channels": 1})
    report = resnetlab.load_weights(ours, tmp_path / "w.pt", match="structure")
    assert report.adapted == ["conv1.weight"]
    assert report.reinitialized == ["fc.weight", "fc.bias"]


def test_hand_written_layers_have_other_names_and_shapes(tmp_path: Path):
    theirs = randomized(resnetlab.create_model("resnet18", **SMALL))
    state, _ = _renamed(theirs.state_dict(), "units")
    words = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}
    by_hand = {}
    for name, value in state.items():
        layer, _, role = name.rpartition(".")
        is_norm = f"{layer}.running_mean" in state
        if role != "num_batches_tracked":
            by_hand[f"{layer}.{words[role]}" if is_norm else name] = value[None, :, None, None] if is_norm else value
    torch.save(by_hand, tmp_path / "w.pt")
    ours = resnetlab.create_model("resnet18", **SMALL)
    resnetlab.load_weights(ours, tmp_path / "w.pt", match="structure")
    for name, value in theirs.state_dict().items():
        assert name.endswith("tracked") or torch.equal(ours.state_dict()[name], value), name


def test_a_key_map_of_a_check_loads_what_names_do_not_tell(tmp_path: Path):
    source = changed(
        RESNET18, ("self.conv1", "self.inner"), ("self.bn1", "self.calm"), ("self.conv2", "self.outer"),
        ("self.bn2", "self.still"),
    )  # fmt: skip
    theirs = _built(source, "MyResNet", 3)
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    report = check(theirs, "resnet18", image_size=32)
    (tmp_path / "map.json").write_text(json.dumps(report.key_map))
    ours = resnetlab.create_model("resnet18", num_classes=10).eval()
    with refuses("--map"):
        resnetlab.load_weights(ours, tmp_path / "w.safetensors", match="structure")
    loaded = resnetlab.load_weights(ours, tmp_path / "w.safetensors", match=str(tmp_path / "map.json"))
    assert loaded.form == "key map"
    assert_same_logits(ours, theirs, (64, 64))


@pytest.mark.parametrize(
    ("match", "facts"),
    [
        ("structur", ("'names'", "'structure'", "structur")),
        ({"a.weight": "conv9.weight"}, ("conv9.weight", "conv1.weight")),
        ({"a.weight": 1}, ("{name in the file: name in the network}",)),
    ],
)
def test_a_wrong_map_is_refused(match: Any, facts: tuple[str, ...], tmp_path: Path):
    torch.save(resnetlab.create_model("resnet18", **SMALL).state_dict(), tmp_path / "w.pt")
    with refuses(*facts):
        resnetlab.load_weights(resnetlab.create_model("resnet18", **SMALL), tmp_path / "w.pt", match=match)


def test_structure_is_for_our_networks(tmp_path: Path):
    network = resnetlab.create_model("resnet18", **SMALL)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="JSON"):
        resnetlab.load_weights(network, tmp_path / "w.pt", match=tmp_path / "bad.json")
