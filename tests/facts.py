"""Assertions about errors that name facts, so that sentences can be reworded freely."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from resnetlab.core.errors import UserError


@contextmanager
def refuses(*facts: str) -> Iterator[Callable[[], str]]:
    """Expects a `UserError` whose message contains every fact: a field, a value, an option that helps.

    It yields a function that returns the message.
    """
    with pytest.raises(UserError) as caught:
        yield lambda: str(caught.value)
    missing = [fact for fact in facts if fact not in str(caught.value)]
    assert facts and not missing, f"{missing} not in: {caught.value}"
