"""Predicted classes of images in files and folders."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from resnetlab.core.checks import check_integer
from resnetlab.core.environment import resolve_device
from resnetlab.core.errors import UserError
from resnetlab.core.files import printable
from resnetlab.core.preprocessing import to_tensor
from resnetlab.core.runs import Run
from resnetlab.data.sources.folders import visible_files
from resnetlab.data.storage.reader import UnreadableImageError, decode_image, describe_failures, map_files
from resnetlab.evaluation.forward import answer, trained_on
from resnetlab.models.network import Architecture, Network
from resnetlab.weights.file import load

_FILES_AT_ONCE = 512


def predict(
    subject: str | Path | Run | Network,
    images: str | Path | Sequence[str | Path] | Tensor,
    *,
    model: str | Architecture | nn.Module | None = None,
    top: int = 5,
    device: str = "auto",
    skip_unreadable: bool = False,
) -> pd.DataFrame:
    """Returns the most probable classes of each image.

    Images are read and resized like the network's training images. Confidences are softmax(logits / temperature), with
    the `temperature` of the network.

    Args:
        subject: a run folder, a weights file, or a trained network.
        images: a file, a folder (with its subfolders, without hidden files), a list of them, or uint8 (N, C, H, W) with
            the network's channels.
        model: as for `load`, for a run of your own network.
        top: number of classes per image.
        device: "auto", or a device of torch; a network that you pass stays on its device.
        skip_unreadable: skip unreadable files with a warning instead of raising.

    Returns:
        One row per image: path (or index), prediction, confidence (0 to 1), then prediction_2, confidence_2 and so on.

    Raises:
        UserError: there are no images, or some files cannot be read (all are named).
    """
    check_integer("top", top, 1)
    network = subject if isinstance(subject, Network) else load(subject, model=model).to(resolve_device(device))
    preprocessing, _ = trained_on(network)
    if isinstance(images, Tensor):
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != preprocessing.channels:
            raise UserError(
                f"expected uint8 images of shape (N, {preprocessing.channels}, H, W), got {images.dtype} "
                f"of shape {tuple(images.shape)}. Pass values from 0 to 255, without normalization."
            )
        return _table({"index": range(len(images))}, network, preprocessing.squares(images), top)
    if not isinstance(images, (str, Path, Sequence)):
        raise UserError(f"images must be paths or a tensor, got {images!r}.")
    sources = [images] if isinstance(images, (str, Path)) else images
    files = list(_files(sources))
    if not files:
        named = ", ".join(map(str, sources)) or "nothing"
        raise UserError(f"no images in {named}. Give image files, or folders that contain some.")

    def read(path: Path) -> Tensor:
        return to_tensor(preprocessing.square(decode_image(path, preprocessing.channels)))

    frames: list[pd.DataFrame] = []
    failures: list[UnreadableImageError] = []
    for start in range(0, len(files), _FILES_AT_ONCE):
        chunk = files[start : start + _FILES_AT_ONCE]
        results = list(zip(chunk, map_files(read, chunk), strict=True))
        failures += [image for _, image in results if isinstance(image, UnreadableImageError)]
        if good := [(path, image) for path, image in results if isinstance(image, Tensor)]:
            paths, pixels = zip(*good, strict=True)
            frames.append(_table({"path": map(printable, paths)}, network, torch.stack(pixels), top))
    if failures and (not skip_unreadable or not frames):
        raise UserError(
            f"{len(failures)} of {len(files)} files cannot be read as images: {describe_failures(failures)} Remove "
            "them, or skip them with --skip-unreadable."
        )
    if failures:
        number = f"{len(failures)} unreadable file{'s' if len(failures) > 1 else ''}"
        warnings.warn(f"left out {number}: {describe_failures(failures)}", stacklevel=2)
    return pd.concat(frames, ignore_index=True)


def _files(sources: Sequence[str | Path]) -> Iterator[Path]:
    for source in map(Path, sources):
        if not source.exists():
            raise UserError(f"{str(source)!r} is not a file or folder. Check the path.")
        if source.is_dir():
            yield from visible_files(source)
        else:
            yield source


def _table(first: dict, model: Network, images: Tensor, top: int) -> pd.DataFrame:
    preprocessing, class_names = trained_on(model)
    logits = answer(model, images, preprocessing).logits
    confidences, classes = (logits.double() / model.temperature).softmax(1).topk(min(top, logits.shape[1]))
    frame = pd.DataFrame({key: list(values) for key, values in first.items()})
    for rank in range(classes.shape[1]):
        suffix = f"_{rank + 1}" if rank else ""
        frame[f"prediction{suffix}"] = [class_names[label] for label in classes[:, rank].tolist()]
        frame[f"confidence{suffix}"] = confidences[:, rank].numpy()
    return frame
