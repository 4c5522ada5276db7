"""Forward passes of trained networks: batches that fit, evaluation mode, and outputs in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from rich.progress import track
from torch import Tensor

from resnetlab.core.console import console, is_live
from resnetlab.core.errors import UserError
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.data.sources.findings import counted
from resnetlab.data.storage.store import ImageData
from resnetlab.models.fused import inference_copy
from resnetlab.models.network import Network
from resnetlab.models.resnet import ResNet, check_network

_PIXELS_PER_BATCH = {"cpu": 2**19, "accelerator": 2**22}
"""Input pixels of a batch: a ResNet's largest activations then take a few hundred megabytes, up to a gigabyte."""
_LARGEST_BATCH = {"cpu": 128, "accelerator": 512}
_WORTH_A_COPY = 2**21
"""Input pixels from which a copy for inference saves more time than it costs: 42 images of 224x224."""


@dataclass(frozen=True)
class Answers:
    """The outputs of a network, on the CPU, in float32.

    Attributes:
        logits: (N, num_classes); (0, 0) without images.
        embeddings: (N, D), pooled; (0, 0) without images.
    """

    logits: Tensor
    embeddings: Tensor


def trained_on(model: Network) -> tuple[Preprocessing, tuple[str, ...]]:
    """Returns the preprocessing and class names of a trained network; raises `UserError` for an untrained one."""
    if model.preprocessing is None or model.class_names is None:
        raise UserError(
            "expected a trained network, got one without preprocessing or class names. Train it with fit, or set "
            "model.preprocessing and model.class_names."
        )
    return model.preprocessing, model.class_names


def places_among(names: Iterable[str], class_names: Sequence[str]) -> list[int]:
    """Returns the position of each name among `class_names`, in time that grows with their number, not its square."""
    places = {name: place for place, name in enumerate(class_names)}
    return [places[name] for name in names]


def answer(model: Network, images: Tensor, preprocessing: Preprocessing) -> Answers:
    """Returns logits and embeddings of uint8 images (N, C, H, W) of the network's size.

    The network stays on its device, and its modules keep their modes.
    """
    pixels = images.shape[2] * images.shape[3]
    return _answer(model, images.split(batch_size(model, pixels)), preprocessing, len(images) * pixels)


