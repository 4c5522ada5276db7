"""Networks in files: `save` and `load`."""

from resnetlab.weights.file import load, save

__all__ = ["load", "save"]
