from __future__ import annotations

import errno
import json
import os
import signal
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.facts import refuses

from resnetlab.core.checks import check_choice, check_integer, check_number, from_mapping
from resnetlab.core.environment import resolve_device
from resnetlab.core.errors import Interrupted, unknown
from resnetlab.core.files import atomic, printable, read_toml, write_json, write_text, write_toml
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.randomness import generator, torch_seeded


def test_an_unknown_name_is_an_error_with_the_nearest_and_all_known():
    with refuses("model", "'resnet51'", "'resnet50'?", "resnet18, resnet50"):
        raise unknown("model", "resnet51", ["resnet18", "resnet50"])
    with refuses("'resnet18'?"):
        raise unknown("model", "resnet51", ["resnet18", "resnet50"], likely="resnet18")


def test_an_interruption_names_the_command_to_continue():
    stop = Interrupted(signal.SIGTERM, Path("my runs/a"))
    assert (stop.signal_number, stop.run) == (signal.SIGTERM, Path("my runs/a"))
    assert "SIGTERM" in str(stop)
    assert "resnetlab train --resume 'my runs/a'" in str(stop).splitlines()[0] and "--finish" in str(stop)


@pytest.mark.parametrize("value", [0, 1.5, "3", True, None])
def test_integers_are_checked(value: object):
    with refuses("epochs", "integer", "at least 1", f"got {value!r}"):
        check_integer("epochs", value, 1)
    with refuses("num_classes", "integer", "got 'ten'"):
        check_integer("num_classes", "ten")
    assert check_integer("epochs", np.int64(3), 1) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.1", False, -0.1, 1.0])
def test_numbers_are_checked(value: object):
    with refuses("momentum", "at least 0", "below 1", f"got {value!r}"):
        check_number("momentum", value, 0, 1, below=True)
    with refuses("lr", "above 0", "got 0"):
        check_number("lr", 0, 0, above=True)


def test_numbers_of_numpy_become_plain_ones():
    assert type(check_integer("epochs", np.int64(3), 1)) is int
    assert type(check_number("lr", np.float32(0.5), 0)) is float


def test_choices_and_unknown_fields_name_the_nearest():
    with refuses("stem", "'cifer'", "'cifar'?"):
        check_choice("stem", "cifer", ("imagenet", "cifar"))
    with refuses("the file", "'chanels'", "'channels'?"):
        from_mapping(Preprocessing, {"chanels": 1}, "the file")
    with refuses("the file", "'image_size'"):
        from_mapping(Preprocessing, {"channels": 1}, "the file")


def test_draws_are_functions_of_seed_stream_epoch_and_step():
    def draw(*, seed: int = 0, stream: str = "crop", **place: int) -> list[float]:
        return generator(seed, stream, **place).random(64).tolist()

    first = draw(epoch=1, step=2)
    assert first == draw(epoch=1, step=2)
    others = [
        draw(epoch=2, step=1), draw(epoch=1, step=3), draw(epoch=1), draw(seed=1, epoch=1, step=2),
        draw(stream="flip", epoch=1, step=2),
    ]  # fmt: skip
    for other in others:
        assert not set(first) & set(other)


def test_torch_is_seeded_within_the_block_only():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with torch_seeded(0, "weights"):
        inner = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with torch_seeded(0, "weights"):
        assert torch.equal(torch.rand(3), inner)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "history.csv"
    write_text(path, "old")
    with pytest.raises(OSError, match="No space"), atomic(path) as temporary:
        temporary.write_text("half of the n")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_text_toml_and_json_round_trip(tmp_path: Path):
    values = {"a": 0.1 + 0.2, "b": {"c": [1, 2], "d": "ü"}}
    write_toml(tmp_path / "x.toml", {**values, "gone": None})
    assert read_toml(tmp_path / "x.toml") == values
    write_json(tmp_path / "x.json", values)
    assert json.loads((tmp_path / "x.json").read_text()) == values
    (tmp_path / "bad.toml").write_text("a = = 1")
    with refuses("bad.toml", "line 1"):
        read_toml(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"caf\xc3\xa9/\xe7\x8c\xab \xc2\xa0.png", "café/猫 \u00a0.png"),
        (b"fen\xeatre.png", r"fen\xeatre.png"),
        (b"a\nerror: b\r\t", r"a\nerror: b\r\t"),
        (b"\x1b[2J\x07\x7f\xc2\x9b", r"\x1b[2J\x07\x7f\x9b"),
        ("a\u2028b\u202egnp".encode(), r"a\u2028b\u202egnp"),
    ],
)
def test_names_are_shown_without_what_forges_lines_or_commands_terminals(name: bytes, shown: str):
    assert printable(Path(os.fsdecode(name))) == shown
    assert printable(os.fsdecode(name)) == shown


def test_unknown_devices_are_refused():
    assert resolve_device("cpu").type == "cpu"
    with refuses("'gpu0'", "auto", "cpu"):
        resolve_device("gpu0")


def test_normalization_is_by_channel():
    preprocessing = Preprocessing(image_size=2, channels=2, mean=(0.5, 0.25), std=(0.5, 0.1))
    images = torch.tensor([0, 255, 51, 102], dtype=torch.uint8).reshape(1, 1, 2, 2).repeat(1, 2, 1, 1)
    expected = torch.stack([(images[:, 0] / 255 - 0.5) / 0.5, (images[:, 1] / 255 - 0.25) / 0.1], 1)
    torch.testing.assert_close(preprocessing.normalize(images), expected)


@pytest.mark.parametrize(
    ("fields", "facts"),
    [
        ({"mean": (0.1, 0.2)}, ("mean", "got 2")),
        ({"std": (0.0,)}, ("std", "above 0")),
        ({"image_size": 0}, ("image_size", "at least 1", "got 0")),
    ],
)
def test_preprocessing_is_checked(fields: dict, facts: tuple[str, ...]):
    with refuses(*facts):
        Preprocessing(**{"image_size": 8, "channels": 1, "mean": (0.5,), "std": (0.5,), **fields})


@pytest.mark.parametrize(("device", "fails"), [("/dev/null", False), ("/dev/full", True)])
def test_a_device_is_written_to_and_never_replaced(tmp_path: Path, device: str, fails: bool):
    if not Path(device).is_char_device():
        pytest.skip(f"no {device}")
    link = tmp_path / "out.csv"
    link.symlink_to(device)
    with pytest.raises(OSError, match="space") if fails else nullcontext(), atomic(link) as temporary:
        temporary.write_text("x" * 100_000)
    assert link.is_symlink() and Path(device).is_char_device()
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
