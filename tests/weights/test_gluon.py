from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.facts import refuses
from torch import Tensor

from resnetlab.core.errors import UserError
from resnetlab.models.catalog import CATALOG, model_config
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.weights.gluon.names import gluon_form, gluon_key_map, gluon_key_map_for, symbol_of
from resnetlab.weights.gluon.params import read_params, write_params
from resnetlab.weights.load import load_weights
from resnetlab.weights.maps import COUNTERS, KeyMap
from resnetlab.weights.tensors import DamagedFileError

NARROW = (8, 16, 24, 32)
SUPPLIED = {
    "d2l_resnet18_narrow": model_config("d2l_resnet18", {"widths": NARROW}),
    "zoo_v1_basic_narrow": model_config("zoo_resnet18_v1", {"widths": NARROW, "num_classes": 10}),
    "zoo_v1_bottleneck_narrow": model_config(
        "zoo_resnet50_v1", {"depths": (1, 2, 1, 1), "widths": (4, 6, 8, 12), "stem_width": 8, "num_classes": 10}
    ),
    "zoo_v2_basic_narrow": model_config("zoo_resnet18_v2", {"widths": NARROW, "num_classes": 10}),
}
FORMS = {
    **{"d2l_resnet18": "d2l", "zoo_resnet18_v1": "zoo_v1", "zoo_resnet34_v1": "zoo_v1", "zoo_resnet50_v1": "zoo_v1"},
    **{"zoo_resnet18_v2": "zoo_v2", "zoo_resnet50_v2": "zoo_v2"},
}
every_supplied = pytest.mark.parametrize("name", SUPPLIED)
every_form = pytest.mark.parametrize("name", FORMS)


def _network(config: ResNetConfig, given: dict[str, Tensor]) -> ResNet:
    """Returns the network in evaluation mode with these weights, which must be all of its own and no others."""
    network = ResNet(config)
    missing, unexpected = network.load_state_dict(given, strict=False)
    assert unexpected == []
    assert all(name.endswith(COUNTERS) for name in missing)
    return network.eval()


def _map_of(path: Path, config: ResNetConfig) -> KeyMap:
    return gluon_key_map(config, read_params(path), path)


def _assert_computes_what_mxnet_did(folder: Path, name: str, path: Path) -> None:
    tensors = read_params(path)
    key_map = gluon_key_map(SUPPLIED[name], tensors, path)
    assert key_map.leftovers(tensors) == []
    network = _network(SUPPLIED[name], key_map.to_ours(tensors))
    with np.load(folder / f"{name}.npz") as expected, torch.no_grad():
        logits = network(torch.from_numpy(expected["x"])).numpy()
        assert np.abs(logits - expected["logits"]).max() <= 1e-5 * np.abs(expected["logits"]).max()


