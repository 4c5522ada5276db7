from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from pathlib import Path

import pandas as pd
import pytest
import typer
from PIL import Image
from tests.conftest import unprivileged

from resnetlab import __version__
from resnetlab.cli.main import guarded
from resnetlab.core.errors import UserError
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData

Cli = Callable[..., tuple[int, str, str]]
VERBS = (
    "list", "summary", "inspect", "train", "find-lr", "evaluate", "predict", "compare", "study", "pack", "export",
)  # fmt: skip


def test_help_and_import_load_no_torch():
    code = (
        "import sys, resnetlab\n"
        "from resnetlab.cli.main import main\n"
        "for arguments in (['--help'], ['train', '--help'], ['--version']):\n"
        "    try: main(arguments)\n"
        "    except SystemExit as stop: assert not stop.code, stop.code\n"
        "heavy = {'torch', 'numpy', 'pandas', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"resnetlab {__version__}" in done.stdout
    for verb in VERBS:
        assert verb in done.stdout


def test_the_module_is_the_same_program():
    done = subprocess.run([sys.executable, "-m", "resnetlab", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"resnetlab {__version__}\n"


def test_from_images_to_a_report(cli: Cli, tmp_path: Path, digits: ImageData):
    out = tmp_path / "run"
    code, _, err = cli("train", "digits", "--model", "resnet20", "--epochs", 2, "--out", out, "--set", "lr=0.1")
    assert code == 0, err
    assert "digits: 1,797 images 1x8x8, 10 classes" in err
    assert "epoch 2/2" in err
    assert f"report      {out}/report.html" in err
    run = Run(out)
    assert run.settings["recipe"]["lr"] == 0.1
    assert run.report.is_file()
    assert (out / "figures" / "curves.png").is_file()

    run.report.unlink()
    code, table, err = cli("evaluate", out)
    assert code == 0, err
    assert run.report.is_file()
    assert "test: top-1" in table
    assert "precision" in table

    for number in range(3):
        Image.fromarray(digits.splits["test"].images[number, 0].numpy()).save(tmp_path / f"{number}.png")  # type: ignore
    code, table, err = cli("predict", out, tmp_path / "0.png", tmp_path / "1.png")
    assert code == 0, err
    assert "0.png" in table
    code, _, err = cli("predict", out, tmp_path / "2.png", "--out", tmp_path / "answers.csv", "--top", 1)
    assert code == 0, err
    assert list(pd.read_csv(tmp_path / "answers.csv").columns) == ["path", "prediction", "confidence"]
    code, text, _ = cli("predict", out / "model.safetensors", tmp_path / "2.png", "--out", "-")
    assert text.splitlines()[0].startswith("path,prediction,confidence,prediction_2")

    code, table, _ = cli("summary", out)
    assert (code, "269,434" in table) == (0, True)

    run.report.unlink()
    code, table, err = cli("evaluate", out, "--page-only")
    assert (code, table) == (0, ""), err
    assert run.report.is_file()

    code, _, err = cli("train", "--resume", out)
    assert code == 0, err
    assert "is complete" in err and "--epochs" in err


@pytest.mark.slow
def test_without_out_a_run_gets_a_name(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = cli("train", "digits", "--epochs", 1, "--batch-size", 1293)
    assert code == 0, err
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("digits-quick_resnet-")


def test_models_and_summary(cli: Cli):
    code, table, _ = cli("list", "models", "resnet1*")
    assert code == 0
    for words in ("resnet18", "11,689,512", "resnet152", "11,513,626,624", "3x224x224", "resnet110"):
        assert words in table
    code, table, _ = cli("summary", "resnet20", "--channels", 1, "--shortcut", "B", "--image-size", 28)
    assert code == 0
    assert "272,186" in table  # 272,474 less two input channels of 16 filters of 3x3
    code, table, _ = cli("summary", "resnet18", "--stem", "auto", "--image-size", 28, "--classes", 10)
    assert "64x28x28" in table


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


MISTAKES = {
    "wrong data": (["train", "digitz"], "unknown data 'digitz'"),
    "wrong model": (["train", "digits", "--model", "resnet-20"], "unknown model 'resnet-20'. Did you mean 'resnet20'?"),
    "wrong recipe": (["train", "digits", "--recipe", "slow"], "unknown recipe 'slow'"),
    "wrong recipe field": (["train", "digits", "--set", "lrr=1"], "no field 'lrr'. Did you mean 'lr'?"),
    "what is no field of the recipe": (["train", "digits", "--set", "seed=1"], "the recipe has no field 'seed'"),
    "wrong network field": (["train", "digits", "--model", "resnet20", "--set", "model.stm=cifar"], "no field 'stm'"),
    "wrong assignment": (["train", "digits", "--set", "lr"], "--set expects KEY=VALUE"),
    "wrong device": (["train", "digits", "--device", "cudda"], "device 'cudda' cannot be used"),
    "zero epochs": (["train", "digits", "--epochs", "0"], "epochs must be an integer of at least 1 and"),
    "text for a number": (["train", "digits", "--epochs", "ten"], "Invalid value for '--epochs'"),
    "lr = nan": (["train", "digits", "--lr", "nan"], "lr must be a finite number above 0, got nan"),
    "batch of none": (["train", "digits", "--batch-size", "0"], "batch_size must be an integer of at least 2, got 0"),
    "no data": (["train", "--epochs", "3"], "resnetlab train DATA\nTo continue"),
    "one field twice": (["train", "digits", "--epochs", "3", "--set", "epochs=2"], "epochs is set twice"),
    "unknown option": (["train", "digits", "--epoch", "3"], "--epochs"),
    "settings with resume": (["train", "digits", "--resume", "x", "--lr", "1"], "does not take lr"),
    "missing run": (["evaluate", "gone"], "gone is not a run"),
    "missing run to resume": (["train", "--resume", "gone"], "gone is not a run"),
    "missing run for the page": (["evaluate", "gone", "--page-only"], "gone is not a run"),
    "measuring without measuring": (["evaluate", "gone", "--page-only", "--split", "test"], "gone is not a run"),
    "a verb that is gone": (["models"], "models"),
    "a misspelled verb": (["summery", "resnet18"], "summary"),
    "missing run to predict": (["predict", "gone", "a.png"], "there is no file gone"),
    "wrong summary": (["summary", "resnet19"], "unknown model 'resnet19'"),
    "no such models": (["list", "models", "vgg*"], "'vgg*'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message_and_exit_code_2(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
):
    monkeypatch.chdir(tmp_path)
    arguments, message = MISTAKES[mistake]
    code, out, err = cli(*arguments)
    assert code == 2
    assert message in err
    assert out == ""
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder(cli: Cli, tmp_path: Path):
    code, _, err = cli("train", _empty(tmp_path / "photos"))
    assert (code, "contains no class folders" in err) == (2, True)


@pytest.mark.slow
def test_an_unreadable_image(cli: Cli, image_folder: Path, tmp_path: Path, digits_run: Run):
    broken = image_folder / "red" / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 cut")
    code, _, err = cli("train", image_folder, "--out", tmp_path / "run")
    assert code == 2
    assert "broken.jpg" in err
    assert "--skip-unreadable" in err
    code, _, err = cli("predict", digits_run.path, broken)
    assert (code, "broken.jpg" in err) == (2, True)
    arguments = ("--out", tmp_path / "run", "--epochs", 1, "--image-size", 16, "--skip-unreadable")
    code, _, err = cli("train", image_folder, *arguments)
    assert code == 0, err
    assert "warning: skipped 1 unreadable file" in err


def test_an_output_folder_that_is_read_only_or_full(cli: Cli, tmp_path: Path):
    locked = _empty(tmp_path / "locked")
    locked.chmod(0o555)
    with unprivileged(tmp_path):
        code, _, err = cli("train", "digits", "--out", locked / "run")
    assert code == 2
    assert "cannot write to" in err
    assert all(fact in err for fact in ("Permission denied", "--out"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    code, _, err = cli("train", "digits", "--out", tmp_path / "full")
    assert (code, "is not empty" in err) == (2, True)


def test_a_run_without_any_weights_cannot_be_evaluated(cli: Cli, digits_run: Run, tmp_path: Path):
    shutil.copytree(digits_run.path, tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    code, _, err = cli("evaluate", tmp_path / "run")
    assert (code, "no intact checkpoint" in err) == (2, True)


def shows_mistakes(page: Path) -> bool:
    """Whether the page has the section of mistakes, for which it needs the images."""
    section = re.search(r'<section id="mistakes"[^>]*>', page.read_text())
    return section is not None and "data-missing" not in section[0]


@pytest.mark.slow
def test_a_run_goes_on_after_its_images_have_moved(cli: Cli, image_folder: Path, tmp_path: Path):
    out = tmp_path / "run"
    code, _, err = cli("train", image_folder, "--image-size", 16, "--epochs", 1, "--out", out, "--keep-checkpoints")
    assert code == 0, err
    moved = image_folder.rename(tmp_path / "moved")
    (out / "model.safetensors").unlink()
    code, _, err = cli("train", "--resume", out)
    assert code == 2
    assert "resnetlab train FOLDER --resume RUN" in err
    code, _, err = cli("train", moved, "--resume", out, "--device", "cpu")
    assert code == 0, err
    assert "the last bits may differ" in " ".join(err.split())
    assert shows_mistakes(out / "report.html")
    (out / "report.html").unlink()
    code, _, err = cli("evaluate", out, "--page-only", "--data", moved)
    assert code == 0, err
    assert shows_mistakes(out / "report.html")
    Image.new("RGB", (20, 20)).save(moved / "red" / "00.png")
    code, _, err = cli("evaluate", out, "--page-only", "--data", moved)
    assert (code, "are not those of the run: their content has changed" in err) == (2, True)


def test_predictions_go_to_a_file_not_to_a_folder(cli: Cli, digits_run: Run, tmp_path: Path):
    Image.new("L", (8, 8)).save(tmp_path / "a[bold].png")
    code, table, _ = cli("predict", digits_run.path, tmp_path / "a[bold].png")
    assert code == 0
    assert "a[bold].png" in table
    code, _, err = cli("predict", digits_run.path, tmp_path / "a[bold].png", "--out", tmp_path)
    assert (code, "predictions.csv" in err) == (2, True)
    code, _, _ = cli("predict", digits_run.path, tmp_path / "a[bold].png", "--out", "/dev/null")
    assert code == 0
    assert Path("/dev/null").is_char_device()


def test_a_run_within_the_folder_of_images_is_refused(cli: Cli, image_folder: Path):
    code, _, err = cli("train", image_folder, "--image-size", 16, "--epochs", 1, "--out", image_folder / "run")
    assert (code, "is within the folder of images. Choose another folder with --out" in err) == (2, True)
    assert sorted(path.name for path in image_folder.iterdir()) == ["blue", "red"]


def _options(text: str) -> set[str]:
    """The options that a help text describes."""
    return set(re.findall(r"^│ +(?:\* +)?(--[a-z-]+)", text, re.MULTILINE))


def test_the_help_shows_what_people_use_and_help_all_the_rest(cli: Cli):
    short, full = _options(cli("train", "--help")[1]), _options(cli("train", "--help-all")[1])
    assert {"--model", "--recipe", "--epochs", "--batch-size", "--lr", "--set", "--out", "--resume"} <= short
    assert len(short - {"--help", "--help-all"}) <= 12
    assert short < full
    assert {"--freeze", "--layer-decay", "--limit", "--precision", "--follow-links", "--validation-fraction"} <= full
    code, text, _ = cli("train", "-h")
    assert (code, _options(text)) == (0, short)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_without_torch_and_ambiguity(cli: Cli, verb: str):
    code, text, err = cli(verb, "-h")
    assert (code, err) == (0, "")
    assert f"Usage: resnetlab {verb}" in text
    if verb != "train":
        assert cli(verb)[1].split() == text.split()  # nothing given is a question for help


def test_options_of_data_mean_the_same_everywhere(cli: Cli):
    shared = {"--image-size", "--crop-mode", "--crop-pct", "--detail", "--split-seed", "--follow-links", "--data-root"}
    for verb in ("train", "find-lr", "inspect"):
        assert shared <= _options(cli(verb, "--help-all")[1])
    assert shared <= _options(cli("pack", "--help")[1])


def test_the_shell_completes_verbs():
    done = subprocess.run(
        [sys.executable, "-m", "resnetlab"],
        env={**os.environ, "_RESNETLAB_COMPLETE": "complete_bash", "COMP_WORDS": "resnetlab ex", "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["export"]


@pytest.mark.slow
def test_the_output_is_the_same_in_a_pipe_and_in_a_terminal():
    command = [sys.executable, "-m", "resnetlab", "summary", "resnet20"]
    environment = {**os.environ, "TERM": "dumb", "NO_COLOR": "1"}
    environment.pop("COLUMNS", None)
    piped = subprocess.run(command, env=environment, capture_output=True, check=True, stdin=subprocess.DEVNULL).stdout
    terminal, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs):
        os.close(theirs)
        shown = b""
        while chunk := _read(terminal):
            shown += chunk
    os.close(terminal)
    assert re.sub(rb"\x1b\[[0-9;]*m", b"", shown).replace(b"\r\n", b"\n") == piped


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other end is closed
        return b""


def test_debug_shows_the_traceback(tmp_path: Path):
    command = [sys.executable, "-m", "resnetlab", "evaluate", str(tmp_path), "--debug"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "run.toml" in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "facts"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x.csv"), 2, ("x.csv", "No space left on device")),
        (MemoryError(), 1, ("memory", "--batch-size", "--image-size")),
        (RuntimeError("can't allocate memory"), 1, ("memory", "--batch-size")),
        (UserError("expected this, got that."), 2, ("error: expected this, got that.",)),
    ],
)
def test_every_error_has_one_message_and_a_code(
    capsys: pytest.CaptureFixture[str], error: Exception, code: int, facts: tuple[str, ...]
):
    def verb() -> None:
        raise error

    assert_exit(capsys, verb, code, facts)


def test_an_error_of_the_program_is_a_bug(capsys: pytest.CaptureFixture[str]):
    assert_exit(capsys, partial(itemgetter("lost"), {}), 1, ("internal error", "KeyError: 'lost'", "bug", "--debug"))


def assert_exit(
    capsys: pytest.CaptureFixture[str], verb: Callable[..., None], code: int, facts: tuple[str, ...]
) -> None:
    with pytest.raises(typer.Exit) as stop:
        guarded(verb)()
    err = " ".join(capsys.readouterr().err.split())
    assert stop.value.exit_code == code
    assert [fact for fact in facts if fact not in err] == []
