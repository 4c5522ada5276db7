"""The random parameters of augmentation, drawn from a policy for each sample of a batch."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from resnetlab.core.framing import Framing
from resnetlab.core.randomness import Draws
from resnetlab.data.augment.policy import STRONGEST_MAGNITUDE, Augmentation

_CROP_ATTEMPTS = 10
OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "saturation",
    "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
"""The fourteen of both papers; their "color" is saturation here."""

_STRONGEST = {  # at the last step, by policy: tangents, fractions or pixels, degrees, change of a factor, bits removed
    "trivial": {"shear": 0.99, "translate": 32.0, "rotate": 135.0, "factor": 0.99, "bits": 6},
    "rand": {"shear": 0.3, "translate": 150 / 331, "rotate": 30.0, "factor": 0.9, "bits": 4},
}


@dataclass(kw_only=True)
class AugmentationParameters:
    """The parameters of N samples, one row each; `unchanged` returns parameters that change nothing.

    Attributes:
        window: float (N, 4), left, top, width and height of what is shown, in pixels of the source.
        shift: float (N, 2), by which the image moves to the right and down, in pixels of the output.
        flip: bool (N,), flipped left to right.
        vertical_flip: bool (N,), flipped upside down.
        angle: float (N,), rotation against the clock in degrees.
        shear: float (N, 2), tangents of the horizontal and the vertical shear.
        corners: float (N, 4, 2), by which the corners top left, top right, bottom right and bottom left
            move toward the center, relative to half the side.
        brightness, contrast, saturation, sharpness: float (N,), factors.
        hue: float (N,), fraction of the circle.
        equalize, autocontrast: bool (N,).
        bits: int (N,), kept by posterization, 8 for all.
        threshold: float (N,), values from it on are inverted, 256 for none.
        sigma: float (N,), of the blur in pixels, 0 for none.
        hole: int (N, 4), top, left, height and width of what is erased, in pixels.
    """

    window: np.ndarray
    shift: np.ndarray
    flip: np.ndarray
    vertical_flip: np.ndarray
    angle: np.ndarray
    shear: np.ndarray
    corners: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    saturation: np.ndarray
    hue: np.ndarray
    equalize: np.ndarray
    bits: np.ndarray
    threshold: np.ndarray
    autocontrast: np.ndarray
    sharpness: np.ndarray
    sigma: np.ndarray
    hole: np.ndarray

    def __len__(self) -> int:
        return len(self.window)

    def __getitem__(self, rows: np.ndarray | slice) -> AugmentationParameters:
        return AugmentationParameters(
            **{field.name: getattr(self, field.name)[rows] for field in dataclasses.fields(self)}
        )

    @classmethod
    def unchanged(cls, shapes: np.ndarray, framing: Framing) -> AugmentationParameters:
        """Returns the samples that show their images as evaluation does.

        Args:
            shapes: int (N, 2), heights and widths of the sources.
            framing: the part of its image that a sample shows.
        """
        count = len(shapes)
        windows = [framing.window(height, width) for height, width in shapes.tolist()]
        rows = np.array(windows, dtype=np.float64).reshape(count, 4)
        return cls(
            window=rows[:, [1, 0, 3, 2]],
            shift=np.zeros((count, 2)),
            flip=np.zeros(count, dtype=bool),
            vertical_flip=np.zeros(count, dtype=bool),
            angle=np.zeros(count),
            shear=np.zeros((count, 2)),
            corners=np.zeros((count, 4, 2)),
            brightness=np.ones(count),
            contrast=np.ones(count),
            saturation=np.ones(count),
            hue=np.zeros(count),
            equalize=np.zeros(count, dtype=bool),
            bits=np.full(count, 8),
            threshold=np.full(count, 256.0),
            autocontrast=np.zeros(count, dtype=bool),
            sharpness=np.ones(count),
            sigma=np.zeros(count),
            hole=np.zeros((count, 4), dtype=np.int64),
        )


def draw_parameters(policy: Augmentation, shapes: np.ndarray, framing: Framing, draws: Draws) -> AugmentationParameters:
    """Draws the parameters of a batch; each kind from its own stream, so that kinds are independent.

    Args:
        policy: what may be done; `flip` must be resolved.
        shapes: int (N, 2), heights and widths of the sources.
        framing: size of the output, and the part that a sample without a random crop shows.
        draws: those of this step.
    """
    count, size = len(shapes), framing.image_size
    samples = AugmentationParameters.unchanged(shapes, framing)
    shift, samples.flip = _draw_shifts(policy, count, size, draws)
    if policy.crop_scale is None:
        samples.shift = shift.astype(np.float64)
    else:
        samples.window = _resized_crops(policy.crop_scale, policy.crop_ratio, shapes, draws)
    if policy.vertical_flip:
        samples.vertical_flip = draws.stream("augment.vertical_flip").random(count) < 0.5
    if policy.rotation:
        samples.angle = _uniform(draws, "rotation", policy.rotation, count)
    if policy.shear:
        samples.shear[:, 0] = np.tan(np.radians(_uniform(draws, "shear", policy.shear, count)))
    if policy.perspective:
        chosen = draws.stream("augment.perspective_p").random(count) < policy.perspective_p
        moves = draws.stream("augment.perspective").uniform(0, policy.perspective, (count, 4, 2))
        samples.corners = np.where(chosen[:, None, None], moves, 0.0)
    for name in ("brightness", "contrast", "saturation"):
        if strength := getattr(policy, name):
            setattr(samples, name, 1 + _uniform(draws, name, strength, count))
    if policy.hue:
        samples.hue = _uniform(draws, "hue", policy.hue, count)
    samples.autocontrast = _chosen(draws, "autocontrast_p", policy.autocontrast_p, count)
    samples.sharpness = np.where(_chosen(draws, "sharpness_p", policy.sharpness_p, count), policy.sharpness, 1.0)
    sigma = draws.stream("augment.blur_sigma").uniform(*policy.blur_sigma, count)
    samples.sigma = np.where(_chosen(draws, "blur_p", policy.blur_p, count), sigma, 0.0)
    if policy.erase_p:
        samples.hole = _holes(policy, count, size, draws)
    return samples


def add_operations(samples: AugmentationParameters, policy: Augmentation, size: int, draws: Draws) -> None:
    """Draws the operations of a batch and adds them to its parameters, in place.

    "trivial" (TrivialAugment Wide, Müller and Hutter 2021) draws one operation a sample and any of the 31
    strengths; translation is in pixels, up to 32. "rand" (RandAugment, Cubuk et al. 2020) draws
    `rand_operations` of one strength; translation is relative to the side, as in torchvision. Several
    operations are done in the order of this package, not in the order drawn, and equal ones add up.
    """
    if policy.policy == "none":
        return
    count, rounds = len(samples), 1 if policy.policy == "trivial" else policy.rand_operations
    stream = draws.stream(f"augment.{policy.policy}")
    operations = stream.integers(0, len(OPERATIONS), (rounds, count))
    steps = stream.integers(0, STRONGEST_MAGNITUDE + 1, (rounds, count))
    if policy.policy == "rand":
        steps = np.full_like(steps, policy.rand_magnitude)
    signs = stream.choice([-1.0, 1.0], (rounds, count))
    for drawn, step, sign in zip(operations, steps, signs, strict=True):
        _add(samples, drawn, step / STRONGEST_MAGNITUDE, sign, policy.policy, size)


def _draw_shifts(policy: Augmentation, count: int, size: int, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    """Draws the shift to the right and down in whole pixels, int (N, 2), and which samples are flipped, bool (N,)."""
    if policy.flip == "auto":
        raise ValueError('flip must be true or false here, not "auto"')
    stream = draws.stream("augment")
    padding = round(policy.crop_padding * size)
    tops, lefts = stream.integers(0, 2 * padding + 1, size=(2, count))
    flips = (stream.random(count) < 0.5) & bool(policy.flip)
    return padding - np.stack([lefts, tops], axis=1), flips


def _resized_crops(
    scale: tuple[float, float], ratio: tuple[float, float], shapes: np.ndarray, draws: Draws
) -> np.ndarray:
    """Returns windows float (N, 4) of a random fraction of the area and a random aspect ratio, anywhere in the image.

    Where ten draws do not fit into the image, the largest window at its center whose shape is allowed
    (the rule of torchvision's RandomResizedCrop).
    """
    count = len(shapes)
    heights, widths = shapes.astype(np.float64).T
    stream = draws.stream("augment.crop")
    areas = stream.uniform(*scale, (_CROP_ATTEMPTS, count)) * heights * widths
    ratios = np.exp(stream.uniform(math.log(ratio[0]), math.log(ratio[1]), (_CROP_ATTEMPTS, count)))
    places = stream.random((2, count))
    wide, tall = np.sqrt(areas * ratios), np.sqrt(areas / ratios)
    fits = (wide <= widths) & (tall <= heights)
    first, at = fits.argmax(0), np.arange(count)
    clipped = np.clip(widths / heights, *ratio)
    fallback_width = np.minimum(widths, heights * clipped)
    found = fits.any(0)
    width = np.where(found, wide[first, at], fallback_width)
    height = np.where(found, tall[first, at], fallback_width / clipped)
    left, top = np.where(found, places, 0.5) * (widths - width, heights - height)
    return np.stack([left, top, width, height], axis=1)


def _holes(policy: Augmentation, count: int, size: int, draws: Draws) -> np.ndarray:
    """Returns rectangles int (N, 4) within the image; a draw that is larger than the image is cut to it."""
    chosen = _chosen(draws, "erase_p", policy.erase_p, count)
    stream = draws.stream("augment.erase")
    areas = stream.uniform(*policy.erase_area, count) * size * size
    low, high = policy.erase_ratio
    ratios = np.exp(stream.uniform(math.log(low), math.log(high), count))
    heights = np.clip(np.rint(np.sqrt(areas * ratios)), 1, size).astype(np.int64)
    widths = np.clip(np.rint(np.sqrt(areas / ratios)), 1, size).astype(np.int64)
    tops = np.floor(stream.random(count) * (size - heights + 1)).astype(np.int64)
    lefts = np.floor(stream.random(count) * (size - widths + 1)).astype(np.int64)
    return np.where(chosen[:, None], np.stack([tops, lefts, heights, widths], axis=1), 0)


def _uniform(draws: Draws, name: str, strength: float, count: int) -> np.ndarray:
    return draws.stream(f"augment.{name}").uniform(-strength, strength, count)


def _chosen(draws: Draws, name: str, probability: float, count: int) -> np.ndarray:
    return draws.stream(f"augment.{name}").random(count) < probability


def _add(
    samples: AugmentationParameters, drawn: np.ndarray, strength: np.ndarray, sign: np.ndarray, policy: str, size: int
) -> None:
    """Adds one operation to every sample; `strength` is 0 to 1."""
    strongest = _STRONGEST[policy]
    signed = sign * strength

    def where(name: str) -> np.ndarray:
        return drawn == OPERATIONS.index(name)

    for axis, letter in enumerate("xy"):
        samples.shear[:, axis] += np.where(where(f"shear_{letter}"), signed * strongest["shear"], 0)
        pixels = strongest["translate"] * (1 if policy == "trivial" else size)
        samples.shift[:, axis] += np.where(where(f"translate_{letter}"), signed * pixels, 0)
    samples.angle += np.where(where("rotate"), signed * strongest["rotate"], 0)
    for name in ("brightness", "saturation", "contrast", "sharpness"):
        factor = np.where(where(name), 1 + signed * strongest["factor"], 1)
        setattr(samples, name, getattr(samples, name) * factor)
    taken = np.where(where("posterize"), np.rint(strength * strongest["bits"]), 0).astype(np.int64)
    samples.bits = np.maximum(samples.bits - taken, 1)
    samples.threshold = np.where(
        where("solarize"), np.minimum(samples.threshold, 255 * (1 - strength)), samples.threshold
    )
    samples.autocontrast |= where("autocontrast")
    samples.equalize |= where("equalize")
