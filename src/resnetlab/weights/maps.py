"""Names of tensors in the files of other libraries: two-way maps, with nothing left over."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from resnetlab.core.errors import UserError

COUNTERS = ".num_batches_tracked"
"""Suffix of torch's batch counters; nothing is computed from them, and older files lack them."""
_CIFAR = ((r"^fc\.", "linear."), (r"\.downsample\.", ".shortcut."))
_TIMM_PREACTIVATION = (
    (r"\bact(\d?)\.tau", r"bn\1.tau"),  # timm's FRN has the thresholds that follow it
    (r"^bn\.tau", "norm.tau"),
    (r"^conv1\.([036])\.", lambda match: f"stem.conv{int(match[1]) // 3 + 1}."),
    (r"^conv1\.([1245])\.", lambda match: f"stem.norm{(int(match[1]) - 1) // 3 + 1}."),
    (r"^conv1\.", "stem.conv."),
    (r"^layer(\d)\.(\d+)\.", lambda match: f"stages.{int(match[1]) - 1}.blocks.{match[2]}."),
    (r"\.bn(\d)\.", r".norm\1."),
    (r"\.downsample\.[01]\.", ".downsample.conv."),
    (r"^fc\.", "head.fc."),
)


@dataclass(frozen=True, kw_only=True)
class KeyMap:
    """The name of each tensor of a `ResNet` in another program's file.

    Attributes:
        form: the name of the file format in messages: "timm", "Gluon save_parameters", ...
        names: the other program's name of each of our tensors; counters are optional.
        pointwise: our names of matrices (out, in) that are 1x1 convolutions (out, in, 1, 1) there.
        vectors: our names of vectors that can have further dimensions of size 1 there, as (1, C, 1, 1).
        constants: our names of tensors whose values in the file are ignored, and the value to use instead.
        prefix: what the names of the network's tensors start with there; the file may have tensors of others.
    """

    form: str
    names: Mapping[str, str]
    pointwise: frozenset[str] = frozenset()
    vectors: frozenset[str] = frozenset()
    constants: Mapping[str, float] = field(default_factory=dict)
    prefix: str = ""

    def below(self, prefix: str) -> KeyMap:
        """Returns the map for a file in which the names of the network's tensors have a prefix."""
        return replace(self, names={ours: prefix + theirs for ours, theirs in self.names.items()}, prefix=prefix)

    def to_ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the tensors that a file has, under our names and in our shapes."""
        found = {ours: tensors[theirs] for ours, theirs in self.names.items() if theirs in tensors}
        for name in self.pointwise & found.keys():
            if found[name].ndim == 4:
                found[name] = found[name].flatten(1)
        found |= {name: found[name].flatten() for name in self.vectors & found.keys()}
        for name in self.constants.keys() & found.keys():
            found[name] = found[name].new_full((), self.constants[name]).expand(found[name].shape).contiguous()
        return found

    def to_theirs(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns our tensors under the other program's names and in its shapes.

        Raises:
            UserError: a tensor that is constant in that format has other values, which could not be written.
        """
        for name in self.constants.keys() & tensors.keys():
            if bool((tensors[name] != self.constants[name]).any()):
                raise UserError(
                    f"the format {self.form} fixes {name} at {self.constants[name]:g}, and in this network it "
                    "has other values, so the network cannot be written in this format. Export it to another "
                    "one."
                )
        shaped = {name: value[:, :, None, None] if name in self.pointwise else value for name, value in tensors.items()}
        return {theirs: shaped[ours] for ours, theirs in self.names.items() if ours in shaped}

    def leftovers(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Returns the names in a file that match none of our tensors, except counters."""
        known = set(self.names.values())
        return [name for name in tensors if name not in known and not name.endswith(COUNTERS)]


def torchvision_key_map(names: Sequence[str]) -> KeyMap:
    """Returns the map for these tensors: the names are equal."""
    return KeyMap(form="torchvision", names={name: name for name in names})


def cifar_key_map(names: Sequence[str]) -> KeyMap:
    """Returns the map to checkpoints of networks for small images, as training scripts commonly write them.

    Blocks and layers have our names; the head is `linear`, and a projection (option B) is `shortcut`. The shortcut of
    option A has no weights. The prefix `module.` and any nesting of the state dict are removed when the file is read.
    """
    return KeyMap(form="CIFAR checkpoint", names={name: _replaced(name, _CIFAR) for name in names})


def timm_key_map(names: Sequence[str]) -> KeyMap:
    """Returns the map for these tensors of a network with pre-activation.

    Its head in timm is a 1x1 convolution. All other networks of timm have torchvision's names.
    """
    renamed = {name: _replaced(name, _TIMM_PREACTIVATION) for name in names}
    return KeyMap(form="timm", names=renamed, pointwise=frozenset({"fc.weight"}) & renamed.keys())


def _replaced(name: str, patterns: Sequence[tuple[str, str | Callable[[Any], str]]]) -> str:
    for pattern, replacement in patterns:
        name = re.sub(pattern, replacement, name)
    return name
