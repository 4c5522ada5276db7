from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import EMPTY_SETTINGS, unprivileged

from resnetlab.core.errors import UserError
from resnetlab.core.runs import HISTORY_COLUMNS, Run, check_folder, default_folder

GOLDEN = Path(__file__).parents[1] / "golden" / "run"


def test_history_keeps_every_float_exactly(tmp_path: Path):
    run = Run.create(tmp_path, EMPTY_SETTINGS, {})
    row = dict.fromkeys(HISTORY_COLUMNS, 0.1 + 0.2) | {"epoch": 1, "step": 7, "val_loss": math.nan}
    run.write_history([row])
    read = run.history_rows()[0]
    assert math.isnan(read.pop("val_loss"))
    assert read == {key: value for key, value in row.items() if key != "val_loss"}
    assert list(run.history.columns) == list(HISTORY_COLUMNS)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"nowhere is not a run"):
        Run("nowhere")
    Run.create(tmp_path / "runs" / "mine", EMPTY_SETTINGS, {})
    with pytest.raises(UserError, match=r"no run\.toml found.*there are runs/mine"):
        Run(tmp_path)


def test_an_incomplete_run_is_refused(tmp_path: Path):
    (tmp_path / "run.toml").write_text("schema = 1\nseed = 0\n[model]\n[data]\n[recipe]\n[machine]")
    with pytest.raises(UserError, match=r"run\.toml is incomplete: model\.name"):
        Run(tmp_path)


def test_a_newer_schema_is_refused(tmp_path: Path):
    (tmp_path / "run.toml").write_text("schema = 999")
    with pytest.raises(UserError, match=r"has schema 999; this version reads schemas up to 1"):
        Run(tmp_path)


def test_nothing_is_ever_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is not empty.*--out .*out=\)\.$"):
        check_folder(tmp_path / "full")
    with pytest.raises(UserError, match=r"thesis\.txt is a file, not a folder"):
        check_folder(tmp_path / "full" / "thesis.txt")
    monkeypatch.chdir(tmp_path)
    first = check_folder(default_folder("digits", "resnet20"))
    assert first.name.startswith("digits-resnet20-")
    assert not first.exists()
    Run.create(first, EMPTY_SETTINGS, {})
    assert default_folder("digits", "resnet20") != first
    with pytest.raises(UserError, match=r"or continue the interrupted run in it with: resnetlab train --resume runs/"):
        check_folder(first)


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    message = r"Permission denied.*--out"
    with unprivileged(tmp_path), pytest.raises(UserError, match=message):
        check_folder(folder / "run")


def test_two_processes_do_not_train_one_run(tmp_path: Path):
    run = Run.create(tmp_path / "run", EMPTY_SETTINGS, {})
    code = f"from resnetlab.core.runs import Run\nwith Run({str(run.path)!r}).locked(): print('held')"
    with run.locked():
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "UserError" in other.stderr
    assert "another process" in other.stderr
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout == "held\n"


def test_runs_open_on_systems_without_fcntl():
    code = "import sys; sys.modules['fcntl'] = None; import resnetlab; print(resnetlab.Run.__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "Run\n"


def test_a_run_written_by_the_first_version_still_opens():
    run = Run(GOLDEN)
    assert run.is_complete
    assert len(run.history) == run.settings["recipe"]["epochs"] == 2
    assert "test top-1" in repr(run)
