"""What may be done to training images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from resnetlab.core.checks import check_choice, check_flag, check_integer, check_number, set_checked
from resnetlab.core.errors import UserError

POLICIES = ("none", "trivial", "rand")
_MAGNITUDES = 31
"""Steps of strength in TrivialAugment and RandAugment."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What training does to its images, each sample drawn for itself.

    A share called `_p` is the probability that a sample is changed at all; strengths without one are drawn
    for every sample. Color strengths are as in torchvision's ColorJitter: 0.2 draws a factor from 0.8
    to 1.2.

    Attributes:
        crop_padding: what the image may be shifted by in every direction, as a share of the image size:
            0.125 is the 4 pixels of He et al. 2016 for 32. 0 is no shift. Not used with `crop_scale`.
        crop_scale: smallest and largest share of the photo's area that a random resized crop shows
            (Szegedy et al. 2015); None shows the same part as in evaluation.
        crop_ratio: smallest and largest width by height of that crop.
        flip: mirror half of the images; "auto" does so where the data set's mirrored images could be its own.
        vertical_flip: turn half of the images upside down.
        rotation: the largest angle, in degrees.
        shear: the largest angle of a horizontal shear, in degrees.
        perspective: how far each corner may move toward the center, as a share of half the side.
        perspective_p: share of the samples whose corners move.
        fill: the value, 0 to 255, of what lies beyond the photo.
        brightness: largest change of the factor on all channels.
        contrast: largest change of the factor on the distance from the image's mean gray.
        saturation: largest change of the factor on the distance from each pixel's own gray.
        hue: largest rotation of the colors, as a share of the circle, at most 0.5.
        autocontrast_p: stretch every channel to 0 ... 255.
        sharpness: the factor of `sharpness_p`: 0 is smoothed, 1 unchanged, above 1 sharper.
        sharpness_p: share of the samples whose sharpness changes.
        blur_p: share of the samples that are blurred by a Gaussian.
        blur_kernel: width of the Gaussian in pixels, odd.
        blur_sigma: its smallest and largest standard deviation in pixels.
        erase_p: share of the samples that lose a rectangle (Zhong et al. 2020).
        erase_area: smallest and largest share of the area that it covers.
        erase_ratio: smallest and largest height by width of it.
        erase_fill: the value, 0 to 255, that it is filled with.
        mixup: the parameter of the Beta distribution of mixup (Zhang et al. 2018); 0 is off.
        cutmix: the same of CutMix (Yun et al. 2019). With both, a batch gets one of them, drawn evenly.
        policy: "trivial" adds one operation a sample as in TrivialAugment Wide (Müller and Hutter 2021),
            "rand" several as in RandAugment (Cubuk et al. 2020); all in the order of this package.
        rand_operations: operations a sample of "rand".
        rand_magnitude: their strength, 0 to 30.

    Raises:
        UserError: a value is out of range.
    """

    crop_padding: float = 0.125
    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool | str = "auto"
    vertical_flip: bool = False
    rotation: float = 0.0
    shear: float = 0.0
    perspective: float = 0.0
    perspective_p: float = 0.5
    fill: int = 0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    autocontrast_p: float = 0.0
    sharpness: float = 1.5
    sharpness_p: float = 0.0
    blur_p: float = 0.0
    blur_kernel: int = 3
    blur_sigma: tuple[float, float] = (0.1, 1.0)
    erase_p: float = 0.0
    erase_area: tuple[float, float] = (0.02, 0.33)
    erase_ratio: tuple[float, float] = (0.3, 3.3)
    erase_fill: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    policy: str = "none"
    rand_operations: int = 2
    rand_magnitude: int = 9

    def __post_init__(self) -> None:
        def number(name: str, *bounds: float, **more: Any) -> None:
            set_checked(self, **{name: check_number(f"augment.{name}", getattr(self, name), *bounds, **more)})

        def pair(name: str, *bounds: float, **more: Any) -> None:
            set_checked(self, **{name: _check_pair(name, getattr(self, name), *bounds, **more)})

        def integer(name: str, minimum: int) -> None:
            set_checked(self, **{name: check_integer(f"augment.{name}", getattr(self, name), minimum)})

        if not (isinstance(self.flip, bool) or self.flip == "auto"):
            raise UserError(f'augment.flip must be true, false or "auto", got {self.flip!r}.')
        number("crop_padding", 0, 0.5)
        if self.crop_scale is not None:
            pair("crop_scale", 0, 1, above=True)
        pair("crop_ratio", 0, above=True)
        check_flag("augment.vertical_flip", self.vertical_flip)
        number("rotation", 0, 180)
        number("shear", 0, 80)
        for name in ("perspective", "brightness", "contrast", "saturation"):
            number(name, 0, 1)
        number("hue", 0, 0.5)
        for name in ("perspective_p", "autocontrast_p", "sharpness_p", "blur_p", "erase_p"):
            number(name, 0, 1)
        number("sharpness", 0)
        pair("blur_sigma", 0.01)
        pair("erase_area", 0, 1)
        pair("erase_ratio", 0, above=True)
        number("mixup", 0)
        number("cutmix", 0)
        for name in ("fill", "erase_fill"):
            integer(name, 0)
            if getattr(self, name) > 255:
                raise UserError(f"augment.{name} must be at most 255, got {getattr(self, name)}.")
        integer("blur_kernel", 1)
        if self.blur_kernel % 2 == 0:
            raise UserError(f"augment.blur_kernel must be odd, so that it has a center, got {self.blur_kernel}.")
        check_choice("augment.policy", self.policy, POLICIES)
        integer("rand_operations", 1)
        integer("rand_magnitude", 0)
        if self.rand_magnitude >= _MAGNITUDES:
            raise UserError(f"augment.rand_magnitude must be at most {_MAGNITUDES - 1}, got {self.rand_magnitude}.")

    @property
    def warps(self) -> bool:
        """Whether pixels are interpolated, not only moved by whole pixels and mirrored."""
        moved = self.crop_scale is not None or self.rotation or self.shear or self.policy != "none"
        return bool(moved or (self.perspective and self.perspective_p))

    @property
    def colors(self) -> bool:
        """Whether brightness, contrast, saturation or hue change."""
        return bool(self.brightness or self.contrast or self.saturation or self.hue or self.policy != "none")

    @property
    def mixes(self) -> bool:
        """Whether two samples may become one."""
        return bool(self.mixup or self.cutmix)


def _check_pair(
    name: str, value: Any, minimum: float, maximum: float = float("inf"), *, above: bool = False
) -> tuple[float, float]:
    pair = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
    if not pair:
        raise UserError(f"augment.{name} must be two numbers, smallest and largest, such as [0.5, 1], got {value!r}.")
    low, high = (check_number(f"augment.{name}", entry, minimum, maximum, above=above) for entry in value)
    if low > high:
        raise UserError(f"augment.{name} must have the smaller number first, got {list(value)}.")
    return low, high