def answer_split(
    model: Network,
    data: ImageData,
    split: str,
    preprocessing: Preprocessing,
    *,
    rank: int = 0,
    world_size: int = 1,
    mirrored: bool = False,
    label: str | None = None,
    before_batch: Callable[[], None] | None = None,
) -> Answers:
    """Returns logits and embeddings of all images of a split, computed in batches; see `answer`.

    Args:
        model: the network.
        data: the images.
        split: name of the split.
        preprocessing: normalizes the images.
        rank: the index of this process. Each process evaluates consecutive batches, so that joining the answers in
            the order of ranks gives the answers of a single process.
        world_size: number of processes.
        mirrored: answer the images' mirror images, left for right.
        label: what to call it on a terminal, where a progress bar is then shown.
        before_batch: called before each batch; it may raise to stop.
    """
    count, pixels = len(data.split(split)), data.image_size**2
    parts = torch.arange(count).split(batch_size(model, pixels))
    parts = parts[rank * len(parts) // world_size : (rank + 1) * len(parts) // world_size]
    hidden = label is None or not is_live()
    shown = track(parts, label or "", console=console, transient=True, disable=hidden)
    batches = (data.squares(split, part) for part in shown if before_batch is None or before_batch() is None)
    batches = (batch.flip(-1) for batch in batches) if mirrored else batches
    return _answer(model, batches, preprocessing, count * pixels)


@contextmanager
def evaluating(model: Network) -> Iterator[None]:
    """Sets evaluation mode, full float32 and one memory format while the context is active; then restores them.

    Kernels of one memory format round differently from those of another, so the kernels of all convolutions are in
    channels_last, or contiguous if the network does not accept that, whatever training used.
    """
    modes = {module: module.training for module in model.modules()}
    tf32 = torch.backends.cudnn.allow_tf32
    model.eval()
    torch.backends.cudnn.allow_tf32 = False  # otherwise a GPU rounds float32 convolutions to 10 bits
    changed = _arrange_weights(model)
    try:
        yield
    finally:
        for weight, before in changed:
            weight.data = before
        torch.backends.cudnn.allow_tf32 = tf32
        for module, training in modes.items():
            module.training = training


def batch_size(model: Network, pixels: int, *, keeping: bool = False) -> int:
    """Returns the batch size for images with this many pixels; a quarter of it if the network keeps feature maps."""
    kind = "cpu" if next(model.parameters()).device.type == "cpu" else "accelerator"
    divisor = 4 if keeping else 1
    return max(1, min(_LARGEST_BATCH[kind], _PIXELS_PER_BATCH[kind] // pixels) // divisor)


def normalized_batches(model: Network, images: Tensor, preprocessing: Preprocessing) -> Iterator[tuple[slice, Tensor]]:
    """Yields images (N, C, H, W) as normalized batches with their slices, for a network that keeps feature maps."""
    count = batch_size(model, images.shape[2] * images.shape[3], keeping=True)
    for first in range(0, len(images), count):
        place = slice(first, first + count)
        yield place, _normalized(model, images[place], preprocessing)


def check_images(model: Network, images: Tensor) -> Preprocessing:
    """Returns the preprocessing of a trained network; raises `UserError` unless the images fit it."""
    preprocessing, _ = trained_on(check_network(model))
    check_pixels(images)
    if not len(images) or images.shape[1] != preprocessing.channels:
        raise UserError(
            f"expected at least one image with {counted(preprocessing.channels, 'channel')}, as in training, got "
            f"images of shape {tuple(images.shape)}. Load them with channels={preprocessing.channels}."
        )
    return preprocessing


def check_pixels(images: Tensor) -> None:
    """Raises `UserError` unless these are images as loaded, before normalization."""
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4:
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise UserError(
            f"expected images as a tensor, uint8 (N, C, H, W), got {got}. Pass them as loaded, before normalization."
        )


def _normalized(model: Network, images: Tensor, preprocessing: Preprocessing) -> Tensor:
    parameter = next(model.parameters())
    batch = preprocessing.normalize(images.to(parameter.device), parameter.dtype)
    return batch.contiguous(memory_format=_memory_format(model))


def _memory_format(model: Network) -> torch.memory_format:
    return torch.channels_last if model.channels_last else torch.contiguous_format


def _arrange_weights(model: Network) -> list[tuple[Tensor, Tensor]]:
    """Brings weights with four dimensions into the memory format of evaluation; returns those changed, and as before.

    Strides are compared, since a 1x1 kernel counts as contiguous in both formats.
    """
    changed, memory_format = [], _memory_format(model)
    with torch.inference_mode(False), torch.no_grad():
        for weight in model.parameters():
            if weight.ndim != 4:
                continue
            strides = torch.empty(weight.shape, device="meta", memory_format=memory_format).stride()
            if weight.stride() != strides:
                changed.append((weight, weight.data))
                weight.data = weight.data.clone(memory_format=memory_format)
    return changed


def _answer(model: Network, batches: Iterable[Tensor], preprocessing: Preprocessing, pixels: int) -> Answers:
    """Returns the answers; `pixels` is the number of input pixels of all images, also of those of other processes."""
    logits, embeddings, network = [], [], None
    with torch.inference_mode(), evaluating(model):
        for images in batches:
            batch = _normalized(model, images, preprocessing)
            if network is None:
                network = model
                if pixels >= _WORTH_A_COPY and isinstance(model, ResNet):
                    network = inference_copy(model, batch)
            outputs = network(batch, return_features=True)
            logits.append(outputs[0].float().cpu())
            embeddings.append(outputs[1].float().cpu())
    if not logits:
        return Answers(torch.empty(0, 0), torch.empty(0, 0))
    return Answers(torch.cat(logits), torch.cat(embeddings))
