"""`KeyMap`: a two-way map between our tensor names and those of another program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from resnetlab.core.errors import UserError

COUNTERS = ".num_batches_tracked"
"""Suffix of torch's batch counters; nothing is computed from them, and older files lack them."""


@dataclass(frozen=True, kw_only=True)
class KeyMap:
    """The name of each tensor of a `ResNet` in another program's file.

    Attributes:
        form: the name of the file format in messages: "timm", "Gluon save_parameters", ...
        names: the other program's name of each of our tensors; counters are optional.
        pointwise: our names of matrices (out, in) that are 1x1 convolutions (out, in, 1, 1) there.
        constants: our names of tensors whose values in the file are ignored, and the value to use instead.
    """

    form: str
    names: Mapping[str, str]
    pointwise: frozenset[str] = frozenset()
    constants: Mapping[str, float] = field(default_factory=dict)

    def to_ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the tensors that a file has, under our names and in our shapes."""
        found = {ours: tensors[theirs] for ours, theirs in self.names.items() if theirs in tensors}
        for name in self.pointwise & found.keys():
            if found[name].ndim == 4:
                found[name] = found[name].flatten(1)
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
                    f"{name} is always {self.constants[name]:g} in the format {self.form}, and training changed it, "
                    "so the network cannot be written in this format. Export it to another one."
                )
        shaped = {name: value[:, :, None, None] if name in self.pointwise else value for name, value in tensors.items()}
        return {theirs: shaped[ours] for ours, theirs in self.names.items() if ours in shaped}

    def leftovers(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Returns the names in a file that match none of our tensors, except counters."""
        known = set(self.names.values())
        return [name for name in tensors if name not in known and not name.endswith(COUNTERS)]
