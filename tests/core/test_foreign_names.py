"""What people from other libraries type, and the names that the messages give them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from tests.facts import refuses
from torch import nn

import resnetlab
from resnetlab.core import foreign
from resnetlab.core.errors import UserError, brief
from resnetlab.core.fields import describe_fields
from resnetlab.data.options import LoadOptions
from resnetlab.models.catalog import CATALOG
from resnetlab.models.config import ResNetConfig
from resnetlab.training.recipe import Recipe

Cli = Callable[..., tuple[int, str, str]]
WEIGHTS = torchvision.models.ResNet18_Weights

NETWORK_ARGUMENTS: list[tuple[str, Any, str]] = [
    ("num_class", 10, "num_classes=10"),
    ("classes", 10, "num_classes=10"),
    ("num_blocks", [2, 2, 2, 2], "depths=(2, 2, 2, 2)"),
    ("layers", [2, 2, 2, 2], "depths=(2, 2, 2, 2)"),
    ("block_type", "Bottleneck", "block='bottleneck'"),
    ("block_cls", torchvision.models.resnet.BasicBlock, "block='basic'"),
    ("replace_stride_with_dilation", [False, False, True], "dilate=(False, False, False, True)"),
    ("output_stride", 8, "dilate=(False, False, True, True)"),
    ("act_layer", nn.GELU, "activation='gelu'"),
    ("norm_layer", nn.LayerNorm, "norm='layer'"),
    ("norm_layer", nn.BatchNorm2d, "norm='batch'"),
    ("attn_layer", "eca", "attention='eca'"),
    ("aa_layer", nn.AvgPool2d, "antialias='avg'"),
    ("replace_stem_pool", True, "stem_pool='conv'"),
    ("dropout_rate", 0.2, "dropout=0.2"),
    ("zero_init_last", True, "zero_init_residual=True"),
    ("base_width", 128, "width_per_group=128"),
    ("cardinality", 32, "groups=32"),
    ("weights", "DEFAULT", "pretrained='torchvision:DEFAULT'"),
    ("weights", "imagenet", "pretrained='torchvision:DEFAULT'"),
    ("weights", WEIGHTS.IMAGENET1K_V1, "pretrained='torchvision:IMAGENET1K_V1'"),
    ("weights", "ResNet18_Weights.DEFAULT", "pretrained='torchvision:DEFAULT'"),
    ("weights", None, "Omit it"),
    ("weights", "own.pth", "pretrained='own.pth'"),
    ("include_top", False, "num_classes=0"),
    ("global_pool", "avg", "model.features(images)"),
    ("features_only", True, "model.features(images)"),
    ("return_features", True, "model(images, return_features=True)"),
    ("input_shape", (224, 224, 3), "in_channels"),
    ("img_size", 224, "image_size=32 with stem='auto'"),
    ("num_layers", 18, "part of the name"),
    ("lr", 0.1, "fit(model, data, lr=0.1)"),
    ("learning_rate", 0.1, "fit(model, data, lr=0.1)"),
    ("in_chanels", 1, "'in_channels'"),
]


def test_create_model_takes_names_of_timm_that_mean_the_same():
    config = resnetlab.create_model("quick_resnet", in_chans=1, drop_rate=0.2, drop_path_rate=0.1).config
    assert (config.in_channels, config.dropout, config.drop_path) == (1, 0.2, 0.1)
    with refuses("'in_chans'", "in_channels=1"):
        resnetlab.create_model("quick_resnet", in_chans=1, in_channels=3)
    with refuses("'in_chans'", "in_channels=1"):
        ResNetConfig(in_chans=1)  # type: ignore[call-arg]  # the message is what is tested


def test_optimizers_are_taken_as_torch_writes_them():
    assert [resnetlab.Recipe(optimizer=name).optimizer for name in ("Adam", "SGD")] == ["adam", "sgd"]


@pytest.mark.parametrize(("name", "value", "fact"), NETWORK_ARGUMENTS)
def test_arguments_of_other_libraries_lead_to_fields_of_the_network(name: str, value: Any, fact: str):
    with refuses(repr(name), fact, "resnetlab list models --fields") as message:
        resnetlab.create_model("resnet18", **{name: value})
    assert len(message()) < 400
    with refuses(repr(name), fact):
        ResNetConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "fact"),
    [
        ("learning_rate", 0.1, "lr=0.1"),
        ("lr0", 0.1, "lr=0.1"),
        ("n_epoch", 5, "epochs=5"),
        ("bs", 64, "batch_size=64"),
        ("wd", 1e-4, "weight_decay=0.0001"),
        ("opt", "sgd", "optimizer='sgd'"),
        ("scheduler", "cosine", "schedule='cosine'"),
        ("mixup_alpha", 0.2, "**{'augment.mixup': 0.2}"),
        ("amp", True, "precision='bfloat16'"),
        ("freeze_backbone", True, "rates={'stem': 0"),
        ("validation_data", (1, 2), "'validation': (...)"),
        ("num_workers", 4, "load_data(source, workers=4)"),
        ("in_chans", 1, "channels and classes from the data"),
        ("num_classes", 10, "channels and classes from the data"),
        ("depths", [1, 1], "overrides={'depths': (1, 1)}"),
        ("act_layer", "relu", "--set model.activation"),
        ("lerning_rat", 1, "Its fields"),
    ],
)
def test_arguments_of_other_libraries_lead_to_fields_of_the_recipe(name: str, value: Any, fact: str):
    with refuses(repr(name), fact, "resnetlab list recipes --fields"):
        resnetlab.fit("auto", "digits", **{name: value})
    with refuses(repr(name), fact):
        Recipe(**{name: value})


@pytest.mark.parametrize(
    ("function", "positional", "named", "facts"),
    [
        (resnetlab.load_data, ("digits",), {"num_workers": 2}, ("'num_workers'", "workers=2")),
        (resnetlab.load_data, ("digits",), {"validation_split": 0.2}, ("validation_fraction=0.2",)),
        (resnetlab.load_data, ("digits",), {"target_size": (64, 64)}, ("image_size=64",)),
        (resnetlab.load_data, ("digits",), {"color_mode": "grayscale"}, ("channels=1",)),
        (resnetlab.load_data, ("digits",), {"bath_size": 2}, ("'bath_size'", "It takes")),
        (resnetlab.load, ("a.pth",), {"map_location": "cpu"}, ("'map_location'", "model.to(")),
        (
            resnetlab.predict,
            (
                "a",
                "b",
            ),
            {"topk": 5},
            ("'topk'", "top=5"),
        ),
        (
            resnetlab.predict,
            (
                "a",
                "b",
            ),
            {"tta": True},
            ("mirrored=True",),
        ),
        (
            resnetlab.predict,
            (
                "a",
                "b",
            ),
            {"batch_size": 8},
            ("'batch_size'", "Omit it"),
        ),
        (resnetlab.Augmentation, (), {"rotate": 3}, ("'rotate'", "'rotation'")),
        (resnetlab.Recipe, (), {"schedule": "CosineAnnealingLR"}, ("cosine",)),
        (resnetlab.ResNetConfig, (), {"activation": nn.ReLU}, ("ReLU", "'relu'")),
        (resnetlab.ResNetConfig, (), {"block": torchvision.models.resnet.BasicBlock}, ("BasicBlock", "'basic'")),
    ],
)
def test_other_functions_know_the_names_too(
    function: Callable[..., Any], positional: tuple[str, ...], named: dict[str, Any], facts: tuple[str, ...]
):
    with refuses(*facts):
        function(*positional, **named)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("resnet_mnist", ("small_resnet14",)),
        ("ResNet50", ("'resnet50'",)),
        ("resnet-50", ("'resnet50'",)),
        ("RESNET_50", ("'resnet50'",)),
        ("microsoft/resnet-50", ("'resnet50'",)),
        ("torchvision.models.resnet18", ("'resnet18'",)),
        (torchvision.models.resnet18, ("'resnet18'",)),
        ("resnet50d.ra2_in1k", ("create_model('resnet50d', pretrained='timm:resnet50d.ra2_in1k')",)),
        ("timm/resnet18.a1_in1k", ("create_model('resnet18', pretrained='timm:resnet18.a1_in1k')",)),
        ("wide_resnet50", ("'wide_resnet50_2'",)),
        ("resnext50", ("'resnext50_32x4d'",)),
        ("ResNet18_Weights.DEFAULT", ("create_model('resnet18', pretrained='torchvision:DEFAULT')",)),
        (WEIGHTS.DEFAULT, ("create_model('resnet18', pretrained='torchvision:IMAGENET1K_V1')",)),
        ("ResNet152V2", ("'resnetv2_152'",)),
        ("resnet18_v1", ("'zoo_resnet18_v1'",)),
        ("xresnet50", ("'resnet50d'",)),
        ("WRN-28-10", ("'wrn28_10'",)),
        ("efficientnet_b0", ("fit('timm:efficientnet_b0', data)",)),
        ("resnet51", ("'resnet50'",)),
        ("zzz", ("unknown model 'zzz'",)),
        (18, ("unknown model 18",)),
        ("", ("create_model('resnet18'", "depths", "ResNetConfig")),
        (nn.Linear(2, 2), ("Linear", "fit")),
    ],
)
def test_names_of_networks_lead_to_ours(name: Any, facts: tuple[str, ...]):
    with refuses(*facts) as message:
        resnetlab.create_model(name)
    assert "resnetlab list models" in message() or isinstance(name, nn.Module)
    assert sum(known in message() for known in CATALOG) < 20
    assert len(message()) < 300


@pytest.mark.parametrize("value", [True, False, WEIGHTS.DEFAULT, "DEFAULT", "IMAGENET1K_V2", "resnet50"])
def test_pretrained_names_weights(value: Any):
    fact = "Omit it" if value is False else "torchvision:"
    with refuses(fact, brief(value).strip("'")):
        resnetlab.create_model("resnet18", pretrained=value)  # type: ignore[arg-type]
    with refuses(fact):
        resnetlab.fit("resnet18", "digits", pretrained=value)  # type: ignore[arg-type]


def test_files_of_other_programs_lead_to_create_model(cli: Cli, tmp_path: Path):
    state = resnetlab.create_model("resnet18", num_classes=2).state_dict()
    torch.save(state, tmp_path / "resnet18-f37072fd.pth")
    with refuses("create_model('resnet18', pretrained=", "resnet18-f37072fd.pth", "resnetlab export"):
        resnetlab.load(tmp_path / "resnet18-f37072fd.pth")
    torch.save(state, tmp_path / "torchvision.pth")
    with refuses("create_model(NAME, pretrained=", "torchvision.pth") as message:
        resnetlab.load(tmp_path / "torchvision.pth")
    command = message().partition("resnetlab export ")[2].split()
    code, _, err = cli("export", *command[:-1], tmp_path / command[-1])
    assert code == 0, err
    assert resnetlab.load(tmp_path / command[-1]).config.num_classes == 2
    for name, fact in (("resnet50", "create_model('resnet50', pretrained="), ("timm:resnet50.a1_in1k", "NAME")):
        with refuses(fact):
            resnetlab.load(name)


def test_shapes_without_a_batch_dimension():
    model = resnetlab.create_model("resnet20")
    for shape, fact in (
        ((1, 3, 224, 224), "(3, 224, 224)"),
        (torch.zeros(1, 3, 32, 32), "(3, 32, 32)"),
        (32, "(3, 32, 32)"),
        ((32, 32), "(3, 32, 32)"),
        ((32, 32, 3), "(3, 32, 32)"),
    ):
        with refuses("(C, H, W)", fact) as message:
            resnetlab.summarize(model, shape)  # type: ignore[arg-type]
        assert "tensor(" not in message()
    with refuses("'input_size'", "input_shape=(3, 32, 32)"):
        resnetlab.summarize(model, input_size=(1, 3, 32, 32))  # type: ignore[call-arg]
    with refuses("'resnet18'", "create_model('resnet18')"):
        resnetlab.summarize("resnet18", (3, 32, 32))  # type: ignore[arg-type]


def test_no_message_prints_a_large_object():
    model, images = resnetlab.create_model("resnet18"), np.zeros((50, 50, 3))
    for call in (
        lambda: resnetlab.load(model),  # type: ignore[arg-type]
        lambda: resnetlab.evaluate(model),
        lambda: resnetlab.create_model("resnet18", depths=images),
        lambda: resnetlab.create_model("resnet18", in_channels=model),
        lambda: resnetlab.create_model("resnet18", widths=list(range(1000))),
        lambda: resnetlab.fit(model, images),  # type: ignore[arg-type]
        lambda: resnetlab.fit("auto", model),  # type: ignore[arg-type]
        lambda: resnetlab.fit("auto", "digits", recipe=model),  # type: ignore[arg-type]
        lambda: resnetlab.fit("auto", "digits", lr=images),
        lambda: resnetlab.load_data(model),  # type: ignore[arg-type]
        lambda: resnetlab.summarize(images, (3, 4, 4)),  # type: ignore[arg-type]
        lambda: resnetlab.summarize(model, images),  # type: ignore[arg-type]
        lambda: resnetlab.save("a.safetensors", images),  # type: ignore[arg-type]
    ):
        with pytest.raises(UserError) as caught:
            call()
        assert len(str(caught.value)) < 400, str(caught.value)
        assert "Conv2d(" not in str(caught.value)
        assert "0. " not in str(caught.value)


def test_a_network_that_is_looked_for_in_the_package_leads_to_create_model():
    with pytest.raises(AttributeError, match=r"create_model\('resnet18'\)"):
        _ = resnetlab.resnet18  # type: ignore[attr-defined]


def test_our_names_in_the_table_exist():
    known = {
        foreign.NETWORK: [field.name for field in describe_fields(ResNetConfig)],
        foreign.TRAINING: [
            *(field.name for field in describe_fields(Recipe)), *inspect.signature(resnetlab.fit).parameters
        ],
        foreign.DATA: [*(field.name for field in describe_fields(LoadOptions)), "workers"],
        foreign.SUMMARY: ["input_shape", "style"],
        foreign.PREDICTION: ["images", "top", "mirrored"],
    }  # fmt: skip
    for kind, lines in foreign._NAMES.items():
        assert set(lines) <= set(known[kind])
        assert not set(known[kind]) & {name for names in lines.values() for name in names.split()} - set(lines)
    assert set(foreign._ALIASES.values()) <= set(CATALOG)
