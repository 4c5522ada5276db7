"""Predicted classes of images, from wherever they are. For an exported file, torch is not imported."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resnetlab.core.checks import check_integer, known_arguments
from resnetlab.core.environment import resolve_device
from resnetlab.core.errors import UserError
from resnetlab.core.foreign import PREDICTION
from resnetlab.core.framing import Framing
from resnetlab.data.storage.reader import UnreadableImageError, describe_failures, map_files
from resnetlab.evaluation.inputs import STANDARD_INPUT, Given, collect
from resnetlab.exporting.session import is_exported, open_exported

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from resnetlab.core.runs import Run
    from resnetlab.models.network import Architecture, Network

TOP = 3
"""Classes per image, if nothing else is given."""
_IMAGES_AT_ONCE = 512
_IMAGES_IN_A_BATCH = 16


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
        subject: a run folder, a weights file, a trained network, or what `export` wrote (an .onnx file or its folder).
        images: one of these, or a list or another iterable of them:

            - a file, a folder (with its subfolders, without hidden files), a table with a column of paths (.csv, .tsv
              or .parquet), or a pattern such as `new/*.jpg`
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
    predictor = predictor_of(subject, model=model, top=top, mirrored=mirrored, device=device)
    return table_of(predictor, collect(images, predictor.framing.channels), skip_unreadable=skip_unreadable)


def table_of(predictor: Predictor, given: Sequence[Given], *, skip_unreadable: bool = False) -> dict[str, list[Any]]:
    """Returns the columns for images that are collected already; see `predict`."""
    predictor.warn_of_colors(given)
    kept, columns, failures = predictor.answer(given)
    if failures and len(given) == 1:
        hint = " To predict the files of a list: xargs resnetlab predict RUN < list.txt"
        raise UserError(f"{failures[0]}{hint if given[0].name == STANDARD_INPUT else ''}")
    check_unreadable(failures, len(given), skip=skip_unreadable)
    are_files = all(one.is_named for one in given)
    first = {"path": [given[place].name for place in kept]} if are_files else {"index": kept}
    return {**first, **columns}


def check_unreadable(failures: Sequence[object], count: int, *, skip: bool) -> None:
    """Raises `UserError` if some of `count` images could not be read; with `skip` it warns, unless all could not."""
    if failures and (not skip or len(failures) == count):
        raise UserError(
            f"{len(failures)} of {count} files cannot be read as images: {describe_failures(failures)} Remove "
            "them, or skip them with --skip-unreadable."
        )
    if failures:
        number = f"{len(failures)} unreadable file{'s' if len(failures) > 1 else ''}"
        warnings.warn(f"left out {number}: {describe_failures(failures)}", stacklevel=6)


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A network in the form that prediction needs.

    Attributes:
        framing: how an image becomes the square that the network sees.
        class_names: what the logits mean.
        temperature: divides the logits.
        logits: takes uint8 (N, H, W, C) and returns float32 (N, classes).
        file: the file of the network; None for a network in memory.
        top: number of classes per image.
        mirrored: whether to average the logits of an image and its mirror image.
    """

    framing: Framing
    class_names: tuple[str, ...]
    temperature: float
    logits: Callable[[np.ndarray], np.ndarray]
    file: Path | None = None
    top: int = TOP
    mirrored: bool = False

    def answer(self, given: Sequence[Given]) -> tuple[list[int], dict[str, list[Any]], list[UnreadableImageError]]:
        """Returns the positions of the images that can be read, the columns of their answers, and the other errors."""
        kept: list[int] = []
        failures: list[UnreadableImageError] = []
        logits: list[np.ndarray] = []
        for start in range(0, len(given), _IMAGES_AT_ONCE):
            read_images = list(enumerate(map_files(self._read, given[start : start + _IMAGES_AT_ONCE]), start))
            failures += [image for _, image in read_images if isinstance(image, UnreadableImageError)]
            if good := [(place, image) for place, image in read_images if isinstance(image, np.ndarray)]:
                kept += [place for place, _ in good]
                squares = np.stack([image for _, image in good])
                logits.append(self.logits(squares))
                if self.mirrored:
                    logits[-1] = (logits[-1] + self.logits(np.ascontiguousarray(squares[:, :, ::-1]))) / 2
        if not kept:
            return [], {}, failures
        return kept, _columns(np.concatenate(logits) / self.temperature, self.class_names, self.top), failures

    def warn_of_colors(self, given: Sequence[Given]) -> None:
        """Warns once if a network for gray images gets images in color."""
        for one in given if self.framing.channels == 1 else ():
            try:
                is_colored = one.is_colored()
            except Exception:  # reading it raises a better error
                continue
            if is_colored:
                warnings.warn(
                    f"{one.name} is in color, and the network was trained on gray images: colors are ignored.",
                    stacklevel=6,
                )
                return

    def _read(self, one: Given) -> np.ndarray:
        return one.square(self.framing)


def predictor_of(
    subject: str | Path | Run | Network,
    *,
    model: str | Architecture | nn.Module | None = None,
    top: int = TOP,
    mirrored: bool = False,
    device: str = "auto",
) -> Predictor:
    """Returns what answers images; see `predict`."""
    check_integer("top", top, 1)
    found = _exported(subject, model) if is_exported(subject) else _trained(subject, model, device)
    return replace(found, top=top, mirrored=mirrored)


def _trained(subject: Any, model: Any, device: str) -> Predictor:
    import torch

    from resnetlab.evaluation.forward import answer, trained_on
    from resnetlab.models.network import Network
    from resnetlab.weights.file import load, weights_path

    network = subject
    if not isinstance(network, Network):
        chosen = resolve_device(device)
        if chosen == torch.device("cuda") and "LOCAL_RANK" in os.environ:  # one GPU for each process of torchrun
            chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        network = load(subject, model=model).to(chosen)
    preprocessing, class_names = trained_on(network)

    def logits(squares: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(np.ascontiguousarray(squares.transpose(0, 3, 1, 2)))
        return answer(network, images, preprocessing).logits.numpy()

    return Predictor(
        framing=preprocessing,
        class_names=class_names,
        temperature=network.temperature,
        logits=logits,
        file=None if isinstance(subject, Network) else weights_path(subject),
    )


def _exported(path: str | Path, model: Any) -> Predictor:
    if model is not None:
        raise UserError(f"{path} contains its network, so `model` is not needed. Omit it.")
    exported = open_exported(path)

    def logits(squares: np.ndarray) -> np.ndarray:
        parts = np.array_split(squares, -(-len(squares) // _IMAGES_IN_A_BATCH))
        return np.concatenate([exported.run(part, ["logits"])["logits"] for part in parts])

    return Predictor(
        framing=exported.framing,
        class_names=exported.class_names,
        temperature=exported.temperature,
        logits=logits,
        file=exported.path,
    )


def _columns(logits: np.ndarray, class_names: tuple[str, ...], top: int) -> dict[str, list[Any]]:
    raised = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    probabilities = raised / raised.sum(1, keepdims=True)
    classes = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    confidences = np.take_along_axis(probabilities, classes, 1)
    columns: dict[str, list[Any]] = {}
    for rank in range(classes.shape[1]):
        suffix = f"_{rank + 1}" if rank else ""
        columns[f"prediction{suffix}"] = [class_names[label] for label in classes[:, rank].tolist()]
        columns[f"confidence{suffix}"] = confidences[:, rank].tolist()
    return columns
