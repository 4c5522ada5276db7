"""A pack equals the images in memory bit for bit, and survives whatever stops or damages it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tests.conftest import TINY, framed, unprivileged
from tests.facts import refuses
from tests.training.stepping import before_step

from resnetlab.core.errors import UserError
from resnetlab.core.framing import shrinking
from resnetlab.core.waiting import announced
from resnetlab.data import assemble
from resnetlab.data.augment import Augmentation
from resnetlab.data.batches import Batch, training_batches
from resnetlab.data.load import load_data, reload_data
from resnetlab.data.load import pack as pack_data
from resnetlab.data.storage import pack
from resnetlab.data.storage.reader import decode_image
from resnetlab.data.storage.store import ImageData, Split
from resnetlab.evaluation.evaluate import evaluate
from resnetlab.evaluation.predict import predict
from resnetlab.training.fit import fit, resume
from resnetlab.training.loop import Training
from resnetlab.weights.tensors import read_tensors

EVERYTHING = Augmentation(
    crop_scale=(0.3, 1.0), flip=True, vertical_flip=True, rotation=15, shear=5, perspective=0.3, brightness=0.3,
    contrast=0.3, saturation=0.3, hue=0.1, autocontrast_p=0.2, sharpness_p=0.3, blur_p=0.3, erase_p=0.3, mixup=0.2,
    cutmix=1.0, policy="trivial",
)  # fmt: skip
RGB = dataclasses.replace(TINY, in_channels=3, num_classes=2)
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Several shards of few images, one decoding process unless a test says otherwise, a cache of the test's own."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(pack, "FILES_IN_A_SHARD", 8)
    monkeypatch.setenv("RESNETLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photos(image_folder: Path) -> Path:
    """Photos smaller than 24 pixels, of 24 and larger, of several shapes, as PNG and JPEG, of two classes."""
    draws = np.random.default_rng(1)
    sizes = [(24, 24), (24, 50), (10, 30), (90, 60), (60, 90), (100, 24), (23, 25), (48, 48), (36, 36), (7, 7)]
    for name in ("blue", "red"):
        for number, size in enumerate(sizes):
            pixels = draws.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(image_folder / name / f"x{number}{('.jpg', '.png')[number % 2]}")
    return image_folder


@pytest.fixture
def unfinished(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pack of `photos` with every shard done, stopped before it was complete."""
    with monkeypatch.context() as patch:
        patch.setattr(assemble, "finish_pack", _stop)
        with pytest.raises(ConnectionError):
            pack_data(photos, tmp_path / "pack", image_size=24)
    assert (tmp_path / "pack" / "unfinished").exists()
    return tmp_path / "pack"


def _stop(*arguments: object) -> None:
    raise ConnectionError("the machine is gone")


def _batches(data: ImageData, **arguments: int) -> list[Batch]:
    settings = {"batch_size": 9, "policy": EVERYTHING, "seed": 3, "epoch": 1, "framing": data.framing}
    return list(training_batches(data.split("train"), **{**settings, **arguments}))


