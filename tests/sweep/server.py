"""A process with all imports done, which forks one process for each run of the program, with or without a fault.

Started as `python server.py FOLDER` with faults.c preloaded. It reads one JSON list a line and answers each with one:
what a run of a verb with a fault, and then again, left to complain about.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import mmap
import os
import re
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import torch
from markupsafe import Markup
from PIL import Image

from resnetlab.cli.main import main
from resnetlab.core import pictures
from resnetlab.core.files import read_json, read_toml
from resnetlab.core.runs import TIMING_COLUMNS
from resnetlab.evaluation import embeddings
from resnetlab.weights.tensors import read_tensors

FOLDER = Path(sys.argv[1]).resolve()
NETWORK = ("--model", "resnet20", "--set", "model.depths=[1,1]", "--set", "model.widths=[4,8]")
LIMITS = ("--limit", "60", "--limit-held-out", "40")
TRAIN = ("train", "digits", *LIMITS, *NETWORK, "--epochs", "2", "--batch-size", "30", "--precision", "float32")
STUDY = ("study", "responses", "digits", "--seeds", "1", "--set", "plan={images=40, epochs=1}")
STUDY += ("--set", "depths=[8,14]")
TIMES = re.compile(r'("?(created|seconds|images_per_second)"?\s*[|:=]\s*)(\d{4}-\S+|".*?"|\[[^]]*\]|[-+.\deE]+)')
USERS = {"notes.txt": "mine", "unfinished": "mine", ".notes.txt.part": "mine", "sub/result.json.part": "mine"}
"""Files of the user's, next to what is written."""

Command = Callable[[Path], tuple[str, ...]]
VERBS: dict[str, tuple[str, Command]] = {
    "train": ("run", lambda out: (*TRAIN, "--out", str(out))),
    "evaluate": ("run", lambda out: ("evaluate", str(out))),
    "pack": (
        "pack", lambda out: ("pack", str(FOLDER / "input/photos"), "--out", str(out), "--workers", "1",
                             "--image-size", "8"),
    ),
    "study": ("study", lambda out: (*STUDY, "--out", str(out))),
    "export": ("out.pth", lambda out: ("export", str(FOLDER / "input/run"), "--to", "cifar", "--out", str(out))),
    "export-html": ("page", lambda out: ("export", str(FOLDER / "input/run"), "--to", "html", "--out", str(out))),
    "export-onnx": ("onnx", lambda out: ("export", str(FOLDER / "input/run"), "--out", str(out))),
}  # fmt: skip


class Control:
    """The memory that is shared with faults.c."""

    _FORM = "5l1024s"

    def __init__(self, path: str) -> None:
        with open(path, "r+b") as file:  # noqa: PTH123 -- a path of the environment
            self._memory = mmap.mmap(file.fileno(), 0)

    def arm(self, at: int, error: int, folder: Path) -> None:
        """Lets call number `at` below a folder fail; 0 records the calls."""
        struct.pack_into(self._FORM, self._memory, 0, 1, at, error, 0, 0, os.fsencode(f"{folder}/"))

    def disarm(self) -> list[str]:
        """Lets nothing fail; returns the calls that were recorded."""
        used = struct.unpack_from("5l", self._memory)[4]
        struct.pack_into("l", self._memory, 0, 0)
        start = struct.calcsize(self._FORM)
        return self._memory[start : start + used].decode(errors="replace").splitlines()


def program(words: tuple[str, ...], log: Path) -> tuple[int, str]:
    """Runs the program in a new process; returns its exit code and what it printed."""
    number = os.fork()
    if not number:
        _run(words, log)
    code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    return code, log.read_text(errors="replace")


def _run(words: tuple[str, ...], log: Path) -> NoReturn:
    code = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        main(words)
    except SystemExit as stop:
        code = int(stop.code or 0)
        if os.environ.get("SWEEP_MODULES"):
            Path(os.environ["SWEEP_MODULES"]).write_text("\n".join(sys.modules))
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(code)


def prepare(verb: str, place: Path) -> Path:
    """Makes the folder in which a verb works, with files of the user's; returns what the verb writes."""
    for name, text in USERS.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    out = place / VERBS[verb][0]
    if verb == "evaluate":
        shutil.copytree(FOLDER / "input/run", out)
        (out / "notes.txt").write_text("mine")
    return out


def again(verb: str, out: Path, log: Path) -> list[str]:
    """Repeats the command, or resumes; returns complaints."""
    code, text = program(VERBS[verb][1](out), log)
    if code == 2 and verb == "train":
        code, text = program(("train", "--resume", str(out)), log)
    if code == 2 and verb == "pack" and "complete pack of these images" in text:
        return []
    return [f"the repetition ended with {code}: {text[-600:]}"] if code else []


