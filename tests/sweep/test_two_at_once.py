"""Two processes that are started together into one place: one works, the other gets its message at once."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.sampling import SHARE
from tests.sweep.forks import forks

from resnetlab.core.runs import Run
from resnetlab.data.load import load_data
from resnetlab.studies.lab.question import StudyResult

PAIRS = 50
TRAIN = ("train", "digits", "--limit", 100, "--limit-held-out", 60, "--model", "resnet20", "--epochs", 2)
STUDY = ("study", "responses", "digits", "--seeds", 1, "--set", "plan={images=40, epochs=1}", "--set", "depths=[8,14]")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draws = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(40):
        path = folder / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.mark.slow
def test_one_of_two_works_and_the_other_gets_its_message_at_once(tmp_path: Path, photos: Path):
    pairs, waits = max(3, round(SHARE * PAIRS)), []
    with forks() as server:
        for number in range(pairs):
            out, logs = tmp_path / f"out{number}", (tmp_path / "first", tmp_path / "second")
            words, opened = (
                (TRAIN, Run),
                (("pack", photos, "--workers", 1, "--image-size", 8), load_data),
                (STUDY, StudyResult.load),
            )[number % 3]
            for log in logs:
                log.write_text("")
            ended = server.wait(*(server.start(log, *words, "--out", out) for log in logs))
            texts = [log.read_text() for log in logs]
            assert sorted(code for code, _ in ended) == [0, 2], texts
            (winner, loser) = sorted((0, 1), key=lambda at: ended[at][0])
            assert str(out) in texts[loser] and "another process" in texts[loser], texts[loser]
            assert ended[loser][1] < ended[winner][1]
            waits.append(ended[loser][1])
            opened(out)
    sys.stdout.write(f"{pairs} pairs; the message came within {max(waits):.2f} s\n")
