"""Every kind of network as an ONNX file: the same answers and the same attention as in torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.networks import narrow, with_every_part
from tests.sampling import sampled
from torch import nn

import resnetlab
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.exporting.gate import BATCHES, BOUND, check_answers
from resnetlab.exporting.graph import prepared, to_onnx
from resnetlab.exporting.material import standard_images
from resnetlab.exporting.session import OUTPUTS, open_exported
from resnetlab.models.adapters import ModuleNetwork, TimmConfig, adapted
from resnetlab.models.blocks import BLOCK_CLASSES
from resnetlab.models.catalog import CATALOG
from resnetlab.models.config import ResNetConfig
from resnetlab.models.network import Network
from resnetlab.models.resnet import ResNet

QUICK = ("quick_resnet", "seresnet18", "resnetv2_18")
TIMM = ("resnet18d", "efficientnet_b0", "mobilenetv3_small_050", "vit_tiny_patch16_224", "convnext_atto")


def reduced(name: str) -> ResNetConfig:
    """A network of the catalog with one block per stage."""
    config = CATALOG[name].config
    config = narrow(config, 1) if config.widths[-1] >= 512 else config
    return dataclasses.replace(config, depths=(1,) * len(config.depths), drop_path=0.0, num_classes=7)


KINDS = {reduced(name): name for name in reversed(with_every_part())}
"""The first name of every reduced network that has a part of its own."""


def answers_here(model: Path, images: np.ndarray, batches: Sequence[int]) -> list[dict[str, np.ndarray]]:
    exported = open_exported(model)
    return [exported.run(images[:batch], exported.outputs) for batch in batches]


def trained(network: Network, size: int, channels: int) -> Network:
    """A network as training leaves it: it knows its images and classes, and its running statistics have moved."""
    mean, std = (0.5, 0.4, 0.3)[:channels], (0.25, 0.2, 0.3)[:channels]
    network.preprocessing = Preprocessing(image_size=size, channels=channels, mean=mean, std=std)
    network.class_names = tuple(f"class {number}" for number in range(network.config.num_classes))
    network.temperature = 1.3
    generator = torch.Generator().manual_seed(0)
    for name, value in network.named_buffers():
        if name.endswith("running_mean"):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.2)
        elif name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return network.eval()


def exported(network: Network, folder: Path) -> Path:
    preprocessing = network.preprocessing
    assert preprocessing is not None and network.class_names is not None
    metadata = {
        "schema": 1,
        "name": "network",
        "class_names": list(network.class_names),
        "preprocessing": dataclasses.asdict(preprocessing),
        "temperature": network.temperature,
        "precision": "float32",
        "provenance": {},
    }
    path = folder / "model.onnx"
    path.write_bytes(to_onnx(prepared(network), metadata).SerializeToString())
    return path


def check(network: Network, folder: Path) -> Path:
    """Exports a network and passes the gate, in this process."""
    path = exported(network, folder)
    assert network.preprocessing is not None
    images = standard_images(network.preprocessing.framing, BATCHES[-1])
    record, logits = check_answers(path, network, images, answers_here)
    assert record["passed"] and max(record["largest_differences"].values()) <= BOUND
    assert logits.shape == (len(images), network.config.num_classes)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*QUICK, *sampled((name for name in KINDS.values() if name not in QUICK), 6, slow=True)]
)
def test_the_catalog(name: str, tmp_path: Path):
    torch.manual_seed(0)
    config = reduced(name)
    network = trained(ResNet(config), 16 if config.stem == "cifar" else 48, config.in_channels)
    path = check(network, tmp_path)
    assert open_exported(path).outputs == OUTPUTS


@pytest.mark.slow
def test_dilation_and_groups(tmp_path: Path):
    config = dataclasses.replace(
        CATALOG["resnext50_32x4d"].config, depths=(1, 1, 1, 1), dilate=(False, False, True, True), num_classes=3
    )
    check(trained(ResNet(config), 64, 3), tmp_path)


def test_a_registered_block_that_cannot_be_folded(tmp_path: Path):
    class Backwards(resnetlab.ResidualBlock):
        """Looks into its normalization, and uses it only where the width does not change."""

        @classmethod
        def layout(cls, config, site):
            return (resnetlab.Convolution(out_channels=site.width, kernel_size=3, stride=site.stride),)

        def _branch(self, x):
            convolution: Any = self.conv1
            normalization: Any = self.bn1
            output = convolution(x)
            return normalization(output) if x.shape[1] == normalization.num_features else output

    resnetlab.register_block("backwards", Backwards)
    try:
        config = dataclasses.replace(
            CATALOG["resnet20"].config, depths=(1, 1, 1), block="backwards", num_classes=4, shortcut="B"
        )
        check(trained(ResNet(config), 16, 1 if config.in_channels == 1 else 3), tmp_path)
    finally:
        BLOCK_CLASSES.remove("backwards")


@pytest.mark.slow
def test_layers_from_scratch_become_torch_s(tmp_path: Path):
    config = dataclasses.replace(CATALOG["resnet18"].config, depths=(1, 1), widths=(8, 16), num_classes=3)
    sizes = []
    for parts in ("torch", "scratch"):
        folder = tmp_path / parts
        folder.mkdir()
        torch.manual_seed(0)
        sizes.append(check(trained(ResNet(dataclasses.replace(config, parts=parts)), 32, 3), folder).stat().st_size)
    assert sizes[0] == sizes[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_networks_of_timm(name: str, tmp_path: Path):
    torch.manual_seed(0)
    network = TimmConfig(name=name, in_channels=3, num_classes=7).build()
    path = check(trained(network, 224 if name.startswith("vit") else 64, 3), tmp_path)
    assert ("attention" in open_exported(path).outputs) == (name in ("resnet18d", "efficientnet_b0"))


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.head = nn.Linear(32, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images).view(images.size(0), -1))


def own(module: nn.Module) -> ModuleNetwork:
    network = adapted(module)
    network.config = dataclasses.replace(network.config, in_channels=3, num_classes=5)
    return network


def test_your_own_network(tmp_path: Path):
    torch.manual_seed(0)
    path = check(trained(own(Own()), 20, 3), tmp_path)
    assert open_exported(path).outputs == tuple(name for name in OUTPUTS if name != "attention")


def test_the_file_says_nothing_about_this_machine(tmp_path: Path):
    content = exported(trained(resnetlab.create_model("resnet20", depths=(1, 1, 1), num_classes=3), 16, 3), tmp_path)
    text = content.read_bytes()
    assert [word for word in (b".py", b"/home", b"/tmp", b"/work", b"site-packages", b"line ") if word in text] == []


class Draws(Own):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images + torch.randn_like(images))


class Looks(Own):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images if images.mean() > 0 else -images)


def test_what_cannot_be_exported_is_refused(tmp_path: Path):
    with pytest.raises(resnetlab.UserError, match="differs"):
        check(trained(own(Draws()), 20, 3), tmp_path)
    with pytest.raises(resnetlab.UserError, match="torch cannot export") as raised:
        check(trained(own(Looks()), 20, 3), tmp_path)
    assert len(str(raised.value)) < 600
    network: Any = trained(own(Own()), 20, 3)
    with pytest.raises(resnetlab.UserError, match=r"model.eval\(\)"):
        prepared(network.train())
    network.eval().network.head.bias.data[1] = float("nan")
    with pytest.raises(resnetlab.UserError, match=r"head\.bias"):
        prepared(network)
    network.class_names = None
    with pytest.raises(resnetlab.UserError, match="trained"):
        prepared(network)
