from __future__ import annotations

import argparse
import io
import os
import pickle
import re
import resource
import struct
import tarfile
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from resnetlab.core.errors import UserError
from resnetlab.weights import pickled
from resnetlab.weights.pickled import is_pickled, read_pickled
from resnetlab.weights.tensors import DamagedFileError

SAVES: dict[str, Callable[[Any, Path], None]] = {
    "zip": lambda content, path: torch.save(content, path),
    "legacy": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
}
FORMS = pytest.mark.parametrize("form", list(SAVES))
WEIGHTS = {"conv.weight": torch.arange(12.0).reshape(4, 3), "conv.bias": torch.tensor([1.0, -2.0, 3.0, 4.0])}
MEMORY = 200 * 2**20  # bytes that reading a small file may take, whatever the file says


def save(form: str, content: Any, path: Path) -> Path:
    SAVES[form](content, path)
    return path


def archive(path: Path, stream: bytes, *others: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """A zip archive as torch.save writes it, with a pickle of our making."""
    with zipfile.ZipFile(path, "w", compression) as target:
        for name, content in (("data.pkl", stream), ("version", b"3\n"), ("byteorder", b"little"), *others):
            target.writestr(f"archive/{name}", content)
    return path


def legacy(path: Path, stream: bytes) -> Path:
    """A file as torch.save wrote it before version 1.6, with a pickle of our making."""
    numbers = [pickle.dumps(number, protocol=2) for number in (0x1950A86A20F9469CFC6C, 1001, {})]
    path.write_bytes(b"".join([*numbers, stream, pickle.dumps([], protocol=2)]))
    return path


HAND_MADE = pytest.mark.parametrize("wrap", [archive, legacy])


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


@FORMS
def test_a_checkpoint_is_read_whole(tmp_path: Path, form: str):
    content = {
        "state_dict": OrderedDict(WEIGHTS),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "view": torch.arange(10)[2:8:2],
        "milestones": Counter([3, 5]),
        "shape": torch.Size([1, 2]),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "names": ["ä", ("b", None, True, 2.5, 10**20)],
        "seen": {1, 2},
    }
    read = read_pickled(save(form, content, tmp_path / "checkpoint.pt"))
    assert read.keys() == content.keys()
    for name, value in WEIGHTS.items():
        assert torch.equal(read["state_dict"][name], value)
    for name in ("parameter", "half", "view"):
        assert torch.equal(read[name], content[name])
    rest = ("milestones", "shape", "dtype", "device", "names", "seen")
    assert {name: read[name] for name in rest} == {name: content[name] for name in rest}


@FORMS
def test_the_networks_of_torchvision_are_read(tmp_path: Path, form: str):
    state = torchvision.models.resnet18(num_classes=3).state_dict()
    read = read_pickled(save(form, state, tmp_path / "resnet18.pth"))
    assert list(read) == list(state)
    assert all(torch.equal(read[name], value) for name, value in state.items())


@FORMS
def test_a_whole_training_state_is_read(tmp_path: Path, form: str):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5])
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    read = read_pickled(save(form, content, tmp_path / "checkpoint.pt"))
    assert read["optimizer"]["param_groups"] == optimizer.state_dict()["param_groups"]
    assert torch.equal(read["optimizer"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    assert read["schedule"]["milestones"] == Counter([2, 5])


@FORMS
def test_tensors_of_a_gpu_are_read_without_one(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    path = save(form, WEIGHTS, tmp_path / "gpu.pt")
    monkeypatch.undo()
    assert b"cuda:0" in path.read_bytes()
    read = read_pickled(path)
    assert all(value.device.type == "cpu" and torch.equal(value, WEIGHTS[name]) for name, value in read.items())


def test_checksums_are_verified_where_torch_wrote_them(tmp_path: Path):
    path = save("zip", WEIGHTS, tmp_path / "checkpoint.pt")
    content = bytearray(path.read_bytes())
    content[content.index(WEIGHTS["conv.weight"].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"checkpoint\.pt cannot be read as a checkpoint .* Bad CRC-32"):
        read_pickled(path)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        save("zip", WEIGHTS, path)
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(read_pickled(path)["conv.weight"], WEIGHTS["conv.weight"])


def test_what_is_read_here_is_told_by_its_first_bytes(tmp_path: Path):
    for form in SAVES:
        assert is_pickled(save(form, WEIGHTS, tmp_path / "weights.pt").read_bytes()[:64])
    assert is_pickled(pickle.dumps({}))
    assert not any(is_pickled(head) for head in (b"", b"{", bytes(64), b"\x10" + bytes(7) + b"{"))


@FORMS
def test_a_bomb_in_a_checkpoint_does_not_run(tmp_path: Path, form: str):
    marker = tmp_path / "marker"
    path = save(form, {"state_dict": WEIGHTS, "extra": Bomb(marker)}, tmp_path / "bomb.pt")
    with pytest.raises(UserError, match=r"bomb\.pt needs posix\.system"):
        read_pickled(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # it was no dud


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_a_bomb_in_a_bare_pickle_does_not_run(tmp_path: Path, protocol: int):
    marker, path = tmp_path / "marker", tmp_path / "bomb.pkl"
    content = pickle.dumps({"weights": Bomb(marker)}, protocol=protocol)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"needs posix\.system to be read|cannot be read as"):
        read_pickled(path)
    assert not marker.exists()
    pickle.loads(content)
    assert marker.exists()


def test_a_bomb_in_an_archive_does_not_run(tmp_path: Path):
    marker = tmp_path / "marker"
    inner = save("zip", Bomb(marker), tmp_path / "inner.pt").read_bytes()
    bare = pickle.dumps(Bomb(marker))
    hidden = tmp_path / "hidden.zip"
    with zipfile.ZipFile(hidden, "w") as target:
        target.writestr("weights/model.pt", inner)
        target.writestr("weights/model.pkl", bare)
    with pytest.raises(UserError, match=r"zip archive .*data\.pkl"):
        read_pickled(hidden)
    sound = io.BytesIO()
    torch.save(WEIGHTS, sound)
    beside = tmp_path / "beside.pt"
    beside.write_bytes(sound.getvalue())
    with zipfile.ZipFile(beside, "a") as target:
        target.writestr("archive/extra/bomb.pkl", bare)
    assert torch.equal(read_pickled(beside)["conv.bias"], WEIGHTS["conv.bias"])
    with zipfile.ZipFile(beside, "a") as target:
        target.writestr("archive/DATA.PKL", bare)  # torch's reader takes it for data.pkl
    with pytest.raises(UserError, match=r"needs posix\.system to be read"):
        read_pickled(beside)
    assert not marker.exists()


def test_a_bomb_in_the_oldest_form_does_not_run(tmp_path: Path):
    """torch before 0.1.10 wrote tar archives; one whose first name is how newer files begin is both."""
    marker, path = tmp_path / "marker", tmp_path / "tar.pt"
    head = legacy(tmp_path / "head.pt", pickle.dumps({}, protocol=2)).read_bytes()
    content = pickle.dumps(Bomb(marker), protocol=2)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as target:
        for name in ("x", "storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            target.addfile(info, io.BytesIO(content))
    tar = bytearray(path.read_bytes())
    tar[: len(head)] = head
    tar[148:156] = b" " * 8
    tar[148:156] = b"%06o\0 " % sum(tar[:512])
    path.write_bytes(tar)
    assert tarfile.is_tarfile(path)
    with pytest.raises(DamagedFileError, match=r"tar\.pt cannot be read as a checkpoint of torch\.save"):
        read_pickled(path)
    assert not marker.exists()


@FORMS
@pytest.mark.parametrize(
    ("content", "refused"),
    [
        (argparse.Namespace(lr=0.1), r"argparse\.Namespace"),
        (np.float64(0.5), r"numpy\.\w+\.multiarray\.scalar, numpy\.dtype, _codecs\.encode"),
        (torch.nn.Linear(1, 1), r"torch\.nn\.modules\.linear\.Linear"),
        (b"bytes", r"_codecs\.encode"),
        (
            torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU(), torch.nn.BatchNorm2d(2), torch.nn.Dropout()),
            r"torch\.nn\.modules\.container\.Sequential, torch\.nn\.modules\.linear\.Linear, "
            r"torch\.nn\.modules\.activation\.ReLU and 2 more",
        ),
    ],
)
def test_objects_of_classes_are_refused_by_name(tmp_path: Path, form: str, content: Any, refused: str):
    path = save(form, {"state_dict": WEIGHTS, "extra": content}, tmp_path / "checkpoint.pt")
    known = torch.serialization.get_safe_globals()
    with pytest.raises(UserError) as error:
        read_pickled(path)
    message = str(error.value)
    assert re.search(rf"checkpoint\.pt needs {refused} to be read", message)
    assert "If you trust the file" in message
    assert 'torch.save(model.state_dict(), "weights.pt")' in message
    assert "weights_only" not in message
    assert "safe_globals" not in message
    assert not isinstance(error.value, DamagedFileError)
    assert torch.serialization.get_safe_globals() == known


@FORMS
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.ones(2, device="meta"), r"without values \(on the device meta\)"),
    ],
)
def test_tensors_that_are_not_dense_are_refused_by_name(tmp_path: Path, form: str, content: torch.Tensor, kind: str):
    path = save(form, {**WEIGHTS, "layer.weight": content}, tmp_path / "checkpoint.pt")
    words = rf"checkpoint\.pt: .*'layer\.weight' is {kind}"
    with pytest.raises(UserError, match=words):
        read_pickled(path)


@HAND_MADE
def test_quantized_tensors_are_refused_by_name(tmp_path: Path, wrap: Callable):
    path = wrap(tmp_path / "checkpoint.pt", b"\x80\x02}X\x02\x00\x00\x00fcctorch._utils\n_rebuild_qtensor\n)Rs.")
    with pytest.raises(UserError, match=r"checkpoint\.pt: .*'fc' is quantized"):
        read_pickled(path)


def test_a_torchscript_program_is_refused(tmp_path: Path):
    path = tmp_path / "program.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 1), torch.ones(1, 2)), path)
    with pytest.raises(UserError, match=r"TorchScript .*torch\.jit\.save"):
        read_pickled(path)


def test_other_pickles_are_refused(tmp_path: Path):
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"weight": [1.0]}, protocol=2))
    with pytest.raises(UserError, match=r"a pickle that torch\.save did not write"):
        read_pickled(path)
    torch.save(WEIGHTS, path, pickle_protocol=4)
    with pytest.raises(UserError, match=r"pickle protocol 4.* protocol 2"):
        read_pickled(path)


