"""The architecture of a network as a table, a trace of shapes or a picture, found without running the network.

`tracing` follows one forward pass on the meta device, whose tensors have `shapes` but no memory. `layers` describes
each layer, `outline` groups them into blocks, and `table`, `styles` and `drawing` show them.
"""

from resnetlab.models.summary.layers import Layer
from resnetlab.models.summary.summary import STYLES, Summary, blueprint, count, summarize

__all__ = ["STYLES", "Layer", "Summary", "blueprint", "count", "summarize"]
