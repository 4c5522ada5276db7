"""What every form of foreign weights comes down to: a two-way map of names, with nothing left over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from resnetlab.core.errors import UserError

COUNTERS = ".num_batches_tracked"
"""How the names of torch's counters of batches end; nothing is computed from them, and older files have none."""


@dataclass(frozen=True, kw_only=True)
class KeyMap:
    """Where each tensor of one of our networks is in another program's file.

    Attributes:
        form: the form of the file, as messages call it: "timm", "Gluon save_parameters", ...
        names: the other program's name of each of our tensors. Counters may be left out.
        pointwise: our names of matrices (out, in) that are 1x1 convolutions (out, in, 1, 1) there.
        constants: our names of tensors whose values there are ignored, and the value that they have instead.
    """

    form: str
    names: Mapping[str, str]
    pointwise: frozenset[str] = frozenset()
    constants: Mapping[str, float] = field(default_factory=dict)

    def to_ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the tensors of a file under our names and in our shapes, as far as the file has them."""
        found = {ours: tensors[theirs] for ours, theirs in self.names.items() if theirs in tensors}
        for name in self.pointwise & found.keys():
            if found[name].ndim == 4:
                found[name] = found[name].flatten(1)
        for name in self.constants.keys() & found.keys():
            found[name] = found[name].new_full((), self.constants[name]).expand(found[name].shape).contiguous()
        return found

    def to_theirs(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns tensors of ours under the other program's names and in its shapes.

        Raises:
            UserError: a tensor that is constant there has other values here, which could not be written.
        """
        for name in self.constants.keys() & tensors.keys():
            if bool((tensors[name] != self.constants[name]).any()):
                raise UserError(
                    f"{name} is {self.constants[name]:g} whatever a file of the form {self.form} says, and training "
                    "gave it other values here, so the network cannot be written in this form. Keep a file of ours."
                )
        shaped = {name: value[:, :, None, None] if name in self.pointwise else value for name, value in tensors.items()}
        return {theirs: shaped[ours] for ours, theirs in self.names.items() if ours in shaped}

    def leftovers(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Returns the names in a file that belong to no tensor of ours; counters are none of them."""
        known = set(self.names.values())
        return [name for name in tensors if name not in known and not name.endswith(COUNTERS)]
