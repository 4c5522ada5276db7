"""Networks as learners write them, as source text with places to put a fault in."""

from __future__ import annotations

RESNET18 = """
import torch
from torch import nn
import torch.nn.functional as F


class BasicBlock(nn.Module):
    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x):
        identity = self.shortcut(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = out + identity
        return self.relu(out)


class MyResNet(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._stage(64, 64, 2, 1)
        self.layer2 = self._stage(64, 128, 2, 2)
        self.layer3 = self._stage(128, 256, 2, 2)
        self.layer4 = self._stage(256, 512, 2, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, num_classes)

    def _stage(self, in_channels, out_channels, blocks, stride):
        layers = [BasicBlock(in_channels, out_channels, stride)]
        for _ in range(blocks - 1):
            layers.append(BasicBlock(out_channels, out_channels))
        return nn.Sequential(*layers)

    def forward(self, x):
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)
        x = self.avgpool(x)
        x = torch.flatten(x, 1)
        return self.fc(x)
"""
"""ResNet-18 in the style of most tutorials."""

RESNET50 = """
import torch
from torch import nn


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, in_channels, width, stride=1):
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet50(nn.Module):
    def __init__(self, in_channels=3, num_classes=10):
        super().__init__()
        self.in_channels = 64
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        self.stage1 = self.make_stage(64, 3, 1)
        self.stage2 = self.make_stage(128, 4, 2)
        self.stage3 = self.make_stage(256, 6, 2)
        self.stage4 = self.make_stage(512, 3, 2)
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        self.head = nn.Linear(2048, num_classes)

    def make_stage(self, width, blocks, stride):
        layers = []
        for number in range(blocks):
            layers.append(Bottleneck(self.in_channels, width, stride if number == 0 else 1))
            self.in_channels = width * 4
        return nn.Sequential(*layers)

    def forward(self, x):
        x = self.stem(x)
        x = self.stage4(self.stage3(self.stage2(self.stage1(x))))
        x = self.pool(x).flatten(1)
        return self.head(x)
"""
"""ResNet-50 in the style of a course."""

D2L = """
import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    def __init__(self, num_channels, use_1x1conv=False, strides=1):
        super().__init__()
        self.conv1 = nn.LazyConv2d(num_channels, kernel_size=3, padding=1, stride=strides)
        self.conv2 = nn.LazyConv2d(num_channels, kernel_size=3, padding=1)
        if use_1x1conv:
            self.conv3 = nn.LazyConv2d(num_channels, kernel_size=1, stride=strides)
        else:
            self.conv3 = None
        self.bn1 = nn.LazyBatchNorm2d()
        self.bn2 = nn.LazyBatchNorm2d()

    def forward(self, X):
        Y = F.relu(self.bn1(self.conv1(X)))
        Y = self.bn2(self.conv2(Y))
        if self.conv3:
            X = self.conv3(X)
        Y += X
        return F.relu(Y)


class ResNet(nn.Module):
    def __init__(self, arch=((2, 64), (2, 128), (2, 256), (2, 512)), lr=0.1, num_classes=10):
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(self.b1())
        for i, b in enumerate(arch):
            self.net.add_module(f"b{i + 2}", self.block(*b, first_block=(i == 0)))
        self.net.add_module(
            "last", nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.LazyLinear(num_classes))
        )

    def b1(self):
        return nn.Sequential(
            nn.LazyConv2d(64, kernel_size=7, stride=2, padding=3),
            nn.LazyBatchNorm2d(),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )

    def block(self, num_residuals, num_channels, first_block=False):
        blk = []
        for i in range(num_residuals):
            if i == 0 and not first_block:
                blk.append(Residual(num_channels, use_1x1conv=True, strides=2))
            else:
                blk.append(Residual(num_channels))
        return nn.Sequential(*blk)

    def forward(self, X):
        return self.net(X)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def loss(self, Y_hat, Y):
        return F.cross_entropy(Y_hat, Y)
"""
"""ResNet-18 as in Dive into Deep Learning."""


UNITS = """
from dataclasses import dataclass
import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class Config:
    widths: tuple = (64, 128, 256, 512)
    depths: tuple = (2, 2, 2, 2)
    in_channels: int = 3
    classes: int = 10


class ConvBN(nn.Module):
    def __init__(self, c_in: int, c_out: int, kernel: int = 3, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=(kernel - 1) // 2, bias=False)
        self.norm = nn.BatchNorm2d(c_out)

    def forward(self, x):
        return self.norm(self.conv(x))


class ResBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int = 1):
        super().__init__()
        self.first = ConvBN(c_in, c_out, stride=stride)
        self.second = ConvBN(c_out, c_out)
        self.proj = ConvBN(c_in, c_out, kernel=1, stride=stride) if (stride > 1 or c_in != c_out) else None

    def forward(self, x):
        skip = x if self.proj is None else self.proj(x)
        h = F.relu(self.first(x))
        h = self.second(h)
        return F.relu(h + skip)


class Net(nn.Module):
    def __init__(self, cfg=None):
        super().__init__()
        cfg = cfg or Config()
        self.stem = ConvBN(cfg.in_channels, cfg.widths[0], kernel=7, stride=2)
        self.stages = nn.ModuleList()
        c = cfg.widths[0]
        for i, (w, d) in enumerate(zip(cfg.widths, cfg.depths)):
            blocks = nn.ModuleList()
            for j in range(d):
                s = 2 if (i > 0 and j == 0) else 1
                blocks.append(ResBlock(c, w, s))
                c = w
            self.stages.append(blocks)
        self.head = nn.Linear(c, cfg.classes)

    def forward(self, images):
        h = F.relu(self.stem(images))
        h = F.max_pool2d(h, 3, 2, 1)
        for blocks in self.stages:
            for blk in blocks:
                h = blk(h)
        h = h.mean(dim=(-2, -1))
        return self.head(h)
"""
"""ResNet-18 from a configuration, of units of convolution and normalization."""

