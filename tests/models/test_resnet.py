from __future__ import annotations

import pytest
import torch
import torchvision

import resnetlab
from resnetlab.core.errors import UserError
from resnetlab.models.blocks import BasicBlock, Bottleneck
from resnetlab.models.catalog import CATALOG
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.models.shortcuts import ZeroPaddedIdentity

TORCHVISION = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
CIFAR = ["resnet20", "resnet32", "resnet44", "resnet56", "resnet110"]

# Parameters and multiply-accumulates of one 3x224x224 image, counted on torchvision 0.29.
IMAGENET_COUNTS = {
    "resnet18": (11_689_512, 1_814_073_344),
    "resnet34": (21_797_672, 3_663_761_408),
    "resnet50": (25_557_032, 4_089_184_256),
    "resnet101": (44_549_160, 7_801_405_440),
    "resnet152": (60_192_808, 11_513_626_624),
}
# Parameters with option A and B, and millions of multiply-accumulates of one 3x32x32 image with option A.
CIFAR_COUNTS = {
    "resnet20": (269_722, 272_474, 40.55),
    "resnet32": (464_154, 466_906, 68.86),
    "resnet44": (658_586, 661_338, 97.17),
    "resnet56": (853_018, 855_770, 125.49),
    "resnet110": (1_727_962, 1_730_714, 252.89),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_counts_are_those_of_torchvision(name: str):
    with torch.device("meta"):
        summary = resnetlab.summarize(resnetlab.create_model(name), (3, 224, 224))
    assert (summary.parameters, summary.macs) == IMAGENET_COUNTS[name]


@pytest.mark.parametrize("name", CIFAR)
def test_counts_are_those_of_the_paper_for_small_images(name: str):
    option_a = resnetlab.summarize(resnetlab.create_model(name), (3, 32, 32))
    option_b = resnetlab.summarize(resnetlab.create_model(name, shortcut="B"), (3, 32, 32))
    assert (option_a.parameters, option_b.parameters) == CIFAR_COUNTS[name][:2]
    assert round(option_a.macs / 1e6, 2) == CIFAR_COUNTS[name][2]


@pytest.mark.parametrize("name", TORCHVISION)
def test_weights_go_to_torchvision_and_back(name: str):
    torch.manual_seed(0)
    ours, theirs = resnetlab.create_model(name).eval(), torchvision.models.get_model(name).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 97, 70)
    with torch.inference_mode():
        expected = theirs(images)
        assert (ours(images) - expected).abs().max() <= 1e-5 * expected.abs().max()
    theirs.load_state_dict(resnetlab.create_model(name).state_dict(), strict=True)


@pytest.mark.parametrize("name", list(CATALOG))
@pytest.mark.parametrize("channels", [1, 3])
def test_every_network_of_the_catalogue_answers_and_learns(name: str, channels: int):
    torch.manual_seed(0)
    model = resnetlab.create_model(name, in_channels=channels, num_classes=5)
    size = 64 if CATALOG[name].image_size == 224 else 16
    logits, embedding = model(torch.randn(2, channels, size, size), return_features=True)
    assert logits.shape == (2, 5)
    assert embedding.shape == (2, model.config.embedding_width)
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.conv1.weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["resnet18", "resnet20", "plain20"])
def test_without_classes_a_network_is_a_backbone(name: str):
    model = resnetlab.create_model(name, num_classes=0).eval()
    images = torch.randn(2, 3, 32, 32)
    embedding = model(images)
    assert embedding.shape == (2, model.config.embedding_width)
    assert torch.equal(model(images, return_features=True)[1], embedding)
    assert not any(key.startswith("fc") for key in model.state_dict())


def test_embedding_times_head_gives_the_logits():
    model = resnetlab.create_model("resnet20").eval()
    logits, embedding = model(torch.randn(3, 3, 32, 32), return_features=True)
    torch.testing.assert_close(logits, embedding @ model.fc.weight.T + model.fc.bias)


def test_option_a_takes_every_second_position_and_pads_channels_on_both_sides():
    x = torch.arange(2 * 3 * 5 * 5, dtype=torch.float32).reshape(2, 3, 5, 5)
    padded = ZeroPaddedIdentity(3, 8, stride=2)(x)
    assert padded.shape == (2, 8, 3, 3)
    assert torch.equal(padded[:, 2:5], x[:, :, ::2, ::2])  # floor((8 - 3) / 2) = 2 before, 3 after
    assert padded[:, :2].abs().sum() == padded[:, 5:].abs().sum() == 0


def _blocks(model: ResNet) -> list[BasicBlock | Bottleneck]:
    return [module for module in model.modules() if isinstance(module, (BasicBlock, Bottleneck))]


@pytest.mark.parametrize(
    ("shortcut", "expected"),
    [
        ("A", ["Identity", "Identity", "ZeroPaddedIdentity", "Identity"]),
        ("B", ["Identity", "Identity", "Sequential", "Identity"]),
        ("C", ["Sequential"] * 4),
        ("none", ["NoneType"] * 4),
    ],
)
def test_shortcuts_are_where_the_paper_puts_them(shortcut: str, expected: list[str]):
    model = ResNet(ResNetConfig(depths=(2, 2), widths=(4, 8), shortcut=shortcut))
    assert [type(block.downsample).__name__ for block in _blocks(model)] == expected


def test_a_plain_twin_differs_from_its_network_by_the_additions_only():
    plain, residual = resnetlab.create_model("plain20").eval(), resnetlab.create_model("resnet20").eval()
    assert plain.state_dict().keys() == residual.state_dict().keys()
    block = _blocks(plain)[0]
    x = torch.randn(1, 16, 8, 8)
    branch = block.bn2(block.conv2(block.act1(block.bn1(block.conv1(x)))))
    assert torch.equal(block(x), torch.relu(branch))


