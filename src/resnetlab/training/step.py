"""One optimization step, the same for every training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnetlab import scratch
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.data.batches import Batch
from resnetlab.training.distributed import shares, summed, without_exchange
from resnetlab.training.machine import Machine
from resnetlab.training.optimizers import Muon
from resnetlab.training.recipe import Recipe
from resnetlab.training.transfer import optimizer_groups

_LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "scratch_cross_entropy": scratch.losses.cross_entropy,
}


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Returns the recipe's optimizer over the trainable parameters, in the groups of `optimizer_groups`.

    Weight decay is on weights of two and more dimensions; scales, shifts and biases have it with
    `decay_all` only. torch's update is fused into one kernel where there is one for the device.
    """
    groups = optimizer_groups(model, recipe)
    if recipe.optimizer == "scratch_sgd":
        return scratch.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)
    if recipe.optimizer == "muon":
        return Muon(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999), fused=fused)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=fused)


def check_memory_layout(optimizer: torch.optim.Optimizer) -> None:
    """Raises `RuntimeError` unless gradients and optimizer state lie in memory as their parameters do.

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
                        f"gradient or optimizer state has {tensor.stride()}; a fused optimizer would corrupt it"
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
    class_weights: Tensor | None = None,
    check_layout: bool = False,
) -> tuple[Tensor, Tensor]:
    """Takes one step and returns (loss, number of correct predictions) as scalars on the device.

    Nothing here waits for an accelerator, but for the optimizer from scratch. The loss is the recipe's
    objective, label smoothing and class weights included, its mean over the batch; it is NaN where the
    gradient is not finite. A prediction for a mixture of two classes is correct by the share of the class
    that it names. A step whose loss or gradient is not finite changes no parameter.

    Args:
        model: in training mode, placed by `machine`; or what `share_out` made of it, and loss and correct are
            those of the batch of all ranks.
        optimizer: of `build_optimizer`.
        batch: images and their labels.
        preprocessing: normalizes the images, where they are not yet.
        recipe: its loss, label smoothing, gradient clipping and accumulation.
        machine: precision and memory format.
        lr: the learning rate of this step; a group of the optimizer has its "scale" of it.
        class_weights: (num_classes,), what a sample of each class counts; None is 1 for all.
        check_layout: make sure that the optimizer's tensors lie as the parameters do; on the first
            step after every start, load and unfreezing.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("scale", 1.0)
    images = batch.images if batch.normalized else preprocessing.normalize(batch.images, machine.dtype)
    images = machine.arrange(images.to(machine.dtype))
    ranks = shares(model)
    # Gradients are averaged over the ranks, so that the sum of a rank's losses is divided by an even share.
    even_share = batch.total / ranks
    losses, predictions = [], []
    # As many for every rank: where normalization is synchronized, each part waits for the others.
    smallest_share = len(images) if ranks == 1 else max(2, batch.total // ranks)
    parts = torch.arange(len(images)).tensor_split(min(recipe.accumulate, smallest_share // min(ranks, 2)))
    for number, rows in enumerate(parts, 1):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        with nullcontext() if number == len(parts) else without_exchange(model):
            with machine.autocast():
                logits = model(images[part])
            own = _losses(logits.to(machine.dtype), batch, part, recipe, class_weights)
            loss = own[: max(0, batch.own - part.start)].sum() / even_share
            loss.backward()
        losses.append(loss.detach())
        predictions.append(logits.detach().argmax(1))
    loss, correct = summed(model, torch.stack(losses).sum(), _count_correct(torch.cat(predictions), batch))
    loss = loss / ranks
    finite = loss.isfinite() & _clip_gradients(model, recipe.clip_norm).isfinite()
    if check_layout:
        check_memory_layout(optimizer)
    _update(optimizer, finite)
    if check_layout:
        check_memory_layout(optimizer)
    optimizer.zero_grad(set_to_none=True)
    return loss.where(finite, torch.nan), correct


def balanced_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Returns what a sample of each class counts, (num_classes,): inversely to its number, 1 on average of all."""
    counts = torch.bincount(labels, minlength=num_classes).clamp(min=1)
    return len(labels) / (num_classes * counts.double())


def _update(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """Changes the parameters, unless the step is not finite."""
    on_the_device = isinstance(optimizer, Muon) or optimizer.param_groups[0].get("fused")
    if finite.device.type != "cpu" and on_the_device:
        optimizer.found_inf = (~finite).float()  # type: ignore[union-attr]  # asked there, without waiting for it
        optimizer.step()
    elif finite:
        optimizer.step()


def _losses(logits: Tensor, batch: Batch, part: slice, recipe: Recipe, class_weights: Tensor | None) -> Tensor:
    """Returns the loss of each sample of a part of the batch; that of a mixture is those of both labels by share."""

    def losses(labels: Tensor) -> Tensor:
        values = _LOSSES[recipe.loss](logits, labels, label_smoothing=recipe.label_smoothing, reduction="none")
        return values if class_weights is None else values * class_weights[labels]

    own = losses(batch.labels[part])
    if batch.share is None or batch.other_labels is None:
        return own
    return torch.lerp(losses(batch.other_labels[part]), own, batch.share[part].to(own.dtype))


def _count_correct(predictions: Tensor, batch: Batch) -> Tensor:
    right = predictions == batch.labels
    if batch.share is not None and batch.other_labels is not None:
        right = right * batch.share + (predictions == batch.other_labels) * (1 - batch.share)
    return right[: batch.own].sum()


def _clip_gradients(model: nn.Module, longest: float) -> Tensor:
    """Scales all gradients together down to the norm `longest`, where they are longer, and returns their norm.

    With 0 they are left as they are. On a CPU, where reading the norm costs nothing, gradients that are short
    enough are not touched; an accelerator would be waited for, and multiplies by one instead.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if longest and (norm.device.type != "cpu" or norm > longest):
        nn.utils.clip_grads_with_norm_(parameters, longest, norm)
    return norm


def _layout(tensor: Tensor) -> Iterable[tuple[int, int]]:
    """Sizes and strides of the axes that are longer than one; the others have no say in the order."""
    return [(size, stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
