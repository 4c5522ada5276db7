from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from tests.facts import refuses
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import resnetlab
from resnetlab.models.catalog import CATALOG, model_config
from resnetlab.models.summary import Summary, blueprint, count, summarize
from resnetlab.models.summary.outline import units
from resnetlab.weights.load import create_model

GOLDEN = Path(__file__).parent.parent / "golden"


def summary_of(name: str, image_size: int | None = None, style: str = "table", **overrides: Any) -> Summary:
    config = model_config(name, overrides)
    size = image_size or CATALOG[name].image_size
    return summarize(blueprint(config), (config.in_channels, size, size), style=style, name=name)


def test_a_summary_leaves_no_trace():
    model = create_model("resnet20", drop_path=0.5)
    model.train()
    model.get_submodule("layer1").eval()
    calls: list[int] = []
    model.get_submodule("layer2").register_forward_hook(lambda *_: calls.append(1))
    model.get_submodule("layer2").register_forward_pre_hook(lambda *_: calls.append(1))
    before = {key: (value.data_ptr(), value.clone()) for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    resnetlab.summarize(model, (3, 32, 32))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    after = model.state_dict()
    assert all(after[key].data_ptr() == place for key, (place, _) in before.items())
    assert all(torch.equal(after[key], value) for key, (_, value) in before.items())
    assert calls == []
    assert [len(module._forward_hooks) for module in model.modules()].count(0) == len(modes) - 1
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_blueprint_draws_nothing_and_holds_nothing():
    state = torch.get_rng_state()
    model = blueprint(model_config("resnet20"))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet56", "plain34", "resnet50d", "seresnet18", "resnetv2_18", "resnext50_32x4d"]
)
def test_macs_are_half_of_torchs_flops_and_shapes_are_torchs(name: str):
    model = create_model(name).eval()
    shapes: list[tuple[int, ...]] = []
    for module in list(model.modules())[1:]:
        module.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 47, 33))
    summary = summarize(model, (3, 47, 33))
    assert summary.flops == summary.macs * 2 == counter.get_total_flops()
    assert [layer.output_shape for layer in summary.layers] == shapes


