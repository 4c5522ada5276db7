"""A network's answers to many images, in float32 and evaluation mode."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from resnetlab.core.errors import UserError
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.data.store import ImageData
from resnetlab.models.resnet import ResNet

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


def trained_on(model: ResNet) -> tuple[Preprocessing, tuple[str, ...]]:
    """Returns the preprocessing and class names of a trained network, or raises `UserError` for any other."""
    if model.preprocessing is None or model.class_names is None:
        raise UserError(
            "the network has no preprocessing or class names: it was never trained on data. "
            "Train it with fit, or set model.preprocessing and model.class_names."
        )
    return model.preprocessing, model.class_names


def answer(model: ResNet, images: Tensor, preprocessing: Preprocessing) -> Answers:
    """Returns logits and embeddings of uint8 images (N, C, H, W) of the network's size.

    The network stays on its device, and each of its modules returns to the mode that it was in.
    """
    return _answer(model, images.split(_batch_size(model, images.shape[2])), preprocessing)


def answer_split(
    model: ResNet,
    data: ImageData,
    split: str,
    preprocessing: Preprocessing,
    *,
    rank: int = 0,
    ranks: int = 1,
    mirrored: bool = False,
) -> Answers:
    """Returns logits and embeddings of all images of a split, a batch at a time; see `answer`.

    Args:
        model: the network.
        data: its `split` is answered.
        split: name of the split.
        preprocessing: normalises the images.
        rank: which of `ranks` processes this is: each answers its share of the batches, one after the other, and
            the answers of all, joined in the order of the ranks, are those of one process.
        ranks: number of processes.
        mirrored: answer the images' mirror images, left for right.
    """
    parts = torch.arange(len(data.split(split))).split(_batch_size(model, data.image_size))
    parts = parts[rank * len(parts) // ranks : (rank + 1) * len(parts) // ranks]
    batches = (data.squares(split, part) for part in parts)
    return _answer(model, (batch.flip(-1) for batch in batches) if mirrored else batches, preprocessing)


def _batch_size(model: ResNet, image_size: int) -> int:
    kind = "cpu" if next(model.parameters()).device.type == "cpu" else "accelerator"
    return max(1, min(_LARGEST_BATCH[kind], _PIXELS_PER_BATCH[kind] // image_size**2))


@torch.inference_mode()
def _answer(model: ResNet, batches: Iterable[Tensor], preprocessing: Preprocessing) -> Answers:
    modes = {module: module.training for module in model.modules()}
    tf32 = torch.backends.cudnn.allow_tf32
    model.eval()
    torch.backends.cudnn.allow_tf32 = False  # else a GPU rounds float32 convolutions to 10 bits
    try:
        parameter = next(model.parameters())
        logits, embeddings = [], []
        for images in batches:
            batch = preprocessing.normalize(images.to(parameter.device), parameter.dtype)
            outputs = model(batch.contiguous(memory_format=torch.channels_last), return_features=True)
            logits.append(outputs[0].float().cpu())
            embeddings.append(outputs[1].float().cpu())
        if not logits:
            return Answers(torch.empty(0, 0), torch.empty(0, 0))
        return Answers(torch.cat(logits), torch.cat(embeddings))
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
        for module, training in modes.items():
            module.training = training
