"""The layers of a network in short notation, such as "3x3 128 /2 g32", with their shapes and costs.

Layers are recognized by the names of their classes, which torch, `resnetlab.scratch` and timm share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules import activation

from resnetlab.models.parts import is_convolution
from resnetlab.scratch.activations import ACTIVATIONS, Pointwise

IDENTITY, ZERO_PADDED, NONE = "identity", "zero-padded", "none"
PREACTIVATION = "pre-activation"
_ACTIVATIONS = {name for name in activation.__all__ if not name.endswith("Attention")}
_ACTIVATIONS |= {getattr(layer, "__name__", "") for layer in ACTIVATIONS.values()}
_ACTIVATIONS |= {Pointwise.__name__, "ThresholdedLinear", "EvoNorm"}
_NOTES = {"DropPath": "DropPath", "StochasticDepth": "DropPath", "DropBlock": "DropBlock", "DropBlock2d": "DropBlock"}
_RESHAPING = ("Flatten", "Unflatten", "Permute", "Identity", "Dropout", "Dropout1d", "Dropout2d")


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One call of one module of a network: a convolution, a block, a stage.

    Attributes:
        name: the module's name in the network.
        kind: its class.
        depth: 1 for a module that the network calls, 2 for a module that this one calls, and so on.
        is_leaf: whether it contains no other module.
        is_container: whether it only runs blocks one after the other, as a stage does.
        input_shape: shape of its first input tensor, with N = 1; () if it has none.
        output_shape: shape of its first output tensor.
        computes: short notation: "3x3 128 /2 g32" for a convolution; for a block its branch, "1x1 64, 3x3 64, 1x1 256".
        shortcut: what a block adds to its branch: "identity", "1x1 256 /2", "zero-padded", "avg-pool 2x2, 1x1 256", or
            "none" for a plain block; "" for anything that is not a block.
        ways: every layer of a block, in order; None for anything that is not a block or has several sums.
        order: "pre-activation" for a block that activates before its first convolution; "then ReLU" for a block whose
            sum is followed by a ReLU; otherwise "".
        weighted: convolutions and linear layers on its main path: the branch of a block, without projections and gates.
            0 for a stage.
        projections: convolutions on its shortcuts.
        parameters: trainable parameters that it contains.
        fixed: values that it contains and that are saved but not trained: running statistics, frozen parameters.
        macs: multiply-accumulates of the convolutions and linear layers that it contains, for one image.
        activation_bytes: memory of the outputs computed in it; see `Architecture`.
    """

    name: str
    kind: str
    depth: int
    is_leaf: bool
    is_container: bool
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    computes: str
    shortcut: str
    ways: Ways | None
    order: str
    weighted: int
    projections: int
    parameters: int
    fixed: int
    macs: int
    activation_bytes: int

    @property
    def flops(self) -> int:
        """Floating-point operations: two per multiply-accumulate, one multiplication and one addition."""
        return 2 * self.macs


@dataclass(frozen=True, kw_only=True, repr=False)
class Architecture:
    """The layers of a network with their shapes and costs, and the totals.

    Attributes:
        model: name of the network; by default its class.
        input_shape: (C, H, W).
        output_shape: shape of the output for one image, with N = 1.
        layers: every call of a module, in the order in which the calls return, so that a parent follows its children. A
            module that is called twice is listed twice.
        parameters: trainable parameters, each counted once.
        fixed: values that are saved with the network but not trained: running statistics, frozen parameters.
        macs: multiply-accumulates of convolutions and linear layers for one image, without biases, normalizations and
            activations. He et al. call this number FLOPs.
        activation_bytes: memory in float32 of the outputs of all modules for one image. Training needs about this much
            for each image of a batch, because the backward pass reads it. Outputs that share memory (of an identity, an
            in-place activation or a flattening) count once. Tensors computed between modules and passed on at once,
            such as a sum before its activation, do not count.
    """

    model: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    parameters: int
    fixed: int
    macs: int
    activation_bytes: int

    @property
    def flops(self) -> int:
        """Floating-point operations of the same layers: two per multiply-accumulate."""
        return 2 * self.macs


class Word(NamedTuple):
    """A layer in short notation, and its role in a path.

    Attributes:
        text: the notation, such as "3x3 128 /2 g32".
        role: "weights", "pool", "pad", "gate" or "other" for a layer that is always shown; "note" for a layer that is
            mentioned once at the end of a path; "norm", "activation" or "reshape" for a layer that is usually omitted.
        name: the module's name in the network; "" for an operation that is not a module.
    """

    text: str
    role: str
    name: str = ""


class Ways(NamedTuple):
    """Every layer of a block in order, with normalizations and activations.

    Attributes:
        before: from the block's input to the point where branch and shortcut separate.
        branch: from there to the sum; in a block without a sum, the whole block.
        shortcut: from there to the sum, empty for the identity; None in a block without a sum.
        after: from the sum to the block's output.
    """

    before: tuple[Word, ...]
    branch: tuple[Word, ...]
    shortcut: tuple[Word, ...] | None
    after: tuple[Word, ...]


