"""ResNetLab: build, train, understand and ship residual networks.

The public names are imported on first use (PEP 562), so that `import resnetlab` and
`resnetlab --help` do not import torch.
"""

import sys

# `python -m resnetlab` searches the working directory first, where a file such as numpy.py would be executed.
# No module that such a file could replace is imported before this.
if (
    sys.argv[:1] == ["-m"]
    and sys.orig_argv[-len(sys.argv)].removeprefix("-m").partition(".")[0] == __name__
    and not sys.flags.safe_path
):
    del sys.path[0]

import os

# From version 1.29, ONNX Runtime reports the names and hashes of models to its maker unless this is set before its
# import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# `typing` and `importlib` are not imported here: they would take most of the time before the program can answer Ctrl-C.
# Type checkers know this name.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from resnetlab import scratch, studies, surgery, weights
    from resnetlab.core.errors import Interrupted, UserError
    from resnetlab.core.runs import Run
    from resnetlab.data.augment import Augmentation
    from resnetlab.data.inspection.inspect import inspect_data
    from resnetlab.data.load import load_data, pack
    from resnetlab.evaluation.attention import class_activation, grad_cam, occlusion
    from resnetlab.evaluation.diagnostics import diagnose
    from resnetlab.evaluation.embeddings import embedding_map
    from resnetlab.evaluation.evaluate import evaluate
    from resnetlab.evaluation.neighbors import neighbors
    from resnetlab.evaluation.predict import predict
    from resnetlab.exporting.export import export
    from resnetlab.lessons.answer import check
    from resnetlab.lessons.learn import learn
    from resnetlab.models.blocks import Convolution, ResidualBlock, register_block
    from resnetlab.models.catalog import list_models
    from resnetlab.models.config import ResNetConfig
    from resnetlab.models.resnet import ResNet, block
    from resnetlab.models.summary import summarize
    from resnetlab.report.comparison.compare import compare, differences
    from resnetlab.report.comparison.curves import draw_comparison
    from resnetlab.report.comparison.groups import compare_seeds
    from resnetlab.report.comparison.images import compare_answers, compare_classes, disagreements
    from resnetlab.report.page import write_report
    from resnetlab.serving.serve import serve
    from resnetlab.training.fit import fit, resume
    from resnetlab.training.lr_finder import find_lr
    from resnetlab.training.many import fit_grid
    from resnetlab.training.overfit import overfit_one_batch
    from resnetlab.training.recipe import Recipe
    from resnetlab.training.registration import import_parts, register, unregister
    from resnetlab.weights.convert import convert
    from resnetlab.weights.file import load, save
    from resnetlab.weights.load import create_model, load_weights

__version__ = "0.1.0"

_PUBLIC = {
    "Augmentation": "resnetlab.data.augment",
    "Convolution": "resnetlab.models.blocks",
    "Interrupted": "resnetlab.core.errors",
    "Recipe": "resnetlab.training.recipe",
    "ResNet": "resnetlab.models.resnet",
    "ResNetConfig": "resnetlab.models.config",
    "ResidualBlock": "resnetlab.models.blocks",
    "Run": "resnetlab.core.runs",
    "UserError": "resnetlab.core.errors",
    "block": "resnetlab.models.resnet",
    "check": "resnetlab.lessons.answer",
    "class_activation": "resnetlab.evaluation.attention",
    "compare": "resnetlab.report.comparison.compare",
    "compare_answers": "resnetlab.report.comparison.images",
    "compare_classes": "resnetlab.report.comparison.images",
    "compare_seeds": "resnetlab.report.comparison.groups",
    "convert": "resnetlab.weights.convert",
    "create_model": "resnetlab.weights.load",
    "diagnose": "resnetlab.evaluation.diagnostics",
    "differences": "resnetlab.report.comparison.compare",
    "disagreements": "resnetlab.report.comparison.images",
    "draw_comparison": "resnetlab.report.comparison.curves",
    "embedding_map": "resnetlab.evaluation.embeddings",
    "evaluate": "resnetlab.evaluation.evaluate",
    "export": "resnetlab.exporting.export",
    "find_lr": "resnetlab.training.lr_finder",
    "fit": "resnetlab.training.fit",
    "fit_grid": "resnetlab.training.many",
    "grad_cam": "resnetlab.evaluation.attention",
    "import_parts": "resnetlab.training.registration",
    "inspect_data": "resnetlab.data.inspection.inspect",
    "learn": "resnetlab.lessons.learn",
    "list_models": "resnetlab.models.catalog",
    "load": "resnetlab.weights.file",
    "load_data": "resnetlab.data.load",
    "load_weights": "resnetlab.weights.load",
    "neighbors": "resnetlab.evaluation.neighbors",
    "occlusion": "resnetlab.evaluation.attention",
    "overfit_one_batch": "resnetlab.training.overfit",
    "pack": "resnetlab.data.load",
    "predict": "resnetlab.evaluation.predict",
    "register": "resnetlab.training.registration",
    "register_block": "resnetlab.models.blocks",
    "resume": "resnetlab.training.fit",
    "save": "resnetlab.weights.file",
    "serve": "resnetlab.serving.serve",
    "summarize": "resnetlab.models.summary",
    "unregister": "resnetlab.training.registration",
    "write_report": "resnetlab.report.page",
}
_SUBMODULES = ("scratch", "studies", "surgery", "weights")

__all__ = [
    "Augmentation",
    "Convolution",
    "Interrupted",
    "Recipe",
    "ResNet",
    "ResNetConfig",
    "ResidualBlock",
    "Run",
    "UserError",
    "block",
    "check",
    "class_activation",
    "compare",
    "compare_answers",
    "compare_classes",
    "compare_seeds",
    "convert",
    "create_model",
    "diagnose",
    "differences",
    "disagreements",
    "draw_comparison",
    "embedding_map",
    "evaluate",
    "export",
    "find_lr",
    "fit",
    "fit_grid",
    "grad_cam",
    "import_parts",
    "inspect_data",
    "learn",
    "list_models",
    "load",
    "load_data",
    "load_weights",
    "neighbors",
    "occlusion",
    "overfit_one_batch",
    "pack",
    "predict",
    "register",
    "register_block",
    "resume",
    "save",
    "scratch",
    "serve",
    "studies",
    "summarize",
    "surgery",
    "unregister",
    "weights",
    "write_report",
]


def __getattr__(name: str) -> "Any":
    import importlib

    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
    elif name in _SUBMODULES:
        value = importlib.import_module(f"resnetlab.{name}")
    else:
        build = f". To build a network: resnetlab.create_model({name!r})" if "resnet" in name.lower() else ""
        raise AttributeError(f"module 'resnetlab' has no attribute {name!r}{build}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
