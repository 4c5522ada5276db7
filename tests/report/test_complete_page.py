from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import TINY
from tests.report.pages import Page

from resnetlab import Run, fit, load_data, write_report
from resnetlab.evaluation.result import Exploration

SECTIONS = {"result", "curves", "classes", "confusion", "reliability", "map", "mistakes", "residual", "provenance"}
PICTURES = {"classes", "curves", "confusion", "mistakes", "map", "reliability", "blocks", "responses"}
Cli = Callable[..., tuple[int, str, str]]


def assert_complete(run: Run) -> None:
    page = Page(run.report)
    assert set(page.sections) >= SECTIONS and page.missing() == {}
    assert [name for name in SECTIONS if not page.contents[name] & {"table", "svg", "img"}] == []
    pictures = {path.stem: np.asarray(Image.open(path)) for path in (run.path / "figures").iterdir()}
    assert set(pictures) == PICTURES
    assert [name for name, pixels in pictures.items() if len(np.unique(pixels)) < 10] == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit(TINY, load_data("digits", limit=60), epochs=1, out=tmp_path_factory.mktemp("runs") / "run", quiet=True)


@pytest.mark.slow
def test_training_ends_with_a_complete_page_that_evaluation_renews(cli: Cli, tmp_path: Path):
    code, _, err = cli("train", "digits", "--limit", 150, "--epochs", 1, "--out", tmp_path / "run")
    assert code == 0, err
    run = Run(tmp_path / "run")
    assert_complete(run)
    os.utime(run.report, (0, 0))
    code, _, err = cli("evaluate", run.path)
    assert code == 0, err
    assert run.report.stat().st_mtime > 0
    assert_complete(run)
    code, _, err = cli("evaluate", run.path, "--no-explore")
    assert code == 0, err
    assert set(Page(run.report).missing()) == {"map", "residual"}
    code, _, err = cli("evaluate", run.path, "--page-only", "--no-explore")
    assert code == 0, err
    assert set(Page(run.report).missing()) == {"map", "residual"}


@pytest.mark.slow
def test_a_page_from_python_is_complete_too(trained: Run):
    assert Exploration.load(trained.evaluation()) is None  # training leaves it to the page
    write_report(trained, explore=False)
    assert set(Page(trained.report).missing()) == {"map", "residual"}
    write_report(trained)
    assert_complete(trained)
    tables = {path: path.stat().st_mtime_ns for path in trained.evaluation().iterdir()}
    write_report(trained)
    assert {path: path.stat().st_mtime_ns for path in trained.evaluation().iterdir()} == tables  # nothing is repeated


def test_a_page_without_map_says_why(tmp_path: Path):
    data = load_data("digits", limit=60)
    run = fit(TINY, data, epochs=1, out=tmp_path / "run", quiet=True)
    run.weights.write_bytes(b"")
    page = Page(write_report(run, data))
    assert all("model.safetensors" in reason for reason in page.missing().values())
    assert set(page.missing()) == {"map", "residual"}


def test_a_network_without_residual_blocks_has_a_map(tmp_path: Path):
    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(64, 10)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.fc(images.flatten(1))

    run = fit(Own(), load_data("digits", limit=60), epochs=1, out=tmp_path / "run", quiet=True)
    page = Page(write_report(run))
    assert page.missing() == {} and "residual" not in page.sections
    assert "table" in page.contents["map"]
