"""One optimisation step, the same for every training."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnetlab import scratch
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.data.batches import Batch
from resnetlab.training.machine import Machine
from resnetlab.training.recipe import Recipe

_LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "scratch_cross_entropy": scratch.losses.cross_entropy,
}


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Returns stochastic gradient descent over the trainable parameters, in two groups.

    Weight decay is on weights of two and more dimensions; scales, shifts and biases have none. torch's
    update is fused into one kernel where there is one for the device.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "scratch_sgd":
        return scratch.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=fused)


def check_memory_layout(optimizer: torch.optim.Optimizer) -> None:
    """Raises `RuntimeError` unless gradients and optimiser state lie in memory as their parameters do.

    A fused update walks through all of them in the order of memory, and computes wrong weights
    without a word where the orders differ (seen on torch 2.15: channels_last weights whose momentum
    was restored contiguous).
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {}).values()
            tensors = [value for value in (parameter.grad, *state) if isinstance(value, Tensor)]
            for tensor in tensors:
                if tensor.shape == parameter.shape and _layout(tensor) != _layout(parameter):
                    raise RuntimeError(
                        f"a parameter of shape {tuple(parameter.shape)} has strides {parameter.stride()}, and its "
                        f"gradient or optimiser state has {tensor.stride()}; a fused optimiser would corrupt it"
                    )


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    *,
    preprocessing: Preprocessing,
    recipe: Recipe,
    machine: Machine,
    lr: float,
    check_layout: bool = False,
) -> tuple[Tensor, Tensor]:
    """Takes one step and returns (loss, number of correct predictions) as scalars on the device.

    Nothing here waits for the device. The loss is the recipe's objective, label smoothing included,
    its mean over the batch. A prediction for a mixture of two classes is correct by the share of the
    class that it names.

    Args:
        model: in training mode, placed by `machine`.
        optimizer: of `build_optimizer`.
        batch: images and their labels.
        preprocessing: normalises the images, where they are not yet.
        recipe: its loss, label smoothing and gradient clipping.
        machine: precision and memory format.
        lr: the learning rate of this step.
        check_layout: make sure that the optimiser's tensors lie as the parameters do; on the first
            step after every start and load.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    images = batch.images if batch.normalized else preprocessing.normalize(batch.images, machine.dtype)
    images = machine.arrange(images.to(machine.dtype))
    with machine.autocast():
        logits = model(images)
    logits = logits.to(machine.dtype)
    loss = _loss(logits, batch, recipe)
    loss.backward()
    if recipe.clip_norm:
        _clip_gradients(model, recipe.clip_norm)
    if check_layout:
        check_memory_layout(optimizer)
    optimizer.step()
    if check_layout:
        check_memory_layout(optimizer)
    optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        correct = _count_correct(logits.argmax(1), batch)
    return loss.detach(), correct


def _loss(logits: Tensor, batch: Batch, recipe: Recipe) -> Tensor:
    """Returns the mean loss; that of a mixture is the losses for both labels, each by its share."""
    loss = _LOSSES[recipe.loss]
    if batch.share is None or batch.other_labels is None:
        return loss(logits, batch.labels, label_smoothing=recipe.label_smoothing)
    own, other = (
        loss(logits, labels, label_smoothing=recipe.label_smoothing, reduction="none")
        for labels in (batch.labels, batch.other_labels)
    )
    return torch.lerp(other, own, batch.share.to(own.dtype)).mean()


def _count_correct(predictions: Tensor, batch: Batch) -> Tensor:
    if batch.share is None or batch.other_labels is None:
        return (predictions == batch.labels).sum()
    own, other = (predictions == labels for labels in (batch.labels, batch.other_labels))
    return (own * batch.share + other * (1 - batch.share)).sum()


def _clip_gradients(model: nn.Module, longest: float) -> None:
    """Scales all gradients together down to the norm `longest`, where they are longer.

    On a CPU, where reading the norm costs nothing, gradients that are short enough are not touched; an
    accelerator would be waited for, and multiplies by one instead.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if norm.device.type != "cpu" or norm > longest:
        nn.utils.clip_grads_with_norm_(parameters, longest, norm)


def _layout(tensor: Tensor) -> Iterable[tuple[int, int]]:
    """Sizes and strides of the axes that are longer than one; the others have no say in the order."""
    return [(size, stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