@pytest.mark.parametrize(("stride_on", "strides"), [("3x3", [(1, 1), (2, 2)]), ("1x1", [(2, 2), (1, 1)])])
def test_the_stride_sits_where_it_is_put(stride_on: str, strides: list[tuple[int, int]]):
    block = resnetlab.create_model("resnet50", stride_on=stride_on).layer2[0]
    assert [block.conv1.stride, block.conv2.stride] == strides


def test_groups_and_width_give_torchvisions_resnext_and_wide_networks():
    for name, fields in (
        ("resnext50_32x4d", {"groups": 32, "width_per_group": 4}),
        ("wide_resnet50_2", {"width_per_group": 128}),
        ("wide_resnet50_2", {"bottleneck_multiplier": 0.5}),
    ):
        with torch.device("meta"):
            ours = resnetlab.create_model("resnet50", **fields).state_dict()
            theirs = torchvision.models.get_model(name).state_dict()
        assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


def test_convolutions_start_as_he_et_al_say():
    torch.manual_seed(0)
    model = resnetlab.create_model("resnet18")
    weight = model.layer4[1].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    assert abs(weight.mean().item()) < 1e-4


@pytest.mark.parametrize("name", ["resnet20", "resnet50"])
def test_zero_init_makes_every_block_its_shortcut(name: str):
    model = resnetlab.create_model(name, zero_init_residual=True)
    for block in _blocks(model):
        assert block.last_normalization.weight.abs().max() == 0
    block = _blocks(model)[1].eval()
    x = torch.rand(1, block.conv1.in_channels, 8, 8)
    assert torch.equal(block(x), x)


def test_no_activation_is_shared_or_in_place():
    model = resnetlab.create_model("resnet50")
    seen: list[str] = []
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, torch.nn.ReLU):
            assert not module.inplace
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
    model.eval()(torch.randn(1, 3, 32, 32))
    assert len(seen) == len(set(seen)) == 1 + 3 * 16


def test_the_stem_is_chosen_by_image_size():
    assert resnetlab.create_model("resnet18", stem="auto", image_size=64).config.stem == "cifar"
    assert resnetlab.create_model("resnet18", stem="auto", image_size=65).config.stem == "imagenet"
    assert resnetlab.create_model("resnet18").config.stem == "imagenet"
    with pytest.raises(UserError, match=r'stem="auto" needs image_size'):
        resnetlab.create_model("resnet18", stem="auto")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block": "botleneck"}, r"unknown block 'botleneck'. Did you mean 'bottleneck'\?"),
        ({"shortcut": "D"}, "unknown shortcut 'D'"),
        ({"depths": (2, 2)}, "depths has 2 stages and widths 4. Give both the same number"),
        ({"depths": ()}, "depths must be a sequence of one to six integers"),
        ({"depths": (1,) * 7, "widths": (1,) * 7}, "one to six integers"),
        ({"depths": (2, 0, 2, 2)}, "every entry of depths must be an integer of at least 1, got 0"),
        ({"groups": 2}, r"groups=2 means nothing with block='basic'.*choose block='bottleneck'"),
        ({"stride_on": "1x1"}, "stride_on='1x1' means nothing with block='basic'"),
        ({"zero_init_residual": True, "shortcut": "none"}, "every block output zero"),
        ({"zero_init_residual": 1}, "zero_init_residual must be true or false, got 1"),
        ({"shortcut": "A", "widths": (64, 32, 64, 64)}, "cannot narrow.*shortcut 'B' or 'C'"),
        ({"block": "bottleneck", "width_per_group": 1, "widths": (8, 8, 8, 8)}, "gets no channels"),
        ({"num_classes": "ten"}, "num_classes must be an integer"),
        ({"in_channels": 0}, "in_channels must be an integer of at least 1, got 0"),
    ],
)
def test_what_means_nothing_is_refused(fields: dict, message: str):
    with pytest.raises(UserError, match=message):
        ResNetConfig(**fields)


def test_names_are_checked_and_listed():
    with pytest.raises(UserError, match=r"unknown model 'resnet500'. Did you mean 'resnet50'\? Available: resnet18, "):
        resnetlab.create_model("resnet500")
    with pytest.raises(UserError, match=r"no field 'num_clases'. Did you mean 'num_classes'\?"):
        resnetlab.create_model("resnet18", num_clases=10)
    assert resnetlab.list_models("plain1*") == ["plain18", "plain110"]
    assert resnetlab.list_models() == list(CATALOG)


def test_images_of_the_wrong_shape_are_refused():
    model = resnetlab.create_model("resnet20", in_channels=1)
    with pytest.raises(UserError, match=r"expected images of shape \(N, 1, H, W\), got \(2, 3, 32, 32\)"):
        model(torch.zeros(2, 3, 32, 32))


def test_images_that_are_not_normalised_are_refused():
    with pytest.raises(UserError, match=r"floating-point type, got torch\.uint8\. Normalise them first"):
        resnetlab.create_model("resnet20")(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))


def test_a_network_is_built_from_a_config_too():
    config = CATALOG["resnet20"].config
    assert resnetlab.create_model(config, num_classes=3).config.num_classes == 3
    with pytest.raises(UserError, match=r"no field 'clases'"):
        resnetlab.create_model(config, clases=3)
    with pytest.raises(UserError, match="ResNet takes a ResNetConfig, got 'resnet20'"):
        ResNet("resnet20")  # type: ignore[arg-type]


def test_a_config_survives_a_file():
    config = CATALOG["resnet50"].config
    assert ResNetConfig(**config.to_dict()) == config
    assert ResNetConfig(num_classes=-1).num_classes == 0
