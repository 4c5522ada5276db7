"""A pytest plugin that leaves out the tests that passed in an earlier, unfinished run: `pytest -p tools.resume_tests`.

Passed and skipped tests are appended to `.test-all/passed`, one a line, as soon as they end. Delete the folder, or call
`make test-all FRESH=1`, to run everything again.
"""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = ".test-all"


class Resume:
    """Records tests that passed, and deselects those that were recorded when the run started."""

    def __init__(self, root: Path, passed: set[str], records: bool) -> None:
        self.file = root / FOLDER / "passed"
        self.passed = passed
        self.records = records  # of several processes, only the one that starts the others writes
        self.failed: set[str] = set()

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Deselects the tests that passed earlier."""
        earlier = [item for item in items if item.nodeid in self.passed]
        items[:] = [item for item in items if item.nodeid not in self.passed]
        config.hook.pytest_deselected(items=earlier)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Records a test when its teardown has ended and nothing of it failed."""
        if report.failed:
            self.failed.add(report.nodeid)
        if self.records and report.when == "teardown" and report.nodeid not in self.failed:
            self.file.parent.mkdir(exist_ok=True)
            with self.file.open("a", encoding="utf-8") as file:
                file.write(report.nodeid + "\n")

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node) -> None:
        """Hands the same list to every worker of pytest-xdist, which must all collect the same tests."""
        node.workerinput["passed"] = sorted(self.passed)

    def pytest_report_header(self) -> str:
        """Says how many tests are left out."""
        return f"{len(self.passed)} tests passed earlier and are left out (rm -r {FOLDER} to run them again)"

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Counts a run in which every test had passed earlier as a success."""
        if session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self.passed:
            session.exitstatus = pytest.ExitCode.OK


def pytest_configure(config: pytest.Config) -> None:
    """Reads which tests passed earlier; a worker is given them by the process that started it."""
    file = config.rootpath / FOLDER / "passed"
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        passed = set(worker["passed"])
    else:
        passed = set(file.read_text(encoding="utf-8").splitlines()) if file.exists() else set()
    config.pluginmanager.register(Resume(config.rootpath, passed, records=worker is None), "resume-tests")
