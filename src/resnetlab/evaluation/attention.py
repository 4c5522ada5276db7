"""Attention maps: where in an image a network finds a class, by three methods that check each other.

Class activation and Grad-CAM use the network's own feature maps. Occlusion covers part of the image and measures the
effect, so it needs no knowledge of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resnetlab.core.checks import check_integer, check_number
from resnetlab.core.errors import UserError, brief, unknown
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.evaluation.forward import batch_size, check_images, check_pixels, evaluating, normalized_batches
from resnetlab.models.resnet import ResNet

FOR_THE_CLASS = (213, 94, 0)
"""Vermilion for evidence for the class; both colors are from Okabe and Ito's palette, safe for color-blind readers."""
AGAINST_THE_CLASS = (0, 114, 178)
_DENSEST = 0.8  # opacity of the largest value, so that the image stays visible
_LUMINANCE = (0.299, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention:
    """For each image, a map of the evidence for a class; negative values are evidence against it.

    Attributes:
        maps: (N, h, w), float32, signed, on the CPU; cells divide the image evenly.
        classes: int64 (N,), the class that each map explains.
        method: "class activation", "Grad-CAM" or "occlusion".
        at: the tap of `ResNet.features` that the map is computed from, or "images".
    """

    maps: Tensor
    classes: Tensor
    method: str
    at: str

    @property
    def positive(self) -> Tensor:
        """The maps without negative values, (N, h, w): Grad-CAM as published."""
        return self.maps.clamp(min=0)

    @property
    def range(self) -> Tensor:
        """Lowest and highest value of each map, (N, 2)."""
        return torch.stack([self.maps.amin((1, 2)), self.maps.amax((1, 2))], 1)

    @property
    def all_negative(self) -> Tensor:
        """Whether a map has negative values only, bool (N,).

        Rectified, such a map would be empty. Scaled to its own range, it would show the weakest evidence against the
        class as evidence for it.
        """
        lowest, highest = self.range.unbind(1)
        return (highest <= 0) & (lowest < 0)

    @property
    def limits(self) -> Tensor:
        """The largest absolute value of each map, (N,): the value of full color in `overlay`, for both signs."""
        return self.maps.abs().amax((1, 2))

    def upsampled(self, size: int | tuple[int, int]) -> Tensor:
        """Returns the maps at the size of an image, (N, H, W), interpolated bilinearly between cell centers."""
        shape = (size, size) if isinstance(size, int) else size
        return F.interpolate(self.maps[:, None], shape, mode="bilinear", align_corners=False)[:, 0]

    def overlay(self, images: Tensor, *, limit: float | None = None) -> np.ndarray:
        """Returns the maps over the images in gray: orange for the class, blue against it, no color at 0.

        Both signs have the same scale, so an all-negative map is only blue.

        Args:
            images: the explained images, uint8 (N, C, H, W).
            limit: the value of full color, to compare images; None uses that of each map, see `limits`.

        Returns:
            uint8 (N, H, W, 3).
        """
        check_pixels(images)
        if len(images) != len(self.maps):
            raise UserError(
                f"overlay needs one image for each of the {len(self.maps)} maps, got {len(images)}. Pass the "
                "images for which the maps were computed."
            )
        limits = self.limits if limit is None else torch.tensor(check_number("limit", limit, 0, above=True))
        strength = self.upsampled((images.shape[2], images.shape[3])) / limits.clamp(min=1e-30).reshape(-1, 1, 1)
        opacity = strength.abs().clamp(max=1)[..., None] * _DENSEST
        colors = torch.tensor([AGAINST_THE_CLASS, FOR_THE_CLASS])[(strength > 0).long()]
        return ((1 - opacity) * _gray(images)[..., None] + opacity * colors).round().to(torch.uint8).numpy()


def class_activation(model: ResNet, images: Tensor, classes: Tensor | Sequence[int] | None = None) -> Attention:
    """Returns the class activation of each image (Zhou et al. 2016): sum over k of w[class, k] A_k.

    A is the feature map that the network pools ("final"), and w the weights of its head: the mean of the map plus the
    bias is exactly the logit.

    Args:
        model: a trained network; it is not changed.
        images: uint8 (N, C, H, W), of the network's size.
        classes: (N,), the class to explain for each image; None explains the predicted ones.

    Raises:
        UserError: the network is untrained or has no head, or images or classes do not fit it.
    """
    return class_activations(model, images, [classes])[0]


@torch.no_grad()
def class_activations(
    model: ResNet, images: Tensor, choices: Sequence[Tensor | Sequence[int] | None]
) -> list[Attention]:
    """Returns `class_activation` for each choice of classes, from one pass of the images through the network."""
    preprocessing = _check(model, images)
    wanted = [_check_classes(model, classes, len(images)) for classes in choices]
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in choices]
    with evaluating(model):
        for at, batch in normalized_batches(model, images, preprocessing):
            taps = model.features(batch)
            for classes, parts in zip(wanted, found, strict=True):
                chosen = _chosen(classes, at, taps["logits"])
                weights = model.fc.get_parameter("weight")[chosen]
                parts.append((torch.einsum("nk,nkhw->nhw", weights, taps["final"]).float().cpu(), chosen.cpu()))
    return [
        Attention(maps=torch.cat(maps), classes=torch.cat(explained), method="class activation", at="final")
        for maps, explained in (zip(*parts, strict=True) for parts in found)
    ]


