"""One HTML file in which a trained network runs, in plain JavaScript, with its weights inside and without requests.

The program is in `templates`: `engine.js` (the network), `framing.js` (drawings and photos) and `lab.js` (the page). To
support one more layer, describe it in `_operation` and compute it in the table `OPERATIONS` of the engine.
"""

from __future__ import annotations

import base64
import copy
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resnetlab.core.errors import UserError
from resnetlab.core.files import make_folder, write_text
from resnetlab.core.html import render
from resnetlab.core.own_code import part_of
from resnetlab.core.packaged import packaged_images
from resnetlab.core.pictures import css_variables
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.runs import Run
from resnetlab.data.load import load_data, reload_data
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.forward import answer, trained_on
from resnetlab.exporting.examples import Examples, choose_examples, read_examples
from resnetlab.exporting.export import Export
from resnetlab.exporting.options import ExportOptions
from resnetlab.exporting.origin import default_folder, opened
from resnetlab.models.attention import SqueezeExcite
from resnetlab.models.blocks import ResidualBlock
from resnetlab.models.network import Network
from resnetlab.models.parts import Parts, applied_kernel, is_convolution, parts_for
from resnetlab.models.resnet import ResNet
from resnetlab.models.shortcuts import Projection, ZeroPaddedIdentity
from resnetlab.models.stochastic import DropBlock, Dropout, DropPath
from resnetlab.models.summary import summarize
from resnetlab.models.surgery import without_block
from resnetlab.weights.sources import open_weights

LIMIT = 3_000_000
"""The most bytes of a page."""
_MOST_MACS = 400e6
"""Multiply-accumulates of one image: about half a second in a browser."""
_ROUNDING = 5e-4
"""The largest change of a probability for which weights are stored in half precision."""


def write(
    source: str | Path | Run | Network, *, to: str = "html", out: Path | None = None, options: ExportOptions
) -> Export:
    """Writes a page in which the network runs: it answers images and drawings, and its blocks can be switched off.

    Args:
        source: a run, a weights file, the name of a packaged network, or a trained network.
        to: the target that was chosen.
        out: the file, which ends in .html, or the folder for model.html; default: RUN/export/, or a folder next to the
            weights file or in the working directory.
        options: its `data` is where test images come from; default: the data of the run, or the images in the package.

    Raises:
        UserError: the page cannot compute this network, it would be larger than `LIMIT` or too slow, or there are no
            test images.
    """
    run, network = opened(source)
    preprocessing, classes = trained_on(network)
    if not isinstance(network, ResNet):
        raise UserError("the page can run only networks that ResNetLab built. Export this network with --to onnx.")
    _check_cost(network, preprocessing)
    description = _Description(network)
    examples = _examples(source, network, options.data, options.data_root)
    precision, rounding = _precision(network, examples.images, preprocessing)
    values = {
        "architecture": (None if isinstance(source, Network) else open_weights(source).network) or "ResNet",
        "data": examples.data,
        "stopped": None if network.stopped_at is None else "epoch {} of {}".format(*network.stopped_at),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "classes": list(classes),
        "preprocessing": {**asdict(preprocessing), "size": preprocessing.image_size},
        "temperature": network.temperature,
        "network": description.network,
        "precision": precision,
        "kernels": _encoded(description.kernels, np.float16 if precision == "float16" else np.float32),
        "vectors": _encoded(description.vectors, np.float32),
        "images": base64.b64encode(examples.images.tobytes()).decode(),
        "labels": list(examples.labels),
        "shown": list(examples.shown),
        "wrong": _wrong(network, examples, preprocessing),
        "measured": examples.measured,
        "late": _late_block(network, examples, preprocessing),
        "drawing": _drawing(examples.images),
    }
    page = render("exporting/templates/model.html", page=values, colors=css_variables(), version=version("resnetlab"))
    size = len(page.encode())
    _check_size(size)
    path = out or default_folder(source, run)
    path = path if path.suffix == ".html" else path / "model.html"
    make_folder(path.parent)
    write_text(path, page)
    return Export(
        path=path,
        message=f"{path}: {size / 1e6:.1f} MB, weights in {precision}, with {len(examples.labels)} test images of "
        f"{examples.data}. Open it in a browser; it needs no connection.",
        record={"size": size, "precision": precision, "rounding": rounding},
    )


