"""The gate: an exported file must give the network's answers, in a new process without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resnetlab.core.errors import UserError
from resnetlab.evaluation.attention import class_activations
from resnetlab.evaluation.forward import Answers, answer, trained_on
from resnetlab.exporting.fresh import fresh_answers
from resnetlab.exporting.graph import classifier
from resnetlab.exporting.material import photos
from resnetlab.exporting.session import open_exported, relative_difference
from resnetlab.models.network import Network
from resnetlab.models.resnet import ResNet

Answering = Callable[[Path, np.ndarray, Sequence[int]], list[dict[str, np.ndarray]]]
BATCHES = (1, 2, 7, 32)
BOUND = 1e-4
"""The largest difference of an output, relative to the largest value that the network computes."""
ANY_SIZE_BOUND = 0.02
"""The same for the logits of a file that crops and resizes."""


def check_answers(
    model: Path, network: Network, images: np.ndarray, answers: Answering = fresh_answers
) -> tuple[dict[str, Any], np.ndarray]:
    """Compares a file in float32 with its network, at every batch size.

    Args:
        model: the file.
        network: in evaluation mode and float32, on the CPU.
        images: real images, uint8 (N, H, W, C); few of them are repeated.
        answers: returns the outputs of the file for the first images, for each batch size.

    Returns:
        What export.json says about the comparison, and the network's logits of the images, float32 (N, classes).

    Raises:
        UserError: an output differs by more than the bound.
    """
    count = len(images)
    images = np.resize(images, (max(count, BATCHES[-1]), *images.shape[1:]))
    preprocessing, _ = trained_on(network)
    pictures = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    expected = answer(network, pictures, preprocessing)
    worst: dict[str, float] = {}
    for batch, found in zip(BATCHES, answers(model, images, BATCHES), strict=True):
        part = Answers(expected.logits[:batch], expected.embeddings[:batch])
        for name, difference in _differences(network, pictures[:batch], part, found).items():
            worst[name] = max(worst.get(name, 0.0), difference)
            if not difference <= BOUND:
                raise UserError(
                    f"the exported file does not compute what the network computes: with {batch} images at "
                    f"once, {name} differs by {difference:.2g} times the largest value, and at most {BOUND:g} "
                    "times is allowed. It was not written. A network that draws random numbers in evaluation "
                    "mode, or that treats the images of a batch together, cannot be exported."
                )
    record = {"passed": True, "batches": list(BATCHES), "images": count, "bound": BOUND, "largest_differences": worst}
    return record, expected.logits[:count].numpy()


def check_any_size(model: Path, network: Network) -> float:
    """Returns the largest relative difference of the logits of whole photos from those of squares; raises `UserError`.

    Pixels may differ by one gray level, so the bound is wider than that of the gate.
    """
    preprocessing, _ = trained_on(network)
    exported, worst = open_exported(model), 0.0
    for photo in photos(preprocessing.framing):
        square = torch.from_numpy(preprocessing.square(photo).transpose(2, 0, 1).copy())[None]
        expected = answer(network, square, preprocessing).logits.numpy()
        worst = max(worst, relative_difference(exported.run(photo[None], ["logits"])["logits"], expected))
    if not worst <= ANY_SIZE_BOUND:
        raise UserError(
            "the exported file does not crop and resize as the network expects: the logits of whole photos "
            f"differ by {worst:.2g} times the largest logit. Export without any_size, and use the function in "
            "preprocess.py."
        )
    return worst


def _differences(network: Network, images: Tensor, expected: Answers, found: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns the relative difference of every output."""
    logits, classes = expected.logits.numpy(), found["top_classes"]
    probabilities = (expected.logits.double() / network.temperature).softmax(1).numpy()
    # Equal logits may be in any order, so the logits of the classes are compared, not the classes.
    highest = np.take_along_axis(logits, classes, 1), -np.sort(-logits, axis=1)[:, : classes.shape[1]]
    differences = {
        "logits": relative_difference(found["logits"], logits),
        "probabilities": relative_difference(found["probabilities"], probabilities),
        "top_classes": float(np.abs(highest[0] - highest[1]).max()) / (float(np.abs(logits).max()) or 1.0),
        "top_scores": relative_difference(found["top_scores"], np.take_along_axis(probabilities, classes, 1)),
    }
    if "embedding" in found:
        differences["embedding"] = relative_difference(found["embedding"], expected.embeddings.numpy())
    if "attention" in found:
        bias = getattr(classifier(network), "bias", None)
        means = found["attention"].mean((2, 3), dtype=np.float64)
        means += 0.0 if bias is None else bias.detach().numpy()[classes]
        scale = float(np.abs(found["attention"]).max()) or 1.0
        differences["attention"] = float(np.abs(means - highest[0]).max()) / max(scale, float(np.abs(logits).max()))
        if isinstance(network, ResNet):
            maps = class_activations(network, images, [column.tolist() for column in classes.T])
            exact = torch.stack([one.maps for one in maps], 1).numpy()
            differences["attention"] = max(differences["attention"], relative_difference(found["attention"], exact))
    return differences
