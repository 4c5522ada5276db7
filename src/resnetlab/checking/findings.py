"""What the doctor says: findings, their order, and how they are printed."""

from __future__ import annotations

import dataclasses
import json
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

FAULT, VARIANT = "fault", "variant"
SHOWN = 3
"""Faults that are printed in full; the others wait until these are fixed."""
_WIDTH = 100


class Line(NamedTuple):
    """A line of a source file."""

    file: str
    number: int

    def __str__(self) -> str:
        return f"{Path(self.file).name}:{self.number}"


@dataclass(kw_only=True)
class Finding:
    """One difference, or one behavior that a network should not have.

    Attributes:
        kind: "shape", "structure", "equality", "behavior" or "part"; in an exercise also "gap", which is to be filled.
        severity: "fault", or "variant" for a known alternative.
        title: what it is, in a few words.
        place: where: file and line if known, stage and block, name of the module.
        expected: what the reference has.
        found: what the network has.
        why: why it matters.
        suggestion: what to change, or "".
        hint: of an exercise: what leads to the cause, without the solution.
        proved: whether the network equals its reference with the suggested changes alone.
        proof: what was tried.
        line: file and line, if known.
        labels: all stages and blocks that it concerns.
        rank: failures of the forward pass have a lower one, and come first.
    """

    kind: str
    severity: str
    title: str
    place: str = ""
    expected: str = ""
    found: str = ""
    why: str = ""
    suggestion: str = ""
    hint: str = ""
    proved: bool = False
    proof: str = ""
    line: Line | None = None
    labels: tuple[str, ...] = ()
    rank: float = 0.0

    @property
    def block(self) -> str:
        """The first block that it concerns: "stem", "stage2.block1", "head", or "" if unknown."""
        found = re.search(r"stage\d+\.block\d+|\bstem\b|\bhead\b", " ".join([*self.labels[:1], self.place]))
        return found[0] if found else ""

    def to_dict(self) -> dict[str, Any]:
        """Returns the finding, ready for JSON."""
        values = dataclasses.asdict(self)
        values.pop("rank")
        values["line"] = None if self.line is None else {"file": self.line.file, "number": self.line.number}
        return values


