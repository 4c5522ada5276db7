from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.conftest import EMPTY_SETTINGS, TINY

import resnetlab
from resnetlab import weights
from resnetlab.core.errors import UserError
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.runs import Run
from resnetlab.models.catalog import CATALOG
from resnetlab.models.resnet import ResNet
from resnetlab.weights.gluon.params import read_params, write_params
from resnetlab.weights.tensors import DamagedFileError, digest_of, read_safetensors, read_tensors, write_tensors

GOLDEN = Path(__file__).parents[1] / "golden" / "run"


def _is_own_and_aligned(tensor: torch.Tensor) -> bool:
    """Whether a tensor lies where torch would allocate it: at a multiple of 64 bytes, alone in its storage."""
    size = tensor.numel() * tensor.element_size()
    return tensor.data_ptr() % 64 == 0 and tensor.untyped_storage().nbytes() == size


def test_tensors_read_from_files_have_aligned_memory_of_their_own(tmp_path: Path):
    """Mapped from the file they would start anywhere, oneDNN would take other kernels, and logits would differ."""
    model = resnetlab.create_model("seresnet18", num_classes=3)
    weights.save(tmp_path / "model.safetensors", model)
    loaded = resnetlab.load(tmp_path / "model.safetensors").state_dict()
    mapped = [f"t{size}" for size in range(1, 40)]
    ours = {name: torch.zeros(size + 1) for size, name in enumerate(mapped)}
    write_tensors(tmp_path / "checkpoint.safetensors", ours, {})
    save_file(ours, tmp_path / "foreign.safetensors")
    write_params(tmp_path / "gluon.params", ours)
    read = [
        loaded,
        read_tensors(tmp_path / "checkpoint.safetensors")[0],
        read_safetensors(tmp_path / "foreign.safetensors")[0],
        read_params(tmp_path / "gluon.params"),
    ]
    assert [[name for name, tensor in found.items() if not _is_own_and_aligned(tensor)] for found in read] == [[]] * 4


@pytest.mark.parametrize("name", ["resnet18", "resnet20", "resnet50", "plain20"])
def test_a_file_holds_all_of_a_network(tmp_path: Path, name: str):
    assert name in CATALOG
    torch.manual_seed(0)
    model = resnetlab.create_model(name, num_classes=3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.class_names = ("a", "b", "ü")
    model.preprocessing = Preprocessing(image_size=32, channels=3, mean=(0.1 + 0.2, 0, 0), std=(1, 1, 1))
    model(torch.randn(4, 3, 32, 32))  # moves the running statistics
    path = tmp_path / "model.safetensors"
    weights.save(path, model, provenance={"why": "test"})
    state = torch.get_rng_state()
    loaded = resnetlab.load(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert (loaded.config, loaded.class_names, loaded.preprocessing) == (
        model.config, model.class_names, model.preprocessing,
    )  # fmt: skip
    assert not loaded.training
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded(images), model.eval()(images))
    loaded(images).sum().backward()
    assert loaded.conv1.weight.grad is not None  # type: ignore


def test_a_backbone_and_an_untrained_network_are_saved_too(tmp_path: Path):
    model = resnetlab.create_model("resnet20", num_classes=0)
    weights.save(tmp_path / "m.safetensors", model)
    loaded = resnetlab.load(tmp_path / "m.safetensors")
    assert loaded.config.num_classes == 0
    assert loaded.class_names is None


def test_the_digest_is_of_the_content_not_of_the_file():
    tensors = {"b": torch.arange(6).reshape(2, 3), "a": torch.tensor(1.5)}
    digest = digest_of(tensors, {"x": 1, "y": [2]})
    assert digest == digest_of(dict(reversed(tensors.items())), {"y": [2], "x": 1})
    assert digest != digest_of({**tensors, "a": torch.tensor(1.25)}, {"x": 1, "y": [2]})
    assert digest != digest_of({**tensors, "b": tensors["b"].reshape(3, 2)}, {"x": 1, "y": [2]})
    assert digest != digest_of(tensors, {"x": 2, "y": [2]})


def _file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    weights.save(path, ResNet(TINY))
    return path


@pytest.mark.slow
def test_every_flipped_bit_is_noticed(tmp_path: Path):
    path = _file(tmp_path)
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for at in (*range(header), *range(header, len(content), 97)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        with pytest.raises(UserError):
            resnetlab.load(path)


def test_files_are_readable_by_those_who_may_read_the_folder(tmp_path: Path):
    mask = os.umask(0o022)
    try:
        assert _file(tmp_path).stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(mask)


def test_a_truncated_file_is_refused(tmp_path: Path):
    path = _file(tmp_path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DamagedFileError, match=r"model\.safetensors.*safetensors"):
        resnetlab.load(path)


def test_a_huge_header_is_refused(tmp_path: Path):
    path = tmp_path / "bomb.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(DamagedFileError, match="cannot be read as safetensors"):
        resnetlab.load(path)


def test_files_of_others_and_checkpoints_are_told_apart(tmp_path: Path):
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(DamagedFileError, match="header"):
        resnetlab.load(tmp_path / "other.safetensors")
    write_tensors(tmp_path / "step.safetensors", {"x": torch.zeros(2)}, {"schema": 1})
    with pytest.raises(DamagedFileError, match="not a network"):
        resnetlab.load(tmp_path / "step.safetensors")
    write_tensors(tmp_path / "new.safetensors", {"x": torch.zeros(2)}, {"schema": 9})
    with pytest.raises(UserError, match=r"schema 9.* 1"):
        resnetlab.load(tmp_path / "new.safetensors")
    pickled = tmp_path / "pickled.safetensors"
    torch.save({"x": torch.zeros(2)}, pickled)
    with pytest.raises(DamagedFileError, match="cannot be read as safetensors"):
        resnetlab.load(pickled)


def test_a_missing_file_and_a_run_without_a_checkpoint_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"gone\.safetensors"):
        resnetlab.load(tmp_path / "gone.safetensors")
    with pytest.raises(UserError, match="None"):
        resnetlab.load(None)  # type: ignore[arg-type]
    Run.create(tmp_path / "run", EMPTY_SETTINGS, {})
    with pytest.raises(UserError, match="resnetlab train --resume"):
        resnetlab.load(tmp_path / "run")


def test_a_network_written_by_the_first_version_still_loads():
    model = resnetlab.load(GOLDEN)
    evaluation = resnetlab.evaluate(model, "digits")
    expected = json.loads((GOLDEN / "evaluation" / "summary.json").read_text())
    assert {key: evaluation.summary[key] for key in ("split", "n", "top1")} == {
        key: expected[key] for key in ("split", "n", "top1")
    }
    assert evaluation.summary["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert read_tensors(GOLDEN / "model.safetensors")[1]["provenance"]["seed"] == 0
