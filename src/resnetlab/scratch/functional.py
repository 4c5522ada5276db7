"""Every function of a residual network, written in tensor operations only.

Gathered here from the files that hold one idea each: no layer of torch.nn, no kernel of
torch.nn.functional.
"""

from resnetlab.scratch.activations import elu, gelu, leaky_relu, prelu, relu, sigmoid, silu
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
    "elu",
    "gelu",
    "global_average_pool",
    "he_normal_",
    "he_uniform_",
    "leaky_relu",
    "linear",
    "log_softmax",
    "max_pool2d",
    "prelu",
    "relu",
    "sigmoid",
    "silu",
    "softmax",
    "xavier_normal_",
    "xavier_uniform_",
]
