"""Shared by the tests: a tiny network, a small trained run, image folders, and the command line in this process."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from resnetlab.core.framing import Framing
from resnetlab.core.runs import Run
from resnetlab.data.load import load_data
from resnetlab.data.storage.store import ImageData
from resnetlab.models.config import ResNetConfig
from resnetlab.training.fit import fit
from tests.browsing import launched

settings.register_profile("untimed", deadline=None)  # a slow machine must not fail a test
settings.load_profile("untimed")

# A shell or nohup lets background processes ignore these, and then a test could not send them.
for _name in ("SIGINT", "SIGHUP"):
    if hasattr(signal, _name) and signal.getsignal(getattr(signal, _name)) == signal.SIG_IGN:
        signal.signal(getattr(signal, _name), signal.default_int_handler if _name == "SIGINT" else signal.SIG_DFL)


def pytest_runtest_setup():
    """Seeds torch before each test, so that a failure can be repeated."""
    torch.manual_seed(0)


TINY = ResNetConfig(depths=(1, 1), widths=(4, 8), stem="cifar", shortcut="A", in_channels=1, num_classes=10)


# The tables that a run.toml must have, for tests that do not use them.
EMPTY_SETTINGS = {
    "seed": 0,
    "model": {"name": "custom", "config": {}},
    "data": {"source": "digits", "fingerprint": "", "class_names": [], "counts": {}},
    "preprocessing": {},
    "recipe": {"name": "quick", "epochs": 1},
    "machine": {},
}


def framed(image_size: int, **fields: str | float) -> Framing:
    """The framing of color images at a size."""
    return Framing(**{"image_size": image_size, "channels": 3, **fields})


@contextmanager
def unprivileged(folder: Path) -> Iterator[None]:
    """Acts as an ordinary user, since permissions do not apply to root; `folder` stays readable."""
    if not hasattr(os, "geteuid"):
        pytest.skip("needs POSIX permissions")
    privileged = os.geteuid() == 0
    if privileged:
        folder.chmod(0o755)
        os.seteuid(65534)
    try:
        yield
    finally:
        if privileged:
            os.seteuid(0)


@pytest.fixture(scope="session")
def digits() -> ImageData:
    return load_data("digits")


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory, digits: ImageData) -> Run:
    """A real, short training on digits; tests read it and never write to it."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    return fit("resnet20", digits, out=out, epochs=4, batch_size=128, lr=0.1, quiet=True)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Photos of two classes, red and blue, of several sizes, twenty each."""
    root = tmp_path / "photos"
    draws = np.random.default_rng(0)
    for name, color in (("blue", (40, 60, 200)), ("red", (200, 60, 40))):
        (root / name).mkdir(parents=True)
        for number in range(20):
            size = (int(draws.integers(20, 40)), int(draws.integers(20, 40)), 3)
            pixels = np.clip(np.array(color) + draws.normal(0, 20, size), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02d}.png")
    return root


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets in torchvision's layout, as the product itself would find it."""
    root = Path(os.environ.get("RESNETLAB_DATA", "data"))
    if not root.is_dir():
        pytest.skip(f"no real data: {root} is absent; set RESNETLAB_DATA to a folder in torchvision's layout")
    return root


@pytest.fixture(scope="session")
def gluon_files(data_root: Path) -> Path:
    """The folder of files that MXNet wrote."""
    if not (data_root / "gluon").is_dir():
        pytest.skip(f"no files of MXNet: {data_root / 'gluon'} is absent")
    return data_root / "gluon"


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """Chromium, for tests of pages. While it runs, asyncio.run cannot be called, so it ends with each module."""
    with launched() as browser:
        yield browser


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple]]:
    """Runs the program in this process and returns (exit code, standard output, standard error)."""
    from resnetlab.cli.main import main

    monkeypatch.setenv("COLUMNS", "200")
    shown = warnings.showwarning

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop, warnings.catch_warnings():
            warnings.simplefilter("always")
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return int(stop.value.code or 0), out, err

    yield run
    warnings.showwarning = shown


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Undoes what the program does about signals, which is meant for a process of its own."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handlers, not_raised = {number: signal.getsignal(number) for number in numbers}, sys.unraisablehook
    yield
    for number, handler in handlers.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)
    if sys.unraisablehook is not not_raised:
        sys.unraisablehook = not_raised
    if "resnetlab.cli.signals" in sys.modules:
        sys.modules["resnetlab.cli.signals"].forget()