def grad_cam(
    model: ResNet, images: Tensor, classes: Tensor | Sequence[int] | None = None, at: str = "final"
) -> Attention:
    """Returns the signed Grad-CAM of each image (Selvaraju et al. 2017): sum over k of alpha_k A_k.

    alpha_k is the mean over positions of the gradient of the class's logit with respect to A_k. The paper sets
    negative values to 0; here `Attention.positive` does. At "final", Grad-CAM is the class activation divided by the
    number of positions.

    Args:
        model: a trained network; it is not changed, nor are the gradients of its parameters.
        images: uint8 (N, C, H, W), of the network's size.
        classes: (N,), the class to explain for each image; None explains the predicted ones.
        at: the output to use as A: "stem", a stage such as "stage2", a block such as "stage1.block2", or "final", the
            pooled feature map.

    Raises:
        UserError: as for `class_activation`, or the tap does not exist.
    """
    preprocessing = _check(model, images)
    wanted, tap = _check_classes(model, classes, len(images)), _check_tap(model, at)
    maps, explained = [], []
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
        for place, batch in normalized_batches(model, images, preprocessing):
            # The images require a gradient, so every tap has one even if the network is frozen.
            taps = model.features(batch.requires_grad_())
            chosen = _chosen(wanted, place, taps["logits"])
            logits = taps["logits"].gather(1, chosen[:, None])
            (gradient,) = torch.autograd.grad(logits.sum(), taps[tap])
            weights = gradient.mean((2, 3))
            maps.append(torch.einsum("nk,nkhw->nhw", weights, taps[tap].detach()).float().cpu())
            explained.append(chosen.cpu())
    return Attention(maps=torch.cat(maps), classes=torch.cat(explained), method="Grad-CAM", at=at)


