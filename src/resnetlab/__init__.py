"""ResNetLab: build, train, understand and ship residual networks.

The public names are imported on first use (PEP 562), so that `import resnetlab` and
`resnetlab --help` cost no import of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnetlab import scratch, studies, weights
    from resnetlab.core.runs import Run
    from resnetlab.data.load import load_data
    from resnetlab.evaluation.evaluate import evaluate
    from resnetlab.evaluation.predict import predict
    from resnetlab.models.blocks import register_block
    from resnetlab.models.catalog import list_models
    from resnetlab.models.config import ResNetConfig
    from resnetlab.models.resnet import ResNet
    from resnetlab.models.summary import summarize
    from resnetlab.report.page import write_report
    from resnetlab.training.fit import fit, resume
    from resnetlab.training.recipe import Recipe
    from resnetlab.weights.file import load
    from resnetlab.weights.load import create_model, load_weights

__version__ = "0.1.0"

_PUBLIC = {
    "ResNet": "resnetlab.models.resnet",
    "ResNetConfig": "resnetlab.models.config",
    "create_model": "resnetlab.weights.load",
    "list_models": "resnetlab.models.catalog",
    "register_block": "resnetlab.models.blocks",
    "summarize": "resnetlab.models.summary",
    "load_data": "resnetlab.data.load",
    "Recipe": "resnetlab.training.recipe",
    "fit": "resnetlab.training.fit",
    "resume": "resnetlab.training.fit",
    "Run": "resnetlab.core.runs",
    "evaluate": "resnetlab.evaluation.evaluate",
    "predict": "resnetlab.evaluation.predict",
    "load": "resnetlab.weights.file",
    "load_weights": "resnetlab.weights.load",
    "write_report": "resnetlab.report.page",
}
_SUBMODULES = ("scratch", "studies", "weights")

__all__ = [
    "Recipe",
    "ResNet",
    "ResNetConfig",
    "Run",
    "create_model",
    "evaluate",
    "fit",
    "list_models",
    "load",
    "load_data",
    "load_weights",
    "predict",
    "register_block",
    "resume",
    "scratch",
    "studies",
    "summarize",
    "weights",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
    elif name in _SUBMODULES:
        value = importlib.import_module(f"resnetlab.{name}")
    else:
        raise AttributeError(f"module 'resnetlab' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
