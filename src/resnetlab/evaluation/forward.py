"""A network's answers to many images, in float32 and evaluation mode."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from resnetlab.core.preprocessing import Preprocessing
from resnetlab.models.resnet import ResNet

_PIXELS_PER_BATCH = 2**22  # keeps the widest activations of a ResNet within about a gigabyte
_LARGEST_BATCH = 512


@dataclass(frozen=True)
class Answers:
    """What a network said, on the CPU, in float32.

    Attributes:
        logits: (N, num_classes).
        embeddings: (N, D), pooled.
    """

    logits: Tensor
    embeddings: Tensor


@torch.inference_mode()
def answer(model: ResNet, images: Tensor, preprocessing: Preprocessing) -> Answers:
    """Returns logits and embeddings of uint8 images (N, C, H, W).

    The network stays on its device and returns to the mode it was in.
    """
    parameter = next(model.parameters())
    was_training = model.training
    model.eval()
    size = max(1, min(_LARGEST_BATCH, _PIXELS_PER_BATCH // (images.shape[2] * images.shape[3])))
    logits, embeddings = [], []
    for part in images.split(size):
        batch = preprocessing.normalize(part.to(parameter.device), parameter.dtype)
        outputs = model(batch.contiguous(memory_format=torch.channels_last), return_features=True)
        logits.append(outputs[0].float().cpu())
        embeddings.append(outputs[1].float().cpu())
    model.train(was_training)
    return Answers(torch.cat(logits), torch.cat(embeddings))