def test_transposed_and_one_dimensional_convolutions_are_counted():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 8, 2, stride=2)
            self.line = nn.Conv1d(8, 4, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.line(self.up(x).flatten(2))

    summary = summarize(Net(), (3, 4, 4))
    assert [layer.macs for layer in summary.layers] == [3 * 16 * 8 * 4, 62 * 4 * 8 * 3]
    assert [layer.computes for layer in summary.layers] == ["transposed 2x2 8 /2 +b", "3 4"]
    assert "flatten output shape:\t (1, 8, 64)" in summary.trace()


def test_trained_and_fixed_values_are_counted():
    model = create_model("resnet20")
    for parameter in model.get_submodule("layer1").parameters():
        parameter.requires_grad_(False)
    summary = summarize(model, (3, 32, 32))
    frozen = sum(parameter.numel() for parameter in model.get_submodule("layer1").parameters())
    saved = sum(tensor.numel() for tensor in model.state_dict().values() if tensor.is_floating_point())
    assert summary.parameters == 269_722 - frozen
    assert summary.parameters + summary.fixed == saved
    leaves = [layer for layer in summary.layers if layer.is_leaf]
    for total in ("parameters", "fixed", "macs", "activation_bytes"):
        assert getattr(summary, total) == sum(getattr(layer, total) for layer in leaves)


def test_tied_layers_count_once_in_the_whole():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(3, 3, 1)
            self.two = nn.Conv2d(3, 3, 1)
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.one(self.two(self.one(x)))

    summary = summarize(Tied(), (3, 5, 5), style="gluon")
    assert [layer.name for layer in summary.layers] == ["one", "two", "one"]
    assert (summary.parameters, summary.macs) == (15, 3 * 225)
    assert "Total params: 36\n" in str(summary)
    assert "Shared params in forward computation graph: 21\nUnique parameters in model: 15" in str(summary)


def test_activation_memory_counts_each_memory_once():
    class Net(nn.Sequential):
        pass

    def size(*layers: nn.Module) -> int:
        return summarize(Net(*layers), (3, 4, 4)).activation_bytes

    convolution = nn.Conv2d(3, 5, 1)
    assert size(convolution) == 5 * 16 * 4
    assert size(convolution, nn.ReLU()) == 2 * 5 * 16 * 4
    assert size(convolution, nn.ReLU(inplace=True), nn.Identity(), nn.Flatten()) == 5 * 16 * 4
    assert size(convolution.half()) == 5 * 16 * 4  # stated in float32 whatever the network is in


def test_the_sum_of_a_preactivation_block_counts_as_memory():
    summary = summary_of("resnetv2_18")
    block = next(layer for layer in summary.layers if layer.name == "layer1.0")
    assert block.activation_bytes == 7 * 64 * 56 * 56 * 4  # two of each, and the sum
    block = next(layer for layer in summary_of("resnet18").layers if layer.name == "layer1.0")
    assert block.activation_bytes == 6 * 64 * 56 * 56 * 4  # two of each: the sum is replaced at once


BLOCKS = {
    "resnet50": ("layer2.0", "1x1 128, 3x3 128 /2, 1x1 512", "1x1 512 /2", "then ReLU"),
    "resnet18": ("layer1.0", "3x3 64, 3x3 64", "identity", "then ReLU"),
    "plain18": ("layer2.0", "3x3 128 /2, 3x3 128", "none", ""),
    "resnet20": ("layer2.0", "3x3 32 /2, 3x3 32", "zero-padded", "then ReLU"),
    "resnet50d": ("layer2.0", "1x1 128, 3x3 128 /2, 1x1 512", "avg-pool 2x2, 1x1 512", "then ReLU"),
    "seresnet18": ("layer1.0", "3x3 64, 3x3 64, SE", "identity", "then ReLU"),
    "resnext50_32x4d": ("layer1.1", "1x1 128, 3x3 128 g32, 1x1 256", "identity", "then ReLU"),
    "resnetv2_50": ("layer1.0", "1x1 64, 3x3 64, 1x1 256", "1x1 256", "pre-activation"),
    "d2l_resnet18": ("layer2.0", "3x3 128 /2 +b, 3x3 128 +b", "1x1 128 /2 +b", "then ReLU"),
    "scratch_resnet50": ("layer1.1", "1x1 64, 3x3 64, 1x1 256", "1x1 256", "then ReLU"),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_branch_and_shortcut_of_a_block(name: str):
    where, *words = BLOCKS[name]
    layer = next(layer for layer in summary_of(name).layers if layer.name == where)
    assert [layer.computes, layer.shortcut, layer.order] == words


def test_regularization_and_dilation_are_shown():
    config = {"drop_path": 0.1, "drop_block": ((0.0, 1), (0.1, 3), (0.1, 5)), "dilate": (False, False, True)}
    layer = next(layer for layer in summary_of("resnet20", shortcut="B", **config).layers if layer.name == "layer3.1")
    assert layer.computes == "3x3 64 dilation 2, 3x3 64 dilation 2, DropBlock, DropPath"
    assert layer.shortcut == "identity, DropBlock"


def test_shortcuts_of_other_libraries_networks_are_found():
    ours = units(summary_of("resnet50").layers)
    for theirs in (torchvision.models.resnet50(), timm.create_model("resnet50")):
        layers = units(summarize(theirs, (3, 224, 224)).layers)
        blocks = [(layer.computes, layer.shortcut, layer.order) for layer in layers if layer.shortcut]
        assert blocks == [(layer.computes, layer.shortcut, layer.order) for layer in ours if layer.shortcut]
    blocks = {
        layer.name: (layer.computes, layer.shortcut)
        for layer in units(summarize(timm.create_model("efficientnet_b0"), (3, 224, 224)).layers)
    }
    assert blocks["blocks.1.1"] == ("1x1 144, 3x3 144 g144, SE, 1x1 24", "identity")
    assert blocks["blocks.1.0"] == ("1x1 96, 3x3 96 /2 g96, SE, 1x1 24", "none")


def test_a_functional_block_is_read_too():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2, self.skip = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.skip(x) + self.conv2(torch.relu(self.conv1(x)))

    (*_, block) = summarize(nn.Sequential(Block()), (3, 8, 8)).layers
    assert (block.computes, block.shortcut) == ("3x3 3 +b, 1x1 3 +b", "1x1 3 +b")


def test_the_frame_has_a_row_for_every_module():
    model = create_model("resnet20")
    summary = summarize(model, (3, 32, 32))
    frame = summary.to_frame()
    assert sorted(frame["name"]) == sorted(name for name, _ in model.named_modules() if name and "drop" not in name)
    assert frame.loc[frame.is_leaf, "macs"].sum() == summary.macs
    assert (frame.flops == 2 * frame.macs).all()
    row = frame.set_index("name").loc["layer2.0"]
    assert (row.kind, row.input_shape, row.output_shape) == ("BasicBlock", "16x32x32", "32x16x16")
    assert (row.computes, row.shortcut, row.parameters) == ("3x3 32 /2, 3x3 32", "zero-padded", 13_952)
    documented = Summary.to_frame.__doc__ or ""
    assert all(f"`{column}`" in documented for column in frame)


def test_the_table_shows_all_figures_within_a_hundred_columns():
    text = str(summary_of("resnet50"))
    for words in (
        "resnet50  50 layers; shortcuts: 12 identity, 4 projection",
        "50 convolutions and linear layers on the main path, and 4 on shortcuts",
        "╔══ layer2.0             1x1 128, 3x3 128 /2, 1x1 512",
        "╚═⊕                      1x1 512 /2, then ReLU",
        "╭── layer2.1 to layer2.3 1x1 128, 3x3 128, 1x1 512",
        "╰─⊕ 3 x                  identity, then ReLU",
        "512x28x28",
        "25,557,032",
        "53,120",
        "4,089,184,256",
        "8,178,368,512",
        "122.22 MiB",
    ):
        assert words in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    "name", ["resnet152", "plain34", "resnet1202", "preact_resnet164", "resnext101_64x4d", "table1_resnet152"]
)
def test_every_table_is_one_screen(name: str):
    lines = str(summary_of(name)).splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 100


def test_shortcuts_look_different_and_a_plain_network_has_none():
    resnet20, plain20, preact = (str(summary_of(name)) for name in ("resnet20", "plain20", "preact_resnet110"))
    assert "┌╌╌ layer2.0" in resnet20
    assert "└╌⊕                      zero-padded, then ReLU" in resnet20
    assert not any(sign in plain20 for sign in "╭╰╔╚┌└⊕")
    assert "shortcuts: none" in plain20
    assert "layer1.0 to layer1.2" in plain20
    assert "identity, pre-activation" in preact


def test_a_long_description_is_broken_between_layers():
    lines = str(summary_of("resnet50", squeeze_excite=True, drop_path=0.1, conv_bias="all")).splitlines()
    (first,) = [number for number, line in enumerate(lines) if "╭── layer4.1" in line]
    assert "1x1 512 +b, 3x3 512 +b, 1x1 2048 +b," in lines[first]
    assert lines[first + 1].split() == ["│", "SE,", "DropPath"]
    assert "╰─⊕ 2 x" in lines[first + 2]


def test_gluons_table_of_the_tutorial_is_reproduced():
    text = str(summarize(create_model("d2l_resnet18"), (1, 224, 224), style="gluon"))
    assert f"{text}\n" == (GOLDEN / "gluon_resnet18_summary.txt").read_text()


@pytest.mark.parametrize("name", ["resnet50", "resnetv2_18", "seresnet18", "plain18", "resnet20", "scratch_resnet50"])
def test_gluons_table_of_other_networks(name: str):
    summary = summary_of(name, style="gluon")
    lines = str(summary).splitlines()
    rows = [line.split() for line in lines[4 : lines.index("=" * 80, 3)]]
    assert sum(int(row[-1]) for row in rows) == summary.parameters + summary.fixed
    assert f"   Non-trainable params: {summary.fixed}" in lines
    labels = [row[0] for row in rows]
    assert [int(label.rpartition("-")[2]) for label in labels] == list(range(1, len(labels) + 1))
    blocks = sum(model_config(name).depths)
    assert sum(label.startswith("Residual") for label in labels) == blocks
    assert sum(label.startswith("Activation") for label in labels) == 1  # of the stem, or of the end


def lines_of(shapes: str, form: str) -> list[str]:
    """Returns lines such as "conv1 output shape:\\t (1, 64, 48, 48)" of "conv1 1 64 48 48, ..."."""
    words = [line.split() for line in shapes.split(", ")]
    return [f"{name} output shape:\t {form.format(', '.join(sizes))}" for name, *sizes in words]


TRACES = {
    "from-scratch": (
        ("scratch_resnet50", 96),
        "conv1 1 64 48 48, bn1 1 64 48 48, act1 1 64 48 48, maxpool 1 64 24 24, layer1 1 256 24 24, "
        "layer2 1 512 12 12, layer3 1 1024 6 6, layer4 1 2048 3 3, avgpool 1 2048 1 1, flatten 1 2048, fc 1 10",
        "({})",
    ),
    "d2l-pytorch": (
        ("d2l_resnet18", 96),
        "Sequential 1 64 24 24, Sequential 1 64 24 24, Sequential 1 128 12 12, Sequential 1 256 6 6, "
        "Sequential 1 512 3 3, Sequential 1 10",
        "torch.Size([{}])",
    ),
    "imagenette-tutorial": (
        ("small_resnet14", 28),
        "conv1 1 64 28 28, bn1 1 64 28 28, act1 1 64 28 28, layer1 1 64 28 28, layer2 1 128 14 14, layer3 1 256 7 7, "
        "avgpool 1 256 1 1, flatten 1 256, fc 1 10",
        "({})",
    ),
    **{
        f"Table 1, {depth} layers": (
            (f"table1_resnet{depth}", 224),
            f"Conv2d 5 64 112 112, MaxPool2d 5 64 56 56, Sequential 5 {width} 7 7, AdaptiveAvgPool2d 5 {width} 1 1, "
            f"Flatten 5 {width}, Linear 5 1000",
            "torch.Size([{}])",
        )
        for depth, width in ((18, 512), (34, 512), (50, 2048), (101, 2048), (152, 2048))
    },
}


@pytest.mark.parametrize("source", TRACES)
def test_the_trace_of_each_source(source: str):
    (name, size), shapes, form = TRACES[source]
    assert str(summary_of(name, size, style="trace")).splitlines() == lines_of(shapes, form)


def test_a_trace_of_a_source_keeps_its_rows_for_other_channels_and_classes_only():
    lines = summary_of("d2l_resnet18", 96, in_channels=3, num_classes=5).trace(batch=4).splitlines()
    assert (len(lines), lines[-1]) == (6, "Sequential output shape:\t torch.Size([4, 5])")
    assert summary_of("d2l_resnet18", 96, stem="cifar").trace().startswith("conv1 output shape")


def test_the_ten_lines_of_d2l_gluon_under_gluons_names():
    shapes = (
        "conv5 1 64 112 112, batchnorm4 1 64 112 112, relu0 1 64 112 112, pool0 1 64 56 56, sequential1 1 64 56 56, "
        "sequential2 1 128 28 28, sequential3 1 256 14 14, sequential4 1 512 7 7, pool1 1 512 1 1, dense0 1 10"
    )
    assert str(summary_of("d2l_resnet18", 224, style="trace-gluon")).splitlines() == lines_of(shapes, "({})")


@pytest.mark.parametrize(
    ("name", "depth", "projections"),
    [
        ("resnet18", 18, 3), ("resnet34", 34, 3), ("resnet50", 50, 4), ("resnet101", 101, 4), ("resnet152", 152, 4),
        ("plain34", 34, 0), ("seresnet50", 50, 4), ("resnext50_32x4d", 50, 4), ("resnet20", 20, 0),
        ("resnet110", 110, 0), ("preact_resnet164", 164, 3), ("d2l_resnet18", 18, 3), ("scratch_resnet50", 50, 16),
        ("table1_resnet152", 152, 50), ("small_resnet14", 14, 2), ("resnetv2_50", 50, 4),
    ],
)  # fmt: skip
def test_depth_is_counted_as_in_the_papers(name: str, depth: int, projections: int):
    summary = summary_of(name)
    assert (summary.depth, summary.projections) == (depth, projections)
    found = summary.to_dict()
    assert (found["depth"], found["projections"]) == (depth, projections)


def test_depth_of_networks_of_other_libraries():
    for model in (torchvision.models.resnet18(), timm.create_model("resnet18")):
        summary = summarize(model, (3, 64, 64))
        assert (summary.depth, summary.projections) == (18, 3)


def test_gluons_counters_can_begin_anywhere():
    summary = summary_of("d2l_resnet18")
    assert summary.trace(names="gluon", counters={}).startswith("conv0 output")
    assert "dense7" in summary.trace(names="gluon", counters={"dense": 7})
    with refuses("counter 'dens'", "'dense'", "conv, batch"):
        summary.trace(names="gluon", counters={"dens": 7})
    with refuses("counters", 'names="gluon"'):
        summary.trace(counters={"conv": 5})
    with refuses("names 'mxnet'", "own, gluon"):
        summary.trace(names="mxnet")


def test_a_backbone_ends_in_its_embedding():
    assert summary_of("resnet18", num_classes=0).trace().splitlines()[-2:] == lines_of(
        "flatten 1 512, fc 1 512", "({})"
    )


@pytest.mark.parametrize("name", ["resnet110", "resnet101", "preact_resnet164", "scratch_resnet50", "wrn16_4"])
def test_counting_without_building_everything(name: str):
    summary = summary_of(name)
    assert count(model_config(name), CATALOG[name].image_size) == (summary.parameters, summary.macs)


def test_the_work_grows_with_the_depth_and_not_with_its_square():
    def calls(name: str) -> int:
        model, seen = blueprint(model_config(name)), [0]

        def count_call(frame: object, event: str, argument: object) -> None:
            seen[0] += event in ("call", "c_call")

        sys.setprofile(count_call)
        try:
            str(summarize(model, (3, 32, 32)))
        finally:
            sys.setprofile(None)
        return seen[0]

    calls("resnet20")  # what is done only once
    assert calls("resnet110") < 2.1 * calls("resnet56")


def test_the_arguments_are_checked():
    model = create_model("resnet20")
    with refuses("input_shape", "(C, H, W)", "(32, 32)"):
        summarize(model, (32, 32))
    with refuses("input_shape", "(C, H, W)", "got 32"):
        summarize(model, 32)  # type: ignore[arg-type]
    with refuses("input_shape", "at least 1", "got 0"):
        summarize(model, (3, 0, 32))
    with refuses("summarize", "'resnet20'", "create_model"):
        summarize("resnet20", (3, 32, 32))  # type: ignore[arg-type]
    with refuses("(N, 3, H, W)", "(1, 1, 32, 32)"):
        summarize(model, (1, 32, 32))
    with refuses("style 'tabel'", "'table'"):
        summarize(model, (3, 32, 32), style="tabel")
    with refuses("ResNet", "1x32x32", "(C, H, W)"):
        summarize(torchvision.models.resnet18(), (1, 32, 32))
    with refuses("Conv2d", "3x4x4"):
        summarize(nn.Conv2d(3, 3, 7), (3, 4, 4))
    with refuses("lazy", "batch"):
        summarize(nn.Sequential(nn.LazyConv2d(3, 1)), (3, 4, 4))


def test_the_legend_names_the_groups_of_the_table():
    shown = str(resnetlab.summarize(resnetlab.create_model("resnet50", groups=8), (3, 64, 64)))
    assert "g8: in 8 groups" in shown
    assert "32 groups" not in shown
