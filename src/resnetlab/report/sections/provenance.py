"""Where the result comes from: the command that repeats the run, settings, environment and data."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from resnetlab.report.command import changed_settings, machine_options, train_command
from resnetlab.report.section import Report, Section

_ORDER = ("model", "data", "preprocessing", "recipe", "machine")
_LONGEST_LIST = 12


def view(report: Report) -> dict[str, Any]:
    """Returns the command that repeats the run, its changed settings, and everything that its folder records."""
    settings, images = report.run.settings, report.images
    mirrors = None if images.data is None else images.data.mirrors
    command = train_command(settings, mirrors=mirrors)
    tables = {key: value for key, value in settings.items() if isinstance(value, Mapping)}
    others = {key: value for key, value in settings.items() if key not in tables}
    order = sorted(tables, key=lambda key: _ORDER.index(key) if key in _ORDER else len(_ORDER))
    shown = [(key.capitalize().replace("_", " "), tables[key]) for key in order]
    shown += [("Run", others), ("Environment", report.run.environment or {"recorded": False})]
    return {
        "command": None if command is None else [shlex.join(part) for part in command],
        "by_machine": shlex.join(
            word
            for name, words in machine_options(settings).items()
            if name in settings.get("automatic", [])
            for word in words
        ),
        "early_ends": report.run.early_ends,
        "extended": [
            f"{report.run.resume_command} --epochs {extension['epochs']}"
            for extension in settings.get("extensions", [])
        ],
        "fingerprint": settings["data"]["fingerprint"],
        "changed": [
            (name.replace("_", " ").replace(".", ": "), _text(value), _text(usual))
            for name, value, usual in changed_settings(settings, mirrors=mirrors)
        ],
        "tables": [("Data and machine", list(_facts(report)))],
        "everything": [(caption, list(_flatten(values))) for caption, values in shown],
        "longest_list": _LONGEST_LIST,
    }


def _facts(report: Report) -> Iterator[tuple[str, list[str]]]:
    """Yields what the result depends on besides settings, as far as the run records it."""
    settings, environment = report.run.settings, report.run.environment or {}
    data, machine = settings["data"], settings.get("machine", {})
    yield "data", [str(data["source"])]
    yield "images", [f"{name} {count:,}" for name, count in data.get("counts", {}).items()]
    yield "classes", [f"{len(data['class_names']):,}"]
    yield "image size", [f"{settings['preprocessing']['image_size']} pixels"]
    for name in ("device", "precision", "memory_format", "threads"):
        if name in machine:
            yield name.replace("_", " "), [_text(machine[name])]
    packages = environment.get("packages", {})
    versions = {**packages, "python": environment.get("python")}
    yield "versions", [f"{name} {versions[name]}" for name in ("python", "torch") if versions.get(name)] or ["none"]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yields the innermost values by name, each as the texts of its entries."""
    for key, value in values.items():
        name = prefix + key.replace("_", " ")
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{name}: ")
        elif isinstance(value, (list, tuple, Mapping)):
            yield name, [_text(entry) for entry in value] or ["none"]
        else:
            yield name, [_text(value)]


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {_text(entry)}" for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value)) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


SECTION = Section(order=100, name="provenance", title="Settings and data", link="Settings", view=view)
