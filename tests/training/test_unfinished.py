"""A run that was stopped can be used, ended there and resumed; a finished run can be trained further."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import TINY
from tests.facts import refuses
from tests.sampling import only_in_test_all
from tests.training.stepping import before_step

import resnetlab
from resnetlab.core import files
from resnetlab.core.errors import Interrupted
from resnetlab.core.files import read_toml, write_toml
from resnetlab.core.runs import TIMING_COLUMNS, Run
from resnetlab.data.storage.store import ImageData
from resnetlab.training.fit import fit, resume
from resnetlab.training.loop import Training
from resnetlab.training.recipe import Recipe
from resnetlab.weights import inspect_weights
from resnetlab.weights.tensors import read_tensors

STEPS = 6  # an epoch of digits
SETTINGS: dict[str, Any] = {"epochs": 3, "batch_size": 256, "quiet": True}


def interrupt(training: Training) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def stopped(out: Path, data: ImageData, *, step: int, **changes: Any) -> Run:
    with pytest.raises(Interrupted), before_step(step, interrupt):
        fit(TINY, data, out=out, **{**SETTINGS, **changes})
    return Run(out)


def weights(run: Run) -> dict[str, torch.Tensor]:
    return resnetlab.load(run).state_dict()


def assert_equal(run: Run, whole: Run) -> None:
    ours, theirs = (read_tensors(other.weights)[0] for other in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)
    histories = [other.history.drop(columns=list(TIMING_COLUMNS)) for other in (run, whole)]
    assert histories[0].equals(histories[1])
    assert run.summary == whole.summary
    assert run.is_complete


@pytest.mark.parametrize("changes", [{"average": 0.0}, {"average": 0.9}, {"average": 0.9, "keep": "best"}], ids=str)
def test_the_network_of_an_unfinished_run_is_what_finishing_gives(digits: ImageData, tmp_path: Path, changes: dict):
    run = stopped(tmp_path / "run", digits, step=STEPS + 3, **changes)
    assert not run.is_complete
    stand_in = weights(run)
    tensors, _ = read_tensors(max(run.checkpoints.iterdir()))
    part = "best" if "keep" in changes else "average" if changes["average"] else "model"
    assert torch.equal(stand_in["conv1.weight"], tensors[f"{part}.conv1.weight"])
    finished = resume(run.path, finish=True, quiet=True)
    assert all(torch.equal(value, stand_in[name]) for name, value in weights(finished).items())


@pytest.mark.slow
def test_an_unfinished_run_says_its_epoch_everywhere(
    digits: ImageData, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    run = stopped(tmp_path / "run", digits, step=STEPS + 3)
    position = {"epoch": 1, "epochs": 3}
    assert resnetlab.load(run).stopped_at == (1, 3)
    assert "epoch 1 of 3" in capfd.readouterr().err
    evaluation = resnetlab.evaluate(run, digits)
    assert evaluation.summary.items() >= position.items()
    assert json.loads((run.evaluation() / "summary.json").read_text()).items() >= position.items()
    assert str(evaluation).count("epoch 1 of 3") == 2  # above the table, and its caption
    assert "epoch 1 of 3" in evaluation._repr_html_()
    assert repr(run).count("epoch 1 of 3") == 2  # of the training and of its evaluation
    assert run._repr_html_().count("epoch 1 of 3") == 2
    page = resnetlab.write_report(run, digits).read_text()
    assert "at epoch 1 of 3</title>" in page
    assert page.count(">Epoch 1 of 3: ") >= 4  # captions
    assert resnetlab.compare(run)[["epochs", "epochs_planned"]].values.tolist() == [[1, 3]]
    assert resnetlab.compare(run)["parameters"].item() == sum(value.numel() for value in _learned(run))
    assert "1 of 3 epochs" in str(inspect_weights(run))
    assert len(resnetlab.predict(run, _images(digits))) == 3
    resnetlab.convert(run, tmp_path / "exported.safetensors")
    assert resnetlab.load(tmp_path / "exported.safetensors").stopped_at == (1, 3)
    other = fit("auto", digits, pretrained=run, out=tmp_path / "other", **{**SETTINGS, "epochs": 1})
    assert other.is_complete
    assert "epoch" not in (other.summary or {})


def _learned(run: Run) -> Iterator[torch.Tensor]:
    yield from resnetlab.load(run).parameters()


def _images(data: ImageData) -> torch.Tensor:
    images = data.splits["test"].images
    assert isinstance(images, torch.Tensor)
    return images[:3]


def test_a_run_stopped_in_its_first_epoch_can_be_used(digits: ImageData, tmp_path: Path):
    run = stopped(tmp_path / "run", digits, step=2)
    assert resnetlab.evaluate(run, digits, explore=False).summary["epoch"] == 0
    with pytest.raises(Interrupted), before_step(STEPS, interrupt):
        resume(run, quiet=True)
    page = resnetlab.write_report(run, digits, explore=False).read_text()
    assert "epoch 0 of 3" in page
    assert "trained further" in page  # the network is not the one that was evaluated
    assert resnetlab.evaluate(run, digits, explore=False).summary["epoch"] == 1
    run = resume(stopped(tmp_path / "other", digits, step=2), finish=True, quiet=True)
    assert (run.is_complete, len(run.history), run.settings["ended"]) == (True, 0, 0)
    run = resume(run, epochs=1, quiet=True)
    assert run.history["epoch"].tolist() == [1]


def test_an_unfinished_run_that_was_evaluated_resumes_exactly(digits: ImageData, tmp_path: Path):
    run = stopped(tmp_path / "run", digits, step=STEPS + 3)
    resnetlab.evaluate(run, digits, explore=False)
    resumed = resume(run, data=digits, quiet=True)
    assert_equal(resumed, fit(TINY, digits, out=tmp_path / "whole", **SETTINGS))
    assert "epoch" not in (resumed.summary or {})


def test_a_run_can_be_ended_early(digits: ImageData, tmp_path: Path):
    run = resume(stopped(tmp_path / "run", digits, step=STEPS + 3), finish=True, quiet=True)
    assert run.is_complete
    assert run.settings["ended"] == read_toml(run.path / "run.toml")["ended"] == 1
    assert (run.summary or {}).items() >= {"epoch": 1, "epochs": 3}.items()
    assert read_tensors(run.weights)[1]["training"].items() >= {"epoch": 1, "epochs": 3}.items()
    assert run.history["epoch"].tolist() == [1]
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    resume(run, quiet=True)
    resume(run, finish=True, quiet=True)
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


@pytest.mark.slow
def test_a_finished_run_keeps_its_network_and_no_checkpoint(digits: ImageData, tmp_path: Path):
    run = fit("resnet18", digits, out=tmp_path / "run", epochs=1, batch_size=1000, keep="best", quiet=True)
    assert not (run.path / "checkpoints").exists()
    assert not list(run.path.rglob("step-*"))
    size = run.weights.stat().st_size
    assert 40e6 < size < 50e6
    assert sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file()) < 1.1 * size
    description = read_tensors(run.weights)[1]
    assert description["training"]["history"]["epoch"] == [1]
    assert description["config"] == resnetlab.load(run).config.to_dict()
    assert description["provenance"].items() >= {"seed": 0, "recipe": run.settings["recipe"]}.items()
    assert description["provenance"]["data"]["fingerprint"] == digits.fingerprint


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, digits: ImageData) -> Run:
    return fit(TINY, digits, out=tmp_path_factory.mktemp("finished") / "run", **{**SETTINGS, "average": 0.9})


@pytest.fixture
def copied(finished: Run, tmp_path: Path) -> Callable[[str], Run]:
    def copy(name: str) -> Run:
        return Run(shutil.copytree(finished.path, tmp_path / name))

    return copy


def test_a_finished_run_is_trained_further(digits: ImageData, finished: Run, copied: Callable[[str], Run]):
    run, started = copied("run"), []

    def note(training: Training) -> None:
        started.append({name: value.clone() for name, value in training.state.model.state_dict().items()})
        assert not training.state.optimizer.state

    with before_step(1, note) as taken:
        run = resume(run, epochs=5, data=digits, quiet=True)
    assert len(taken) == 2 * STEPS
    assert all(torch.equal(value, started[0][name]) for name, value in weights(finished).items())
    assert read_toml(run.path / "run.toml")["extensions"][0].items() >= {"start": 3, "epochs": 5}.items()
    assert run.settings["recipe"]["epochs"] == 3
    assert run.history["epoch"].tolist() == [1, 2, 3, 4, 5]
    assert run.history["step"].tolist() == [STEPS * epoch for epoch in range(1, 6)]
    assert run.history.iloc[:3].equals(finished.history)
    again = Recipe.from_dict(run.settings["recipe"]).changed(epochs=2)
    rates = [again.learning_rate(step, 2 * STEPS) for step in (STEPS - 1, 2 * STEPS - 1)]
    assert run.history["lr"].iloc[3:].tolist() == rates
    assert run.summary != finished.summary
    assert "epoch" not in (run.summary or {})
    assert not (run.path / "checkpoints").exists()
    assert "5 epochs" in repr(run)
    assert resume(run, epochs=6, data=digits, quiet=True).history["epoch"].tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("step", [STEPS - 2, STEPS + 2])
def test_an_extension_can_be_stopped_used_and_resumed(
    digits: ImageData, finished: Run, copied: Callable[[str], Run], step: int
):
    whole = resume(copied("whole"), epochs=5, data=digits, quiet=True)
    run = copied("run")
    with pytest.raises(Interrupted), before_step(step, interrupt):
        resume(run, epochs=5, data=digits, quiet=True)
    run, done = Run(run.path), 3 + step // STEPS
    assert not run.is_complete
    assert (run.summary or {}).items() >= {"epoch": 3, "epochs": 5}.items()  # of the network before the extension
    assert resnetlab.load(run).stopped_at == (done, 5)
    kept = resnetlab.load(run.weights).state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in weights(finished).items())
    assert resnetlab.evaluate(run, digits, explore=False).summary["epoch"] == done
    with refuses("--finish", "--resume", f"epoch {done} of 5"):
        resume(run, epochs=9)
    ended = Run(shutil.copytree(run.path, run.path.parent / "ended"))
    assert_equal(resume(run, data=digits, quiet=True), whole)
    ended = resume(ended, data=digits, finish=True, quiet=True)
    assert (ended.summary or {}).items() >= {"epoch": done, "epochs": 5}.items()
    assert ended.early_ends == [(done, 5)]
    longer = resume(ended, epochs=5 + done, data=digits, quiet=True)
    assert longer.settings["extensions"][1].items() >= {"start": done, "planned": 5, "ended_by": "finish"}.items()
    assert (longer.early_ends, "ended_by" in longer.settings, whole.early_ends) == ([(done, 5)], False, [])


def test_the_best_network_before_an_extension_stays_the_best(digits: ImageData, tmp_path: Path):
    settings = {**SETTINGS, "epochs": 2, "keep": "best", "lr": 0.1}
    run = fit(TINY, digits, out=tmp_path / "run", **settings)
    before = weights(run)
    with before_step(1, lambda training: setattr(training.state.progress, "best_top1", 1.0)):
        run = resume(run, epochs=3, data=digits, quiet=True)
    assert all(torch.equal(value, before[name]) for name, value in weights(run).items())


def test_what_a_run_cannot_do_is_refused(
    digits: ImageData, copied: Callable[[str], Run], tmp_path: Path, cli: Callable
):
    unfinished = stopped(tmp_path / "unfinished", digits, step=STEPS + 3)
    with refuses("epoch 1 of 3", "--finish", f"--resume {unfinished.path}"):
        resume(unfinished, epochs=9)
    run = copied("run")
    for epochs in (3, 1):
        with refuses(f"epochs={epochs}", "more than 3"):
            resume(run, epochs=epochs)
    with refuses("finish", "epochs=9"):
        resume(run, epochs=9, finish=True)
    with refuses("epochs", "0"):
        resume(run, epochs=0)
    code, _, err = cli("train", "digits", "--finish")
    assert (code, "--resume" in err) == (2, True)
    code, _, err = cli("train", "--resume", unfinished.path, "--keep-checkpoints")
    assert (code, "keep_checkpoints" in err) == (2, True)
    assert Run(run.path).is_complete


def test_a_checkpoint_of_another_run_is_refused(digits: ImageData, tmp_path: Path):
    run = stopped(tmp_path / "run", digits, step=2)
    for change in ({"seed": 7}, {"recipe": {**run.settings["recipe"], "lr": 0.5}}):
        write_toml(run.path / "run.toml", {**run.settings, **change})
        with refuses(*change, "run.toml"):
            resume(run.path, data=digits, quiet=True)


def test_training_without_an_evaluation_split_ends_once(tmp_path: Path):
    data = resnetlab.load_data("digits", validation_fraction=0.0, test_fraction=0.0)
    run = fit(TINY, data, out=tmp_path / "run", **{**SETTINGS, "epochs": 1})
    assert run.summary is None
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    resume(run, data=data, quiet=True)
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before
    assert len(resume(run, epochs=2, data=data, quiet=True).history) == 2


@contextmanager
def failing_at_write(number: int) -> Iterator[list[str]]:
    """Within, the write of this number fails, from 1, before anything has its new content; gives the names so far."""
    sync, written = files.sync, []

    def counted(path: Path) -> None:
        if path.is_file():
            written.append(path.name)
            if len(written) == number:
                raise ConnectionError("the machine is gone")
        sync(path)

    files.sync = counted
    try:
        yield written
    finally:
        files.sync = sync


def _fails_at_its_end(digits: ImageData, folder: Path, take: slice) -> None:
    """Ends a training and an extension with a failure at every write after the last step, and resumes."""
    settings = {**SETTINGS, "epochs": 1}
    with failing_at_write(0) as written:
        whole = fit(TINY, digits, out=folder / "whole", **settings)
    last = max(number for number, name in enumerate(written) if name.startswith(".step-"))
    with failing_at_write(0) as extending:
        longer = resume(shutil.copytree(whole.path, folder / "longer"), epochs=2, data=digits, quiet=True)
    for number in range(last + 2, len(written) + 1)[take]:
        out = folder / f"run-{number}"
        with pytest.raises(ConnectionError), failing_at_write(number):
            fit(TINY, digits, out=out, **settings)
        assert resnetlab.evaluate(Run(out), digits, explore=False).summary["top1"] == (whole.summary or {})["top1"]
        assert_equal(resume(out, data=digits, quiet=True), whole)
        assert not list(out.rglob("step-*"))
    for number in range(1, len(extending) + 1)[take]:
        out = shutil.copytree(whole.path, folder / f"longer-{number}")
        with pytest.raises(ConnectionError), failing_at_write(number):
            resume(out, epochs=2, data=digits, quiet=True)
        extended = "extensions" in Run(out).settings
        assert_equal(resume(out, epochs=None if extended else 2, data=digits, quiet=True), longer)
        assert not list(out.rglob("step-*"))


def test_a_failure_at_the_end_loses_nothing(digits: ImageData, tmp_path: Path):
    _fails_at_its_end(digits, tmp_path, slice(0, None, 5))


@pytest.mark.slow
def test_no_failure_at_the_end_loses_anything(digits: ImageData, tmp_path: Path):
    _fails_at_its_end(digits, tmp_path, slice(None))


def test_what_a_killed_process_left_is_removed(digits: ImageData, copied: Callable[[str], Run], finished: Run):
    run = copied("run")
    left = run.path / "checkpoints" / "step-00000018.safetensors"
    left.parent.mkdir()
    left.write_bytes(b"half")
    assert_equal(resume(run, quiet=True), finished)
    assert not left.parent.exists()
    (run.evaluation() / "summary.json").unlink()
    assert_equal(resume(run, data=digits, quiet=True), finished)


PROGRAM = "from resnetlab.cli.main import main; main()"
OPTIONS = ("--model", "resnet20", "--set", "model.widths=[4,8,8]", "--batch-size", "256")
# The program, which is interrupted before its n-th step like by Ctrl-C.
INTERRUPTED = """
import os, sys
from resnetlab.training.loop import Training
step, taken, at = Training.step, 0, int(sys.argv[1])
def counted(training, batch):
    global taken
    taken += 1
    if taken == at:
        os.kill(os.getpid(), 2)
    return step(training, batch)
