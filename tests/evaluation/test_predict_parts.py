"""Prediction of many images is shared out over processes, and continues after an interruption."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tests.facts import refuses

import resnetlab
from resnetlab.evaluation.inputs import collect
from resnetlab.evaluation.parts import PART, Place, predict_in_parts, remove_parts
from resnetlab.evaluation.predict import Predictor, predictor_of

COUNT = 3 * PART + 10
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draws = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    for number in range(COUNT):
        Image.fromarray(draws.integers(0, 256, (9, 8), dtype=np.uint8)).save(folder / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def expected(photos: Path) -> pd.DataFrame:
    return resnetlab.predict("digits", photos)


def counting(seen: list[int], stop_after: int = COUNT, top: int = 3) -> Predictor:
    """A predictor that counts its images, and fails after some."""
    predictor = predictor_of("digits", top=top)

    def logits(squares: np.ndarray) -> np.ndarray:
        if len(seen) >= stop_after:
            raise KeyboardInterrupt
        seen.extend([0] * len(squares))
        return predictor.logits(squares)

    return dataclasses.replace(predictor, logits=logits)


def check(columns: dict | None, expected: pd.DataFrame) -> None:
    found = pd.DataFrame(columns)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5)


def test_two_processes_answer_each_image_once(photos: Path, expected: pd.DataFrame, tmp_path: Path):
    out, given, counts = tmp_path / "answers.csv", collect(photos, 1), ([], [])
    assert predict_in_parts(counting(counts[1]), given, out, Place(1, 2)) is None
    check(predict_in_parts(counting(counts[0]), given, out, Place(0, 2)), expected)
    assert [len(seen) for seen in counts] == [2 * PART, PART + 10]
    remove_parts(out)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_prediction_continues(photos: Path, expected: pd.DataFrame, tmp_path: Path):
    out, given = tmp_path / "answers.csv", collect(photos, 1)
    with pytest.raises(KeyboardInterrupt):
        predict_in_parts(counting([], 2 * PART), given, out, Place())
    rest: list[int] = []
    check(predict_in_parts(counting(rest), given, out, Place()), expected)
    assert len(rest) == COUNT - 2 * PART
    other: list[int] = []
    assert predict_in_parts(counting(other, top=1), given, out, Place())
    assert len(other) == COUNT
    first = tmp_path / "first.png"
    shutil.copy(photos / "001.png", first)
    changed: list[int] = []
    predict_in_parts(counting(changed, top=1), [*collect(first, 1), *given[1:]], out, Place())
    assert len(changed) == PART


def test_a_missing_process_is_not_waited_for_without_end(photos: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("RESNETLAB_WAIT_TIMEOUT", "1")
    with refuses("part-000001.json", "1 s", "again"):
        predict_in_parts(predictor_of("digits"), collect(photos, 1), tmp_path / "answers.csv", Place(0, 2))


def test_the_shell_shares_out_a_table_and_names_damaged_files(cli: Cli, photos: Path, tmp_path: Path, monkeypatch):
    files = [*sorted(photos.iterdir())[:PART], tmp_path / "bad.png", photos / "000.png"]
    (tmp_path / "bad.png").write_bytes(b"?")
    table, out = tmp_path / "list.csv", tmp_path / "answers.csv"
    pd.DataFrame({"Image": files, "note": "x"}).to_csv(table, index=False)
    code, _, err = cli("predict", "digits", table, "--out", out)
    assert code == 2 and "bad.png" in err and f"1 of {len(files)}" in err and not out.exists()
    code, _, err = cli("predict", "digits", table, "--out", out, "--skip-unreadable")
    assert code == 0 and "bad.png" in err and str(out) in err
    assert pd.read_csv(out)["path"].tolist() == [str(file) for file in files if file.name != "bad.png"]
    assert not out.with_name("answers.csv.parts").exists()
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = cli("predict", "digits", table)
    assert code == 2 and "--out" in err
    monkeypatch.delenv("WORLD_SIZE")
    pd.DataFrame({"what": ["a"]}).to_csv(table, index=False)
    code, _, err = cli("predict", "digits", table)
    assert code == 2 and "path" in err and "what" in err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
def test_killed_processes_of_torchrun_continue(photos: Path, expected: pd.DataFrame, tmp_path: Path):
    out = tmp_path / "answers.csv"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "resnetlab", "predict", "digits", str(photos), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(Path(resnetlab.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    while first.poll() is None and not list(tmp_path.glob("*.parts/part-*.json")):
        pass
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert list(tmp_path.glob("*.parts/part-*.json")) or out.exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(str(out)) == 1
    pd.testing.assert_frame_equal(
        pd.read_csv(out, dtype={"prediction": str, "prediction_2": str, "prediction_3": str}), expected, rtol=1e-5
    )
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
