"""Every part of a residual network from scratch: tensor operations only, tested against torch's own.

`functional` has the functions, `layers` the same as layers, `losses` the objective and `optim` the optimizer. You can
also import the layers and the optimizer from here.
"""

from resnetlab.scratch import functional, layers, losses, optim
from resnetlab.scratch.layers import *  # noqa: F403
from resnetlab.scratch.optim import SGD

__all__ = ["SGD", "functional", "layers", "losses", "optim"]
__all__ += layers.__all__
