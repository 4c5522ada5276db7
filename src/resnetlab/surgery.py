"""Changes to a network with a known effect on its function.

`reset_head`, `adapt_input_channels`, `freeze`, `unfreeze` and `deepen` change a network in place and return it;
`without_block` and `fold_batch_norm` return a changed copy. `parameter_groups` gives each section of a network its own
learning rate, and `compound_scale` scales a configuration.
"""

from resnetlab.models.scaling import compound_scale, scaling_table
from resnetlab.models.surgery import (
    adapt_input_channels,
    deepen,
    fold_batch_norm,
    freeze,
    parameter_groups,
    reset_head,
    unfreeze,
    without_block,
)

__all__ = [
    "adapt_input_channels",
    "compound_scale",
    "deepen",
    "fold_batch_norm",
    "freeze",
    "parameter_groups",
    "reset_head",
    "scaling_table",
    "unfreeze",
    "without_block",
]
