"""The losses that a recipe can name: each returns the loss of every sample.

A loss of your own is a function of logits (N, K) and integer labels (N,) that returns (N,). If it takes the argument
`reduction`, as torch's losses do, it is called with "none"; if it takes `label_smoothing`, with that of the recipe.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from resnetlab import scratch
from resnetlab.core.errors import UserError
from resnetlab.core.own_code import received
from resnetlab.core.registry import Registry, read_call, taken_by

Loss = Callable[..., Tensor]


def focal(logits: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    """Cross-entropy times (1 - p)^gamma, where p is the probability of the label (Lin et al. 2017).

    Images that are already classified well count less. With gamma 0 it is the cross-entropy.

    Args:
        logits: (N, K).
        labels: (N,), integers.
        gamma: strength of the weighting, at least 0.

    Returns:
        (N,), the loss of each sample.
    """
    entropy = F.cross_entropy(logits, labels, reduction="none")
    return (-(-entropy).expm1()) ** gamma * entropy if gamma else entropy


def binary_cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Each class is a yes-or-no question of its own (Wightman et al. 2021, "ResNet strikes back").

    The mean over classes of -(t log s + (1 - t) log(1 - s)), where s is the sigmoid of a logit. The target t is
    label_smoothing / K, plus 1 - label_smoothing for the label.

    Args:
        logits: (N, K).
        labels: (N,), integers.
        label_smoothing: in [0, 1).

    Returns:
        (N,), the loss of each sample.
    """
    classes = logits.shape[1]
    targets = F.one_hot(labels, classes).to(logits.dtype) * (1 - label_smoothing) + label_smoothing / classes
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)


def _per_sample(name: str, loss: Any) -> Any:
    """Returns a loss of yours; of a module of torch, a copy that returns the loss of every sample."""
    if isinstance(loss, type):
        loss = loss()
    if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
        loss = copy.copy(loss)
        loss.reduction = "none"  # type: ignore[assignment]  # a text, as torch has it
    return loss


LOSSES = Registry(
    "loss",
    {
        "cross_entropy": F.cross_entropy,
        "scratch_cross_entropy": scratch.losses.cross_entropy,
        "focal": focal,
        "binary_cross_entropy": binary_cross_entropy,
    },
    prepare=_per_sample,
    called_with=2,
    elsewhere=("reduction", "label_smoothing"),
)


@functools.cache
def _opened(text: str, part: Any) -> Loss:
    call, taken = read_call(text), _arguments(part)
    options = {**call.options, **({"reduction": "none"} if "reduction" in taken else {})}
    return functools.partial(part, **options)


def loss_for(text: str, label_smoothing: float) -> Loss:
    """Returns the loss that a recipe names, as a function of logits and labels that returns the loss of each sample."""
    part = LOSSES[read_call(text).name]
    opened = _opened(text, part)
    return functools.partial(opened, label_smoothing=label_smoothing) if label_smoothing else opened


def smooths(text: str) -> bool:
    """Whether the loss that a recipe names takes label smoothing."""
    return "label_smoothing" in _arguments(LOSSES[read_call(text).name])


def losses_of(loss: Loss, logits: Tensor, labels: Tensor, text: str) -> Tensor:
    """Returns the loss of each sample, (N,).

    Args:
        loss: from `loss_for`.
        logits: (N, K).
        labels: (N,), integers.
        text: how the recipe names it.

    Raises:
        UserError: the loss does not return one value per sample.
    """
    name = read_call(text).name
    with LOSSES.calling(name):
        values = loss(logits, labels)
    fits = isinstance(values, Tensor) and tuple(values.shape) == (len(labels),) and values.device == logits.device
    if not fits or not values.is_floating_point():
        raise UserError(
            f"{LOSSES.title(name)} must return one value per image, a tensor of shape ({len(labels)},) and type "
            f"{str(logits.dtype).removeprefix('torch.')}, got {received(values)}. Do not average: the mean over the "
            "batch is taken after class weights and mixup."
        )
    return values


def _arguments(part: Any) -> tuple[str, ...]:
    return taken_by(part.forward if isinstance(part, nn.Module) else part) or ()
