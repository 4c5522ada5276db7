"""Checks a file in a process of its own, so that a hang, a crash or a full memory is a finding.

`python -m resnetlab.checking.isolated RESULT OPTIONS` is that process; OPTIONS and RESULT are JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnetlab.checking.findings import FAULT, CheckReport, Finding
from resnetlab.core.errors import UserError

SECONDS, GIBIBYTES = 60.0, 4.0
_EVERY = 0.05
_LAST_LINES = 400


def check_file(
    file: str,
    *,
    by: str = "resnetlab.checking.check:check",
    seconds: float = SECONDS,
    gibibytes: float = GIBIBYTES,
    threads: int | None = None,
    **options: Any,
) -> CheckReport:
    """Returns the report of a function that checks a file, which runs in a process of its own.

    Args:
        file: FILE.py or FILE.py:NAME.
        by: the function, as "module:name".
        seconds: how long the process may take.
        gibibytes: how much memory it may use, in GiB.
        threads: of torch; by default one per core.
        **options: arguments of the function.

    Raises:
        UserError: as for `check`.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "report.json"
        command = [sys.executable, "-m", __spec__.name, str(result), json.dumps({"by": by, "obj": file, **options})]
        with (Path(folder) / "output").open("w+b") as output:
            environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # threads that wait leave the cores to others
            if threads is not None:
                environment["OMP_NUM_THREADS"] = str(threads)
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
            try:
                problem = _watch(process, seconds, gibibytes)
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()
            if result.is_file():
                return _read(json.loads(result.read_text(encoding="utf-8")))
            output.seek(0)
            last = output.read().decode(errors="replace").strip().splitlines()[-1:]
    return _lost(file, options.get("like", "auto"), problem or _ended(process.returncode), "".join(last)[:_LAST_LINES])


def _watch(process: subprocess.Popen, seconds: float, gibibytes: float) -> str:
    """Waits for the process; returns why it was stopped, or ""."""
    end = time.monotonic() + seconds
    while process.poll() is None:
        if time.monotonic() > end:
            return f"did not finish within {seconds:g} s"
        if _resident(process.pid) > gibibytes * 2**30:
            return f"used more than {gibibytes:g} GiB of memory"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_EVERY)
    return ""


def _resident(process: int) -> int:
    """Returns the memory in bytes that a process uses now, or 0 where that is unknown."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return 0


def _ended(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"


def _lost(file: str, like: str, problem: str, last: str) -> CheckReport:
    finding = Finding(
        kind="behavior",
        severity=FAULT,
        title=f"the code {problem}",
        place=file,
        expected="code that answers",
        found=last or "no answer",
        why="the file was executed in a process of its own, which gave no result",
        suggestion="look for an endless loop, a very large tensor, or a call that ends Python",
    )
    return CheckReport(name=file, like=like, verdict=f"{file}: 1 fault", findings=[finding])


def _read(values: Mapping[str, Any]) -> CheckReport:
    if "error" in values:
        raise UserError(values["error"])
    return CheckReport.from_dict(values)


def _main(result: str, options: str) -> None:
    from resnetlab.core.files import write_text

    values = json.loads(options)
    module, _, name = values.pop("by").partition(":")
    check = getattr(importlib.import_module(module), name)
    try:
        answer = check(values.pop("obj"), **values).to_dict()
    except UserError as error:
        answer = {"error": str(error)}
    write_text(Path(result), json.dumps(answer))


if __name__ == "__main__":
    _main(*sys.argv[1:])
