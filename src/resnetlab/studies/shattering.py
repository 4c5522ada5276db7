"""Gradients along a line of images, how alike neighboring ones are, and their size by block (Balduzzi et al. 2017)."""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnetlab.evaluation.forward import evaluating
from resnetlab.models.blocks import ResidualBlock
from resnetlab.models.resnet import ResNet


def settled(model: ResNet, images: Tensor) -> ResNet:
    """Returns a copy in evaluation mode whose normalizations have the statistics of these images.

    A network that was never trained has none of its own, and without them its answers would not be those with which
    a training begins.

    Args:
        model: a network.
        images: (N, C, H, W), normalized; all at once.
    """
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # the statistics of what is shown, and not a moving average
    with torch.no_grad():
        model.train()(images)
    return model.eval()


def line_gradients(model: ResNet, first: Tensor, second: Tensor, points: int, output: int) -> Tensor:
    """Returns the gradient of one logit in the image, at places from one image to another.

    Args:
        model: in evaluation mode images do not depend on each other.
        first: (C, H, W), normalized; the first place.
        second: the last place.
        points: how many places, at equal distances.
        output: number of the logit.

    Returns:
        (points, C * H * W).
    """
    share = torch.linspace(0, 1, points, device=first.device, dtype=first.dtype).reshape(-1, 1, 1, 1)
    images = torch.lerp(first, second, share).requires_grad_()
    with torch.enable_grad(), evaluating(model):
        total = model(images)[:, output].sum()
        return torch.autograd.grad(total, images)[0].flatten(1)


def autocorrelation(gradients: Tensor) -> np.ndarray:
    """Returns how alike gradients are by the number of places between them: 1 at 0, and 0 for white noise.

        r(k) = mean over t of <g(t), g(t + k)>  /  mean over t of <g(t), g(t)>

    The mean gradient is not taken off: of a linear function r is 1 everywhere.

    Args:
        gradients: (places, D).

    Returns:
        (places,).
    """
    products = (gradients @ gradients.T).double().cpu()
    means = np.array([float(products.diagonal(lag).mean()) for lag in range(len(products))])
    return means / means[0]


def block_gradients(model: ResNet, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Returns the norm of the gradient of each image's loss in the output of the stem and of each block.

    Mean over images, by the names of `ResNet.features`, in order.

    Args:
        model: a network.
        images: (N, C, H, W), normalized.
        labels: int64 (N,).
    """
    with torch.enable_grad(), evaluating(model):
        taps = model.features(images.detach().requires_grad_())
        names = ["stem", *(name for name, block in model.blocks() if isinstance(block, ResidualBlock))]
        loss = F.cross_entropy(taps["logits"], labels, reduction="sum")
        gradients = torch.autograd.grad(loss, [taps[name] for name in names])
    return {
        name: float(gradient.flatten(1).norm(dim=1).mean()) for name, gradient in zip(names, gradients, strict=True)
    }