@pytest.fixture
def exported(gluon_files: Path, tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """Returns copies of the weights and the graph that `export` wrote, to be altered."""

    def copied(name: str) -> tuple[Path, Path]:
        for end in ("-0000.params", "-symbol.json"):
            shutil.copyfile(gluon_files / f"{name}{end}", tmp_path / f"{name}{end}")
        return tmp_path / f"{name}-0000.params", tmp_path / f"{name}-symbol.json"

    return copied


@every_supplied
def test_a_file_of_save_parameters_computes_what_mxnet_did_and_goes_back_to_the_byte(
    gluon_files: Path, tmp_path: Path, name: str
):
    path = gluon_files / f"{name}.params"
    _assert_computes_what_mxnet_did(gluon_files, name, path)
    key_map = _map_of(path, SUPPLIED[name])
    assert key_map.form == "Gluon save_parameters"
    network = _network(SUPPLIED[name], key_map.to_ours(read_params(path)))
    write_params(tmp_path / "back.params", gluon_key_map_for(SUPPLIED[name]).to_theirs(network.state_dict()))
    assert (tmp_path / "back.params").read_bytes() == path.read_bytes()


@every_supplied
def test_an_exported_file_computes_what_mxnet_did_with_its_graph_and_without(
    gluon_files: Path, exported: Callable, name: str
):
    path, symbol = exported(name)
    assert symbol_of(path) == symbol
    _assert_computes_what_mxnet_did(gluon_files, name, path)
    by_graph = _map_of(path, SUPPLIED[name])
    symbol.unlink()
    assert symbol_of(path) is None
    _assert_computes_what_mxnet_did(gluon_files, name, path)
    by_order = _map_of(path, SUPPLIED[name])
    assert by_graph.form == by_order.form == "Gluon export"
    assert by_graph.names == by_order.names
    assert by_graph.constants == by_order.constants


@every_supplied
@pytest.mark.parametrize("with_graph", [True, False])
def test_the_numbers_in_exported_names_mean_nothing(gluon_files: Path, exported: Callable, name: str, with_graph: bool):
    """Every counter gets another number, in no order."""
    path, symbol = exported(name)
    new = list(range(100, 200))
    random.Random(0).shuffle(new)

    def renumbered(text: str) -> str:
        return re.sub(
            r"(conv|batchnorm|dense|resnetv[12])(\d+)_", lambda match: f"{match[1]}{new[int(match[2])]}_", text
        )

    tensors = {renumbered(key): tensor for key, tensor in read_params(path).items()}
    assert not tensors.keys() & read_params(path).keys()
    write_params(path, tensors)
    if with_graph:
        symbol.write_text(renumbered(symbol.read_text()))
    else:
        symbol.unlink()
    _assert_computes_what_mxnet_did(gluon_files, name, path)


@every_supplied
def test_with_the_graph_the_order_in_the_file_means_nothing(gluon_files: Path, exported: Callable, name: str):
    path, symbol = exported(name)
    entries = list(read_params(path).items())
    random.Random(1).shuffle(entries)
    write_params(path, dict(entries))
    _assert_computes_what_mxnet_did(gluon_files, name, path)
    symbol.unlink()
    words = rf"{path.name} .*order.* \d+ .*NAME-symbol\.json"
    with pytest.raises(UserError, match=words):
        _map_of(path, SUPPLIED[name])


@every_supplied
def test_which_way_a_graph_adds_branch_and_shortcut_means_nothing(exported: Callable, name: str):
    path, symbol = exported(name)
    expected = _map_of(path, SUPPLIED[name])
    graph = json.loads(symbol.read_text())
    sums = [node for node in graph["nodes"] if node["op"] == "elemwise_add"]
    assert len(sums) == sum(SUPPLIED[name].depths)
    for node in sums:
        node["inputs"].reverse()
    symbol.write_text(json.dumps(graph))
    assert _map_of(path, SUPPLIED[name]) == expected


def test_without_the_graph_a_shortcut_may_be_first_or_last_in_its_block(gluon_files: Path):
    """MXNet 1.9.1 exports the basic blocks of the zoo's first version with the shortcut first, older ones last."""
    config = SUPPLIED["zoo_v1_basic_narrow"]
    tensors = read_params(gluon_files / "zoo_v1_basic_narrow-0000.params")
    first = gluon_key_map(config, tensors)
    place = {name: at for at, name in enumerate(ResNet(config).state_dict())}
    moved = [first.names[ours] for ours in sorted(first.names, key=place.__getitem__)]
    assert moved != list(tensors)
    last = gluon_key_map(config, {theirs: tensors[theirs] for theirs in moved})
    assert last.names == first.names


def test_names_without_arg_and_aux_are_known_too(gluon_files: Path):
    """As `save_params`, the forerunner of `save_parameters`, wrote them."""
    config = SUPPLIED["zoo_v2_basic_narrow"]
    tensors = read_params(gluon_files / "zoo_v2_basic_narrow-0000.params")
    bare = {name[4:].removeprefix("resnetv20_"): tensor for name, tensor in tensors.items()}
    given = gluon_key_map(config, bare).to_ours(bare)
    expected = gluon_key_map(config, tensors).to_ours(tensors)
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[name], expected[name]) for name in given)


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        (
            "d2l_resnet18",
            {
                **{"conv1.weight": "0.weight", "conv1.bias": "0.bias", "bn1.running_var": "1.running_var"},
                **{"layer1.1.conv2.bias": "4.1.conv2.bias", "layer3.0.downsample.0.weight": "6.0.conv3.weight"},
                **{"layer4.1.bn2.weight": "7.1.bn2.gamma", "layer4.1.bn2.bias": "7.1.bn2.beta", "fc.bias": "9.bias"},
            },
        ),
        (
            "zoo_resnet34_v1",
            {
                **{"conv1.weight": "features.0.weight", "bn1.weight": "features.1.gamma", "fc.weight": "output.weight"},
                **{
                    "layer1.0.conv1.weight": "features.4.0.body.0.weight",
                    "layer3.5.bn2.bias": "features.6.5.body.4.beta",
                },
                "layer2.0.downsample.1.running_mean": "features.5.0.downsample.1.running_mean",
            },
        ),
        (
            "zoo_resnet50_v1",
            {
                **{"layer1.0.conv1.bias": "features.4.0.body.0.bias", "layer1.0.bn3.bias": "features.4.0.body.7.beta"},
                **{"layer4.2.conv2.weight": "features.7.2.body.3.weight", "fc.bias": "output.bias"},
                "layer1.0.downsample.0.weight": "features.4.0.downsample.0.weight",
            },
        ),
        (
            "zoo_resnet50_v2",
            {
                **{"input_norm.weight": "features.0.gamma", "conv1.weight": "features.1.weight"},
                **{"bn1.bias": "features.2.beta", "layer1.0.bn1.weight": "features.5.0.bn1.gamma"},
                **{"layer4.2.conv3.weight": "features.8.2.conv3.weight", "norm.running_var": "features.9.running_var"},
                **{"layer2.0.downsample.0.weight": "features.6.0.downsample.weight", "fc.weight": "output.weight"},
            },
        ),
    ],
)
def test_names_of_ours_become_names_of_theirs(name: str, pairs: dict[str, str]):
    names = gluon_key_map_for(CATALOG[name].config).names
    assert {ours: names[ours] for ours in pairs} == pairs


