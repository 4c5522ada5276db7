"""A data set larger than the memory it is allowed packs and trains below its bound, sampled through both runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.sampling import only_in_test_all

from resnetlab.core.runs import Run

BOUND = int(1.5 * 2**30)
PHOTOS, CLASSES, WIDTH, HEIGHT = 50_000, 10, 160, 128


def _write_photos(root: Path) -> None:
    """Writes files that all differ: few pictures, each with a comment of its own behind the start of the JPEG."""
    draws, pictures = np.random.default_rng(0), root / "picture.jpg"
    root.mkdir()
    contents = []
    for number in range(20 * CLASSES):
        color = np.array([20 * (number % CLASSES), 120, 200 - 20 * (number % CLASSES)])
        coarse = np.clip(color + draws.normal(0, 30, (HEIGHT // 8, WIDTH // 8, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(coarse).resize((WIDTH, HEIGHT)).save(pictures, quality=50)
        contents.append(pictures.read_bytes())
    pictures.unlink()
    for label in range(CLASSES):
        (root / f"class{label}").mkdir()
    for number in range(PHOTOS):
        content = contents[number % len(contents)]
        comment = b"\xff\xfe\x00\x06" + number.to_bytes(4, "big")
        (root / f"class{number % CLASSES}" / f"{number:05d}.jpg").write_bytes(content[:2] + comment + content[2:])


def _anonymous_memory(pid: int) -> int:
    """Returns the bytes of anonymous memory that a process and all its children hold; none for one that ended."""
    folder = Path("/proc", str(pid))
    try:
        status = (folder / "status").read_text(encoding="utf-8")
        children = [path.read_text(encoding="ascii").split() for path in folder.glob("task/*/children")]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    own = [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:")]
    return sum(own) + sum(_anonymous_memory(int(child)) for part in children for child in part)


def _largest(*arguments: object) -> int:
    """Runs the program and returns the most anonymous memory that it held in two samples in a row, 50 ms apart.

    A process that is just starting another one shows the memory of both as its own; the next sample does not.
    """
    samples, ended = [], threading.Event()
    began = time.perf_counter()
    command = [sys.executable, "-m", "resnetlab", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:

        def sample() -> None:
            while not ended.wait(0.05):
                samples.append(_anonymous_memory(process.pid))

        sampler = threading.Thread(target=sample)
        sampler.start()
        try:
            output, _ = process.communicate()
        finally:
            ended.set()
            sampler.join()
    assert process.returncode == 0, output
    assert len(samples) > 20
    seconds = time.perf_counter() - began
    largest = max(map(min, pairwise(samples)))
    sys.stdout.write(f"{arguments[0]}: at most {largest / 2**20:.0f} MiB anonymous, {seconds:.0f} s\n")
    return largest


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="anonymous memory is read from /proc")
def test_images_just_under_the_limit_of_pixels_take_turns(tmp_path: Path):
    """Three threads with photos of 89 million pixels: 0.6 GiB for one of them at a time."""
    command = ("--image-size", 16, "--device", "cpu", "--epochs", 1, "--model", "resnet20", "--workers", 3)
    largest = []
    for size in (64, 9430):
        folder, picture = tmp_path / f"photos{size}", tmp_path / "picture.png"
        Image.new("RGB", (size, size), (50, 100, 200)).save(picture, compress_level=1)
        for number, name in enumerate(("train/a", "train/b", "val/a", "val/b", "test/a", "test/b")):
            (folder / name).mkdir(parents=True)
            (folder / name / "1.png").write_bytes(picture.read_bytes() + bytes([number]))
        largest.append(_largest("train", folder, *command, "--out", tmp_path / f"run{size}"))
    assert largest[1] - largest[0] < 2**30


@pytest.mark.slow
@only_in_test_all
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="anonymous memory is read from /proc")
def test_fifty_thousand_photos_pack_and_train_in_little_memory(tmp_path: Path):
    free = shutil.disk_usage(tmp_path).free
    if free < 6 * 2**30:
        pytest.skip(f"needs 6 GiB of disk, and {free / 2**30:.1f} GiB are free at {tmp_path}")
    photos, pack, out = tmp_path / "photos", tmp_path / "pack", tmp_path / "run"
    try:
        _write_photos(photos)
        size = ("--image-size", 32, "--detail", HEIGHT / 32)
        shares = ("--test-fraction", 0.1, "--validation-fraction", 0.05)
        assert _largest("pack", photos, "--out", pack, *size, *shares, "--workers", 2) < BOUND
        # More than the bound, so that whoever holds all of the pixels cannot stay below it.
        assert sum(path.stat().st_size for path in (pack / "shards").iterdir()) > 1.5 * BOUND
        crops = ("--set", "augment.crop_scale=[0.5,1.0]")
        settings = ("--model", "quick_resnet", "--epochs", 1, "--batch-size", 128, "--device", "cpu")
        assert _largest("train", pack, *settings, *crops, "--out", out) < BOUND
    finally:
        for folder in (photos, pack):
            shutil.rmtree(folder, ignore_errors=True)
    run = Run(out)
    assert run.settings["data"]["counts"] == {"train": 42_750, "validation": 2_250, "test": 5_000}
    assert run.summary is not None
    assert run.summary["n"] == 5_000
