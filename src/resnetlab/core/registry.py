"""The parts that a configuration names, in one form for all kinds: a name, a callable and its docstring.

A registry is read like a dict. You can add parts of your own and remove them; built-in parts stay what they are. A
configuration writes a part as its name, or as a name with options in parentheses: "focal" or "focal(gamma=1.5)".
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from resnetlab.core.console import notice
from resnetlab.core.errors import UserError, available, brief, nearest, unknown
from resnetlab.core.own_code import calling, definition

REGISTER = "Register your own with resnetlab.register; in the shell, --import FILE.py executes a file that does so."
"""The remedy for a name that may be of a part of yours."""
_NAME = re.compile(r"[A-Za-z_][\w.-]*")


@dataclass(frozen=True)
class Call:
    """A part as a configuration writes it.

    Attributes:
        name: of the part.
        values: what is in parentheses without a name.
        options: what is in parentheses with a name.
    """

    name: str
    values: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        given = [*map(repr, self.values), *(f"{key}={value!r}" for key, value in self.options.items())]
        return f"{self.name}({', '.join(given)})" if given else self.name


@functools.cache
def read_call(text: str) -> Call:
    """Returns what "name" or "name(0.5, factor=0.1)" says; raises `ValueError` for anything else."""
    if _NAME.fullmatch(text.strip()):
        return Call(text.strip())
    try:
        call = ast.parse(text.strip(), mode="eval").body
        function, given, named = (call.func, call.args, call.keywords) if isinstance(call, ast.Call) else (call, [], [])
        name = ast.unparse(function)
        options = {str(word.arg): ast.literal_eval(word.value) for word in named}
        return Call(name, tuple(ast.literal_eval(value) for value in given), options)
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"cannot read {text!r}") from error


class Registry(Mapping[str, Any]):
    """The parts of one kind by name.

    Args:
        kind: what they are, such as "activation".
        parts: the built-in parts.
        prepare: returns what the registry stores for a part of yours, given its name and the part; raises `UserError`
            if the part cannot be used.
        called_with: number of the first arguments of a part, such as logits and labels, that are not options.
        elsewhere: arguments that the recipe passes, which messages do not list as options.
    """

    def __init__(
        self,
        kind: str,
        parts: Mapping[str, Any],
        *,
        prepare: Callable[[str, Any], Any] | None = None,
        called_with: int = 0,
        elsewhere: Collection[str] = (),
    ) -> None:
        self.kind = kind
        self._called_with, self._elsewhere = called_with, elsewhere
        self._parts, self._added = dict(parts), dict[str, Any]()
        self._prepare = prepare
        self._automatic: set[str] = set()

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
        text = getattr(self._added.get(name, self._parts[name]), "__doc__", None)
        return text.strip().partition("\n")[0] if isinstance(text, str) else ""

    def title(self, name: str) -> str:
        """Returns how a message names a part, and where a part of yours is defined."""
        return f"the {self.kind} {name!r}{definition(self._added[name]) if name in self._added else ''}"

    def calling(self, name: str) -> AbstractContextManager[None]:
        """Returns a context in which an exception is recorded as that of a part of yours."""
        return calling(lambda: self.title(name)) if name in self._added else nullcontext()

    def check(self, field: str, value: Any) -> str:
        """Returns a part as a configuration writes it: the check of a field of this kind.

        A class or function that is not registered is registered under its own name, for this program only, and a
        message says so. The case of a name does not matter.

        Raises:
            UserError: the part is unknown, or it does not take the options.
        """
        if not isinstance(value, str):
            return self._name_of(field, value)
        try:
            call = read_call(value)
        except ValueError as error:
            raise UserError(
                f"{field} must be a name, or a name with options such as name(option=0.5), got {brief(value)}."
            ) from error
        name = call.name if call.name in self else call.name.lower()
        if name not in self:
            raise UserError(f"{unknown(field.removeprefix('every '), call.name, self)} {REGISTER}")
        if call.values:
            raise UserError(f"{field} must have the form {name}(option=value), got {brief(value)}.")
        self._check_options(name, call.options)
        return str(Call(name, (), call.options))

    def _check_options(self, name: str, options: Mapping[str, Any]) -> None:
        taken = taken_by(self._added.get(name, self._parts[name]))
        if taken is None:
            return
        taken = taken[self._called_with :]
        if wrong := [option for option in options if option not in taken]:
            listed = [option for option in taken if option not in self._elsewhere]
            raise UserError(
                f"the {self.kind} {name!r} has no option {wrong[0]!r}. {nearest(wrong[0], listed)}"
                f"{available(wrong[0], listed, title='Its options')}"
            )

    def _name_of(self, field: str, part: Any) -> str:
        """Returns the name of a registered part; any other is registered under its own name."""
        for name, value in self._parts.items():
            if part is value or part is self._added.get(name):
                return name
        name = getattr(part, "__name__", None) or type(part).__name__
        if not callable(part) or not _NAME.fullmatch(name) or isinstance(part, functools.partial):
            how = f"Give it a name first: resnetlab.register({self.kind!r}, NAME, part)."
            raise UserError(f"{field} must be text, or a class or function with a name, got {brief(part)}. {how}")
        if name in self._automatic:
            self.remove(name)
        else:
            notice(
                f"the {self.kind} {name} is code of this program, and a run records only its name. To resume the run "
                f"in another program, register it there first: resnetlab.register({self.kind!r}, {name!r}, {name})."
            )
        self.add(name, part)
        self._automatic.add(name)
        return name

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
        if name in self and name not in self._added:
            raise UserError(f"the {self.kind} {name!r} is built in and cannot be replaced. Choose another name.")
        if name in self and not _is_same(self._added[name], part):
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
        self._automatic.discard(name)


def taken_by(part: Callable[..., Any]) -> tuple[str, ...] | None:
    """Returns the names of the arguments that a callable takes; None if it takes any name, or cannot say."""
    try:
        parameters = inspect.signature(part).parameters.values()
    except (TypeError, ValueError):  # built-in callables have no signature
        return None
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return None
    return tuple(one.name for one in parameters if one.kind is not one.VAR_POSITIONAL)


def check_call(what: str, part: Callable[..., Any], *arguments: str) -> None:
    """Raises `UserError` if a part of yours, which `what` names, cannot be called with these positional arguments."""
    try:
        signature = inspect.signature(part)
    except (TypeError, ValueError):  # built-in callables have no signature
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        given = f"one argument, {arguments[0]}" if arguments else "no arguments"
        raise UserError(f"{what} is called with {given}, which fails: {error}. Change its arguments.") from error


def _is_same(part: Any, other: Any) -> bool:
    """Whether two parts are the same object, or definitions at the same place."""
    places = [(getattr(one, "__module__", None), getattr(one, "__qualname__", None)) for one in (part, other)]
    return part is other or (None not in places[0] and places[0] == places[1])
