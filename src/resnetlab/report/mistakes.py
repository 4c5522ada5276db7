"""The mistakes worth a look, and what the network looked at."""

from __future__ import annotations

import io
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from resnetlab.core.errors import UserError
from resnetlab.evaluation.attention import class_activations
from resnetlab.models.resnet import ResNet
from resnetlab.report.images import RunImages
from resnetlab.report.results import Results

MAX_WORST, MAX_SURPRISING, MAX_CLOSEST = 24, 12, 12
PIXELATED_BELOW = 64
"""Images with fewer pixels a side are enlarged with visible pixels instead of a blur."""
THUMBNAIL = 160
"""Longest side of an embedded picture."""
_OVERLAY = 112
"""Smallest side of a picture of attention, so that its colors run smoothly over a small image."""


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """One misclassified image, or a correct one if the network made no mistakes.

    Attributes:
        label: its true class.
        prediction: the predicted class.
        rival: the true class of a mistake; otherwise the second most likely class.
        confidence: probability given to `prediction`, 0 to 1.
        loss: cross-entropy of the image.
        place: where the image is found: its path, or its index in the split.
        alike: how many images of its class have the same prediction.
        answers: the five most probable classes and the true one, with their probabilities.
        picture: the image, or None if it is not available.
        attention: class activations of the prediction and of the rival, as pictures, or None.
    """

    label: str
    prediction: str
    rival: str
    confidence: float
    loss: float
    place: str
    alike: int
    answers: Sequence[tuple[str, float]]
    picture: Image.Image | None
    attention: tuple[Image.Image, Image.Image] | None


@dataclass(frozen=True, kw_only=True)
class Mistakes:
    """The mistakes that the page shows.

    Attributes:
        worst: those with the highest loss.
        surprising: the rarest of the others.
        closest: if there are no mistakes, the correct images with the highest loss.
        no_attention: why their class activations are missing, or None.
    """

    worst: list[Mistake]
    surprising: list[Mistake]
    closest: list[Mistake]
    no_attention: str | None


def find_mistakes(results: Results, images: RunImages, network: ResNet | None) -> Mistakes:
    """Returns the worst and the most surprising mistakes, or the images that are closest to one.

    The worst have the highest loss: the network gives their labels the least probability. Surprising ones are of a
    kind that hardly occurs: they are sorted by how many images of their class have the same prediction, fewest first,
    then by confidence, highest first. No mistake is shown twice.

    Args:
        results: the evaluation.
        images: its images.
        network: the evaluated network; without it, there are no class activations.
    """
    wrong = results.wrong
    loss, sure = (results.per_image[name].to_numpy()[wrong] for name in ("loss", "confidence"))
    by_loss = wrong[np.argsort(-loss, kind="stable")]
    by_surprise = wrong[np.lexsort([-sure, results.alike[wrong]])]
    worst = by_loss[:MAX_WORST]
    surprising = by_surprise[~np.isin(by_surprise, worst)][:MAX_SURPRISING]
    closest = np.argsort(-results.per_image["loss"].to_numpy(), kind="stable")[: 0 if len(wrong) else MAX_CLOSEST]
    rows = np.concatenate([worst, surprising, closest])
    there = rows[images.positions[rows] >= 0]
    squares = _reduced(images.squares(there)) if len(there) else None
    rivals = {row: _rival(results, row) for row in rows.tolist()}
    attention, no_attention = _attention(results, images, there, rivals, network)
    pictures = {} if squares is None else dict(zip(there.tolist(), map(to_picture, squares), strict=True))
    mistakes = [
        Mistake(
            label=results.names[results.labels[row]],
            prediction=results.names[results.predictions[row]],
            rival=rivals[row],
            confidence=float(results.per_image["confidence"].iloc[row]),
            loss=float(results.per_image["loss"].iloc[row]),
            place=results.place(row),
            alike=int(results.alike[row]),
            answers=_answers(results, row),
            picture=pictures.get(row),
            attention=attention.get(row),
        )
        for row in rows.tolist()
    ]
    first, last = len(worst), len(worst) + len(surprising)
    return Mistakes(
        worst=mistakes[:first], surprising=mistakes[first:last], closest=mistakes[last:], no_attention=no_attention
    )


def data_uri(picture: Image.Image) -> str:
    """Returns a picture as a data URI: a small one as PNG, without loss, a larger one as JPEG."""
    exact = max(picture.size) < PIXELATED_BELOW
    buffer = io.BytesIO()
    if exact:
        picture.save(buffer, format="PNG", optimize=True)
    else:
        picture.save(buffer, format="JPEG", quality=85, subsampling=0)
    kind = "png" if exact else "jpeg"
    return f"data:image/{kind};base64," + b64encode(buffer.getvalue()).decode("ascii")


def to_picture(pixels: Tensor) -> Image.Image:
    """Returns a uint8 image (C, H, W) of one (gray) or three channels as a picture."""
    values = pixels.movedim(0, -1).numpy()
    return Image.fromarray(values if values.shape[-1] == 3 else np.ascontiguousarray(values[..., 0]))


def _reduced(squares: Tensor) -> Tensor:
    if squares.shape[-1] <= THUMBNAIL:
        return squares
    return torch.nn.functional.interpolate(squares, (THUMBNAIL, THUMBNAIL), mode="bilinear", antialias=True)


def _attention(
    results: Results, images: RunImages, rows: np.ndarray, rivals: Mapping[int, str], network: ResNet | None
) -> tuple[dict[int, tuple[Image.Image, Image.Image]], str | None]:
    """Returns the class activations of prediction and rival by row, as pictures; or none, and why."""
    if not len(rows) or network is None:
        return {}, None
    squares = images.squares(rows)
    shown = _reduced(squares)
    times = math.ceil(_OVERLAY / shown.shape[-1])
    shown = shown.repeat_interleave(times, 2).repeat_interleave(times, 3)
    names = list(network.class_names or results.names)
    predicted = [names.index(results.names[position]) for position in results.predictions[rows].tolist()]
    try:
        found = class_activations(network, squares, [predicted, [names.index(rivals[row]) for row in rows.tolist()]])
    except UserError as error:
        return {}, f"The class activations are missing: {error}"
    pictures = [[Image.fromarray(overlay) for overlay in side.overlay(shown)] for side in found]
    return dict(zip(rows.tolist(), zip(*pictures, strict=True), strict=True)), None


def _rival(results: Results, row: int) -> str:
    """Returns the true class of a mistake, and otherwise the second most likely class."""
    label, likely = results.names[results.labels[row]], list(results.per_image["top5"].iloc[row])
    is_wrong = results.labels[row] != results.predictions[row]
    return label if is_wrong or len(likely) < 2 else str(likely[1])


def _answers(results: Results, row: int) -> list[tuple[str, float]]:
    names, shares = (list(results.per_image[name].iloc[row]) for name in ("top5", "top5_confidence"))
    label = results.names[results.labels[row]]
    if label not in names:
        names, shares = [*names, label], [*shares, results.per_image["label_probability"].iloc[row]]
    # The share of an answer that is not a number comes from the table as None.
    return [(str(name), float(share)) for name, share in zip(names, shares, strict=True) if share is not None]
