# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportIndexIssue=false
from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.conftest import TINY
from tests.facts import refuses
from tests.oracles import assert_same_logits, randomized
from torch import Tensor, nn

import resnetlab
from resnetlab import weights
from resnetlab.core.errors import UserError
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.runs import Run
from resnetlab.models.resnet import ResNet
from resnetlab.models.surgery import freeze


class _Block(nn.Module):
    """A block as training scripts for CIFAR write it, option A."""

    def __init__(self, arriving: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(arriving, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.pad = (width - arriving) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.pad:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(out + x)


class _Cifar(nn.Module):
    """ResNet-20 with a head called `linear`."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(_Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(_Block(16, 32, 2), _Block(32, 32, 1), _Block(32, 32, 1))
        self.layer3 = nn.Sequential(_Block(32, 64, 2), _Block(64, 64, 1), _Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


@pytest.mark.parametrize("old_format", [False, True])
def test_a_checkpoint_of_a_cifar_script_loads_and_goes_back(old_format: bool, tmp_path: Path):
    theirs = randomized(_Cifar())
    saved = {"state_dict": nn.DataParallel(theirs).state_dict(), "best_prec1": 91.7, "epoch": 200}
    assert all(name.startswith("module.") for name in saved["state_dict"])
    torch.save(saved, tmp_path / "model.th", _use_new_zipfile_serialization=not old_format)
    ours = resnetlab.create_model("resnet20", pretrained=tmp_path / "model.th").eval()
    assert_same_logits(ours, theirs, (32, 32), (33, 29))
    report = weights.convert(tmp_path / "model.th", tmp_path / "back.pth", to="cifar")
    assert report.form == "CIFAR checkpoint"
    assert sorted(report.ignored) == ["best_prec1", "epoch"]
    back = torch.load(tmp_path / "back.pth")
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[name], value) for name, value in theirs.state_dict().items())


def _resnet50(folder: Path) -> Path:
    torch.manual_seed(0)
    torch.save(resnetlab.create_model("resnet50").state_dict(), folder / "resnet50.pth")
    return folder / "resnet50.pth"


def test_a_network_of_other_classes_and_channels_takes_what_fits(tmp_path: Path):
    path = _resnet50(tmp_path)
    model = resnetlab.create_model("resnet50", num_classes=10, in_channels=1)
    report = resnetlab.load_weights(model, path)
    theirs = torch.load(path)
    assert report.adapted == ["conv1.weight"]
    assert report.reinitialized == ["fc.weight", "fc.bias"]
    assert report.ignored == []
    assert len(report.loaded) == len(theirs) - 3
    assert torch.equal(model.conv1.weight, theirs["conv1.weight"].sum(1, keepdim=True))
    assert torch.equal(model.layer4[2].conv3.weight, theirs["layer4.2.conv3.weight"])
    words = str(report)
    assert f"{len(theirs) - 3} loaded, 1 adapted, 2 re-initialized\n" in words
    assert "fc.weight     re-initialized  1000x2048 in the file, 10x2048 in the network" in words
    assert "conv1.weight  adapted         summed over the 3 channels in the file" in words
    assert list(report.table.columns) == ["name", "status", "here", "there", "why"]
    assert len(report.table) == len(theirs)


def test_more_channels_are_repeated_and_scaled(tmp_path: Path):
    source = resnetlab.create_model("resnet20")
    weights.save(tmp_path / "m.safetensors", source)
    model = resnetlab.create_model("resnet20", in_channels=4)
    resnetlab.load_weights(model, tmp_path / "m.safetensors")
    expected = source.conv1.weight[:, [0, 1, 2, 0]] * 0.75
    assert torch.equal(model.conv1.weight, expected)


def test_weights_of_another_depth_are_refused_with_the_counts_and_change_nothing(tmp_path: Path):
    torch.save(resnetlab.create_model("resnet18").state_dict(), tmp_path / "resnet18.pth")
    model = resnetlab.create_model("resnet34")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError) as refused:
        resnetlab.load_weights(model, tmp_path / "resnet18.pth")
    words = str(refused.value)
    assert re.search(r"\b180 .*\b100 match.*\b80 .*\b0 ", words)
    assert "\nmissing in the file:\n  layer1.2.* (10)\n" in words
    assert "layer3.5.* (10)" in words  # the list is whole
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    report = resnetlab.load_weights(model, tmp_path / "resnet18.pth", min_match=0.5)
    assert len([name for name in report.reinitialized if "num_batches" not in name]) == 80


def test_a_run_of_another_network_is_named_with_the_first_difference(tmp_path: Path):
    weights.save(tmp_path / "m.safetensors", resnetlab.create_model("photo_resnet", num_classes=2))
    with pytest.raises(UserError) as refused:
        resnetlab.load_weights(resnetlab.create_model("resnet18"), tmp_path / "m.safetensors")
    words = str(refused.value)
    assert "torchvision" not in words
    assert all(fact in words for fact in ("3 stages", "has 4", "layer4.* ("))
    assert len(words.splitlines()) < 10


def test_a_deeper_file_is_refused_too(tmp_path: Path):
    torch.save(resnetlab.create_model("resnet34").state_dict(), tmp_path / "resnet34.pth")
    with pytest.raises(UserError, match=r"\b100 .*\b100 match.*\b80 [^\0]*\n  layer1\.2\.\*"):
        resnetlab.create_model("resnet18", pretrained=tmp_path / "resnet34.pth")


def test_a_prefixed_file_that_matches_nothing_is_refused(tmp_path: Path):
    torch.save({f"module.{n}.weight": torch.ones(3) for n in range(5)}, tmp_path / "other.pth")
    with refuses("95", "0.weight", "conv1.weight") as message:
        resnetlab.create_model("resnet20", pretrained=tmp_path / "other.pth")
    assert "\n" not in message()


def test_other_shapes_are_listed(tmp_path: Path):
    weights.save(tmp_path / "m.safetensors", resnetlab.create_model("wrn16_4"))
    with refuses("layer1.0.conv2.weight: 64x64x3x3 in the file, 32x32x3x3 in the network"):
        resnetlab.create_model("wrn16_4", widths=(32, 128, 256), pretrained=tmp_path / "m.safetensors")


def test_what_the_source_knows_of_its_classes_and_images_comes_along(tmp_path: Path):
    source = ResNet(TINY)
    source.class_names = tuple("abcdefghij")
    source.preprocessing = Preprocessing(image_size=8, channels=1, mean=(0.25,), std=(0.5,))
    weights.save(tmp_path / "m.safetensors", source)
    model = ResNet(TINY)
    resnetlab.load_weights(model, tmp_path / "m.safetensors")
    assert (model.class_names, model.preprocessing) == (source.class_names, source.preprocessing)
    colored = resnetlab.create_model(TINY, in_channels=3)
    resnetlab.load_weights(colored, tmp_path / "m.safetensors")
    assert colored.preprocessing == Preprocessing(image_size=8, channels=3, mean=(0.25,) * 3, std=(0.5,) * 3)


def test_a_head_for_other_classes_begins_anew_though_it_fits(tmp_path: Path):
    source = ResNet(TINY)
    source.class_names = tuple("abcdefghij")
    weights.save(tmp_path / "m.safetensors", source)
    model = ResNet(TINY)
    report = resnetlab.load_weights(model, tmp_path / "m.safetensors", class_names=tuple("klmnopqrst"))
    assert report.reinitialized == ["fc.weight", "fc.bias"]
    assert "trained for other classes" in str(report)
    assert not torch.equal(model.fc.weight, source.fc.weight)
    assert model.class_names is None
    again = resnetlab.load_weights(model, tmp_path / "m.safetensors", class_names=source.class_names)
    assert again.reinitialized == []
    assert torch.equal(model.fc.weight, source.fc.weight)


def test_a_backbone_takes_no_head_and_a_network_may_come_from_one(tmp_path: Path):
    whole = resnetlab.create_model("resnet20")
    weights.save(tmp_path / "whole.safetensors", whole)
    backbone = resnetlab.create_model("resnet20", num_classes=0)
    report = resnetlab.load_weights(backbone, tmp_path / "whole.safetensors")
    assert sorted(report.ignored) == ["fc.bias", "fc.weight"]
    weights.save(tmp_path / "backbone.safetensors", backbone)
    report = resnetlab.load_weights(resnetlab.create_model("resnet20"), tmp_path / "backbone.safetensors")
    assert report.reinitialized == ["fc.weight", "fc.bias"]
    assert "not in the file" in str(report)


def test_a_run_is_a_source_and_memory_layout_and_freezing_stay(digits_run: Run):
    model = resnetlab.create_model("resnet20", in_channels=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    freeze(model, "stem")
    resnetlab.load_weights(model, digits_run)
    trained = resnetlab.load(digits_run)
    assert torch.equal(model.layer3[2].conv2.weight, trained.layer3[2].conv2.weight)
    assert model.layer3[2].conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert not model.conv1.weight.requires_grad
    assert model.layer1[0].conv1.weight.requires_grad


def test_half_precision_is_read_as_float32(tmp_path: Path):
    source = resnetlab.create_model("resnet20")
    torch.save({name: value.half() for name, value in source.state_dict().items()}, tmp_path / "half.pth")
    model = resnetlab.create_model("resnet20", pretrained=tmp_path / "half.pth")
    assert model.conv1.weight.dtype == torch.float32
    assert torch.equal(model.conv1.weight, source.conv1.weight.half().float())


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path):
    state = resnetlab.create_model("resnet20").state_dict()
    state["layer2.0.conv1.weight"][0, 0, 0, 0] = torch.nan
    torch.save(state, tmp_path / "nan.pth")
    with refuses("layer2.0.conv1.weight"):
        resnetlab.create_model("resnet20", pretrained=tmp_path / "nan.pth")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere.pth", "there is no file nowhere.pth"),
        ("torchvision:IMAGENET1K_V2", "torchvision has no network like this one .*it has resnet18, resnet34"),
        (3, "expected a weights file or a run folder, got 3"),
    ],
)
def test_sources_that_are_none_are_refused(source: object, words: str):
    with pytest.raises(UserError, match=words):
        resnetlab.load_weights(resnetlab.create_model("resnet20"), source)  # type: ignore[arg-type]


def test_a_share_that_is_none_is_refused():
    with refuses("min_match"):
        resnetlab.load_weights(ResNet(TINY), "x", min_match=1.5)
