"""No process of the program imports modules from the working directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.sampling import only_in_test_all, sampled

from resnetlab.cli.main import app

NAMES = (
    "numpy", "torch", "torchvision", "PIL", "pandas", "pyarrow", "sklearn", "scipy", "matplotlib", "safetensors",
    "typer", "click", "rich", "filelock", "tomli_w", "timm", "jinja2", "threadpoolctl",
    "onnx", "onnxruntime", "onnxscript", "starlette", "uvicorn", "segno", "huggingface_hub",
    "__future__", "typing", "json", "dataclasses", "pathlib", "zlib", "tempfile", "subprocess", "hashlib", "random",
    "statistics", "logging", "csv", "queue", "resource",
)  # fmt: skip
MODULE = """
with open(__file__.removesuffix(__name__ + ".py") + "executed", "a") as file:
    file.write(__name__)
raise SystemExit("a file of the working directory was executed")
"""
OWN = """
from torch import nn
def net(num_classes, in_channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 16 * 16, num_classes))
"""
INSTALLED = (str(Path(sys.executable).with_name("resnetlab")),)
AS_MODULE = (sys.executable, "-m", "resnetlab")
OTHERS = {
    "list": "models", "summary": "run", "inspect": "photos", "find-lr": "photos --image-size 16 --model quick_resnet",
    "evaluate": "run", "compare": "run", "check": "resnet18.py --like resnet18", "learn": "gluon",
    "study": "lesion photos --image-size 16 --seeds 1 --set depth=20 --set plan={images=24,epochs=1}",
}  # fmt: skip
"""Arguments of every verb that no other test here starts."""
SHIPPED = ("train", "pack", "predict", "export", "serve")
NETWORK = """
import torch
class ResNet18(torch.nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.head = torch.nn.Linear(3, num_classes)
    def forward(self, x):
        return self.head(x.mean((2, 3)))
"""
TRAIN = ("train", "photos", "--image-size", "16", "--model", "quick_resnet", "--epochs", "1")


def run(folder: Path, *command: str, pythonpath: str, code: int = 0) -> str:
    done = subprocess.run(command, cwd=folder, env=environment(folder, pythonpath), capture_output=True, text=True)
    assert_nothing_was_executed(folder)
    assert done.returncode == code, done.stderr
    return done.stdout


def serve(folder: Path, *command: str, pythonpath: str) -> None:
    with subprocess.Popen(command, cwd=folder, env=environment(folder, pythonpath), stderr=subprocess.PIPE) as service:
        assert service.stderr is not None
        while b"http://" not in (line := service.stderr.readline()):
            assert line, "the service ended"
        service.terminate()
    assert_nothing_was_executed(folder)
    assert service.returncode == 0


def environment(folder: Path, pythonpath: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": pythonpath, "RESNETLAB_CACHE": str(folder / "cache")}


def assert_nothing_was_executed(folder: Path) -> None:
    executed = folder / "executed"
    assert not executed.exists(), executed.read_text()


@pytest.fixture
def hostile(image_folder: Path, tmp_path: Path) -> Path:
    """A working directory with a folder of images and a module for each dependency that leaves a trace."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    image_folder.rename(folder / "photos")
    for name in NAMES:
        (folder / f"{name}.py").write_text(MODULE)
    return folder


@pytest.fixture
def source() -> str:
    """Where the tested package is, for processes in another working directory."""
    import resnetlab

    return str(Path(resnetlab.__file__).absolute().parents[1])


def test_the_modules_of_the_test_leave_a_trace(hostile: Path):
    done = subprocess.run([sys.executable, "-c", "import numpy"], cwd=hostile, capture_output=True)
    assert done.returncode == 1
    assert (hostile / "executed").read_text() == "numpy"


@pytest.mark.slow
@pytest.mark.parametrize("program", sampled([AS_MODULE, INSTALLED], 2))
def test_a_command_executes_nothing_of_the_working_directory(program: tuple[str, ...], hostile: Path, source: str):
    run(hostile, *program, *TRAIN, "--store", "pack", "--out", "run", pythonpath=source)
    run(hostile, *program, "pack", "photos", "--out", "packed", "--image-size", "16", pythonpath=source)
    run(hostile, *program, "predict", "run", "photos/red/00.png", pythonpath=source)


def test_every_verb_is_tried():
    assert {command.name for command in app.registered_commands} == {*OTHERS, *SHIPPED}


@pytest.mark.slow
@only_in_test_all
def test_no_verb_executes_anything_of_the_working_directory(hostile: Path, source: str):
    (hostile / "resnet18.py").write_text(NETWORK)
    run(hostile, *AS_MODULE, *TRAIN, "--out", "run", pythonpath=source)
    for verb, words in OTHERS.items():
        mistakes = 1 if verb == "check" else 0
        run(hostile, *AS_MODULE, verb, *words.split(), pythonpath=source, code=mistakes)
    for words in ("onnx --int8 --out onnx", "html --out page.html"):
        run(hostile, *AS_MODULE, "export", "run", "--to", *words.split(), pythonpath=source)
    serve(hostile, *AS_MODULE, "serve", "onnx", "--port", "0", pythonpath=source)


@pytest.mark.slow
def test_decoding_processes_ignore_an_empty_entry_of_the_search_path(hostile: Path, source: str):
    """The entry means the working directory, and is often left by `PYTHONPATH=$PYTHONPATH:...`."""
    program = "import sys; sys.path[:] = [p for p in sys.path if p not in ('', sys.argv[1])]; sys.argv[:2] = ['']; "
    program += "from resnetlab.cli.main import main; main()"
    command = (sys.executable, "-P", "-c", program, str(hostile), "pack", "photos", "--out", "packed")
    run(hostile, *command, "--image-size", "16", pythonpath=f"{source}{os.pathsep}")


@pytest.mark.slow
def test_your_own_module_is_found_in_the_working_directory(hostile: Path, source: str):
    (hostile / "own.py").write_text(OWN)
    for model in ("own:net", "own.py:net"):
        command = (*TRAIN[:4], "--epochs", "1", "--model", model, "--overfit-one-batch")
        run(hostile, *AS_MODULE, *command, pythonpath=source)