def _assert_same_batches(ours: list[Batch], theirs: list[Batch]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.step == other.step
        for field in ("images", "labels", "partner_labels", "mix_ratios"):
            left, right = getattr(one, field), getattr(other, field)
            assert isinstance(left, torch.Tensor)
            assert isinstance(right, torch.Tensor)
            assert torch.equal(left, right)


def _assert_same(ours: ImageData, theirs: ImageData) -> None:
    assert ours.fingerprint == theirs.fingerprint
    assert ours.preprocessing == theirs.preprocessing
    assert (ours.class_names, ours.mirrors) == (theirs.class_names, theirs.mirrors)
    assert list(ours.splits) == list(theirs.splits)
    for name, split in ours.splits.items():
        other = theirs.split(name)
        assert torch.equal(split.labels, other.labels)
        assert torch.equal(split.index, other.index)
        assert split.paths == other.paths
        assert split.digests == other.digests
        for one, two in zip(split.images, other.images, strict=True):
            assert torch.equal(one, two)
        assert torch.equal(ours.squares(name), theirs.squares(name))
    _assert_same_batches(_batches(ours), _batches(theirs))


def _identities(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (folder / "shards").iterdir()}


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _photo(root: Path, data: ImageData, split: str, position: int) -> Path:
    return root / (data.split(split).paths or ())[position]


# What is in a pack


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_pack_equals_memory_for_any_number_of_workers(workers: int, photos: Path, tmp_path: Path):
    packed = pack_data(photos, tmp_path / "pack", image_size=24, workers=workers)
    _assert_same(packed, load_data(photos, image_size=24, store="memory", workers=workers))
    assert sorted(path.name for path in (tmp_path / "pack").iterdir()) == ["images.parquet", "pack.json", "shards"]
    assert len(list((tmp_path / "pack" / "shards").glob("train-*.bin"))) == 6


def test_workers_do_not_change_a_byte(photos: Path, tmp_path: Path):
    for workers in (1, 4):
        pack_data(photos, tmp_path / f"pack{workers}", image_size=24, channels=1, workers=workers)
    one, four = (_files(tmp_path / f"pack{workers}") for workers in (1, 4))
    assert one == four
    gray = [load_data(photos, image_size=24, channels=1, store="memory", workers=workers) for workers in (1, 4)]
    _assert_same(*gray)
    _assert_same(gray[0], load_data(tmp_path / "pack1"))


def test_a_store_of_packs_is_built_once_and_found_again(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    first = load_data(photos, image_size=24, store="pack", workers=4)
    assert "packing 60 images" in capfd.readouterr().err
    before = {path: path.stat().st_ino for path in (tmp_path / "cache" / "packs").rglob("*")}
    again = load_data(photos, image_size=24, store="pack", workers=1)
    assert "packing" not in capfd.readouterr().err
    assert {path: path.stat().st_ino for path in (tmp_path / "cache" / "packs").rglob("*")} == before
    memory = load_data(photos, image_size=24, store="memory")
    for data in (first, again):
        _assert_same(data, memory)
        _assert_same(reload_data(data.describe()), memory)
    Image.new("RGB", (30, 30)).save(photos / "red" / "00.png")  # another file, another pack
    _assert_same(load_data(photos, image_size=24, store="pack"), load_data(photos, image_size=24, store="memory"))


@pytest.mark.parametrize(("detail", "shorter"), [(1.5, 36), (1.0, 24), (3.0, 72)])
def test_photos_keep_their_shape_and_enough_pixels_for_crops(detail: float, shorter: int, photos: Path, tmp_path: Path):
    data = pack_data(photos, tmp_path / "pack", image_size=24, detail=detail)
    for position, kept in enumerate(data.split("train").images):
        pixels = decode_image(_photo(photos, data, "train", position), 3)
        height, width = pixels.shape[:2]
        assert min(kept.shape[1:]) == min(height, width, shorter)
        assert abs(kept.shape[1] / kept.shape[2] - height / width) <= height / width / min(kept.shape[1:])
        assert np.array_equal(kept.permute(1, 2, 0).numpy(), shrinking(height, width, shorter).apply(pixels))


@pytest.mark.parametrize("crop_mode", ["crop", "squash"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("crop_pct", [1.0, 0.6])
def test_evaluation_sees_what_prediction_sees(
    crop_mode: str, channels: int, crop_pct: float, photos: Path, tmp_path: Path
):
    shares = {"test_fraction": 0.4, "validation_fraction": 0.3}  # so that every kind of size is in them
    options = {"image_size": 24, "channels": channels, "crop_mode": crop_mode, "crop_pct": crop_pct, **shares}
    kinds = set()
    for data in (load_data(photos, store="memory", **options), pack_data(photos, tmp_path / "pack", **options)):
        for name in data.splits:
            for position, square in enumerate(data.squares(name) if name != "train" else ()):
                pixels = decode_image(_photo(photos, data, name, position), channels)
                kinds.add((name, int(np.sign(min(pixels.shape[:2]) - 24))))
                expected = framed(24, crop_mode=crop_mode, crop_pct=crop_pct).square(pixels)
                assert np.array_equal(square.permute(1, 2, 0).numpy(), expected)
                assert np.array_equal(data.preprocessing.square(pixels), expected)
        some = torch.tensor([5, 0, 3])
        assert torch.equal(data.squares("test", some), data.squares("test")[some])
    assert kinds == {(name, sign) for name in ("validation", "test") for sign in (-1, 0, 1)}


def test_prediction_on_a_file_answers_as_evaluation_does(photos: Path, tmp_path: Path):
    data = pack_data(photos, tmp_path / "pack", image_size=24, test_fraction=0.4)
    run = fit(RGB, data, out=tmp_path / "run", epochs=1, precision="float32", quiet=True)
    table = evaluate(run, data, split="test").per_image
    files = [_photo(photos, data, "test", position) for position in range(len(table))]
    answers = predict(run, [str(file) for file in files], top=1)
    assert answers["prediction"].tolist() == table["prediction"].tolist()
    assert answers["confidence"].tolist() == pytest.approx(table["confidence"].tolist(), rel=1e-6)
    alone = predict(run, files[3], top=1)
    assert alone["confidence"].tolist() == pytest.approx(table["confidence"].tolist()[3:4], rel=1e-5)


def test_training_does_not_heed_what_part_is_evaluated(photos: Path, tmp_path: Path):
    options = {"image_size": 16, "test_fraction": 0.4}
    whole, part = load_data(photos, **options), load_data(photos, crop_pct=0.7, **options)
    assert whole.fingerprint != part.fingerprint
    assert all(map(torch.equal, whole.split("train").images, part.split("train").images))
    kept = part.split("train").images[3].permute(1, 2, 0).numpy()
    shown = part.squares("train", torch.tensor([3]))[0].permute(1, 2, 0).numpy()
    assert np.array_equal(shown, framed(16, crop_pct=0.7).square(kept))
    settings = {"epochs": 2, "precision": "float32", "quiet": True}
    runs = [fit(RGB, data, out=tmp_path / name, **settings) for name, data in (("whole", whole), ("part", part))]
    weights = [read_tensors(run.weights)[0] for run in runs]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())
    tables = [evaluate(run).per_image["confidence"] for run in runs]
    assert not np.allclose(tables[0], tables[1])
    files = [_photo(photos, part, "test", position) for position in range(5)]
    answers = predict(runs[1], [str(file) for file in files], top=1)["confidence"]
    assert answers.tolist() == pytest.approx(tables[1].tolist()[:5], rel=1e-5)
    with pytest.raises(UserError, match=r"Load it with crop_pct=0\.7"):
        evaluate(runs[1], whole)
    elsewhere = evaluate(runs[1].weights, photos).per_image.iloc[:5]  # a file, which loads images as it needs them
    answers = predict(runs[1], [str(photos / path) for path in elsewhere["path"]], top=1)["confidence"]
    assert answers.tolist() == pytest.approx(elsewhere["confidence"].tolist(), rel=1e-5)


def test_a_pack_is_opened_by_its_folder(photos: Path, tmp_path: Path):
    whole = pack_data(photos, tmp_path / "pack", image_size=24)
    data = load_data(tmp_path / "pack")
    _assert_same(data, whole)
    _assert_same(reload_data(data.describe()), whole)
    shutil.move(photos, tmp_path / "elsewhere")  # the photos are not needed any more
    limited = load_data(tmp_path / "pack", limit=11)
    part = limited.split("train")
    assert len(part) == 11
    assert set(torch.bincount(part.labels).tolist()) <= {5, 6}
    at = [whole.split("train").index.tolist().index(index) for index in part.index.tolist()]
    assert all(
        torch.equal(image, whole.split("train").images[place]) for image, place in zip(part.images, at, strict=True)
    )
    assert torch.equal(limited.squares("test"), whole.squares("test"))
    expected = load_data(tmp_path / "elsewhere", image_size=24, store="memory", limit=11)
    assert limited.fingerprint == expected.fingerprint
    assert limited.preprocessing == expected.preprocessing
    held_out = load_data(tmp_path / "pack", limit_held_out=4)
    assert {name: len(split) for name, split in held_out.splits.items()} == {
        "train": len(whole.split("train")), "validation": 4, "test": 4,
    }  # fmt: skip
    assert set(held_out.split("test").index.tolist()) <= set(whole.split("test").index.tolist())


def test_ranks_see_every_image_once_and_the_same_batches(photos: Path, tmp_path: Path):
    data = pack_data(photos, tmp_path / "pack", image_size=24)
    split = data.split("train")
    numbered = Split(images=split.images, labels=torch.arange(len(split)), index=split.index)
    # Without what turns a rounding into another value; whether samples are warped together changes their last bits.
    policy = dataclasses.replace(EVERYTHING, policy="none", autocontrast_p=0.0)
    settings = {"batch_size": 9, "policy": policy, "seed": 3, "epoch": 1, "framing": data.framing}
    alone = list(training_batches(numbered, **settings))
    ranks = [list(training_batches(numbered, **settings, rank=rank, world_size=2)) for rank in range(2)]
    seen = torch.cat([batch.labels for batches in ranks for batch in batches])
    assert seen.sort().values.tolist() == list(range(len(split)))
    for whole, *parts in zip(alone, *ranks, strict=True):
        for rank, part in enumerate(parts):
            assert torch.allclose(whole.images[rank::2], part.images, rtol=0, atol=0.01)
            assert torch.equal(whole.mix_ratios[rank::2], part.mix_ratios)
            assert torch.equal(whole.partner_labels[rank::2], part.partner_labels)
            assert torch.equal(whole.labels[rank::2], part.labels)


def test_an_epoch_goes_on_in_its_middle(photos: Path, tmp_path: Path):
    memory = load_data(photos, image_size=24, store="memory", workers=1)
    packed = pack_data(photos, tmp_path / "pack", image_size=24, workers=4)
    _assert_same_batches(_batches(packed, first_step=3), _batches(memory)[3:])


def test_a_run_from_a_pack_is_resumed_in_mid_epoch_and_equals_one_from_memory(photos: Path, tmp_path: Path):
    settings = {"epochs": 2, "batch_size": 8, "augment.crop_scale": (0.5, 1.0), "augment.rotation": 10.0}
    settings |= {"precision": "float32", "quiet": True}
    memory = load_data(photos, image_size=24, store="memory", workers=1)
    whole = fit(RGB, memory, out=tmp_path / "whole", **settings)
    pack_data(photos, tmp_path / "pack", image_size=24, workers=4)

    def save_and_fail(training: Training) -> None:
        training.save()
        raise ConnectionError("the machine is gone")

    with pytest.raises(ConnectionError), before_step(9, save_and_fail):  # of 6 steps an epoch
        fit(RGB, tmp_path / "pack", out=tmp_path / "run", **settings)
    with before_step(9, save_and_fail) as taken:
        resumed = resume(tmp_path / "run", quiet=True)
    assert len(taken) == 4, "it continues in the middle of the second epoch"
    ours, theirs = (read_tensors(run.weights)[0] for run in (resumed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours.keys() | theirs.keys())
    assert resumed.summary == whole.summary


# What is refused


def test_sizes_and_channels_are_those_of_the_pack(photos: Path, tmp_path: Path):
    pack_data(photos, tmp_path / "pack", image_size=24)
    assert load_data(tmp_path / "pack", image_size=24, channels=3).image_size == 24
    cases: list[tuple[str, int, dict[str, Any]]] = [
        ("image_size", 24, {"image_size": 32}),
        ("channels", 3, {"channels": 1}),
    ]
    for name, was, asked in cases:
        with pytest.raises(UserError, match=f"{name}={was}, not {asked[name]}"):
            load_data(tmp_path / "pack", **asked)


def test_a_complete_pack_and_foreign_folders_are_left_alone(photos: Path, tmp_path: Path):
    pack_data(photos, tmp_path / "pack", image_size=24)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    before = _files(tmp_path)
    with pytest.raises(UserError, match="complete pack"):
        pack_data(photos, tmp_path / "pack", image_size=32)
    with pytest.raises(UserError, match="mine is not empty"):
        pack_data(photos, tmp_path / "mine")
    with pytest.raises(UserError, match=r"cannot make the pack's folder .*file: Not a directory\. Choose another"):
        pack_data(photos, tmp_path / "file")
    assert _files(tmp_path) == before


def test_wrong_arguments_are_refused(photos: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"'image_sizes'.*'image_size'"):
        pack_data(photos, tmp_path / "pack", image_sizes=24)
    with pytest.raises(UserError, match="digits"):
        pack_data("digits", tmp_path / "pack")
    with pytest.raises(UserError, match=r"unknown data"):
        pack_data(tmp_path / "nothing", tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize("workers", [0, -1])
def test_a_wrong_number_of_workers_is_refused(workers: int, photos: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"workers must be an integer of at least 1"):
        pack_data(photos, tmp_path / "pack", workers=workers)


def test_two_packers_at_once_are_refused(photos: Path, unfinished: Path):
    with pack.pack_lock(unfinished), pytest.raises(UserError, match="another process"):
        pack_data(photos, unfinished, image_size=24)
    assert pack_data(photos, unfinished, image_size=24).num_classes == 2


def test_a_target_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, mode in (("closed", 0o555), ("hidden", 0o700)):
        (tmp_path / name).mkdir(mode=mode)
    monkeypatch.chdir(tmp_path)
    with unprivileged(tmp_path):
        assert sys.platform != "win32"  # for pyright; it is skipped there
        locked = pack.pack_lock(Path("closed/pack"))
        with pytest.raises(UserError, match=r"cannot make the pack's folder closed/pack: Permission denied\. Choose"):
            locked.__enter__()
        if Path("hidden").owner() != str(os.geteuid()) and not os.access("hidden", os.R_OK, effective_ids=True):
            with pytest.raises(UserError, match=r"cannot make the pack's folder hidden: Permission denied\. Choose"):
                pack.pack_lock(Path("hidden")).__enter__()


# Damage


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_flip, _tear, _empty, Path.unlink])
def test_a_damaged_shard_is_named_when_its_images_are_read(
    damage: Callable[[Path], object], photos: Path, tmp_path: Path
):
    pack_data(photos, tmp_path / "pack", image_size=24)
    damage(tmp_path / "pack" / "shards" / "test-00000.bin")
    data = load_data(tmp_path / "pack")
    assert len(_batches(data)) > 1
    with pytest.raises(UserError, match=r"test-00000\.bin is damaged.*Remove the pack and pack again"):
        data.squares("test")


@pytest.mark.parametrize("name", ["pack.json", "images.parquet"])
@pytest.mark.parametrize("damage", [_tear, _empty])
def test_a_damaged_table_is_told(damage: Callable[[Path], object], name: str, photos: Path, tmp_path: Path):
    pack_data(photos, tmp_path / "pack", image_size=24)
    damage(tmp_path / "pack" / name)
    with refuses(name):
        load_data(tmp_path / "pack")


def test_a_pack_of_a_newer_version_is_refused(photos: Path, tmp_path: Path):
    pack_data(photos, tmp_path / "pack", image_size=24)
    facts = json.loads((tmp_path / "pack" / "pack.json").read_text())
    (tmp_path / "pack" / "pack.json").write_text(json.dumps({**facts, "schema": 9}))
    with pytest.raises(UserError, match=r"has schema 9; this version reads schemas up to 1"):
        load_data(tmp_path / "pack")


def test_an_unfinished_pack_goes_on_with_what_is_whole(photos: Path, unfinished: Path, tmp_path: Path):
    before, shards = _identities(unfinished), unfinished / "shards"
    assert len(before) == 2 * (6 + 1 + 2)
    _flip(shards / "train-00001.bin")
    _tear(shards / "train-00002.bin")
    _empty(shards / "train-00003.bin")
    (shards / "train-00004.bin").unlink()
    (shards / "train-00005.json").unlink()
    _tear(shards / "test-00000.json")
    for leftover in ("train-00000.bin.123.part", "train-00099.bin", "train-00099.json"):
        (shards / leftover).write_bytes(b"left")
    rebuilt: dict[str, tuple[int, int]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assemble, "finish_pack", lambda folder, *rest: rebuilt.update(_identities(folder)) or _stop())
        with pytest.raises(ConnectionError):
            pack_data(photos, unfinished, image_size=24)
    assert rebuilt.keys() == before.keys()
    damaged = {"train-00001", "train-00002", "train-00003", "train-00004", "train-00005", "test-00000"}
    assert {Path(name).stem for name in before if rebuilt[name] != before[name]} == damaged
    pack_data(photos, unfinished, image_size=24)
    pack_data(photos, tmp_path / "whole", image_size=24)
    assert _files(unfinished) == _files(tmp_path / "whole")


def _home(folder: Path) -> dict[str, bytes]:
    """Makes a folder that is not a pack's and has names of one; returns its files."""
    (folder / "shards").mkdir(parents=True)
    for name in ("unfinished", "thesis.txt", ".lock", "shards/train-00000.bin", "shards/notes.json", "shards/a.part"):
        (folder / name).write_text(f"mine: {name}")
    return _files(folder)


@pytest.mark.parametrize("marker", ["mine", "", "longer"])
def test_a_folder_with_a_file_called_unfinished_loses_nothing(marker: str, photos: Path, tmp_path: Path, cli: Cli):
    _home(tmp_path / "home")
    text = {"longer": pack._MARKER_TEXT + "mine"}.get(marker, marker)
    (tmp_path / "home" / "unfinished").write_text(text)
    before = _files(tmp_path / "home")
    code, _, err = cli("pack", photos, "--out", tmp_path / "home", "--image-size", 24)
    assert (code, "not empty" in err) == (2, True)
    assert _files(tmp_path / "home") == before
    assert not pack.is_pack(tmp_path / "home")


@pytest.mark.parametrize("name", ["shards", ".lock", "unfinished", "."])
def test_nothing_is_lost_through_a_link(name: str, photos: Path, unfinished: Path, tmp_path: Path):
    before = _home(tmp_path / "home")
    link, target = unfinished / name, tmp_path / "home"
    if name == ".":
        shutil.rmtree(unfinished)
        unfinished.symlink_to(target)
    else:
        shutil.rmtree(link) if link.is_dir() else link.unlink(missing_ok=True)
        link.symlink_to(target / name)
    with pytest.raises(UserError, match="not empty"):
        pack_data(photos, unfinished, image_size=24)
    assert _files(target) == before


@pytest.mark.parametrize("name", ["train-00000.bin", "train-00099.bin", "test-00000.json", "train-00000.bin.7.part"])
def test_a_link_among_the_shards_is_an_error(name: str, photos: Path, unfinished: Path, tmp_path: Path):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (unfinished / "shards" / name).unlink(missing_ok=True)
    (unfinished / "shards" / name).symlink_to(mine)
    with pytest.raises(UserError, match=name):
        pack_data(photos, unfinished, image_size=24)
    assert (unfinished / "shards" / name).readlink() == mine
    assert mine.read_text() == "mine"


def test_other_files_in_an_unfinished_pack_are_kept(photos: Path, unfinished: Path, tmp_path: Path):
    mine = {unfinished / name for name in ("thesis.txt", "shards/a.json", "shards/b.part", "shards/other-00000.bin")}
    for path in mine:
        path.write_text(path.name)
    (unfinished / "shards" / "link.json").symlink_to(tmp_path / "elsewhere")
    _assert_same(pack_data(photos, unfinished, image_size=24), load_data(photos, image_size=24, store="memory"))
    assert all(path.read_text() == path.name for path in mine)
    assert (unfinished / "shards" / "link.json").is_symlink()
    assert not (unfinished / "unfinished").exists()


@pytest.mark.parametrize("written", [0, 10, None])
def test_a_packer_killed_while_it_claimed_the_folder_is_continued(written: int | None, photos: Path, tmp_path: Path):
    folder = tmp_path / "pack"
    folder.mkdir()
    (folder / ".unfinished.abcdefgh.part").write_text(pack._MARKER_TEXT[:written])
    pack_data(photos, folder, image_size=24)
    assert sorted(path.name for path in folder.iterdir()) == ["images.parquet", "pack.json", "shards"]


def test_an_unfinished_pack_is_not_trained_from(unfinished: Path):
    with pytest.raises(UserError, match=r"unfinished pack"):
        load_data(unfinished)


def test_a_file_changed_between_two_attempts_has_its_shard_made_again(photos: Path, unfinished: Path, tmp_path: Path):
    before = _identities(unfinished)
    changed = load_data(photos, image_size=24)
    Image.new("RGB", (31, 33)).save(_photo(photos, changed, "train", 20))  # the fifth of the third shard
    data = pack_data(photos, unfinished, image_size=24)
    after = _identities(unfinished)
    assert [name for name in sorted(after) if after[name] != before[name]] == ["train-00002.bin"]
    _assert_same(data, load_data(photos, image_size=24, store="memory"))


def test_another_size_does_not_take_up_shards_of_this_one(photos: Path, unfinished: Path):
    data = pack_data(photos, unfinished, image_size=16, crop_mode="squash")
    _assert_same(data, load_data(photos, image_size=16, crop_mode="squash", store="memory"))


def test_a_file_that_changes_after_it_was_listed_is_named(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    survey = assemble._survey

    def meddling(*arguments, **options):
        result = survey(*arguments, **options)
        os.utime(photos / "red" / "x5.png", ns=(0, 10**18))
        return result

    with monkeypatch.context() as patch:
        patch.setattr(assemble, "_survey", meddling)
        for store in ("memory", "pack"):
            os.utime(photos / "red" / "x5.png")
            with pytest.raises(UserError, match=r"x5\.png' has changed since it was listed"):
                load_data(photos, image_size=24, store=store)
        os.utime(photos / "red" / "x5.png")
        with pytest.raises(UserError, match=r"x5\.png' has changed since it was listed"):
            pack_data(photos, tmp_path / "pack", image_size=24)
    data = pack_data(photos, tmp_path / "pack", image_size=24)
    _assert_same(data, load_data(photos, image_size=24, store="memory"))


# What files may be like


def test_unreadable_files_stop_a_pack_or_are_left_out(photos: Path, tmp_path: Path):
    (photos / "red" / "broken.png").write_bytes((photos / "red" / "00.png").read_bytes()[:60])
    (photos / "blue" / "empty.jpg").touch()
    with pytest.raises(UserError, match=r"2 unreadable files below .*--skip-unreadable"):
        pack_data(photos, tmp_path / "pack", image_size=24)
    with pytest.warns(UserWarning, match=r"skipped 2 unreadable files: .*broken\.png"):
        data = pack_data(photos, tmp_path / "pack", image_size=24, skip_unreadable=True)
    assert sum(map(len, data.splits.values())) == 60
    with pytest.warns(UserWarning, match="skipped 2 unreadable files"):
        memory = load_data(photos, image_size=24, store="memory", skip_unreadable=True)
    _assert_same(data, memory)
    _assert_same(load_data(tmp_path / "pack"), memory)


def test_a_pack_found_again_tells_of_unreadable_files_again(photos: Path):
    (photos / "red" / "broken.png").write_bytes((photos / "red" / "00.png").read_bytes()[:60])
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"skipped 1 unreadable file: .*broken\.png"):
            load_data(photos, image_size=24, store="pack", skip_unreadable=True)
    with pytest.raises(UserError, match=r"1 unreadable file below .*broken\.png.*--skip-unreadable"):
        load_data(photos, image_size=24, store="pack")
    (photos / "red" / "broken.png").unlink()
    _assert_same(load_data(photos, image_size=24, store="pack"), load_data(photos, image_size=24, store="memory"))


def test_names_of_every_kind_survive(photos: Path, tmp_path: Path):
    names = {os.fsdecode(b"fen\xeatre.png"): r"red/fen\xeatre.png", "a\nb.png": r"red/a\nb.png", "猫.png": "red/猫.png"}
    for number, name in enumerate(names):
        (photos / "red" / f"{number:02d}.png").rename(photos / "red" / name)
    data = pack_data(photos, tmp_path / "pack", image_size=24)
    paths = [path for split in data.splits.values() for path in split.paths or ()]
    assert set(names.values()) < set(paths)
    table = pd.read_parquet(tmp_path / "pack" / "images.parquet")
    assert table["path"].tolist() == paths
    _assert_same(data, load_data(photos, image_size=24, store="memory"))


@pytest.mark.parametrize(("source", "target"), [(b"photos", b"p\xe4ck"), (b"ph\xf6tos", b"pack")])
def test_folders_of_undecodable_names_are_refused(source: bytes, target: bytes, photos: Path, tmp_path: Path):
    photos = photos.rename(tmp_path / os.fsdecode(source))
    with pytest.raises(UserError, match=r"(p\\xe4ck|ph\\xf6tos) has a name that is not plain UTF-8\. Rename it"):
        pack_data(photos, tmp_path / os.fsdecode(target), image_size=24)


def test_what_decoding_processes_warn_of_reaches_the_user(photos: Path, tmp_path: Path):
    frames = [Image.new("RGB", (30, 30), color) for color in ("red", "green")]
    frames[0].save(photos / "red" / "moving.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match=r"moving\.gif' has several frames or pages; the first is read"):
        pack_data(photos, tmp_path / "pack", image_size=24)


@pytest.mark.parametrize("store", ["memory", "pack"])
def test_images_shared_with_training_are_told(store: str, image_folder: Path, tmp_path: Path):
    root = tmp_path / "laid_out"
    for split in ("train", "val", "test"):
        shutil.copytree(image_folder, root / split)
        for name in ("blue", "red"):
            for number in range({"train": 8, "val": 6, "test": 0}[split], 20):
                if split != "test" or number < 12:
                    (root / split / name / f"{number:02d}.png").unlink()
    data = load_data(root, image_size=16, store=store)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 16, "validation": 12, "test": 16}
    with pytest.warns(UserWarning, match=r"12 validation images of laid_out are also in the training split"):
        fit(RGB, data, out=tmp_path / "run", epochs=1, precision="float32", quiet=True)


# Processes that end


@pytest.fixture
def replace_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Replaces the decoding processes by a line of shell, in which $python is the interpreter, until it ends."""
    script, interpreter = tmp_path / "worker.sh", sys.executable

    def replace(line: str) -> None:
        script.write_text(f"#!/bin/sh\npython='{interpreter}'\n{line}\n")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))

    yield replace
    monkeypatch.setattr(sys, "executable", interpreter)


DYING = """
import os, signal
from resnetlab.data.storage import pack_worker
write, written = pack_worker.write_shard, 0
def write_shard(task):
    global written
    if written == 2:
        open(f"{task['target']}.bin.{os.getpid()}.part", "wb").write(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    written += 1
    write(task)
pack_worker.write_shard = write_shard
pack_worker.main()
"""


def test_a_killed_decoding_process_ends_the_packing_and_loses_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace_workers: Callable[[str], None]
):
    interpreter = sys.executable
    (tmp_path / "dying.py").write_text(DYING)
    replace_workers(f'exec "$python" "{tmp_path / "dying.py"}"')
    with pytest.raises(UserError, match=r"a decoding process ended .*\(exit status -9; .*kept in .*pack: run the same"):
        pack_data(photos, tmp_path / "pack", image_size=24, workers=1)
    before = _identities(tmp_path / "pack")
    assert sorted(before) == ["train-00000.bin", "train-00000.json", "train-00001.bin", "train-00001.json"]
    monkeypatch.setattr(sys, "executable", interpreter)
    data = pack_data(photos, tmp_path / "pack", image_size=24, workers=2)
    after = _identities(tmp_path / "pack")
    assert {name for name in before if after.get(name) == before[name]} == {"train-00000.bin", "train-00001.bin"}
    _assert_same(data, load_data(photos, image_size=24, store="memory"))


MEETING = """
import sys, time
from pathlib import Path
from resnetlab.data.storage import pack_worker
decode, folder, role = pack_worker.decode_shard, Path(sys.argv[1]), sys.argv[2]
def meet(tell, wait):
    (folder / tell).touch()
    while not (folder / wait).exists():
        time.sleep(0.01)
def decode_shard(*arguments, keep, **options):
    def kept(image):
        keep(image)
        meet(*{"orphan": ("begun", "go"), "worker": ("go", "ended")}[role])
    return decode(*arguments, keep=kept, **options)
pack_worker.decode_shard = decode_shard
try:
    pack_worker.main()
finally:
    (folder / "ended").touch()
"""


def test_a_worker_that_outlives_its_packer_is_in_nobodys_way(
    photos: Path, tmp_path: Path, replace_workers: Callable[[str], None]
):
    """It is still at a shard when the next packer's worker begins with the same one, and finishes first."""
    interpreter, script, task = sys.executable, tmp_path / "meeting.py", tmp_path / "task.json"
    script.write_text(MEETING)
    replace_workers(f'head -n 1 > "{task}"; exit 3')
    with pytest.raises(UserError, match="a decoding process ended before its work was done"):
        pack_data(photos, tmp_path / "pack", image_size=24)
    with task.open() as line:
        command = [interpreter, str(script), str(tmp_path), "orphan"]
        orphan = subprocess.Popen(command, stdin=line, stdout=subprocess.DEVNULL)
    try:
        _wait((tmp_path / "begun").exists)
        replace_workers(f'exec "$python" "{script}" "{tmp_path}" worker')
        data = pack_data(photos, tmp_path / "pack", image_size=24)
    finally:
        (tmp_path / "go").touch()
        orphan.wait()
    _assert_same(data, load_data(photos, image_size=24, store="memory"))


@pytest.mark.parametrize("line", ["exit 3", "read task; exit 3"])
@pytest.mark.parametrize("workers", [1, 4])
def test_decoding_processes_that_do_no_work_are_not_waited_for(
    line: str, workers: int, photos: Path, tmp_path: Path, replace_workers: Callable[[str], None]
):
    replace_workers(line)
    with pytest.raises(UserError, match=r"a decoding process ended before its work was done \(exit status 3;"):
        pack_data(photos, tmp_path / "pack", image_size=24, workers=workers)


def test_a_stopped_decoding_process_is_waited_for_only_as_long_as_the_limit(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace_workers: Callable[[str], None]
):
    monkeypatch.setenv("RESNETLAB_WAIT_TIMEOUT", "2")
    replace_workers('kill -STOP $$; exec "$python" -m resnetlab.data.storage.pack_worker')
    start = time.monotonic()
    with pytest.raises(UserError, match=r"no progress for 2 s .*RESNETLAB_WAIT_TIMEOUT.*run the same command again"):
        pack_data(photos, tmp_path / "pack", image_size=24, workers=1)
    assert time.monotonic() - start < 30


def test_whoever_waits_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    monkeypatch.setenv("RESNETLAB_WAIT_TIMEOUT", "3")
    error = pack._next(SimpleQueue(), {4711: time.monotonic()}, tmp_path, interval=0.5)
    assert "4711" in str(error)
    said = capfd.readouterr().err
    assert said.count("4711") >= 2 and "limit is 3 s" in said
    with announced("the other processes", interval=0.05):
        time.sleep(0.3)
    assert capfd.readouterr().err.count("the other processes") >= 2


def test_a_full_disk_is_told_and_what_was_packed_is_kept(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace_workers: Callable[[str], None], cli: Cli
):
    """An error of a worker's at its third shard, and the system's own limit on a file's size, below that of a shard."""
    interpreter = sys.executable
    full = DYING.replace("os.kill(os.getpid(), signal.SIGKILL)", "raise OSError(28, os.strerror(28))")
    (tmp_path / "full.py").write_text(full)
    replace_workers(f'exec "$python" "{tmp_path / "full.py"}"')
    arguments = ("pack", photos, "--out", tmp_path / "pack", "--image-size", 24, "--workers", 1)
    code, _, err = cli(*arguments)
    assert (code, "pack: No space left on device" in err) == (2, True)
    assert "Traceback" not in err
    before = _identities(tmp_path / "pack")
    replace_workers('ulimit -f 8; exec "$python" "$@"')
    with pytest.raises(OSError, match=r"File too large: '.*pack'"):
        pack_data(photos, tmp_path / "pack", image_size=24, workers=2)
    monkeypatch.setattr(sys, "executable", interpreter)
    code, out, err = cli(*arguments)
    assert code == 0, err
    assert "photos: 60 images 3x24x24" in out
    after = _identities(tmp_path / "pack")
    assert before["train-00000.bin"] == after["train-00000.bin"]
    _assert_same(load_data(tmp_path / "pack"), load_data(photos, image_size=24, store="memory"))


# The program, forked for each packing from a process that has imported all it needs.
FORKING = """
import os, sys
import resnetlab.data.load
from resnetlab.cli.main import main
from resnetlab.data.storage import pack
pack.FILES_IN_A_SHARD = 64
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        os.dup2(2, 1)
        main(sys.argv[1:])
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="children are found in /proc")
def test_a_packer_killed_at_any_moment_leaves_a_pack_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Real processes and SIGKILL, at moments drawn from when the first worker begins to when the pack is complete."""
    assert sys.platform != "win32"
    root, out = tmp_path / "many", tmp_path / "pack"
    draws, moments = np.random.default_rng(0), random.Random(0)
    for name in ("blue", "red"):
        (root / name).mkdir(parents=True)
        for number in range(750):
            Image.fromarray(draws.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(root / name / f"{number}.jpg")
    arguments = ["pack", str(root), "--out", str(out), "--workers", "2", "--image-size", "16"]
    command = [sys.executable, "-c", FORKING, *arguments]
    kept, killed, code = 0, 0, -signal.SIGKILL
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        while code == -signal.SIGKILL:
            server.stdin.write("\n")
            server.stdin.flush()
            packer = int(server.stdout.readline())
            workers = _killed(packer, moments.uniform(0, 0.4) if killed else 0) if killed < 5 else []
            code = int(server.stdout.readline())
            _wait(lambda workers=workers: not any(map(_is_alive, workers)))
            if code == -signal.SIGKILL and not pack.is_complete(out):
                assert (out / "unfinished").exists()
                now = len(list((out / "shards").glob("*.json")))
                assert now >= kept
                kept, killed = now, killed + 1
            elif code == -signal.SIGKILL:  # as soon as it was complete
                code = 0
        server.stdin.close()
    assert code == 0
    assert killed > 0
    monkeypatch.setattr(pack, "FILES_IN_A_SHARD", 64)
    pack_data(root, tmp_path / "whole", image_size=16)
    assert _files(out / "shards") == _files(tmp_path / "whole" / "shards")
    _assert_same(load_data(out), load_data(tmp_path / "whole"))


def _killed(packer: int, seconds: float) -> list[int]:
    """Kills a packer so long after its first worker began, unless it ends before, and returns its workers."""
    assert sys.platform != "win32"
    _wait(lambda: bool(_workers(packer)) or not _is_alive(packer))
    time.sleep(seconds)
    workers = _workers(packer)
    with contextlib.suppress(ProcessLookupError):
        os.kill(packer, signal.SIGKILL)
    return workers


def _workers(pid: int) -> list[int]:
    found = []
    try:
        for path in Path("/proc", str(pid)).glob("task/*/children"):
            for child in path.read_text(encoding="ascii").split():
                if b"pack_worker" in Path("/proc", child, "cmdline").read_bytes():
                    found.append(int(child))
    except OSError:  # one of them ended
        pass
    return found


def _is_alive(pid: int) -> bool:
    try:
        stat = Path("/proc", str(pid), "stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# What a pack is taken for


def test_a_cached_pack_is_of_its_class_names(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RESNETLAB_CACHE", str(tmp_path / "cache"))
    table = tmp_path / "table.csv"
    rows = [(path, path.parent.name) for path in sorted(photos.glob("*/*.png"))]
    for names in (("blue", "red"), ("sea", "sun")):
        lines = [f"{path},{names[label == 'red']}" for path, label in rows]
        table.write_text("\n".join(["path,label", *lines]))
        assert load_data(table, image_size=24, store="pack").class_names == names


def test_data_kept_in_another_size_are_not_the_same(photos: Path, tmp_path: Path):
    pack_data(photos, tmp_path / "two", image_size=16, detail=2)
    recorded = load_data(photos, image_size=16)
    assert load_data(tmp_path / "two").fingerprint != recorded.fingerprint
    with pytest.raises(UserError, match="are not those of the run"):
        reload_data(recorded.describe(), source=tmp_path / "two")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"crop_mode": "squash"}, "crop_mode=crop"),
        ({"crop_pct": 0.5}, r"crop_pct=1\.0"),
        ({"detail": 3.0}, r"detail=1\.5"),
        ({"split_seed": 7}, "split_seed=0"),
        ({"test_fraction": 0.5}, r"test_fraction=0\.2"),
    ],
)
def test_what_a_pack_cannot_give_is_refused(asked: dict, message: str, photos: Path, tmp_path: Path):
    pack_data(photos, tmp_path / "pack", image_size=24)
    with pytest.raises(UserError, match=f"was made with {message}"):
        load_data(tmp_path / "pack", **asked)


def test_a_pack_is_the_source_of_what_was_packed(photos: Path, tmp_path: Path):
    data = pack_data(photos, tmp_path / "pack", image_size=24, split_seed=3)
    assert data.arguments["source"] == str(tmp_path / "pack")
    assert (data.arguments["split_seed"], data.arguments["image_size"]) == (3, 24)
    shutil.rmtree(photos)
    assert reload_data(data.describe()).fingerprint == data.fingerprint


def test_the_store_is_recorded_as_it_was_asked_for(photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    recorded = load_data(photos, image_size=24).describe()
    assert recorded["store"] == "auto"
    # Another machine, of less memory: the same images, in a pack.
    monkeypatch.setattr("resnetlab.data.assemble.available_memory", lambda: 1000)
    monkeypatch.setenv("RESNETLAB_CACHE", str(tmp_path / "cache"))
    assert reload_data(recorded).fingerprint == recorded["fingerprint"]
    assert (tmp_path / "cache" / "packs").is_dir()


def test_a_pack_is_not_put_among_its_images_nor_made_of_a_pack(photos: Path, tmp_path: Path):
    with pytest.raises(UserError, match="inside the folder of images"):
        pack_data(photos, photos / "pack", image_size=24)
    pack_data(photos, tmp_path / "pack", image_size=24)
    with pytest.raises(UserError, match="already a pack"):
        pack_data(tmp_path / "pack", tmp_path / "other", image_size=24)


def test_what_could_not_be_read_is_tried_again(photos: Path, tmp_path: Path):
    broken = photos / "red" / "00.png"
    content, status = broken.read_bytes(), broken.stat()
    broken.write_bytes(content[:60] + b"\0" * (len(content) - 60))
    os.utime(broken, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(UserError, match="1 unreadable file below"):
        pack_data(photos, tmp_path / "pack", image_size=24)
    broken.write_bytes(content)
    os.utime(broken, ns=(status.st_atime_ns, status.st_mtime_ns))  # the same stamp, as after a change of rights
    _assert_same(pack_data(photos, tmp_path / "pack", image_size=24), load_data(photos, image_size=24, store="memory"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: facts.update(name="../../elsewhere"), r"name in pack\.json"),
        (lambda facts: facts["shards"].update({"../train-0": facts["shards"]["train-00000"]}), r"name in pack\.json"),
        (lambda facts: facts.update(table="0"), "the digest of images.parquet differs"),
        (lambda facts: facts.pop("format"), r"pack\.json is incomplete: format"),
    ],
)
def test_a_pack_that_was_meddled_with_is_refused(change: Callable, message: str, photos: Path, tmp_path: Path):
    pack_data(photos, tmp_path / "pack", image_size=24)
    facts = json.loads((tmp_path / "pack" / "pack.json").read_text())
    change(facts)
    (tmp_path / "pack" / "pack.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=message):
        load_data(tmp_path / "pack")
