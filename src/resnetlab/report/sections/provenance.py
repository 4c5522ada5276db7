"""Where the result comes from: settings, environment, data, and how to make it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from resnetlab.core.runs import Run
from resnetlab.report.command import train_command

_SETTINGS_ORDER = ("model", "data", "preprocessing", "recipe", "machine")


def provenance(run: Run) -> str:
    """Everything that run.toml and environment.json record, keys of other versions included."""
    tables = {key: value for key, value in run.settings.items() if isinstance(value, Mapping)}
    order = [
        *(key for key in _SETTINGS_ORDER if key in tables),
        *(key for key in tables if key not in _SETTINGS_ORDER),
    ]
    parts = [_definitions(key.capitalize().replace("_", " "), tables[key]) for key in order]
    single = {key: value for key, value in run.settings.items() if key not in tables}
    environment = run.environment if (run.path / "environment.json").is_file() else {"recorded": False}
    return "".join([*parts, _definitions("Run", single), _definitions("Environment", environment)])


def reproduce(settings: Mapping[str, Any], mirrors: bool | None) -> str:
    """The command that makes the run again, broken between options only."""
    command = train_command(settings, mirrors=mirrors)
    if command is None:
        return (
            "<p>This run was started from Python, with <code>resnetlab.fit</code> and settings that the command line "
            "has no names for. <code>run.toml</code> in the run folder holds every one of them.</p>"
        )
    words = " ".join(f"<span>{escape(shlex.join(part))}</span>" for part in command)
    fingerprint = escape(str(settings["data"]["fingerprint"]))
    return (
        "<p>This command trains the same network on the same data:</p>"
        f'<pre class="command"><code>{words}</code></pre>'
        "<p>Settings that it does not name have their usual values; <code>run.toml</code> in the run folder holds "
        "every one of them. The data are the same where their fingerprint is, a SHA-256 of every image and label: "
        f'<code class="fingerprint">{fingerprint}</code></p>'
    )


def _definitions(caption: str, values: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{_value(value)}</td></tr>' for key, value in _flatten(values)
    )
    return f'<table class="definitions"><caption>{escape(caption)}</caption><tbody>{rows}</tbody></table>'


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = prefix + key.replace("_", " ")
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{name}: ")
        else:
            yield name, value


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)) and len(value) > 12:
        entries = ", ".join(_value(entry) for entry in value)
        return f"<details><summary>{len(value):,} entries</summary>{entries}</details>"
    if isinstance(value, (list, tuple, Mapping)):
        return ", ".join(_value(entry) for entry in value) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:.6g}" if isinstance(value, float) else escape(str(value))
