"""Augmentation of a whole batch at once, on the device that the batch is on.

The order is fixed. Geometry: crop, flip, rotation, shear, perspective, composed into one warp, so that a
sample is resampled once, whatever the policy; pixels that a rotation or a shift uncovers come from the
photo as far as it reaches, and only beyond it from the fill. Color: brightness, contrast, saturation,
hue, composed into one affine map of the channels with one clamp. Then equalization, posterization,
solarization, autocontrast, sharpness, blur, erasing, mixup and cutmix.
"""

from resnetlab.data.augment.pipeline import augment
from resnetlab.data.augment.policy import Augmentation

__all__ = ["Augmentation", "augment"]
