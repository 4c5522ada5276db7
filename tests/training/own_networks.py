# ruff: noqa: N803, N806
# pyright: reportAttributeAccessIssue=false
"""Networks as people write them: with d2l, in a tutorial, and in an assignment."""

import os
import signal

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

calls = 0


def may_die():
    """Ends the process at the training step that the variable DIE_AT names, as a power failure does."""
    global calls
    calls += 1
    if str(calls) == os.environ.get("DIE_AT"):
        os.kill(os.getpid(), signal.SIGKILL)


class Residual(nn.Module):
    """The residual block of d2l, of lazy layers."""

    def __init__(self, num_channels, use_1x1conv=False, strides=1):
        super().__init__()
        self.conv1 = nn.LazyConv2d(num_channels, kernel_size=3, padding=1, stride=strides)
        self.conv2 = nn.LazyConv2d(num_channels, kernel_size=3, padding=1)
        self.conv3 = nn.LazyConv2d(num_channels, kernel_size=1, stride=strides) if use_1x1conv else None
        self.bn1, self.bn2 = nn.LazyBatchNorm2d(), nn.LazyBatchNorm2d()

    def forward(self, X):
        Y = F.relu(self.bn1(self.conv1(X)))
        Y = self.bn2(self.conv2(Y))
        X = X if self.conv3 is None else self.conv3(X)
        return F.relu(Y + X)


class LazyResNet(nn.Module):
    """d2l's chain of stages in `net`, whose layers take their channels from the first images."""

    def __init__(self, num_classes=10):
        super().__init__()
        stem = nn.Sequential(nn.LazyConv2d(8, kernel_size=3, padding=1), nn.LazyBatchNorm2d(), nn.ReLU())
        self.net = nn.Sequential(stem, nn.Sequential(Residual(8)), nn.Sequential(Residual(16, True, 2)))
        self.net.add_module("last", nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten()))
        self.net.add_module("head", nn.LazyLinear(num_classes))

    def forward(self, X):
        may_die() if self.training else None
        return self.net(X)


def tutorial(num_classes=10):
    """The network of the Imagenette tutorial: torchvision's, with a new stem for gray images and a new head."""
    model = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
    model.conv1 = nn.Conv2d(1, 64, kernel_size=3, padding=1, bias=False)
    model.fc = nn.Sequential(nn.Dropout(0.2), nn.Linear(model.fc.in_features, num_classes))
    model.register_forward_pre_hook(lambda module, _: may_die() if module.training else None)
    return model


class Assignment(nn.Module):
    """A student's network: a list of stages, `view`, and a shortcut that is computed in `forward`."""

    def __init__(self):
        super().__init__()
        self.inplanes = 6
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.layers = nn.ModuleList([self.make(6), self.make(12)])
        self.short = nn.Conv2d(6, 12, 1)
        self.out1, self.out2 = nn.Linear(12 * 16, 20), nn.Linear(20, 10)

    def make(self, planes):
        layer = nn.Sequential(nn.Conv2d(self.inplanes, planes, 3, padding=1), nn.BatchNorm2d(planes), nn.ReLU())
        self.inplanes = planes
        return layer

    def forward(self, x):
        may_die() if self.training else None
        x = torch.relu(self.conv(x))
        x = x + self.layers[0](x)
        x = self.short(x) + self.layers[1](x)
        x = F.max_pool2d(x, 2)
        x = x.view(x.size(0), -1)
        return self.out2(F.dropout(torch.relu(self.out1(x)), 0.1, self.training))
