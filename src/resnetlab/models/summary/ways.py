"""Ways of tensors through a network: from each, step by step, back to the image."""

from __future__ import annotations

from collections.abc import Sequence

from resnetlab.models.summary.words import Word


class Step:
    """A step on the way of a tensor from the image: the layer that made it, and the step before."""

    __slots__ = ("before", "depth", "word")

    def __init__(self, word: Word, before: Step | None) -> None:
        self.word = word
        self.before = before
        self.depth = 0 if before is None else before.depth + 1


def fork_of(first: Step, second: Step) -> Step | None:
    """Returns the last step that two ways have in common."""
    one: Step | None = first
    other: Step | None = second
    while one is not other and one is not None and other is not None:
        if one.depth >= other.depth:
            one = one.before
        else:
            other = other.before
    return one if one is other else None


def way_between(start: Step | None, end: Step) -> list[Word]:
    """Returns the words from behind one step to another."""
    words = []
    step: Step | None = end
    while step is not None and step is not start:
        words.append(step.word)
        step = step.before
    return words[::-1]


def weights_on(way: Sequence[Word]) -> int:
    """Returns how many layers with weights are on a way."""
    return sum(word.role == "weights" for word in way)
