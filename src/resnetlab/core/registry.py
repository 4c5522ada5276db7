"""The parts that a configuration names, in one form for all kinds: a name, a callable and its docstring.

A registry is read like a dict. You can add parts of your own and remove them; built-in parts stay what they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from resnetlab.core.errors import UserError, brief, unknown

_NAME = re.compile(r"[A-Za-z_][\w.-]*")


class Registry(Mapping[str, Any]):
    """The parts of one kind by name.

    Args:
        kind: what they are, such as "activation".
        parts: the built-in parts.
        prepare: returns what the registry stores for a part of yours, given its name and the part; raises `UserError`
            if the part cannot be used.
    """

    def __init__(
        self, kind: str, parts: Mapping[str, Any], *, prepare: Callable[[str, Any], Any] | None = None
    ) -> None:
        self.kind = kind
        self._parts, self._added = dict(parts), dict[str, Any]()
        self._prepare = prepare

    def __getitem__(self, name: str) -> Any:
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def added(self) -> tuple[str, ...]:
        """The names of your own parts."""
        return tuple(self._added)

    def describe(self, name: str) -> str:
        """Returns the first line of a part's docstring, or ""."""
        part = self._added.get(name, self._parts[name])
        return (getattr(part, "__doc__", None) or "").strip().partition("\n")[0]

    def add(self, name: str, part: Any) -> None:
        """Registers a part of yours.

        If you define the same class or function again, for example by running a notebook cell twice, the new one
        replaces the old one.

        Raises:
            UserError: the name is not valid or means another part, or the part cannot be used.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UserError(
                f"the name of a part ({self.kind}) must start with a letter and consist of letters, digits, '_', '-' "
                f"and '.', got {brief(name)}."
            )
        if not callable(part):
            raise UserError(f"the {self.kind} {name!r} must be a class or a function, got {brief(part)}.")
        if name in self and not _is_same(self._added.get(name), part):
            raise UserError(
                f"another {self.kind} is registered as {name!r}. Choose another name, or remove yours first with "
                f"resnetlab.unregister({self.kind!r}, {name!r})."
            )
        self._parts[name] = part if self._prepare is None else self._prepare(name, part)
        self._added[name] = part

    def remove(self, name: str) -> None:
        """Removes a part of yours; raises `UserError` if there is none of this name."""
        if name not in self._added:
            if name in self:
                raise UserError(f"the {self.kind} {name!r} is built in and cannot be removed.")
            raise unknown(f"{self.kind} of your own", name, self._added)
        del self._parts[name], self._added[name]


def _is_same(part: Any, other: Any) -> bool:
    """Whether two parts are the same object, or definitions at the same place."""
    places = [(getattr(one, "__module__", None), getattr(one, "__qualname__", None)) for one in (part, other)]
    return part is other or (None not in places[0] and places[0] == places[1])