@every_form
def test_every_tensor_of_a_network_that_gluon_has_is_mapped_both_ways(name: str):
    config = CATALOG[name].config
    assert gluon_form(config) == FORMS[name]
    with torch.device("meta"):
        state = {key: value for key, value in ResNet(config).state_dict().items() if not key.endswith(COUNTERS)}
    key_map = gluon_key_map_for(config)
    assert key_map.names.keys() == state.keys()
    assert len(set(key_map.names.values())) == len(state)
    theirs = dict(zip(key_map.names.values(), (state[ours] for ours in key_map.names), strict=True))
    assert gluon_key_map(config, theirs) == key_map
    assert key_map.leftovers(theirs) == []
    assert {key: value.shape for key, value in key_map.to_ours(theirs).items()} == {
        key: value.shape for key, value in state.items()
    }


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        (
            "resnet50",
            {},
            "nearest, zoo_v1, differs in conv_bias='none' instead of 'pointwise'; stride_on='3x3'",
        ),
        ("resnext50_32x4d", {}, r"groups=32 instead of 1; width_per_group=4 instead of 64; conv_bias='none'"),
        ("resnet20", {}, "zoo_v1, differs in stem='cifar' instead of 'imagenet'; shortcut='A' instead of 'B'"),
        ("resnet18d", {}, "stem='deep' instead of 'imagenet'; avg_down=True instead of False"),
        ("seresnet18", {}, "attention='se' instead of 'none'"),
        ("resnetv2_50", {}, "zoo_v2, differs in stem_norm=False.* input_norm=False instead of True"),
        ("table1_resnet18", {}, "d2l, differs in stem_norm=False instead of True"),
        (
            "zoo_resnet50_v1",
            {"conv_bias": "all"},
            "d2l, differs in block='bottleneck' instead of 'basic'; shortcut_no",
        ),
        (
            "zoo_resnet18_v1",
            {"dilate": (False, False, True, True)},
            r"dilate=\(False, False, True, True\) instead of",
        ),
        (
            "zoo_resnet18_v1",
            {"activation": "gelu"},
            "activation='gelu' instead of 'relu'.* d2l_resnet18, or a zoo_res",
        ),
    ],
)
def test_a_network_that_gluon_has_not_is_refused_by_its_fields(name: str, overrides: dict[str, Any], words: str):
    with pytest.raises(UserError, match=words):
        gluon_key_map_for(model_config(name, overrides))


def test_what_makes_no_difference_to_a_trained_network_is_no_reason_to_refuse():
    assert gluon_form(CATALOG["resnet34"].config) == "zoo_v1"
    free = {"init": "torch", "drop_path": 0.2, "parts": "scratch", "dilate": (False,) * 4, "num_classes": 0}
    assert gluon_form(model_config("zoo_resnet50_v2", free)) == "zoo_v2"


@pytest.mark.parametrize("with_graph", [True, False])
def test_an_exported_file_of_another_architecture_is_refused_with_counts(exported: Callable, with_graph: bool):
    path, symbol = exported("zoo_v1_basic_narrow")
    if not with_graph:
        symbol.unlink()
    config = model_config("zoo_resnet34_v1", {"widths": NARROW, "num_classes": 10})
    words = (
        r"0000\.params .* 73 layers .*\(7x7 convolution: 1, normalization: 36, 3x3 convolution: 32, .*\), "
        r"the file 41 \(.*normalization: 20, "
    )
    with pytest.raises(UserError, match=words):
        _map_of(path, config)


