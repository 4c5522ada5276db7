from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.conftest import TINY

from resnetlab.core.errors import UserError
from resnetlab.core.runs import HISTORY_COLUMNS, Run
from resnetlab.data.storage.store import ImageData
from resnetlab.training.fit import fit
from resnetlab.training.logs import TensorBoardLog


def _row(epoch: int, loss: float, **values: float) -> dict[str, Any]:
    numbers = dict.fromkeys(HISTORY_COLUMNS, 0.5)
    return {**numbers, "epoch": epoch, "step": 11 * epoch, "train_loss": loss, **values}


def _scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would show: (global step, value) by name."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_every_column_is_a_curve(digits_run: Run, tmp_path: Path):
    rows = digits_run.history_rows()
    with TensorBoardLog(tmp_path / "events") as log:
        for row in rows:
            log.epoch(row)
    shown = _scalars(tmp_path / "events")
    assert set(shown) == set(HISTORY_COLUMNS) - {"step"}
    for name, curve in shown.items():
        assert [step for step, _ in curve] == [11, 22, 33, 44]
        assert [value for _, value in curve] == pytest.approx([row[name] for row in rows], rel=1e-6)


def test_an_epoch_is_on_disk_when_it_has_been_written(tmp_path: Path):
    with TensorBoardLog(tmp_path) as log:
        log.epoch(_row(1, 2.0))
        assert _scalars(tmp_path)["train_loss"] == [(11, 2.0)], "a run that is killed now keeps it"


def test_a_resumed_run_replaces_what_came_after_its_checkpoint(tmp_path: Path):
    with TensorBoardLog(tmp_path) as log:
        for epoch, loss in ((1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)):
            log.epoch(_row(epoch, loss))
    with TensorBoardLog(tmp_path) as log:  # resumes after the second epoch
        log.epoch(_row(3, 2.5))
    assert _scalars(tmp_path)["train_loss"] == [(11, 4.0), (22, 3.0), (33, 2.5)]


def test_what_was_not_measured_is_left_out(tmp_path: Path):
    with TensorBoardLog(tmp_path) as log:
        log.epoch(_row(1, 2.0, val_loss=math.nan, val_top1=math.nan))
    assert set(_scalars(tmp_path)) == set(HISTORY_COLUMNS) - {"step", "val_loss", "val_top1"}


def test_a_log_without_an_epoch_leaves_nothing(tmp_path: Path):
    with TensorBoardLog(tmp_path / "events"):
        pass
    assert not (tmp_path / "events").exists()


def test_without_the_package_the_error_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in list(sys.modules):
        if name.startswith("torch.utils.tensorboard"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'resnetlab\[tensorboard\]'"):
        TensorBoardLog(tmp_path)


def test_a_training_writes_its_history_where_asked_to(tmp_path: Path, digits: ImageData):
    run = fit(TINY, digits, out=tmp_path / "run", epochs=2, batch_size=1000, tensorboard=True, quiet=True)
    written = _scalars(run.path / "tensorboard")
    assert [step for step, _ in written["val_top1"]] == run.history["step"].tolist()
    assert [value for _, value in written["lr"]] == pytest.approx(run.history["lr"].tolist())