Training.step = counted
from resnetlab.cli.main import main
main(sys.argv[2:])
"""


def _program(code: str, *arguments: object, expect: int = 0) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == expect, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@only_in_test_all
@pytest.mark.parametrize("done", [0, 1, 2])
def test_every_verb_takes_an_interrupted_run(tmp_path: Path, done: int):
    step = [3, STEPS + 1, 2 * STEPS + 4][done]
    run, label = tmp_path / "run", f"epoch {done} of 4"
    out = _program(INTERRUPTED, step, "train", "digits", *OPTIONS, "--epochs", 4, "--out", run, expect=130)
    assert "--resume" in out and "--finish" in out
    photo = tmp_path / "digit.png"
    from PIL import Image

    Image.new("L", (8, 8), 200).save(photo)
    assert label in _program(PROGRAM, "evaluate", run)
    assert label in (run / "report.html").read_text()
    (run / "report.html").unlink()
    _program(PROGRAM, "evaluate", run, "--page-only")
    assert label in (run / "report.html").read_text()
    assert label in _program(PROGRAM, "predict", run, photo)
    assert f"{done} of 4 epochs" in _program(PROGRAM, "summary", run)
    _program(PROGRAM, "export", run, "--to", "resnetlab", "--out", tmp_path / "network.safetensors")
    assert resnetlab.load(tmp_path / "network.safetensors").stopped_at == (done, 4)
    again = ("train", "digits", "--batch-size", 256, "--epochs", 1, "--pretrained", run, "--out", tmp_path / "other")
    assert label in _program(PROGRAM, *again)
    assert f"{done} of 4" in _program(PROGRAM, "compare", run, tmp_path / "other", "--out", tmp_path / "c.png")
    assert "--finish" in _program(PROGRAM, "train", "--resume", run, "--epochs", 9, expect=2)
    out = _program(PROGRAM, "train", "--resume", run, "--finish")
    assert label in out and label in (run / "report.html").read_text()
    assert (Run(run).is_complete, Run(run).settings["ended"]) == (True, done)
    assert not (run / "checkpoints").exists()
    out = _program(PROGRAM, "train", "--resume", run, "--epochs", done + 2)
    assert "new optimizer" in " ".join(out.split())
    assert len(Run(run).history) == done + 2


def test_neighbors_need_the_evaluation_of_this_network(finished: Run, copied: Callable[[str], Run], tmp_path: Path):
    run = copied("neighbors")
    resnetlab.evaluate(run, explore=False)
    path = run.evaluation() / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "weights": "of another network"}))
    image = tmp_path / "digit.png"
    Image.new("L", (8, 8)).save(image)
    with refuses("different evaluations", "resnetlab evaluate"):
        resnetlab.neighbors(run, image, k=2)


def test_the_epochs_of_an_extension_may_be_of_numpy(finished: Run, copied: Callable[[str], Run]):
    run = resume(copied("numpy"), epochs=np.int64(4), quiet=True)  # type: ignore[arg-type]
    assert run.epochs == 4 and len(run.history_rows()) == 4
