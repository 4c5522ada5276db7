"""Predicted classes of images, from wherever they are."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from resnetlab.core.checks import check_integer, known_arguments
from resnetlab.core.environment import resolve_device
from resnetlab.core.errors import UserError
from resnetlab.core.foreign import PREDICTION
from resnetlab.core.preprocessing import Preprocessing, to_tensor
from resnetlab.core.runs import Run
from resnetlab.data.storage.reader import UnreadableImageError, describe_failures, map_files
from resnetlab.evaluation.forward import answer, trained_on
from resnetlab.evaluation.inputs import STANDARD_INPUT, Given, collect
from resnetlab.models.network import Architecture, Network
from resnetlab.weights.file import load

if TYPE_CHECKING:
    import pandas as pd

TOP = 3
"""Classes per image, if nothing else is given."""
_IMAGES_AT_ONCE = 512


@known_arguments(PREDICTION)
def predict(
    subject: str | Path | Run | Network,
    images: Any,
    *,
    model: str | Architecture | nn.Module | None = None,
    top: int = TOP,
    mirrored: bool = False,
    device: str = "auto",
    skip_unreadable: bool = False,
) -> pd.DataFrame:
    """Returns the most probable classes of each image.

    Images are made square and resized like the network's training images. Confidences are
    softmax(logits / temperature), with the `temperature` of the network.

    Args:
        subject: a run folder, a weights file, or a trained network.
        images: one of these, or a list or another iterable of them:

            - a file, a folder (with its subfolders, without hidden files), or a pattern such as "new/*.jpg"
            - a Pillow image of any mode, the bytes of an image file, or a file opened in binary mode
            - an array or tensor, uint8 from 0 to 255 or float from 0 to 1, before normalization. Its shape is (H, W),
              (H, W, C), (C, H, W), (N, H, W, C) or (N, C, H, W), with 1, 3 or 4 channels; for a network that was
              trained on gray images also (N, H, W).
        model: as for `load`, for a run of your own network.
        top: number of classes per image.
        mirrored: average the logits of each image and its mirror image (test-time augmentation).
        device: "auto", or a device of torch; a network that you pass stays on its device.
        skip_unreadable: skip unreadable files with a warning instead of raising.

    Returns:
        One row per image: path (index, if not all images are files), prediction, confidence (0 to 1), then
        prediction_2, confidence_2 and so on.

    Raises:
        UserError: there are no images, an array has another shape or other values, or some images cannot be read (all
            are named).

    Warns:
        UserWarning: the network was trained on gray images and some images are in color. They are converted to gray.
    """
    columns = predicted_columns(
        subject, images, model=model, top=top, mirrored=mirrored, device=device, skip_unreadable=skip_unreadable
    )
    import pandas as pd  # slow to import, and the command line does without it

    return pd.DataFrame(columns)


def predicted_columns(
    subject: str | Path | Run | Network,
    images: Any,
    *,
    model: str | Architecture | nn.Module | None = None,
    top: int = TOP,
    mirrored: bool = False,
    device: str = "auto",
    skip_unreadable: bool = False,
) -> dict[str, list[Any]]:
    """Returns the columns of what `predict` returns, as plain values."""
    check_integer("top", top, 1)
    network = subject if isinstance(subject, Network) else load(subject, model=model).to(resolve_device(device))
    preprocessing, class_names = trained_on(network)
    given = collect(images, preprocessing.channels)
    _warn_of_colors(given, preprocessing.channels)

    def read(one: Given) -> Tensor:
        return to_tensor(preprocessing.square(one.pixels(preprocessing.channels)))

    kept: list[int] = []
    failures: list[UnreadableImageError] = []
    logits: list[Tensor] = []
    for start in range(0, len(given), _IMAGES_AT_ONCE):
        read_images = list(enumerate(map_files(read, given[start : start + _IMAGES_AT_ONCE]), start))
        failures += [image for _, image in read_images if isinstance(image, UnreadableImageError)]
        if good := [(place, image) for place, image in read_images if isinstance(image, Tensor)]:
            kept += [place for place, _ in good]
            squares = torch.stack([image for _, image in good])
            logits.append(_logits(network, squares, preprocessing, mirrored))
    if failures and len(given) == 1:
        hint = " To predict the files of a list: xargs resnetlab predict RUN < list.txt"
        raise UserError(f"{failures[0]}{hint if given[0].name == STANDARD_INPUT else ''}")
    if failures and (not skip_unreadable or not kept):
        raise UserError(
            f"{len(failures)} of {len(given)} files cannot be read as images: {describe_failures(failures)} Remove "
            "them, or skip them with --skip-unreadable."
        )
    if failures:
        number = f"{len(failures)} unreadable file{'s' if len(failures) > 1 else ''}"
        warnings.warn(f"left out {number}: {describe_failures(failures)}", stacklevel=4)
    are_files = all(one.is_named for one in given)
    first = {"path": [given[place].name for place in kept]} if are_files else {"index": kept}
    return {**first, **_columns(torch.cat(logits) / network.temperature, class_names, top)}


def _logits(network: Network, squares: Tensor, preprocessing: Preprocessing, mirrored: bool) -> Tensor:
    logits = answer(network, squares, preprocessing).logits
    return (logits + answer(network, squares.flip(-1), preprocessing).logits) / 2 if mirrored else logits


def _columns(logits: Tensor, class_names: tuple[str, ...], top: int) -> dict[str, list[Any]]:
    confidences, classes = logits.double().softmax(1).topk(min(top, logits.shape[1]))
    columns: dict[str, list[Any]] = {}
    for rank in range(classes.shape[1]):
        suffix = f"_{rank + 1}" if rank else ""
        columns[f"prediction{suffix}"] = [class_names[label] for label in classes[:, rank].tolist()]
        columns[f"confidence{suffix}"] = confidences[:, rank].tolist()
    return columns


def _warn_of_colors(given: list[Given], channels: int) -> None:
    """Warns once if a network for gray images gets images in color."""
    for one in given if channels == 1 else ():
        try:
            is_colored = one.is_colored()
        except Exception:  # reading it raises a better error
            continue
        if is_colored:
            warnings.warn(
                f"{one.name} is in color, and the network was trained on gray images: colors are ignored.",
                stacklevel=5,
            )
            return
