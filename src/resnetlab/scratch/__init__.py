"""Every part of a residual network from scratch: tensor operations only, proven against torch's own.

`functional` holds the functions, `layers` the same as layers, `losses` the objective and `optim` the
optimizer. The layers and the optimizer are here by name too.
"""

from resnetlab.scratch import functional, layers, losses, optim
from resnetlab.scratch.layers import (
    ELU,
    GELU,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    GlobalAveragePool,
    LeakyReLU,
    Linear,
    MaxPool2d,
    PReLU,
    ReLU,
    Sigmoid,
    SiLU,
)
from resnetlab.scratch.losses import CrossEntropyLoss
from resnetlab.scratch.optim import SGD

__all__ = [
    "ELU",
    "GELU",
    "SGD",
    "AvgPool2d",
    "BatchNorm",
    "Conv2d",
    "CrossEntropyLoss",
    "GlobalAveragePool",
    "LeakyReLU",
    "Linear",
    "MaxPool2d",
    "PReLU",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "functional",
    "layers",
    "losses",
    "optim",
]
