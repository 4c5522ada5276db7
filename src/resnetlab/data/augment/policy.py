"""The augmentation of training images: which random changes, and how strong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from resnetlab.core.checks import check_integer
from resnetlab.core.errors import UserError, brief
from resnetlab.core.fields import Checked, check_fields, documented, is_sequence, setting
from resnetlab.core.registry import Registry
from resnetlab.data.augment.steps import invert, noise

POLICIES = ("none", "trivial", "rand")
STRONGEST_MAGNITUDE = 30
"""The strongest of the 31 magnitudes, from 0, of TrivialAugment and RandAugment."""


STEPS = Registry("augmentation", {"invert": invert, "noise": noise}, called_with=2)
"""Further steps of augmentation, which `Augmentation.steps` names.

A step of your own is a function of images, float32 (N, C, H, W) with values 0 to 255, and a NumPy generator for its
random draws. It returns images of the same shape.
"""


def _check_steps(name: str, values: Any) -> tuple[str, ...]:
    if not is_sequence(values):
        raise UserError(f"{name} must be a sequence of names, such as ['invert(p=0.1)'], got {brief(values)}.")
    return tuple(STEPS.check(f"every entry of {name}", value) for value in values)


def _check_odd(name: str, value: Any) -> int:
    size = check_integer(name, value, 1)
    if size % 2 == 0:
        raise UserError(f"{name} must be odd, so that the kernel has a center, got {value}.")
    return size


@documented
@dataclass(frozen=True, kw_only=True)
class Augmentation(Checked):
    """The random changes of training images, drawn for each sample independently.

    A field called `_p` is the probability that a sample is changed at all; strengths without one are drawn for every
    sample. Color strengths are those of torchvision's ColorJitter: 0.2 draws a factor from 0.8 to 1.2.

    Raises:
        UserError: a value is out of range.
    """

    crop_padding: float = setting(
        0.125,
        "the largest shift in each direction, as a fraction of the image size. 0.125 is 4 pixels for images of 32 "
        "pixels, as in He et al. 2016. 0 disables shifts. Ignored if crop_scale is set",
        minimum=0,
        maximum=0.5,
    )
    crop_scale: tuple[float, float] | None = setting(
        None,
        "smallest and largest fraction of the photo's area that a random resized crop shows (Szegedy et al. "
        "2015); None: no random resized crop; training uses the whole central square and ignores crop_pct",
        above=0,
        maximum=1,
        ordered=True,
        example="[0.35, 1]",
    )
    crop_ratio: tuple[float, float] = setting(
        (3 / 4, 4 / 3),
        "smallest and largest aspect ratio (width / height) of the random resized crop",
        above=0,
        ordered=True,
    )
    flip: bool | str = setting(
        "auto",
        'flip each image left to right with probability 0.5; "auto" does this for photos and CIFAR, but not for '
        "digits, mnist, fashion_mnist and arrays",
        choices=("auto",),
    )
    vertical_flip: bool = setting(False, "flip each image upside down with probability 0.5")
    rotation: float = setting(0.0, "the largest angle of a random rotation, in degrees", minimum=0, maximum=180)
    shear: float = setting(0.0, "the largest angle of a horizontal shear, in degrees", minimum=0, maximum=80)
    perspective: float = setting(
        0.0,
        "the largest distance that each corner moves toward the center, as a fraction of half the side",
        minimum=0,
        maximum=1,
    )
    perspective_p: float = setting(0.5, "probability of a perspective change", minimum=0, maximum=1)
    fill: int = setting(0, "the value of pixels beyond the photo", minimum=0, maximum=255)
    brightness: float = setting(
        0.0,
        "largest relative change x of all pixel values: a random factor from 1 - x to 1 + x",
        minimum=0,
        maximum=1,
    )
    contrast: float = setting(
        0.0,
        "largest relative change x of the differences from the image's mean gray: a random factor from 1 - x to 1 + x",
        minimum=0,
        maximum=1,
    )
    saturation: float = setting(
        0.0,
        "largest relative change x of the differences from each pixel's gray: a random factor from 1 - x to 1 + x",
        minimum=0,
        maximum=1,
    )
    hue: float = setting(0.0, "largest rotation of the hue, as a fraction of the color circle", minimum=0, maximum=0.5)
    autocontrast_p: float = setting(
        0.0, "probability that the values of every channel are stretched to the range 0 to 255", minimum=0, maximum=1
    )
    sharpness: float = setting(
        1.5, "the factor used with sharpness_p: 0 smooths, 1 changes nothing, above 1 sharpens", minimum=0
    )
    sharpness_p: float = setting(0.0, "probability that the sharpness changes", minimum=0, maximum=1)
    blur_p: float = setting(0.0, "probability of a Gaussian blur", minimum=0, maximum=1)
    blur_kernel: int = setting(
        3, "width of the Gaussian's kernel in pixels", check=_check_odd, accepts="odd integer, at least 1"
    )
    blur_sigma: tuple[float, float] = setting(
        (0.1, 1.0), "smallest and largest standard deviation of the Gaussian in pixels", minimum=0.01, ordered=True
    )
    erase_p: float = setting(0.0, "probability that a rectangle is erased (Zhong et al. 2020)", minimum=0, maximum=1)
    erase_area: tuple[float, float] = setting(
        (0.02, 0.33), "smallest and largest fraction of the area that is erased", minimum=0, maximum=1, ordered=True
    )
    erase_ratio: tuple[float, float] = setting(
        (0.3, 3.3), "smallest and largest aspect ratio, height by width, of that rectangle", above=0, ordered=True
    )
    erase_fill: int = setting(0, "the value of erased pixels", minimum=0, maximum=255)
    mixup: float = setting(
        0.0, "the parameter of mixup's Beta distribution (Zhang et al. 2018); 0 disables mixup", minimum=0
    )
    cutmix: float = setting(
        0.0,
        "the parameter of CutMix's Beta distribution (Yun et al. 2019); 0 disables CutMix. If mixup is also on, each "
        "batch uses one of the two, with equal probability",
        minimum=0,
    )
    policy: str = setting(
        "none",
        'automatic augmentation: "trivial" adds one operation per sample (TrivialAugment Wide, Müller and Hutter '
        '2021), "rand" several (RandAugment, Cubuk et al. 2020). They are applied in the fixed order of ResNetLab, '
        "not in random order",
        choices=POLICIES,
    )
    rand_operations: int = setting(2, 'operations per sample with policy "rand"', minimum=1)
    rand_magnitude: int = setting(9, "strength of these operations", minimum=0, maximum=STRONGEST_MAGNITUDE)

    steps: tuple[str, ...] = setting(
        (),
        'further steps, in the order you give, after all others and before mixup and CutMix: "invert(p=0.1)" inverts '
        'values, "noise(std=8)" adds Gaussian noise; or your own',
        check=_check_steps,
        accepts="sequence of names",
    )

    def __post_init__(self) -> None:
        check_fields(self, "augment.")

    @property
    def warps(self) -> bool:
        """Whether pixels are interpolated, not only shifted by whole pixels and flipped."""
        moved = self.crop_scale is not None or self.rotation or self.shear or self.policy != "none"
        return bool(moved or (self.perspective and self.perspective_p))

    @property
    def colors(self) -> bool:
        """Whether brightness, contrast, saturation or hue change."""
        return bool(self.brightness or self.contrast or self.saturation or self.hue or self.policy != "none")

    @property
    def mixes(self) -> bool:
        """Whether samples are mixed with each other."""
        return bool(self.mixup or self.cutmix)
