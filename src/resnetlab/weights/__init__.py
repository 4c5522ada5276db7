"""Networks in files: our own, and other programs'."""

from resnetlab.weights.contents import inspect_weights
from resnetlab.weights.convert import convert
from resnetlab.weights.file import load, save
from resnetlab.weights.load import create_model, load_weights
from resnetlab.weights.report import LoadReport

__all__ = ["LoadReport", "convert", "create_model", "inspect_weights", "load", "load_weights", "save"]
