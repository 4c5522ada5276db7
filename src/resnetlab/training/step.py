"""One optimization step, shared by everything that trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from resnetlab.core.errors import UserError, unknown
from resnetlab.core.own_code import calling, part_of
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.registry import read_call
from resnetlab.data.batches import Batch
from resnetlab.training.distributed import NO_EXCHANGE, Exchange
from resnetlab.training.loss_scale import LossScale
from resnetlab.training.losses import LOSSES, loss_for, losses_of
from resnetlab.training.machine import Machine
from resnetlab.training.recipe import Recipe
from resnetlab.training.update_rules import OPTIMIZERS, Muon


def check_memory_layout(optimizer: torch.optim.Optimizer) -> None:
    """Raises `RuntimeError` unless gradients and optimizer state have the memory layout of their parameters.

    A fused update walks through all of them in memory order. If the orders differ, it silently computes wrong
    weights (seen on torch 2.15: channels_last weights whose momentum was restored contiguous).
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
    scaling: LossScale | None = None,
    check_layout: bool = False,
    exchange: Exchange = NO_EXCHANGE,
    record: Callable[[Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Takes one step and returns (loss, number of correct predictions) as scalars on the device.

    The loss is the recipe's objective, including label smoothing and class weights, averaged over the batch of all
    processes with the batch's weights, as is the number of correct predictions. The loss is NaN if the gradient is not
    finite. A step whose loss or gradient is not finite changes no parameter. If two images are mixed, predicting one of
    their classes is correct by that image's weight. Except for the optimizer from scratch, nothing here waits for an
    accelerator.

    Args:
        model: in training mode, placed by `machine`.
        optimizer: made by `build_optimizer`.
        batch: images and their labels.
        preprocessing: normalizes the images if they are not normalized yet.
        recipe: its loss, label smoothing, gradient clipping and accumulation.
        machine: precision and memory format.
        lr: the learning rate of this step; a group of the optimizer multiplies it by its "scale".
        class_weights: (num_classes,), weight of a sample of each class; None means 1.
        scaling: of the loss, in float16. A gradient that overflows then changes no parameter, but the loss is returned.
        check_layout: call `check_memory_layout`; needed in the first step after every start, load and unfreezing.
        exchange: combines the gradients of several processes.
        record: called with the loss of each image of this process, (N,), before the batch's weights.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("scale", 1.0)
    images = batch.images if batch.normalized else preprocessing.normalize(batch.images, machine.dtype)
    images = machine.arrange(images.to(machine.dtype))
    # Gradients are averaged over the processes, so the sum of a process's losses is divided by an even share.
    even_share = batch.total / exchange.world_size
    losses, predictions, of_images = [], [], []
    micro_batches = _micro_batches(len(images), batch, recipe, exchange.world_size)
    for number, rows in enumerate(micro_batches, 1):
        with nullcontext() if number == len(micro_batches) else exchange.accumulating():
            with machine.autocast():
                logits = exchange.forward(model, images[rows])
            own = _losses(logits.to(machine.dtype), batch, rows, recipe, class_weights)
            of_images.append(own.detach())
            if batch.weights is not None:
                own = own * batch.weights[rows]
            loss = own[: max(0, batch.own - rows.start)].sum() / even_share
            _backward(loss if scaling is None else loss * scaling.scale, logits, model, recipe)
        losses.append(loss.detach())
        predictions.append(logits.detach().argmax(1))
    if record is not None:
        record(torch.cat(of_images))
    loss, correct = exchange.sum(torch.stack(losses).sum(), _count_correct(torch.cat(predictions), batch))
    loss = loss / exchange.world_size
    if scaling is not None:
        scaling.unscale(model.parameters())
    finite = loss.isfinite() & _clip_gradients(model, recipe.clip_norm).isfinite()
    if check_layout:
        check_memory_layout(optimizer)
    _update(optimizer, finite, recipe, check=check_layout)
    if check_layout:
        check_memory_layout(optimizer)
    optimizer.zero_grad(set_to_none=True)
    if scaling is not None:
        lost = scaling.is_lost(finite)
        scaling.update(finite)
        return loss.where(~lost, torch.nan), correct
    return loss.where(finite, torch.nan), correct


def class_weights(recipe: Recipe, labels: Tensor, class_names: Sequence[str], machine: Machine) -> Tensor | None:
    """Returns the weight of a sample of each class, (num_classes,) on the device, or None if all weigh the same."""
    given = check_class_weights(recipe, class_names)
    if given is None:
        return None
    weights = balanced_weights(labels, len(class_names)) if given == "balanced" else torch.tensor(given).double()
    return weights.to(machine.device, machine.dtype)


def check_class_weights(recipe: Recipe, class_names: Sequence[str]) -> str | list[float] | None:
    """Returns "balanced", the recipe's weight of each class, or None; raises `UserError` for other classes."""
    given = recipe.class_weights
    if isinstance(given, str):
        return None if given == "none" else given
    if isinstance(given, Mapping):
        if wrong := [name for name in given if name not in class_names]:
            raise unknown("class in class_weights", wrong[0], class_names)
        return [given.get(name, 1.0) for name in class_names]
    if len(given) != len(class_names):
        raise UserError(
            f"class_weights has {len(given)} weights for {len(class_names)} classes. Give one for each class."
        )
    return list(given)


def balanced_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Returns weights (num_classes,) inversely proportional to the size of each class, 1 on average of all samples."""
    counts = torch.bincount(labels, minlength=num_classes).clamp(min=1)
    return len(labels) / (num_classes * counts.double())


def _micro_batches(own: int, batch: Batch, recipe: Recipe, world_size: int) -> list[slice]:
    """Returns the rows of each micro-batch; every process has the same number of micro-batches.

    Otherwise a process would wait for others in vain where normalization is synchronized.
    """
    smallest_share = own if world_size == 1 else max(2, batch.total // world_size)
    count = min(recipe.accumulate, smallest_share // min(world_size, 2))
    pieces = torch.arange(own).tensor_split(count)
    return [slice(int(rows[0]), int(rows[-1]) + 1) for rows in pieces]


def _backward(loss: Tensor, logits: Tensor, model: nn.Module, recipe: Recipe) -> None:
    """Computes the gradients; raises `UserError` if the loss has none."""
    if not loss.requires_grad:
        what = LOSSES.title(read_call(recipe.loss).name) if logits.requires_grad else "the network"
        raise UserError(
            f"{what} returns a tensor without a gradient, so nothing can be trained. Use operations of torch on its "
            "input, without detach, no_grad, argmax or NumPy."
        )
    with calling(lambda: _parts_of_yours(model, recipe)):
        loss.backward()


def _parts_of_yours(model: nn.Module, recipe: Recipe) -> str:
    """Returns which parts of yours are in use, for an error of the backward pass, which does not say where it is."""
    parts = [part_of(layer) for layer in model.modules()]
    if (name := read_call(recipe.loss).name) in LOSSES.added:
        parts.append(LOSSES.title(name))
    return " or ".join(dict.fromkeys(filter(None, parts)))


def _update(optimizer: torch.optim.Optimizer, finite: Tensor, recipe: Recipe, *, check: bool) -> None:
    """Changes the parameters if the step is finite; `check` that they keep shape, type and device."""
    on_the_device = isinstance(optimizer, Muon) or optimizer.param_groups[0].get("fused")
    name, before = read_call(recipe.optimizer).name, _kinds(optimizer) if check else []
    with OPTIMIZERS.calling(name):
        if finite.device.type != "cpu" and on_the_device:
            optimizer.found_inf = (~finite).float()  # type: ignore[union-attr]  # read on the device, without waiting
            optimizer.step()
        elif finite:
            optimizer.step()
    for old, new in zip(before, _kinds(optimizer) if check else [], strict=True):
        if old != new:
            raise UserError(
                f"{OPTIMIZERS.title(name)} must keep shape, type and device of every parameter; it changed {old} to "
                f"{new}. Change parameters in place."
            )


def _kinds(optimizer: torch.optim.Optimizer) -> list[tuple[tuple[int, ...], torch.dtype, str]]:
    groups = optimizer.param_groups
    return [(tuple(one.shape), one.dtype, str(one.device)) for group in groups for one in group["params"]]


def _losses(logits: Tensor, batch: Batch, rows: slice, recipe: Recipe, class_weights: Tensor | None) -> Tensor:
    """Returns the loss of each sample of a micro-batch; a mixed image has the weighted losses of both labels."""
    loss = loss_for(recipe.loss, recipe.label_smoothing)

    def losses(labels: Tensor) -> Tensor:
        values = losses_of(loss, logits, labels, recipe.loss)
        return values if class_weights is None else values * class_weights[labels]

    own = losses(batch.labels[rows])
    if batch.mix_ratios is None or batch.partner_labels is None:
        return own
    return torch.lerp(losses(batch.partner_labels[rows]), own, batch.mix_ratios[rows].to(own.dtype))


def _count_correct(predictions: Tensor, batch: Batch) -> Tensor:
    right = predictions == batch.labels
    if batch.mix_ratios is not None and batch.partner_labels is not None:
        right = right * batch.mix_ratios + (predictions == batch.partner_labels) * (1 - batch.mix_ratios)
    if batch.weights is not None:
        right = right * batch.weights
    return right[: batch.own].sum()


def _clip_gradients(model: nn.Module, longest: float) -> Tensor:
    """Scales all gradients together down to the norm `longest` if they are longer, and returns their norm.

    0 changes nothing. On a CPU, where reading the norm is free, short gradients are not touched; an accelerator
    multiplies them by one instead, because reading would wait for it.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if longest and (norm.device.type != "cpu" or norm > longest):
        nn.utils.clip_grads_with_norm_(parameters, longest, norm)
    return norm


def _layout(tensor: Tensor) -> Iterable[tuple[int, int]]:
    """Returns sizes and strides of the axes that are longer than one; the others do not affect the order."""
    return [(size, stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
