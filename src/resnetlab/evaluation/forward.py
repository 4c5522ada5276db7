"""What every look at a trained network needs: batches it takes, evaluation mode, and its answers in float32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from rich.progress import track
from torch import Tensor

from resnetlab.core.console import console, is_live
from resnetlab.core.errors import UserError
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.data.storage.store import ImageData
from resnetlab.models.network import Network
from resnetlab.models.resnet import check_network

_PIXELS_PER_BATCH = {"cpu": 2**19, "accelerator": 2**22}
"""Input pixels of a batch: a ResNet's widest activations then take some hundred megabytes, or up to a gigabyte."""
_LARGEST_BATCH = {"cpu": 128, "accelerator": 512}


@dataclass(frozen=True)
class Answers:
    """What a network said, on the CPU, in float32.

    Attributes:
        logits: (N, num_classes); (0, 0) of no images.
        embeddings: (N, D), pooled; likewise.
    """

    logits: Tensor
    embeddings: Tensor


def trained_on(model: Network) -> tuple[Preprocessing, tuple[str, ...]]:
    """Returns the preprocessing and class names of a trained network, or raises `UserError` for any other."""
    if model.preprocessing is None or model.class_names is None:
        raise UserError(
            "the network has no preprocessing or class names: it was never trained on data. "
            "Train it with fit, or set model.preprocessing and model.class_names."
        )
    return model.preprocessing, model.class_names


def answer(model: Network, images: Tensor, preprocessing: Preprocessing) -> Answers:
    """Returns logits and embeddings of uint8 images (N, C, H, W) of the network's size.

    The network stays on its device, and each of its modules returns to the mode that it was in.
    """
    return _answer(model, images.split(batch_size(model, images.shape[2] * images.shape[3])), preprocessing)


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
) -> Answers:
    """Returns logits and embeddings of all images of a split, a batch at a time; see `answer`.

    Args:
        model: the network.
        data: its `split` is answered.
        split: name of the split.
        preprocessing: normalizes the images.
        rank: the index of this process. Each process evaluates consecutive batches, so that joining the answers in
            the order of ranks gives the answers of a single process.
        world_size: number of processes.
        mirrored: answer the images' mirror images, left for right.
        label: what to call it on a terminal, where a progress bar is then shown.
    """
    parts = torch.arange(len(data.split(split))).split(batch_size(model, data.image_size**2))
    parts = parts[rank * len(parts) // world_size : (rank + 1) * len(parts) // world_size]
    hidden = label is None or not is_live()
    shown = track(parts, label or "", console=console, transient=True, disable=hidden)
    batches = (data.squares(split, part) for part in shown)
    return _answer(model, (batch.flip(-1) for batch in batches) if mirrored else batches, preprocessing)


@contextmanager
def evaluating(model: Network) -> Iterator[None]:
    """Sets evaluation mode and full float32 within the block; afterwards all is as it was, module by module."""
    modes = {module: module.training for module in model.modules()}
    tf32 = torch.backends.cudnn.allow_tf32
    model.eval()
    torch.backends.cudnn.allow_tf32 = False  # else a GPU rounds float32 convolutions to 10 bits
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
        for module, training in modes.items():
            module.training = training


def batch_size(model: Network, pixels: int, *, keeping: bool = False) -> int:
    """Returns how many images of so many pixels a network takes at once; a quarter of it where it keeps its maps."""
    kind, share = _kind(model), 4 if keeping else 1
    return max(1, min(_LARGEST_BATCH[kind], _PIXELS_PER_BATCH[kind] // pixels) // share)


def normalized_batches(model: Network, images: Tensor, preprocessing: Preprocessing) -> Iterator[tuple[slice, Tensor]]:
    """Yields uint8 images (N, C, H, W) in batches for a network that keeps its maps, each with its place in them."""
    count = batch_size(model, images.shape[2] * images.shape[3], keeping=True)
    for first in range(0, len(images), count):
        place = slice(first, first + count)
        yield place, _normalized(model, images[place], preprocessing)


def check_images(model: Network, images: Tensor) -> Preprocessing:
    """Returns how images for this network are normalized; raises `UserError` unless these fit it."""
    preprocessing, _ = trained_on(check_network(model))
    check_pixels(images)
    if not len(images) or images.shape[1] != preprocessing.channels:
        raise UserError(
            f"expected at least one image of {preprocessing.channels} channels, as the network was trained on, got "
            f"images of shape {tuple(images.shape)}. Load them with channels={preprocessing.channels}."
        )
    return preprocessing


def check_pixels(images: Tensor) -> None:
    """Raises `UserError` unless these are images as they are loaded."""
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4:
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise UserError(
            f"expected images as a tensor, uint8 (N, C, H, W), got {got}. Give them as they are loaded, "
            "before normalization."
        )


def _kind(model: Network) -> str:
    return "cpu" if next(model.parameters()).device.type == "cpu" else "accelerator"


def _normalized(model: Network, images: Tensor, preprocessing: Preprocessing) -> Tensor:
    parameter = next(model.parameters())
    batch = preprocessing.normalize(images.to(parameter.device), parameter.dtype)
    return batch.contiguous(memory_format=torch.channels_last if model.channels_last else torch.contiguous_format)


def _answer(model: Network, batches: Iterable[Tensor], preprocessing: Preprocessing) -> Answers:
    logits, embeddings = [], []
    with torch.inference_mode(), evaluating(model):
        for images in batches:
            outputs = model(_normalized(model, images, preprocessing), return_features=True)
            logits.append(outputs[0].float().cpu())
            embeddings.append(outputs[1].float().cpu())
    if not logits:
        return Answers(torch.empty(0, 0), torch.empty(0, 0))
    return Answers(torch.cat(logits), torch.cat(embeddings))