def test_a_saved_file_of_another_depth_lacks_tensors_or_has_more(gluon_files: Path):
    """What does not match is for `load_weights` to tell, and to allow."""
    path = gluon_files / "zoo_v1_basic_narrow.params"
    for name, depths, facts in (
        ("zoo_resnet34_v1", (3, 4, 6, 3), ("180 tensors", "100 match", "80 are missing")),
        ("zoo_resnet18_v1", (1, 2, 2, 2), ("90 tensors", "90 match", "10 other tensors")),
    ):
        network = ResNet(model_config(name, {"depths": depths, "widths": NARROW, "num_classes": 10}))
        with refuses(*facts):
            load_weights(network, path)
        assert load_weights(network, path, min_match=0.5).loaded


@pytest.mark.parametrize("name", ["d2l_resnet18", "zoo_resnet18_v2"])
def test_a_saved_file_of_another_form_is_refused(gluon_files: Path, name: str):
    with pytest.raises(UserError, match=rf"{FORMS[name]}, .*'features\.0\.weight', "):
        _map_of(gluon_files / "zoo_v1_basic_narrow.params", CATALOG[name].config)


def test_the_head_is_mapped_for_a_backbone_too(gluon_files: Path):
    config = model_config("zoo_resnet18_v1", {"widths": NARROW, "num_classes": 0})
    for end in (".params", "-0000.params"):
        path = gluon_files / f"zoo_v1_basic_narrow{end}"
        tensors = read_params(path)
        key_map = gluon_key_map(config, tensors, path)
        assert key_map.leftovers(tensors) == []
        given = key_map.to_ours(tensors)
        assert given.pop("fc.weight").shape == (10, 32)
        del given["fc.bias"]
        _network(config, given)
    assert not [name for name in gluon_key_map_for(config).to_theirs(ResNet(config).state_dict()) if "output" in name]


def test_a_scale_that_gluon_fixes_is_1_here_and_is_not_written_otherwise(gluon_files: Path):
    config = SUPPLIED["zoo_v2_basic_narrow"]
    for end in (".params", "-0000.params"):
        path = gluon_files / f"zoo_v2_basic_narrow{end}"
        tensors = read_params(path)
        key_map = gluon_key_map(config, tensors, path)
        tensors[key_map.names["input_norm.weight"]].fill_(3.0)
        given = key_map.to_ours(tensors)
        assert torch.equal(given["input_norm.weight"], torch.ones(3))
        key_map.to_theirs(given)
        given["input_norm.weight"][1] = 1.25
        with pytest.raises(UserError, match=r"Gluon.* input_norm\.weight at 1"):
            key_map.to_theirs(given)


def test_what_the_graph_says_of_normalizations_counts(exported: Callable):
    path, symbol = exported("d2l_resnet18_narrow")
    text = symbol.read_text()
    graph = json.loads(text)
    third = [node for node in graph["nodes"] if node["op"] == "BatchNorm"][2]
    third["attrs"]["fix_gamma"] = "True"
    symbol.write_text(json.dumps(graph))
    assert _map_of(path, SUPPLIED["d2l_resnet18_narrow"]).constants == {"layer1.0.bn2.weight": 1.0}
    symbol.write_text(text.replace('"eps": "1e-05"', '"eps": "0.001"', 1))
    with pytest.raises(UserError, match=r"symbol\.json.*'batchnorm0_fwd'.*0\.001"):
        _map_of(path, SUPPLIED["d2l_resnet18_narrow"])


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"nodes": [{"op": "Convolution", "inputs": []}] * 10_001, "heads": [[0]]}),
        *(
            "",
            "{",
            "[]",
            "null",
            "{}",
            '{"nodes": 3, "heads": [[0]]}',
            '{"nodes": [], "heads": [[0, 0, 0]]}',
            "[" * 10**5,
        ),
        '{"nodes": [{"op": "null", "name": "x", "inputs": [[0, 0, 0]]}], "heads": [[0, 0, 0]]}',
        '{"nodes": [{"op": "Convolution", "name": "x", "inputs": []}], "heads": [[0, 0, 0]]}',
    ],
)
def test_a_damaged_graph_is_told(tmp_path: Path, content: str):
    path = tmp_path / "net-0012.params"
    (tmp_path / "net-symbol.json").write_text(content)
    with pytest.raises(DamagedFileError, match=r"net-symbol\.json"):
        gluon_key_map(CATALOG["d2l_resnet18"].config, {"arg:conv0_weight": torch.ones(1, 1, 1, 1)}, path)