NESTED = """
import torch
from torch import nn


class ResidualAdd(nn.Module):
    def __init__(self, fn, shortcut=None):
        super().__init__()
        self.fn = fn
        self.shortcut = shortcut if shortcut is not None else nn.Identity()

    def forward(self, x, **kwargs):
        res = self.shortcut(x)
        x = self.fn(x, **kwargs)
        x += res
        return x


def conv_bn(i, o, k, s=1, act=True):
    layers = [nn.Conv2d(i, o, k, s, k // 2, bias=False), nn.BatchNorm2d(o)]
    if act:
        layers.append(nn.ReLU(True))
    return nn.Sequential(*layers)


def block(i, o, s=1):
    shortcut = conv_bn(i, o, 1, s, act=False) if s != 1 or i != o else None
    return nn.Sequential(
        ResidualAdd(
            nn.Sequential(
                conv_bn(i, o, 3, s),
                conv_bn(o, o, 3, act=False),
            ),
            shortcut,
        ),
        nn.ReLU(True),
    )


def stage(i, o, n, s):
    return nn.Sequential(block(i, o, s), *[block(o, o) for _ in range(n - 1)])


def net(classes=10):
    return nn.Sequential(
        conv_bn(3, 64, 7, 2),
        nn.MaxPool2d(3, 2, 1),
        stage(64, 64, 2, 1),
        stage(64, 128, 2, 2),
        stage(128, 256, 2, 2),
        stage(256, 512, 2, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, classes),
    )
"""
"""ResNet-18 as nested functions that return Sequentials."""

BY_HAND = """
import math
import torch
from torch import nn
import torch.nn.functional as F


class Conv(nn.Module):
    def __init__(self, cin, cout, k, stride=1, padding=0):
        super().__init__()
        self.W = nn.Parameter(torch.randn(cout, cin, k, k) * math.sqrt(2 / (cout * k * k)))
        self.stride = stride
        self.padding = padding

    def forward(self, X):
        return F.conv2d(X, self.W, stride=self.stride, padding=self.padding)


class BN(nn.Module):
    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        super().__init__()
        shape = (1, num_features, 1, 1)
        self.gamma = nn.Parameter(torch.ones(shape))
        self.beta = nn.Parameter(torch.zeros(shape))
        self.register_buffer("moving_mean", torch.zeros(shape))
        self.register_buffer("moving_var", torch.ones(shape))
        self.eps, self.momentum = eps, momentum

    def forward(self, X):
        if self.training:
            mean = X.mean(dim=(0, 2, 3), keepdim=True)
            var = ((X - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
            X_hat = (X - mean) / torch.sqrt(var + self.eps)
            self.moving_mean = (1 - self.momentum) * self.moving_mean + self.momentum * mean.detach()
            self.moving_var = (1 - self.momentum) * self.moving_var + self.momentum * var.detach()
        else:
            X_hat = (X - self.moving_mean) / torch.sqrt(self.moving_var + self.eps)
        return self.gamma * X_hat + self.beta


class Block(nn.Module):
    def __init__(self, cin, mid, cout, stride=1):
        super().__init__()
        self.c1, self.b1 = Conv(cin, mid, 1), BN(mid)
        self.c2, self.b2 = Conv(mid, mid, 3, stride, 1), BN(mid)
        self.c3, self.b3 = Conv(mid, cout, 1), BN(cout)
        self.change = cin != cout or stride != 1
        if self.change:
            self.c4, self.b4 = Conv(cin, cout, 1, stride), BN(cout)

    def forward(self, X):
        Y = torch.relu(self.b1(self.c1(X)))
        Y = torch.relu(self.b2(self.c2(Y)))
        Y = self.b3(self.c3(Y))
        if self.change:
            X = self.b4(self.c4(X))
        return torch.relu(X + Y)


class ResNet50(nn.Module):
    def __init__(self, in_channels=3, num_classes=10):
        super().__init__()
        self.conv = Conv(in_channels, 64, 7, 2, 3)
        self.bn = BN(64)
        layers, cin = [], 64
        for number, (mid, n) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)]):
            for k in range(n):
                layers.append(Block(cin, mid, 4 * mid, 2 if k == 0 and number > 0 else 1))
                cin = 4 * mid
        self.blocks = nn.Sequential(*layers)
        self.w = nn.Parameter(torch.randn(num_classes, 2048) * 0.01)
        self.b = nn.Parameter(torch.zeros(num_classes))

    def forward(self, X):
        X = torch.relu(self.bn(self.conv(X)))
        X = F.max_pool2d(X, kernel_size=3, stride=2, padding=1)
        X = self.blocks(X)
        X = X.mean(dim=[2, 3])
        return X @ self.w.T + self.b
"""
"""ResNet-50 with hand-written layers, numbered."""


def changed(source: str, *changes: tuple[str, str]) -> str:
    """Returns a source with parts replaced; each must be there."""
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    return source
