"""What loading weights did, tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

LOADED, ADAPTED, REINITIALIZED, IGNORED = "loaded", "adapted", "re-initialized", "ignored"


@dataclass(frozen=True)
class LoadedTensor:
    """What became of one tensor.

    Attributes:
        name: ours, or the file's where it is ignored.
        status: "loaded", "adapted", "re-initialized" or "ignored".
        here: its shape in the network, or None.
        there: its shape in the file, or None.
        why: the reason, for all but the loaded.
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
        rows: every tensor of the network, then those of the file that it has no use for.
    """

    source: str
    form: str
    rows: tuple[LoadedTensor, ...]

    @property
    def loaded(self) -> list[str]:
        """Names of the tensors that were taken as they are."""
        return self._names(LOADED)

    @property
    def adapted(self) -> list[str]:
        """Names of the tensors that were fitted to the network's input channels."""
        return self._names(ADAPTED)

    @property
    def reinitialized(self) -> list[str]:
        """Names of the network's tensors that begin anew."""
        return self._names(REINITIALIZED)

    @property
    def ignored(self) -> list[str]:
        """What the file holds beside the network's tensors."""
        return self._names(IGNORED)

    @property
    def table(self) -> pd.DataFrame:
        """A row a tensor: name, status, shape here, shape there, why."""
        import pandas as pd  # slow to import, and not needed to load a network

        return pd.DataFrame([vars(row) for row in self.rows], columns=["name", "status", "here", "there", "why"])

    def __str__(self) -> str:
        """Returns the counts, and a line for everything but what was simply loaded."""
        counts = [(len(self._names(status)), status) for status in (LOADED, ADAPTED, REINITIALIZED, IGNORED)]
        head = f"{self.source} ({self.form}): " + ", ".join(f"{number} {status}" for number, status in counts if number)
        told = [row for row in self.rows if row.status != LOADED]
        width = max((len(row.name) for row in told), default=0)
        return "\n".join([head, *(f"  {row.name:<{width}}  {row.status:<14}  {row.why}" for row in told)])

    def _names(self, status: str) -> list[str]:
        return [row.name for row in self.rows if row.status == status]


def listed(title: str, lines: Sequence[str]) -> str:
    """Returns a title and all lines below it, or nothing where there are none."""
    return "".join([f"\n{title}:", *(f"\n  {line}" for line in lines)]) if lines else ""