@dataclass(kw_only=True)
class CheckReport:
    """The result of `check`.

    Attributes:
        name: of the network that was checked.
        like: the reference's name.
        verdict: one or two lines: what was compared, and the result.
        findings: faults first, in the order in which to fix them; then variants.
        key_map: names of the reference's tensors by the names of yours, if the networks correspond.
        next_step: a command to continue with, or "".
        passed: of an exercise: what is right.
        notes: what could not be checked.
        blocks: for each block with a finding its layers, next to the reference's: "expected" and "found" ("" without
            one), "differs", and of a sum "shortcut", the layers of its other operand, and "fork", the numbers of the
            layers in both after which it leaves the path (-1 for the block's input).
    """

    name: str
    like: str
    verdict: str = ""
    findings: list[Finding] = field(default_factory=list)
    key_map: Mapping[str, str] = field(default_factory=dict)
    next_step: str = ""
    passed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    blocks: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def faults(self) -> list[Finding]:
        """The findings that are faults."""
        return [finding for finding in self.findings if finding.severity == FAULT]

    @property
    def ok(self) -> bool:
        """Whether no fault was found."""
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        """Returns the report, ready for JSON."""
        return {
            "name": self.name,
            "like": self.like,
            "ok": self.ok,
            "verdict": self.verdict,
            "findings": [finding.to_dict() for finding in self.findings],
            "passed": list(self.passed),
            "key_map": dict(self.key_map),
            "notes": list(self.notes),
            "blocks": dict(self.blocks),
            "next": self.next_step,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CheckReport:
        """Returns the report that `to_dict` returned."""
        findings = []
        for record in values["findings"]:
            line = record["line"]
            line = None if line is None else Line(line["file"], line["number"])
            findings.append(Finding(**{**record, "line": line, "labels": tuple(record["labels"])}))
        return cls(
            name=values["name"],
            like=values["like"],
            verdict=values["verdict"],
            findings=findings,
            key_map=values["key_map"],
            next_step=values["next"],
            passed=list(values["passed"]),
            notes=list(values["notes"]),
            blocks=values["blocks"],
        )

    def to_json(self) -> str:
        """Returns the report as JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def text(self, *, hint: bool = False) -> str:
        """Returns the report as text; with `hint` only places and questions."""
        lines = [self.verdict, *([""] if self.passed else [])]
        lines += [line for title in self.passed for line in _wrapped("passes   ", title)]
        faults = self.faults
        for finding in faults[:SHOWN]:
            lines += ["", *_printed(finding, hint)]
        if len(faults) > SHOWN:
            more = len(faults) - SHOWN
            lines += [
                "",
                f"{plural(more, 'more fault')} found: fix the {SHOWN} above first, and check again. --json shows all.",
            ]
        variants = [finding for finding in self.findings if finding.severity == VARIANT and not hint]
        lines += [""] if variants else []
        for finding in variants:
            lines += _wrapped("variant  ", f"{finding.place}  {finding.title}".strip())
        lines += ["", *self.notes] if self.notes else []
        if self.next_step:
            lines += ["", f"Next: {self.next_step}"]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        """Returns the notebook view: the text as a table whose rows unfold to the block next to its reference."""
        from resnetlab.checking.drawing import drawing
        from resnetlab.core.html import render

        drawings = {label: drawing(rows, (f"{self.like}, {label}", self.name)) for label, rows in self.blocks.items()}
        return render("checking/templates/report.html", report=self, drawings=drawings, shown=SHOWN)


def plural(number: int, word: str) -> str:
    """Returns a number with its noun, such as "1 block" and "3 blocks"."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def counted(findings: list[Finding]) -> str:
    """Returns how many faults and variants there are, such as "1 fault, 2 variants"."""
    faults = sum(finding.severity == FAULT for finding in findings)
    variants = len(findings) - faults
    parts = [plural(faults, "fault")] if faults else ["no fault"]
    return ", ".join([*parts, *([plural(variants, "variant")] if variants else [])])


_QUESTIONS = {
    "shape": "Which shape arrives here, and which one does this layer need?",
    "structure": "Which layers does the paper have here, in which order, and with which stride and width?",
    "equality": "Which formula should this layer compute, in training and in evaluation?",
    "behavior": "What happens at this place when the network is trained, evaluated, saved and loaded again?",
    "part": "Work the formula out by hand for a small input. Which value does your code give?",
}
"""What `--hint` prints instead of the answer."""


def _printed(finding: Finding, hint: bool) -> list[str]:
    label = "TO DO    " if finding.kind == "gap" else "FAULT    "
    if hint:
        return [*_wrapped(label, finding.place), *_wrapped("         ", finding.hint or _QUESTIONS[finding.kind])]
    lines = _wrapped(label, f"{finding.place}  {finding.title}".strip())
    if finding.expected or finding.found:
        lines += _wrapped("         ", f"expected {finding.expected or 'nothing'}, found {finding.found or 'nothing'}")
    for name in ("why", "suggestion", "hint"):
        if text := getattr(finding, name):
            lines += _wrapped("         ", f"{'try' if name == 'suggestion' else name:<9}{text}", hanging=9)
    if finding.proof:
        lines += _wrapped("         ", f"{'proved' if finding.proved else 'likely':<9}{finding.proof}", hanging=9)
    return lines


def _wrapped(prefix: str, text: str, hanging: int = 0) -> list[str]:
    indent = " " * (len(prefix) + hanging)
    lines = textwrap.wrap(
        text, _WIDTH - 20, initial_indent=prefix, subsequent_indent=indent, break_on_hyphens=False,
        break_long_words=False, replace_whitespace=False, drop_whitespace=True,
    )  # fmt: skip
    return lines or [prefix.rstrip()]
