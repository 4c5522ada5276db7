from __future__ import annotations

import io
import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnetlab.core.pictures import learning_curves, to_png
from resnetlab.training.logs import LiveCurves, in_notebook

TRAINING, VALIDATION = (0xA8, 0x48, 0x0F), (0x1F, 0x5A, 0x9E)


def _row(epoch: int, **values: float) -> dict[str, Any]:
    losses = {"train_loss": 2.3 / epoch, "val_loss": 2.4 / epoch, "lr": 0.1}
    return {"epoch": epoch, "step": 11 * epoch, "train_top1": 0.5, "val_top1": 0.6, **losses, **values}


class Kernel:
    """What IPython's modules are in a kernel, as far as pictures go: what was shown is kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, shell: object) -> None:
        self.shown: list[list[Any]] = []
        ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
        monkeypatch.setattr(ipython, "get_ipython", lambda: shell, raising=False)
        monkeypatch.setattr(ipython, "display", display, raising=False)
        monkeypatch.setattr(ipython, "version_info", (9, 0), raising=False)  # matplotlib asks for it
        monkeypatch.setattr(display, "Image", lambda **settings: SimpleNamespace(**settings), raising=False)
        monkeypatch.setattr(display, "display", self._display, raising=False)
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        monkeypatch.setitem(sys.modules, "IPython.display", display)

    def _display(self, picture: object, display_id: bool = False) -> SimpleNamespace:
        assert display_id
        updates = [picture]
        self.shown.append(updates)
        return SimpleNamespace(update=updates.append)


def _colors(png: bytes) -> set[tuple[int, ...]]:
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        return set(map(tuple, np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()))


def _expected(rows: list[dict[str, Any]], epochs: int) -> bytes:
    return to_png(learning_curves(rows, epochs)[:2])


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch, SimpleNamespace(kernel=object()))


def test_a_kernel_is_a_notebook_and_nothing_else_is(monkeypatch: pytest.MonkeyPatch):
    Kernel(monkeypatch, SimpleNamespace(kernel=object()))
    assert in_notebook()
    for shell in (None, SimpleNamespace(kernel=None), SimpleNamespace()):  # no shell, and that of the terminal
        Kernel(monkeypatch, shell)
        assert not in_notebook()
    monkeypatch.delitem(sys.modules, "IPython")
    assert not in_notebook()


def test_one_picture_is_replaced_after_every_epoch(kernel: Kernel):
    curves = LiveCurves(epochs=3)
    for epoch in (1, 2, 3):
        curves.epoch(_row(epoch))
    (updates,) = kernel.shown
    assert len(updates) == 3
    assert len({picture.data for picture in updates}) == 3
    assert {(picture.format, picture.width) for picture in updates} == {("png", 860)}
    assert updates[-1].data == _expected([_row(epoch) for epoch in (1, 2, 3)], 3)
    assert {TRAINING, VALIDATION, (255, 255, 255)} <= _colors(updates[-1].data)


def test_a_resumed_run_shows_the_epochs_before(kernel: Kernel):
    LiveCurves(epochs=3, rows=[_row(1), _row(2)]).epoch(_row(3))
    assert kernel.shown[0][0].data == _expected([_row(epoch) for epoch in (1, 2, 3)], 3)


def test_quiet_shows_nothing(kernel: Kernel):
    LiveCurves(epochs=3, quiet=True).epoch(_row(1))
    assert kernel.shown == []


def test_outside_a_notebook_nothing_is_shown_or_imported():
    code = (
        "import sys\n"
        "from resnetlab.training.logs import LiveCurves, in_notebook\n"
        "assert not in_notebook()\n"
        "row = {'epoch': 1, 'train_loss': 1.0, 'val_loss': 1.0, 'train_top1': 0.5, 'val_top1': 0.5, 'lr': 1}\n"
        "LiveCurves(epochs=3).epoch(row)\n"
        "loaded = {'IPython', 'matplotlib'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