class _Description:
    """What the page needs to compute a network: its operations in order, and the values that they use.

    Attributes:
        network: "stem", "blocks" and "head", lists of operations, ready for JSON.
        kernels, vectors: the values of convolutions, and of normalizations and biases; operations name their places.
    """

    def __init__(self, model: ResNet) -> None:
        self.kernels: list[np.ndarray] = []
        self.vectors: list[np.ndarray] = []
        self._kit: Parts = parts_for(model.config)
        self._activation = model.config.activation
        layers = (layer for layer in model.modules() if not isinstance(layer, ResidualBlock))
        if yours := next(filter(None, map(part_of, layers)), ""):
            raise UserError(f"the page cannot compute {yours}. Export it with --to onnx.")
        sections = model.sections()
        self.network = {
            "stem": self._operations(sections["stem"]),
            "blocks": [self._block(name, block) for name, block in model.blocks()],
            "head": self._operations(sections["head"]),
        }

    def _block(self, name: str, block: nn.Module) -> dict[str, Any]:
        if not isinstance(block, ResidualBlock) or type(block).flow is not ResidualBlock.flow:
            raise UserError(f"the page cannot compute {name}: {type(block).__name__} overrides the method `flow`.")
        start = [block.get_submodule(part) for part in ("bn1", "act1")] if block.preactivation else []
        branch = [block.get_submodule(part) for names in block.steps for part in names]
        end = [] if block.preactivation else [block.last_activation]
        shortcut, first = block.downsample, block.get_submodule("conv1")
        changes = not isinstance(shortcut, nn.Identity)
        if shortcut is None:  # a plain block
            halves = any(_one(getattr(layer, "stride", 1)) > 1 for layer in branch)
            changes = halves or first.in_channels != block.last_convolution.out_channels
        return {
            "name": name,
            "start": self._operations(start),
            "branch": self._operations([*branch, *([block.se] if block.se is not None else [])]),
            "shortcut": None if shortcut is None else self._operations([shortcut]),
            "projects": isinstance(shortcut, Projection),
            "changes": changes,
            "removable": not changes or shortcut is not None,
            "end": self._operations(end),
        }

    def _operations(self, modules: Iterable[nn.Module]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for module in _leaves(modules):
            if _is_normalization(module) and found and found[-1]["op"] == "conv" and "folded" not in found[-1]:
                scale, shift = _scale_and_shift(module)
                last = found[-1]
                shift = shift + scale * self.vectors[last["shift"]]
                self.vectors[last["scale"]], self.vectors[last["shift"]] = scale, shift
                last["folded"] = True
            else:
                found += self._operation(module)
        for operation in found:
            operation.pop("folded", None)
        return found

    def _operation(self, module: nn.Module) -> list[dict[str, Any]]:
        kit = self._kit
        if isinstance(module, (nn.Identity, DropPath, DropBlock, Dropout)):
            return []
        if is_convolution(module):
            return [self._convolution(module)]
        if _is_normalization(module):
            scale, shift = _scale_and_shift(module)
            return [{"op": "affine", "scale": self._vector(scale), "shift": self._vector(shift)}]
        if isinstance(module, SqueezeExcite):
            parts = [module.pool, module.fc1, module.act, module.fc2, module.gate]
            return [{"op": "scale_by", "gate": self._operations(parts)}]
        if isinstance(module, ZeroPaddedIdentity):
            return [{"op": "pad", "stride": module.stride, "before": module.before, "after": module.after}]
        for maker, operation in ((kit.global_pool, "mean"), (kit.gate, "sigmoid")):
            if isinstance(module, maker):  # type: ignore[arg-type]  # every maker of a kit is a class or a partial
                return [{"op": operation}]
        for maker, operation in ((kit.max_pool, "max_pool"), (kit.average_pool, "average_pool")):
            if isinstance(module, maker):  # type: ignore[arg-type]
                names = ("kernel_size", "stride", "padding")
                kernel, stride, padding = (_one(getattr(module, name)) for name in names)
                rounds_up = bool(getattr(module, "ceil_mode", False))
                return [
                    {"op": operation, "kernel": kernel, "stride": stride, "padding": padding, "rounds_up": rounds_up}
                ]
        if isinstance(module, kit.linear):  # type: ignore[arg-type]
            return [self._linear(module)]
        if isinstance(module, kit.activation):  # type: ignore[arg-type]
            return [self._activated(module)]
        raise UserError(f"the page cannot compute the layer {type(module).__name__}. Export it with --to onnx.")

    def _activated(self, module: nn.Module) -> dict[str, Any]:
        operation: dict[str, Any] = {"op": self._activation}
        if self._activation == "prelu":
            operation["slope"] = self._vector(_array(module.weight))
        elif self._activation in ("leaky_relu", "elu"):
            operation["slope"] = getattr(module, "negative_slope", getattr(module, "alpha", None))
        elif self._activation not in ("relu", "silu", "gelu"):
            raise UserError(f"the page cannot compute the activation {self._activation}. Export it with --to onnx.")
        return operation

    def _convolution(self, module: nn.Module) -> dict[str, Any]:
        weight = _array(applied_kernel(module))
        bias = np.zeros(len(weight), np.float32) if module.bias is None else _array(module.bias)
        return {
            "op": "conv",
            "out": weight.shape[0],
            "in": weight.shape[1] * _one(module.groups),
            **{name: _one(getattr(module, name)) for name in ("stride", "padding", "dilation", "groups")},
            "kernel": weight.shape[2],
            "weight": self._kernel(weight),
            "scale": self._vector(np.ones(len(weight), np.float32)),
            "shift": self._vector(bias),
        }

    def _linear(self, module: nn.Module) -> dict[str, Any]:
        """A linear layer is a convolution of a single position."""
        weight = _array(module.weight)
        one = dict.fromkeys(("stride", "dilation", "groups", "kernel"), 1)
        return {
            **{"op": "conv", "out": weight.shape[0], "in": weight.shape[1], "padding": 0, **one},
            "weight": self._kernel(weight),
            "scale": self._vector(np.ones(len(weight), np.float32)),
            "shift": self._vector(_array(module.bias)),
        }

    def _kernel(self, values: np.ndarray) -> int:
        self.kernels.append(values)
        return len(self.kernels) - 1

    def _vector(self, values: np.ndarray) -> int:
        self.vectors.append(values)
        return len(self.vectors) - 1


def _leaves(modules: Iterable[nn.Module]) -> Iterable[nn.Module]:
    for module in modules:
        if isinstance(module, nn.Sequential):
            yield from _leaves(module)
        else:
            yield module


def _is_normalization(module: nn.Module) -> bool:
    return isinstance(getattr(module, "running_var", None), Tensor)


def _scale_and_shift(module: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns what a normalization multiplies each channel by, and then adds."""
    scale = _array(module.weight) / np.sqrt(_array(module.running_var) + np.float32(module.eps))
    return scale, _array(module.bias) - _array(module.running_mean) * scale


def _array(values: Any) -> np.ndarray:
    return values.detach().float().cpu().numpy()


def _one(value: Any) -> int:
    """Returns a number, or the number that is the same for both directions."""
    numbers = set(value) if isinstance(value, Sequence) else {value}
    if len(numbers) != 1 or not isinstance(number := numbers.pop(), int):
        raise UserError(f"the page supports only layers with equal stride and padding in both directions, got {value}.")
    return number


def _check_size(size: float) -> None:
    if size > LIMIT:
        raise UserError(
            f"the page would have {size / 1e6:.1f} MB, and at most {LIMIT / 1e6:.0f} MB are allowed. Train a smaller "
            "network, such as --model quick_resnet or resnet20, or use --to onnx."
        )


def _check_cost(network: ResNet, preprocessing: Preprocessing) -> None:
    """Raises `UserError` for a network that is too large or too slow, before anything is computed."""
    _check_size(sum(parameter.numel() for parameter in network.parameters()) * 2 * 4 / 3)  # base64 of half precision
    size = preprocessing.image_size
    macs = summarize(network, (preprocessing.channels, size, size)).macs
    if macs > _MOST_MACS:
        raise UserError(
            f"an answer would need {macs / 1e6:,.0f} million multiply-accumulates, too many for a page (at most "
            f"{_MOST_MACS / 1e6:.0f} million). Export a smaller network or one for smaller images, or use --to onnx."
        )


def _examples(
    source: str | Path | Run | Network,
    network: Network,
    data: str | Path | ImageData | None,
    data_root: str | Path | None,
) -> Examples:
    """Returns the images of the package, or some of the given data or of the run's own."""
    if data is None and isinstance(source, (str, Path)) and not Path(source).exists():
        inside = packaged_images(source)
        assert inside is not None  # or else the network could not be loaded
        return read_examples(inside)
    if data is None:
        if not isinstance(source, Run) and (isinstance(source, Network) or not Path(source).is_dir()):
            raise UserError("the page needs test images, and weights do not contain any. Export the run, or give data.")
        run = source if isinstance(source, Run) else Run(source)
        data = reload_data(run.settings["data"], data_root=data_root)
    elif not isinstance(data, ImageData):
        data = load_data(data, data_root=data_root, **asdict(trained_on(network)[0].framing))
    return choose_examples(network, data)


def _precision(network: ResNet, images: np.ndarray, preprocessing: Preprocessing) -> tuple[str, float]:
    """Returns the precision of the kernels in the page, and how much it changes probabilities of these images."""
    batch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    rounded = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in rounded.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.half().float())
    exact, changed = (
        (answer(model, batch, preprocessing).logits / network.temperature).double().softmax(1)
        for model in (network, rounded)
    )
    difference = float((exact - changed).abs().max())
    return ("float16", difference) if difference <= _ROUNDING else ("float32", 0.0)


def _wrong(network: ResNet, examples: Examples, preprocessing: Preprocessing) -> list[int]:
    """Returns which of the shown images are misclassified."""
    predicted = _predicted(network, examples.images, preprocessing)
    return [place for place in examples.shown if predicted[place] != examples.labels[place]]


def _late_block(network: ResNet, examples: Examples, preprocessing: Preprocessing) -> dict[str, Any] | None:
    """Returns the block in the second half whose removal costs least, and its cost in points of accuracy."""
    names = [name for name, _ in network.blocks()]
    images, labels = examples.images[: examples.measured], np.array(examples.labels[: examples.measured])
    costs = {}
    for name in names[len(names) // 2 :]:
        stage, block = (int(part.lstrip("stageblock")) for part in name.split("."))
        if network.config.shortcut != "none":
            lesioned = without_block(network, stage, block)
            costs[name] = float((_predicted(lesioned, images, preprocessing) == labels).mean())
    whole = float((_predicted(network, images, preprocessing) == labels).mean())
    best = max(reversed(costs), key=lambda name: costs[name], default=None)
    return None if best is None else {"block": best, "cost": round(100 * (whole - costs[best]), 1)}


def _predicted(network: ResNet, images: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return answer(network, batch, preprocessing).logits.argmax(1).numpy()


def _encoded(arrays: Sequence[np.ndarray], dtype: type) -> dict[str, Any]:
    """Returns arrays as one text, with the place of each."""
    ends = np.cumsum([array.size for array in arrays])
    values = np.concatenate([array.ravel() for array in arrays]).astype(dtype)
    spans = [[int(end - array.size), int(end)] for end, array in zip(ends, arrays, strict=True)]
    return {"values": base64.b64encode(values.tobytes()).decode(), "spans": spans}


def _drawing(images: np.ndarray) -> dict[str, Any] | None:
    """Returns how the page frames a drawing so that it looks like these images; None for photos, which it cannot.

    "width" and "height" are the box of a drawing as fractions of the image (95 % of the images are not larger), "fills"
    says whether all images fill its height, and "stroke" is the width of a line: an area divided by half its outline.
    """
    values = images[..., 0].astype(np.float32) / 255
    border = np.concatenate([values[:, 0], values[:, -1], values[:, :, 0], values[:, :, -1]], axis=1)
    if images.shape[3] != 1 or np.median(border) > 0.1:
        return None
    size = values.shape[1]
    seen = values > 0.25
    extents = []
    for axis in (1, 2):  # columns that have something, then rows
        places = [np.flatnonzero(line) for line in np.asarray(seen.any(axis))]
        extents.append(np.array([place[-1] - place[0] + 1 for place in places if len(place)] or [size]) / size)
    padded = np.pad(values, ((0, 0), (1, 1), (1, 1)))
    across, down = np.diff(padded, axis=2)[:, :-1], np.diff(padded, axis=1)[:, :, :-1]
    outline = np.hypot(across, down).sum((1, 2)) + 1e-6
    width, height = (float(np.percentile(extent, 95)) for extent in extents)
    return {
        "width": width,
        "height": height,
        "fills": bool(np.percentile(extents[1], 5) == height),
        "stroke": float(np.median(2 * values.sum((1, 2)) / outline)) / size,
    }
