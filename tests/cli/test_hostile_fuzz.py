"""Files of a run, a pack and weights with random changes: a `UserError` or a result, in bounded memory."""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.conftest import TINY
from tests.sampling import SHARE

import resnetlab
from resnetlab.core.errors import UserError
from resnetlab.core.runs import Run
from resnetlab.data.load import load_data
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.result import Exploration
from resnetlab.report.results import read_results
from resnetlab.training.fit import fit
from resnetlab.weights.contents import inspect_weights

resource: Any = pytest.importorskip("resource", reason="Windows does not report the peak of memory")

TOKENS = (
    "", "null", "-1", "1e400", "9" * 25, "9" * 5000, "3.5", "nan", "true", '""', '"x"', '"\\u001b[31m"', '"\\ud800"',
    "[]", "{}", "[" * 2000, '{"a": 1}', "[[1, 2], [3]]", '"' + "y" * 5000 + '"', "2020-01-01", "\0", "\n", "[x]", "=",
)  # fmt: skip
_VALUE = re.compile(r'-?\d+(\.\d+)?(e-?\d+)?|"[^"]*"|true|false|[\[\]{},=]|\n')
BOUND = 2**30


def _text(content: bytes, draws: random.Random) -> bytes:
    """Replaces, removes or repeats values of a text."""
    text = content.decode("utf-8", "surrogateescape")
    for _ in range(draws.choice((1, 1, 2, 5))):
        found = list(_VALUE.finditer(text))
        if not found:
            break
        start, stop = draws.choice(found).span()
        text = text[:start] + draws.choice((*TOKENS, text[start:stop] * 2, text[start : start + 40])) + text[stop:]
    return text.encode("utf-8", "surrogatepass") if draws.random() < 0.9 else text.encode("utf-16")


def _bytes(content: bytes, draws: random.Random) -> bytes:
    """Changes, removes or repeats bytes."""
    changed = bytearray(content)
    for _ in range(draws.choice((1, 1, 3, 20))):
        at, length = draws.randrange(len(changed) + 1), draws.choice((1, 1, 4, 50))
        changed[at : at + length] = draws.choice((b"", draws.randbytes(length), b"\xff" * length, b"\0" * 8))
    return bytes(changed) if draws.random() < 0.9 else content[: draws.randrange(len(content))]


def _header(content: bytes, draws: random.Random) -> bytes:
    """Changes the description in the header of a file of weights, with a length that fits, or the bytes of the file."""
    if draws.random() < 0.3:
        return _bytes(content, draws)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    inner = header["__metadata__"]["resnetlab"].encode()
    if draws.random() < 0.6:
        header["__metadata__"]["resnetlab"] = _text(inner, draws).decode("utf-8", "replace")
        changed = json.dumps(header).encode()
    else:
        changed = _text(json.dumps(header).encode(), draws)
    return len(changed).to_bytes(8, "little") + changed + content[8 + length :]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, digits: ImageData) -> Path:
    """A folder with a run and a pack."""
    folder = tmp_path_factory.mktemp("place")
    fit(TINY, digits, out=folder / "run", epochs=2, batch_size=512, precision="float32", quiet=True)
    resnetlab.evaluate(folder / "run")
    for name, number in itertools.product(("cat", "dog"), range(5)):
        (folder / "photos" / name).mkdir(parents=True, exist_ok=True)
        pixels = np.full((9, 9, 3), 25 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / name / f"{number}.png")
    resnetlab.pack(folder / "photos", folder / "pack", image_size=8, workers=1)
    return folder


def _read_run(folder: Path) -> None:
    run = Run(folder)
    run.history_rows()
    assert repr(run)
    assert run._repr_html_()


def _read_evaluation(folder: Path) -> None:
    results = read_results(Run(folder))
    assert results.total >= 0 and len(results.cells) <= results.total
    Exploration.load(folder / "evaluation")


def _read_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    for read in (resnetlab.load, inspect_weights):
        try:
            str(read(path))
        except UserError:
            continue


def _without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink(missing_ok=True)
    Run(folder).history_rows()


TARGETS: dict[str, tuple[str, Callable[[bytes, random.Random], bytes], Callable[[Path], object]]] = {
    "run.toml": ("run", _text, _read_run),
    "environment.json": ("run", _text, lambda folder: Run(folder).environment),
    "history.csv": ("run", _text, _without_weights),
    "evaluation/summary.json": ("run", _text, _read_evaluation),
    "evaluation/per_image.parquet": ("run", _bytes, _read_evaluation),
    "evaluation/map.parquet": ("run", _bytes, _read_evaluation),
    "model.safetensors": ("run", _header, _read_weights),
    "pack.json": ("pack", _text, lambda folder: load_data(folder).squares("train")),
    "images.parquet": ("pack", _bytes, lambda folder: load_data(folder).squares("train")),
}


def _changed(place: Path, folder: Path, name: str, count: int, seed: int) -> Iterator[None]:
    kind, change, read = TARGETS[name]
    shutil.copytree(place / kind, folder)
    draws, content = random.Random(f"{name} {seed}"), (folder / name).read_bytes()
    for _ in range(count):
        (folder / name).write_bytes(change(content, draws))
        try:
            read(folder)
        except UserError as error:
            assert str(error) and len(str(error)) < 20_000
        yield


def _fuzz(place: Path, folder: Path, name: str, count: int, seed: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in _changed(place, folder, name, count, seed):
        pass
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BOUND


@pytest.mark.parametrize("name", TARGETS)
def test_a_changed_file_is_read_or_refused(place: Path, tmp_path: Path, name: str):
    _fuzz(place, tmp_path / "copy", name, 25, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_many_changes_of_a_file_are_read_or_refused(place: Path, tmp_path: Path, name: str):
    _fuzz(place, tmp_path / "copy", name, 600 if SHARE == 1 else 200, 1)