def differences(place: Path, whole: Path) -> Iterator[str]:
    """Yields in what two folders differ, except for times."""
    names = [{str(path.relative_to(root)) for path in root.rglob("*")} for root in (place, whole)]
    if names[0] != names[1]:
        yield f"more files {sorted(names[0] - names[1])}, missing {sorted(names[1] - names[0])}"
    for name in sorted(names[0] & names[1]):
        if (place / name).is_file() and content(place / name, place) != content(whole / name, whole):
            yield f"{name} differs"


def content(path: Path, place: Path) -> Any:
    """Returns what a file contains, without times and the place of the folder, in a form that == compares."""
    if path.suffix == ".safetensors":
        tensors, description = read_tensors(path)
        values = {name: (str(value.dtype), value.tolist()) for name, value in tensors.items()}
        return repr(values), _plain(json.dumps(description), place)
    if path.suffix == ".parquet":
        return pd.read_parquet(path).to_json(), _plain(json.dumps(pd.read_parquet(path).attrs), place)
    if path.name == "history.csv":
        return pd.read_csv(path).drop(columns=list(TIMING_COLUMNS)).to_json()
    if path.suffix in (".json", ".toml", ".md"):
        if path.suffix != ".md":
            (read_json if path.suffix == ".json" else read_toml)(path)
        return _plain(path.read_text(), place)
    if path.suffix == ".pth":
        return repr({name: value.tolist() for name, value in torch.load(path, weights_only=True).items()})
    if path.suffix in (".html", ".png", ".svg", ".npz"):  # these contain times, and pictures of them
        return path.stat().st_size > 0
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _plain(text: str, place: Path) -> str:
    return TIMES.sub(r"\1", text.replace(str(place), "PLACE"))


def disturbed(verb: str, name: str, at: int, error: int) -> list[str]:
    """Runs a verb whose call of this number fails, and then again; returns complaints."""
    place, log = FOLDER / "at" / name, FOLDER / "log"
    out = prepare(verb, place)
    CONTROL.arm(at, error, place)
    code, text = program(VERBS[verb][1](out), log)
    CONTROL.disarm()
    found = []
    allowed = {-1: (0, 2, -9), 28: (0, 2)}.get(error, (0, 1, 2))
    if code not in allowed or "Traceback" in text or "internal error" in text:
        found.append(f"ended with {code}: {text[-600:]}")
    if code == 2 and error == 28 and "space" not in text:
        found.append(f"did not say that there is no space: {text[-300:]}")
    whole = FOLDER / "whole" / verb
    if code or any(differences(place, whole)):
        found += again(verb, out, log)
    found += differences(place, whole)
    if not found:
        shutil.rmtree(place)
    return found


def undisturbed(verb: str) -> list[str]:
    """Runs a verb twice: to learn what it imports and what it writes, and to record its calls."""
    if verb not in ("train", "pack", "study") and not (FOLDER / "input/run").exists():
        code, text = program(VERBS["train"][1](FOLDER / "input/run"), FOLDER / "log")
        assert not code, text
    whole, listed = FOLDER / "whole" / verb, FOLDER / "modules"
    os.environ["SWEEP_MODULES"] = str(listed)
    code, text = program(VERBS[verb][1](prepare(verb, whole)), FOLDER / "log")
    del os.environ["SWEEP_MODULES"]
    assert not code, text
    for module in listed.read_text().splitlines():
        if module not in sys.modules and not module.startswith("__"):
            with suppress(Exception):
                importlib.import_module(module)
    gc.freeze()
    place = FOLDER / "at" / verb
    out = prepare(verb, place)
    CONTROL.arm(0, 0, place)
    code, text = program(VERBS[verb][1](out), FOLDER / "log")
    calls = CONTROL.disarm()
    assert not code, text
    assert not (found := list(differences(place, whole))), found
    return [call.replace(str(place), "") for call in calls]


def draw_nothing() -> None:
    """Makes pictures and maps of embeddings quick: what calls the file system is the same."""
    content = BytesIO()
    Image.new("L", (1, 1)).save(content, "PNG")
    pictures.to_png = lambda *_, **__: content.getvalue()
    pictures.Picture.svg = pictures.Picture.html = lambda *_, **__: Markup("<svg></svg>")
    embeddings._tsne = lambda components, seed: components[:, :2]


def photos() -> None:
    """Writes the images of the pack."""
    draws = np.random.default_rng(0)
    for number in range(20):
        path = FOLDER / "input/photos" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(path)


if __name__ == "__main__":
    CONTROL = Control(os.environ["FAULTS_CONTROL"])
    answers = os.dup(1)
    photos()
    draw_nothing()
    for line in sys.stdin:
        asked = json.loads(line)
        result = undisturbed(*asked) if len(asked) == 1 else disturbed(*asked)
        os.write(answers, (json.dumps(result) + "\n").encode())