@FORMS
def test_truncated_checkpoints_are_damaged(tmp_path: Path, form: str):
    path = save(form, WEIGHTS, tmp_path / "checkpoint.pt")
    content = path.read_bytes()
    for length in (*range(4, len(content) - 1, 37), len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(UserError):
            read_pickled(path)
    with pytest.raises(
        DamagedFileError, match=r"checkpoint\.pt cannot be read as a checkpoint of torch\.save: .*\. It"
    ):
        read_pickled(path)


def peak_memory() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def refuse_within_memory(path: Path, words: str) -> None:
    before = peak_memory()
    with pytest.raises(UserError, match=words):
        read_pickled(path)
    assert peak_memory() - before < MEMORY


def test_a_zip_bomb_is_refused(tmp_path: Path):
    with zipfile.ZipFile(save("zip", WEIGHTS, tmp_path / "sound.pt")) as source:
        stream = source.read("sound/data.pkl")
    zeros = ("data/0", bytes(2**26))
    path = archive(tmp_path / "bomb.pt", stream, zeros, compression=zipfile.ZIP_DEFLATED)
    del zeros
    assert path.stat().st_size < 2**19
    words = r"bomb\.pt declares 67,1\d\d,\d\d\d bytes .* \d+,\d+ bytes"
    refuse_within_memory(path, words)


def test_sizes_beyond_the_file_are_refused(tmp_path: Path):
    path = save("zip", WEIGHTS, tmp_path / "checkpoint.pt")
    content = bytearray(path.read_bytes())
    at = content.rindex(b"data/0") - 46 - len("checkpoint/")  # its entry of the directory
    assert content[at : at + 4] == b"PK\x01\x02"
    content[at + 20 : at + 28] = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(content)
    refuse_within_memory(path, r"2,147,48\d,\d\d\d bytes.* 1,\d+ bytes")


def test_a_directory_elsewhere_is_refused(tmp_path: Path):
    path = save("zip", WEIGHTS, tmp_path / "checkpoint.pt")
    sound = path.read_bytes()
    for at in (-50, -34):  # where the directory begins, and where the record that says so lies
        content = bytearray(sound)
        content[at] ^= 1
        path.write_bytes(content)
        with pytest.raises(DamagedFileError, match=r"cannot be read as a checkpoint of torch\.save: its directory "):
            read_pickled(path)
    path.write_bytes(sound + b"more")
    with pytest.raises(DamagedFileError, match="it does not end as a zip archive does"):
        read_pickled(path)
    small = archive(path, b"\x80\x02}.").read_bytes()
    assert read_pickled(path) == {}
    path.write_bytes(b"PK\x03\x04more" + small)
    with pytest.raises(DamagedFileError, match="its directory is not where it says, or too long"):
        read_pickled(path)


def test_a_longer_tensor_than_is_stored_is_refused(tmp_path: Path):
    for form in SAVES:
        path = save(form, {"x": torch.zeros(200, dtype=torch.uint8)}, tmp_path / "checkpoint.pt")
        content = path.read_bytes()
        count, huge = b"K\xc8", b"\x8a\x05\x00\x00\x00\x00\x04"  # 200 and 2**34
        if form == "legacy":
            assert content.count(count) == 2
            path.write_bytes(content.replace(count, huge))
        else:
            with zipfile.ZipFile(path) as source:
                stream = source.read("checkpoint/data.pkl")
            assert stream.count(count) == 2
            archive(path, stream.replace(count, huge), ("data/0", bytes(200)))
        refuse_within_memory(path, "larger than the file")


@HAND_MADE
def test_small_pickles_that_unfold_to_much_are_refused(tmp_path: Path, wrap: Callable, monkeypatch: pytest.MonkeyPatch):
    unfolding = "more objects than"
    pairs = b")" + b"q\x00h\x00\x86" * 60  # a pair of twice the same pair of twice ...
    refuse_within_memory(wrap(tmp_path / "pairs.pt", b"\x80\x02}" + pairs + b"Ns."), unfolding)
    deep = b")" + b"\x85" * 100_000  # as a key of a dict, more than the stack of C holds
    refuse_within_memory(wrap(tmp_path / "deep.pt", b"\x80\x02}" + deep + b"Ns."), unfolding)
    monkeypatch.setattr(pickled, "_MOST_OPERATIONS", 1000)
    long = b"](" + b"}" * 1000 + b"e"
    refuse_within_memory(wrap(tmp_path / "long.pt", b"\x80\x02" + long + b"."), unfolding)


@HAND_MADE
def test_functions_that_fill_memory_are_not_called(tmp_path: Path, wrap: Callable):
    filled = b"c__builtin__\nbytearray\n" + b"J\x00\x00\x00\x40" + b"\x85R"
    refuse_within_memory(
        wrap(tmp_path / "filled.pt", b"\x80\x02" + filled + b"."), r"needs __builtin__\.bytearray to be"
    )
    doubled = b"X\x01\x00\x00\x00a" + b"q\x01c_codecs\nencode\nh\x01X\x03\x00\x00\x00hex\x86R" * 40
    refuse_within_memory(
        wrap(tmp_path / "doubled.pt", b"\x80\x02" + doubled + b"."), r"needs _codecs\.encode to be read"
    )
    called = b"\x80\x02])R."  # torch would print the list
    refuse_within_memory(wrap(tmp_path / "called.pt", called), "not a function")


@HAND_MADE
@pytest.mark.parametrize(
    "stream", [b"\x80\x02.", b"\x80\x02s.", b"\x80\x02h\x07.", b"\x80\x02u.", b"\x80\x02\x8a\xff", b""]
)
def test_broken_pickles_are_damaged(tmp_path: Path, wrap: Callable, stream: bytes):
    with pytest.raises(DamagedFileError, match=r"broken\.pt cannot be read as a checkpoint of torch\.save: "):
        read_pickled(wrap(tmp_path / "broken.pt", stream))


def test_names_of_a_file_cannot_forge_lines(tmp_path: Path):
    path = archive(tmp_path / "a.pt", b"\x80\x02c\x1b[31mos\nsystem\n.")
    with pytest.raises(UserError, match=r"needs \\x1b\[31mos\.system to be read"):
        read_pickled(path)
