"""What a network is made of, as a table, a trace or a picture, found out without running it.

`tracing` follows one forward pass on the meta device, `ways` tells branch from shortcut, `words` names the layers;
`table`, `styles` and `drawing` show what was found.
"""

from resnetlab.models.summary.summary import STYLES, Summary, blueprint, count, summarize
from resnetlab.models.summary.tracing import Layer

__all__ = ["STYLES", "Layer", "Summary", "blueprint", "count", "summarize"]
