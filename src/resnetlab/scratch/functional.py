"""Every function of a residual network, written in tensor operations only.

This module collects them from the files that implement them. None uses a layer of `torch.nn` or a kernel of
`torch.nn.functional`.
"""

import torch.fx

from resnetlab.scratch import activations
from resnetlab.scratch.activations import *  # noqa: F403
from resnetlab.scratch.affine import linear
from resnetlab.scratch.convolution import conv1d, conv2d
from resnetlab.scratch.initialization import he_normal_, he_uniform_, xavier_normal_, xavier_uniform_
from resnetlab.scratch.losses import cross_entropy, log_softmax, softmax
from resnetlab.scratch.normalization import batch_norm
from resnetlab.scratch.pooling import avg_pool2d, blur_pool2d, global_average_pool, max_pool2d
from resnetlab.scratch.single_image import (
    evonorm,
    filter_response_norm,
    group_norm,
    scale_and_shift,
    standardized,
    thresholded_linear,
)

__all__ = [
    "avg_pool2d",
    "batch_norm",
    "blur_pool2d",
    "conv1d",
    "conv2d",
    "cross_entropy",
    "evonorm",
    "filter_response_norm",
    "global_average_pool",
    "group_norm",
    "he_normal_",
    "he_uniform_",
    "linear",
    "log_softmax",
    "max_pool2d",
    "scale_and_shift",
    "softmax",
    "standardized",
    "thresholded_linear",
    "xavier_normal_",
    "xavier_uniform_",
]
__all__ += activations.__all__

for _name in __all__:
    if _name.islower():  # a function: torch.fx records a call of it, and does not look inside
        torch.fx.wrap(_name)
