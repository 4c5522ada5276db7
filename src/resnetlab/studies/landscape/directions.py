"""The loss around a trained network, along directions as large as its filters (Li et al. 2018)."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnetlab.core.randomness import generator
from resnetlab.evaluation.forward import check_images
from resnetlab.models.folding import fold_batch_norm
from resnetlab.models.fused import fuse_blocks
from resnetlab.models.resnet import ResNet

_TINY = 1e-10  # in the denominator, as in the paper's code
_PIXELS = 2**19
"""Input pixels of a batch: narrow networks are faster the more images they are given, up to about so many."""


def random_direction(model: ResNet, seed: int, number: int) -> dict[str, Tensor]:
    """Returns a random direction in the space of the network's parameters, normalized filter by filter.

        d_ij <- d_ij / |d_ij| * |w_ij|        (Li et al. 2018, section 4)

    Gaussian; each output filter has the norm of the weights' filter, and so has each row of the head. Parameters of
    one dimension or fewer, biases and those of normalizations, stay where they are: their direction is 0. Buffers
    are not part of it.

    Args:
        model: the network.
        seed: of the draws.
        number: of the direction; others are independent.
    """
    draws = generator(seed, "landscape", step=number)
    direction = {}
    for name, parameter in model.named_parameters():
        weight = parameter.detach()
        if weight.ndim <= 1:
            direction[name] = torch.zeros_like(weight)
            continue
        drawn = torch.from_numpy(draws.standard_normal(tuple(weight.shape))).to(weight)
        over = tuple(range(1, weight.ndim))
        norms = [torch.linalg.vector_norm(values, dim=over, keepdim=True) for values in (weight, drawn)]
        direction[name] = drawn * (norms[0] / (norms[1] + _TINY))
    return direction


class Surface:
    """The loss of a network on fixed images, over a plane through it in the space of its parameters.

    In evaluation mode, with the statistics of the training. The normalizations are folded into the convolutions once:
    they scale filters and nothing else, so that folded weights are as linear in the place on the plane as the weights
    are, and a point costs one linear combination and one pass without normalizations.

    Args:
        model: a trained network; it is not changed.
        directions: one or two, of `random_direction`.
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        dtype: of weights and images: float32 or bfloat16. The loss is computed in float32.
    """

    def __init__(
        self, model: ResNet, directions: list[dict[str, Tensor]], images: Tensor, labels: Tensor,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        origin = fold_batch_norm(model)
        device = next(origin.parameters()).device
        self._origin = {name: parameter.detach().clone() for name, parameter in origin.named_parameters()}
        self._steps = []
        for direction in directions:
            end = dict(fold_batch_norm(_moved(model, direction)).named_parameters())
            self._steps.append({name: end[name].detach() - start for name, start in self._origin.items()})
        preprocessing, count = check_images(model, images), max(1, _PIXELS // images[0, 0].numel())
        self._batches = [
            (preprocessing.normalize(batch.to(device), dtype).contiguous(memory_format=torch.channels_last), truth)
            for batch, truth in zip(images.split(count), labels.to(device).split(count), strict=True)
        ]
        self._count = len(images)
        for layer in origin.modules():
            if isinstance(layer, nn.ReLU):
                layer.inplace = True  # without gradients nobody looks at what it is given, and memory is not asked for
        self._network = origin.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._parameters = dict(self._network.named_parameters())
        fuse_blocks(self._network)

    @torch.inference_mode()
    def loss(self, *place: float) -> float:
        """Returns the mean cross-entropy at a place: a coordinate for each direction, (0, 0) being the network."""
        for name, parameter in self._parameters.items():
            value = self._origin[name]
            for coordinate, steps in zip(place, self._steps, strict=True):
                value = value + coordinate * steps[name]
            parameter.copy_(value)
        total = torch.zeros((), dtype=torch.float64)
        for images, labels in self._batches:
            total += F.cross_entropy(self._network(images).float(), labels, reduction="sum").double().cpu()
        return float(total) / self._count


def _moved(model: ResNet, direction: dict[str, Tensor]) -> ResNet:
    """Returns a copy of the network at the end of a direction."""
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            parameter += direction[name]
    return moved
