"""Every function of a residual network, written in tensor operations only.

This module collects them from the files that implement them. None uses a layer of `torch.nn` or a kernel of
`torch.nn.functional`.
"""

from resnetlab.scratch import activations
from resnetlab.scratch.activations import *  # noqa: F403
from resnetlab.scratch.affine import linear
from resnetlab.scratch.convolution import conv2d
from resnetlab.scratch.initialization import he_normal_, he_uniform_, xavier_normal_, xavier_uniform_
from resnetlab.scratch.losses import cross_entropy, log_softmax, softmax
from resnetlab.scratch.normalization import batch_norm
from resnetlab.scratch.pooling import avg_pool2d, global_average_pool, max_pool2d

__all__ = [
    "avg_pool2d",
    "batch_norm",
    "conv2d",
    "cross_entropy",
    "global_average_pool",
    "he_normal_",
    "he_uniform_",
    "linear",
    "log_softmax",
    "max_pool2d",
    "softmax",
    "xavier_normal_",
    "xavier_uniform_",
]
__all__ += activations.__all__