@torch.no_grad()
def occlusion(
    model: ResNet,
    images: Tensor,
    classes: Tensor | Sequence[int] | None = None,
    size: int | None = None,
    stride: int | None = None,
    fill: str | int = "mean",
) -> Attention:
    """Returns the drop of the class's logit when a square of the image is covered (Zeiler and Fergus 2014).

    The centers of the squares divide the image evenly, so the map aligns with the image like those of the other
    methods. At the border, a square covers less.

    Args:
        model: a trained network; it is not changed.
        images: uint8 (N, C, H, W), of the network's size.
        classes: (N,), the class to explain for each image; None explains the predicted ones.
        size: side of the square in pixels; None means a quarter of the image.
        stride: maximum pixels between two centers; None means an eighth of the image.
        fill: the color of the square: "mean", the mean color of the training images, or a pixel value from 0 to 255.
            The color of the background is a good choice, because a square that stands out is itself a feature.

    Returns:
        Maps of ceil(H / stride) x ceil(W / stride) cells.

    Raises:
        UserError: as for `class_activation`, or size, stride or fill is out of range.
    """
    preprocessing = _check(model, images)
    wanted = _check_classes(model, classes, len(images))
    height, width = images.shape[2:]
    size = max(1, round(min(height, width) / 4)) if size is None else check_integer("size", size, 1)
    stride = max(1, round(min(height, width) / 8)) if stride is None else check_integer("stride", stride, 1)
    device = next(model.parameters()).device
    rows, columns = (_covered(length, size, stride).to(device) for length in (height, width))
    places = torch.cartesian_prod(torch.arange(len(rows)), torch.arange(len(columns))).to(device)
    maps, explained = [], []
    with evaluating(model):
        for at, batch in normalized_batches(model, images, preprocessing):
            cover = _cover(fill, preprocessing, batch)
            whole = model(batch)
            chosen = _chosen(wanted, at, whole)
            for image, label, logits in zip(batch, chosen, whole, strict=True):
                drops = []
                for chunk in places.split(batch_size(model, height * width, keeping=True)):
                    squares = rows[chunk[:, 0], None, :, None] & columns[chunk[:, 1], None, None, :]
                    drops.append(logits[label] - model(torch.where(squares, cover, image))[:, label])
                maps.append(torch.cat(drops).reshape(len(rows), len(columns)).float().cpu())
            explained.append(chosen.cpu())
    return Attention(maps=torch.stack(maps), classes=torch.cat(explained), method="occlusion", at="images")


def _check(model: ResNet, images: Tensor) -> Preprocessing:
    preprocessing = check_images(model, images)
    if not model.config.num_classes:
        raise UserError(
            "the network has no head (num_classes=0), so there is no class to explain. Use a network with "
            "num_classes above 0."
        )
    return preprocessing


def _check_classes(model: ResNet, classes: Tensor | Sequence[int] | None, count: int) -> Tensor | None:
    if classes is None:
        return None
    wanted, most = torch.as_tensor(classes).cpu(), model.config.num_classes
    fits = wanted.shape == (count,) and not (wanted.is_floating_point() or wanted.dtype == torch.bool)
    if not fits or wanted.min() < 0 or wanted.max() >= most:
        raise UserError(
            f"classes must be {count} integers from 0 to {most - 1}, one per image, got {brief(classes)}. Labels "
            "are indices into model.class_names. With classes=None, the predicted classes are explained."
        )
    return wanted.long()


def _check_tap(model: ResNet, at: str) -> str:
    """Returns the name in `ResNet.features` for `at`; a stage means its last block."""
    taps = {"stem": "stem"}
    for name, _ in model.blocks():
        taps[name.partition(".")[0]] = name
        taps[name] = name
    taps["final"] = "final"
    if at not in taps:
        raise unknown("tap", at, taps)
    return taps[at]


def _chosen(wanted: Tensor | None, place: slice, logits: Tensor) -> Tensor:
    return logits.detach().argmax(1) if wanted is None else wanted[place].to(logits.device)


def _covered(length: int, size: int, stride: int) -> Tensor:
    """Returns the pixels along a side that each square covers, bool (squares, length)."""
    squares = -(-length // stride)
    centers = (torch.arange(squares) + 0.5) * (length / squares)
    first = (centers - size / 2).round()[:, None]
    pixels = torch.arange(length)
    return (first <= pixels) & (pixels < first + size)


def _cover(fill: str | int, preprocessing: Preprocessing, batch: Tensor) -> Tensor:
    """Returns the normalized color (C, 1, 1) of a square; the mean color is exactly 0."""
    color = torch.zeros(preprocessing.channels, 1, 1, dtype=batch.dtype, device=batch.device)
    if fill == "mean":
        return color
    if isinstance(fill, str):
        raise UserError(f"fill must be 'mean' or a pixel value from 0 to 255, got {brief(fill)}.")
    return preprocessing.normalize(color + check_number("fill", fill, 0, 255), batch.dtype)


def _gray(images: Tensor) -> Tensor:
    """Returns images (N, C, H, W) as gray values (N, H, W), in float32."""
    values = images.cpu().float()
    if values.shape[1] != 3:
        return values.mean(1)
    return (values * torch.tensor(_LUMINANCE).reshape(3, 1, 1)).sum(1)
