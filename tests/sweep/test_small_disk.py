"""A file system of a few megabytes that really is full: the message, the old files, and the work after making room."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnetlab.core.runs import TIMING_COLUMNS, Run
from resnetlab.data.load import load_data
from resnetlab.weights.tensors import read_tensors

Cli = Callable[..., tuple[int, str, str]]
TRAIN = ("train", "digits", "--model", "resnet20", "--epochs", 4, "--batch-size", 256, "--precision", "float32")


class Disk:
    """A small file system in memory."""

    def __init__(self, path: Path) -> None:
        self.path, self._ballast = path, path / "ballast"

    def fill(self, free: int) -> None:
        """Leaves this many bytes free."""
        left = shutil.disk_usage(self.path).free - free
        with self._ballast.open("ab") as file:
            file.write(bytes(max(0, left)))

    def make_room(self) -> None:
        """Removes what `fill` wrote."""
        self._ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(path)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("no file system can be mounted here")
    yield Disk(path)
    subprocess.run(["umount", str(path)], check=True, timeout=20)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run, which was never disturbed."""
    from resnetlab.training.fit import fit

    settings = {"epochs": 4, "batch_size": 256, "precision": "float32", "quiet": True}
    return fit("resnet20", "digits", out=tmp_path_factory.mktemp("whole") / "run", **settings).path


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "ballast"}


def refused(result: tuple[int, str, str]) -> str:
    code, _, err = result
    assert (code, "no space" in err, "internal" in err) == (2, True, False), err
    return err


def test_a_read_only_disk_is_named_at_once(cli: Cli, disk: Disk, whole: Path, tmp_path: Path):
    run = shutil.copytree(whole, disk.path / "run")
    before = content(disk.path)
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    subprocess.run(["mount", "-o", "remount,ro", str(disk.path)], check=True, timeout=20)
    new = disk.path / "new"
    for words in (
        (*TRAIN, "--out", new),
        ("train", "--resume", run, "--epochs", 9),
        ("pack", tmp_path / "photos", "--out", new),
        ("evaluate", run),
        ("study", "responses", "digits", "--out", new),
        ("export", run, "--out", new),
        ("export", run, "--to", "html", "--out", new),
    ):
        code, _, err = cli(*words)
        assert (code, "Read-only file system" in err, str(disk.path) in err) == (2, True, True), f"{words}: {err}"
    assert content(disk.path) == before
    assert cli("train", "--resume", run)[0] == 2  # the report cannot be written


@pytest.mark.slow
def test_a_training_names_its_last_checkpoint_and_continues(cli: Cli, disk: Disk, whole: Path):
    out = disk.path / "run"
    disk.fill(9_000_000)  # checkpoints of 3.3 MB: the third does not fit, because the first goes only afterwards
    err = refused(cli(*TRAIN, "--out", out))
    assert "step-00000012.safetensors" in err and f"--resume {out}" in err
    assert len(list((out / "checkpoints").iterdir())) == 2
    disk.make_room()
    code, _, err = cli("train", "--resume", out)
    assert code == 0, err
    ours, theirs = (read_tensors(Run(path).weights)[0] for path in (out, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    first, second = (Run(path).history.drop(columns=list(TIMING_COLUMNS)) for path in (out, whole))
    assert first.equals(second)


@pytest.mark.parametrize("words", [("--to", "cifar", "--out", "net.pth"),
                                   ("--to", "resnetlab", "--out", "net.safetensors"),
                                   ("--to", "html", "--out", "page")])  # fmt: skip
def test_an_export_leaves_the_older_one(cli: Cli, disk: Disk, whole: Path, words: tuple[str, ...]):
    command = ("export", whole, *words[:-1], disk.path / words[-1])
    assert cli(*command)[0] == 0
    before = content(disk.path)
    disk.fill(100_000)
    refused(cli(*command))
    assert content(disk.path) == before
    disk.make_room()
    assert cli(*command)[0] == 0


@pytest.mark.slow
def test_an_export_to_onnx_leaves_the_older_one(cli: Cli, disk: Disk, whole: Path):
    command = ("export", whole, "--out", disk.path / "onnx")
    assert cli(*command)[0] == 0
    before = content(disk.path)
    for free in (0, 500_000, 1_050_000):
        disk.fill(free)
        refused(cli(*command))
        assert content(disk.path) == before
        disk.make_room()
    assert cli(*command)[0] == 0


@pytest.mark.slow
def test_an_evaluation_leaves_the_older_one(cli: Cli, disk: Disk, whole: Path):
    run = shutil.copytree(whole, disk.path / "run")
    assert cli("evaluate", run)[0] == 0
    before = content(run / "evaluation")
    disk.fill(50_000)
    refused(cli("evaluate", run))
    assert content(run / "evaluation") == before
    disk.make_room()
    assert cli("evaluate", run)[0] == 0


def test_a_pack_keeps_what_it_has_and_continues(cli: Cli, disk: Disk, tmp_path: Path):
    draws = np.random.default_rng(0)
    for number in range(600):
        path = tmp_path / "photos" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    out = disk.path / "pack"
    command = ("pack", tmp_path / "photos", "--workers", 1, "--image-size", 32)
    disk.fill(1_300_000)
    assert str(out) in refused(cli(*command, "--out", out))
    done = sorted(path.name for path in (out / "shards").glob("*.bin"))
    assert done and not list(out.rglob("*.part"))
    disk.make_room()
    code, _, err = cli(*command, "--out", out)
    assert code == 0, err
    assert cli(*command, "--out", tmp_path / "pack")[0] == 0
    assert load_data(out).fingerprint == load_data(tmp_path / "pack").fingerprint
    assert {path.name for path in out.rglob("*")} == {path.name for path in (tmp_path / "pack").rglob("*")}
