"""Layers in a few words and numbers: "3x3 128 /2 g32", and what one costs.

Layers are told by the names of their classes, which torch, `resnetlab.scratch` and timm share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules import activation

from resnetlab.models.parts import is_convolution
from resnetlab.scratch.activations import ACTIVATIONS

IDENTITY, ZERO_PADDED, NONE = "identity", "zero-padded", "none"
PREACTIVATION = "pre-activation"
_ACTIVATIONS = {name for name in activation.__all__ if not name.endswith("Attention")}
_ACTIVATIONS |= {layer.__name__ for layer in ACTIVATIONS.values()}
_NOTES = {"DropPath": "DropPath", "StochasticDepth": "DropPath", "DropBlock": "DropBlock", "DropBlock2d": "DropBlock"}
_RESHAPING = ("Flatten", "Unflatten", "Permute", "Identity", "Dropout", "Dropout1d", "Dropout2d")


class Word(NamedTuple):
    """A layer in words, and the part it plays.

    Attributes:
        text: such as "3x3 128 /2 g32".
        role: "weights", "pool", "pad", "gate" or "other" for what has a place in a path; "note" for what is said
            once at its end; "norm", "activation" and "reshape" for what goes without saying.
    """

    text: str
    role: str


GATE = Word("SE", "gate")
"""Channels scaled by a gate that is computed from them: squeeze-and-excitation."""


def is_normalization(kind: str) -> bool:
    """Whether a class of this name normalizes."""
    return "Norm" in kind


def is_activation(kind: str) -> bool:
    """Whether a class of this name is an activation function."""
    return kind in _ACTIVATIONS


def pooling(kind: str) -> str:
    """Returns "max", "average" or "global" for a pooling layer's class, and "" for any other."""
    if "Pool" not in kind:
        return ""
    if "Adaptive" in kind or "Global" in kind:
        return "global"
    return "max" if "Max" in kind else "average"


def layer_word(module: nn.Module, dimensions: int) -> Word:
    """Returns one layer in words.

    Args:
        module: a layer that holds no other.
        dimensions: of a position in what it returns: 2 for (N, C, H, W).
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
    if kind in _NOTES:
        return Word(_NOTES[kind], "note")
    if is_normalization(kind):
        return Word(kind, "norm")
    if is_activation(kind):
        return Word(kind, "activation")
    return Word(kind, "reshape" if kind in _RESHAPING else "other")


def path_words(words: Iterable[Word]) -> str:
    """Returns a path of layers in words; normalization and activations between them go without saying."""
    told = list(words)
    path = [word.text for word in told if word.role in ("weights", "pool", "pad", "gate", "other")]
    notes = [word.text for word in told if word.role == "note"]
    silent = [word.text for word in told if word.role in ("norm", "activation")]
    return ", ".join([*(path or silent or [IDENTITY]), *dict.fromkeys(notes)])


def multiply_accumulates(module: nn.Module, inputs: Tensor, outputs: Tensor) -> int:
    """Returns the products that a convolution or linear layer sums, biases left out; 0 for any other layer."""
    weight: Any = getattr(module, "weight", None)
    if is_convolution(module):
        scattered = getattr(module, "transposed", False)  # every input value meets one filter, not every output
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
    """Convolutions before a normalization need no bias, linear layers usually have one: the exception is said."""
    has_bias = getattr(module, "bias", None) is not None
    return "" if has_bias is usual else " +b" if has_bias else " -b"


def _pooling(module: Any, pool: str, dimensions: int) -> str:
    if pool == "global":
        size = _size(getattr(module, "output_size", 1), dimensions)
        return "global average" if set(size) <= set("1x") else f"pool to {size}"
    kernel = _size(module.kernel_size, dimensions)
    stride = _size(module.stride or module.kernel_size, dimensions, fold=True)
    name = "max-pool" if pool == "max" else "avg-pool"
    return f"{name} {kernel}" + (f" /{stride}" if stride not in ("1", kernel.partition("x")[0]) else "")


def _size(size: int | Sequence[int | None] | None, dimensions: int, *, fold: bool = False) -> str:
    """Returns "3x3" for 3 or (3, 3); with `fold` "3" where all are equal."""
    entries = list(size) if isinstance(size, Sequence) else [size] * max(1, dimensions)
    return str(entries[0]) if fold and len(set(entries)) == 1 else "x".join(map(str, entries))
