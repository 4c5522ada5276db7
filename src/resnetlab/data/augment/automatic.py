"""TrivialAugment and RandAugment: operations drawn from a list, with strengths from a scale of 31 steps."""

from __future__ import annotations

import numpy as np

from resnetlab.core.randomness import Draws
from resnetlab.data.augment.parameters import Samples
from resnetlab.data.augment.policy import Augmentation

_STEPS = 30  # the strongest of 31 magnitudes, from 0
OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "saturation",
    "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
"""The fourteen of both papers; their "color" is saturation here."""

_STRONGEST = {  # at the last step, by policy: tangents, shares or pixels, degrees, change of a factor, bits taken
    "trivial": {"shear": 0.99, "translate": 32.0, "rotate": 135.0, "factor": 0.99, "bits": 6},
    "rand": {"shear": 0.3, "translate": 150 / 331, "rotate": 30.0, "factor": 0.9, "bits": 4},
}


def add_operations(samples: Samples, policy: Augmentation, size: int, draws: Draws) -> None:
    """Draws the operations of a batch and adds them to its parameters, in place.

    "trivial" (TrivialAugment Wide, Müller and Hutter 2021) draws one operation a sample and any of the 31
    strengths; translation is in pixels, up to 32. "rand" (RandAugment, Cubuk et al. 2020) draws
    `rand_operations` of one strength; translation is a share of the side, as in torchvision. Several
    operations are done in the order of this package, not in the order drawn, and equal ones add up.
    """
    if policy.policy == "none":
        return
    count, rounds = len(samples), 1 if policy.policy == "trivial" else policy.rand_operations
    stream = draws.stream(f"augment.{policy.policy}")
    operations = stream.integers(0, len(OPERATIONS), (rounds, count))
    steps = stream.integers(0, _STEPS + 1, (rounds, count))
    if policy.policy == "rand":
        steps = np.full_like(steps, policy.rand_magnitude)
    signs = stream.choice([-1.0, 1.0], (rounds, count))
    for drawn, step, sign in zip(operations, steps, signs, strict=True):
        _add(samples, drawn, step / _STEPS, sign, policy.policy, size)


def _add(samples: Samples, drawn: np.ndarray, strength: np.ndarray, sign: np.ndarray, policy: str, size: int) -> None:
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
