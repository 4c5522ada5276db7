"""`LoadReport`: what loading weights did, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

LOADED, ADAPTED, REINITIALIZED, IGNORED = "loaded", "adapted", "re-initialized", "ignored"


@dataclass(frozen=True)
class LoadedTensor:
    """What happened to one tensor.

    Attributes:
        name: in the network, or in the file if the tensor is ignored.
        status: "loaded", "adapted", "re-initialized" or "ignored".
        here: its shape in the network, or None.
        there: its shape in the file, or None.
        why: the reason, unless it was simply loaded.
    """

    name: str
    status: str
    here: tuple[int, ...] | None
    there: tuple[int, ...] | None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What `load_weights` did.

    Attributes:
        source: where the weights came from.
        form: the form in which they were written.
        rows: every tensor of the network, then those that only the file has.
        key_map: names of the network's tensors by their names in the file.
    """

    source: str
    form: str
    rows: tuple[LoadedTensor, ...]
    key_map: Mapping[str, str] = field(default_factory=dict)

    @property
    def loaded(self) -> list[str]:
        """Names of the tensors that were loaded unchanged."""
        return self._names(LOADED)

    @property
    def adapted(self) -> list[str]:
        """Names of the kernels that were adapted to the network's input channels."""
        return self._names(ADAPTED)

    @property
    def reinitialized(self) -> list[str]:
        """Names of the network's tensors that were re-initialized."""
        return self._names(REINITIALIZED)

    @property
    def ignored(self) -> list[str]:
        """What the file contains in addition to the network's tensors."""
        return self._names(IGNORED)

    @property
    def table(self) -> pd.DataFrame:
        """One row per tensor: name, status, shape in the network (here), shape in the file (there), why."""
        import pandas as pd  # slow to import, and not needed to load a network

        return pd.DataFrame([vars(row) for row in self.rows], columns=["name", "status", "here", "there", "why"])

    def __str__(self) -> str:
        """Returns the counts, and one line for each tensor that was not simply loaded."""
        counts = [(len(self._names(status)), status) for status in (LOADED, ADAPTED, REINITIALIZED, IGNORED)]
        head = f"{self.source} ({self.form}): " + ", ".join(f"{number} {status}" for number, status in counts if number)
        shown = [row for row in self.rows if row.status != LOADED]
        width = max((len(row.name) for row in shown), default=0)
        return "\n".join([head, *(f"  {row.name:<{width}}  {row.status:<14}  {row.why}" for row in shown)])

    def _names(self, status: str) -> list[str]:
        return [row.name for row in self.rows if row.status == status]


def collapsed(names: Sequence[str], others: Sequence[str], prefix: str = "") -> list[str]:
    """Returns names in few lines: "layer4.* (30)" stands for all names that start so, if no other name does."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(prefix + name[len(prefix) :].partition(".")[0], []).append(name)
    lines = []
    for start, group in groups.items():
        below = f"{start}."
        if len(group) == 1:
            lines += group
        elif any(name.startswith(below) for name in others):
            lines += collapsed(group, others, below)
        else:
            lines.append(f"{below}* ({len(group)})")
    return lines


def listed(title: str, lines: Sequence[str]) -> str:
    """Returns a title and all lines below it; empty without lines."""
    return "".join([f"\n{title}:", *(f"\n  {line}" for line in lines)]) if lines else ""