def gate_word(module: nn.Module) -> Word:
    """Returns the word for channels scaled by a gate that a module computes from them."""
    return Word("ECA" if type(module).__name__.startswith(("Efficient", "Eca")) else "SE", "gate")


def is_normalization(kind: str) -> bool:
    """Whether a class of this name normalizes."""
    return "Norm" in kind


def is_activation(kind: str) -> bool:
    """Whether a class of this name is an activation function."""
    return kind in _ACTIVATIONS or kind in {getattr(ACTIVATIONS[name], "__name__", "") for name in ACTIVATIONS.added}


def pooling(kind: str) -> str:
    """Returns "max", "average" or "global" for a pooling layer's class, and "" for any other."""
    if "Pool" not in kind:
        return ""
    if "Adaptive" in kind or "Global" in kind:
        return "global"
    return "max" if "Max" in kind else "average"


def layer_word(module: nn.Module, dimensions: int) -> Word:
    """Returns one layer in short notation.

    Args:
        module: a layer that contains no other module.
        dimensions: spatial dimensions of its output: 2 for (N, C, H, W).
    """
    kind = type(module).__name__
    weight = getattr(module, "weight", None)
    if is_convolution(module):
        return Word(_convolution(module, dimensions), "weights")
    if isinstance(weight, Tensor) and hasattr(module, "out_features"):
        return Word(f"linear {module.out_features}{_bias_unless(module, True)}", "weights")
    if pool := pooling(kind):
        return Word(_pooling(module, pool, dimensions), "pool")
    if kind == "ZeroPaddedIdentity":
        return Word(ZERO_PADDED, "pad")
    if kind == "ZeroPadding":
        return Word("pad 1", "pad")
    if kind in _NOTES:
        return Word(_NOTES[kind], "note")
    if is_activation(kind):
        return Word(kind, "activation")
    if is_normalization(kind) or kind == "ScaleAndShift":
        return Word(kind, "norm")
    return Word(kind, "reshape" if kind in _RESHAPING else "other")


def path_words(words: Iterable[Word]) -> str:
    """Returns a path of layers in short notation, without the normalizations and activations between them."""
    words = list(words)
    path = [word.text for word in words if word.role in ("weights", "pool", "pad", "gate", "other")]
    notes = [word.text for word in words if word.role == "note"]
    silent = [word.text for word in words if word.role in ("norm", "activation")]
    return ", ".join([*(path or silent or [IDENTITY]), *dict.fromkeys(notes)])


def multiply_accumulates(module: nn.Module, inputs: Tensor, outputs: Tensor) -> int:
    """Returns the multiply-accumulates of a convolution or linear layer, without its bias; 0 for any other layer."""
    weight: Any = getattr(module, "weight", None)
    if is_convolution(module):
        scattered = getattr(module, "transposed", False)  # each input value, not each output value, uses one filter
        return (inputs if scattered else outputs).numel() * math.prod(weight.shape[1:])
    if isinstance(weight, Tensor) and hasattr(module, "out_features"):
        return outputs.numel() * weight.shape[-1]
    return 0


def _convolution(module: Any, dimensions: int) -> str:
    channels = module.out_channels if hasattr(module, "out_channels") else module.weight.shape[0]
    words = [_size(module.kernel_size, dimensions), str(channels)]
    if (stride := _size(module.stride, dimensions, fold=True)) != "1":
        words.append(f"/{stride}")
    if getattr(module, "groups", 1) != 1:
        words.append(f"g{module.groups}")
    if (dilation := _size(getattr(module, "dilation", 1), dimensions, fold=True)) != "1":
        words.append(f"dilation {dilation}")
    if getattr(module, "transposed", False):
        words.insert(0, "transposed")
    return " ".join(words) + _bias_unless(module, False)


def _bias_unless(module: nn.Module, usual: bool) -> str:
    """Returns " +b" or " -b" if a layer has a bias and usually has none, or the reverse."""
    has_bias = getattr(module, "bias", None) is not None
    return "" if has_bias is usual else " +b" if has_bias else " -b"


def _pooling(module: Any, pool: str, dimensions: int) -> str:
    if pool == "global":
        size = _size(getattr(module, "output_size", 1), dimensions)
        return "global average" if set(size) <= set("1x") else f"pool to {size}"
    kernel = _size(module.kernel_size, dimensions)
    stride = _size(module.stride or module.kernel_size, dimensions, fold=True)
    name = "blur" if "Blur" in type(module).__name__ else "max-pool" if pool == "max" else "avg-pool"
    return f"{name} {kernel}" + (f" /{stride}" if stride not in ("1", kernel.partition("x")[0]) else "")


def _size(size: int | Sequence[int | None] | None, dimensions: int, *, fold: bool = False) -> str:
    """Returns "3x3" for 3 or (3, 3), or "3" with `fold` if all entries are equal."""
    entries = list(size) if isinstance(size, Sequence) else [size] * max(1, dimensions)
    return str(entries[0]) if fold and len(set(entries)) == 1 else "x".join(map(str, entries))
