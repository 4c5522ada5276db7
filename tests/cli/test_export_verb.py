from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import resnetlab
from resnetlab.core.runs import Run

Cli = Callable[..., tuple[int, str, str]]


def test_a_run_goes_to_its_export_folder_and_back(cli: Cli, digits_run: Run, tmp_path: Path):
    run = shutil.copytree(digits_run.path, tmp_path / "run")
    code, out, err = cli("export", run, "--to", "cifar")
    assert (code, out) == (0, ""), err
    path = run / "export" / "cifar.pth"
    assert str(path) in err
    assert "linear.weight" in torch.load(path)
    code, _, err = cli("export", path, "--to", "resnetlab", "--model", "resnet20")
    assert code == 0, err
    back, network = resnetlab.load(run / "export" / "cifar-resnetlab.safetensors"), resnetlab.load(run)
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(back(images), network(images))
    assert cli("export", path, "--to", "resnetlab", "--model", "resnet20")[0] == 0
    assert (run / "export" / "cifar-resnetlab-2.safetensors").is_file()


@pytest.mark.parametrize(("form", "suffix"), [("torchvision", ".pth"), ("timm", ".safetensors"), ("gluon", ".params")])
def test_a_file_goes_to_each_library_and_back(cli: Cli, tmp_path: Path, form: str, suffix: str):
    torch.manual_seed(0)
    overrides: Any = {"running_variance": "biased"} if form == "gluon" else {}
    resnetlab.weights.save(tmp_path / "m.safetensors", resnetlab.create_model("resnet18", num_classes=3, **overrides))
    code, _, err = cli("export", tmp_path / "m.safetensors", "--to", form)
    assert code == 0, err
    there, back = tmp_path / f"m-{form}{suffix}", tmp_path / "back.safetensors"
    code, _, err = cli("export", there, "--to", "resnetlab", "--out", back)
    assert code == 0, err
    ours, theirs = (resnetlab.load(path).state_dict() for path in (tmp_path / "m.safetensors", back))
    learned = [name for name in ours if "num_batches" not in name]
    assert [name for name in learned if not torch.equal(ours[name], theirs[name])] == []


def test_the_suffix_of_out_says_what_to_write(cli: Cli, digits_run: Run, tmp_path: Path):
    code, _, err = cli("export", digits_run.path, "--out", tmp_path / "copy.safetensors")
    assert code == 0, err
    assert resnetlab.load(tmp_path / "copy.safetensors").class_names == tuple("0123456789")


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (("--to", "torchvison"), ("'torchvison'", "'torchvision'")),
        (("--to", "torchvision"), ("torchvision", "--to resnetlab")),
        (("--to", "cifar", "--out", "."), ("--out", "folder", "model.pth")),
        (("--to", "cifar", "--out", "gone/a.pth"), ("--out", "gone", "does not exist")),
        (("--out", "a.onnx"), ("a.onnx", "--out", "folder")),
    ],
)
def test_mistakes_are_explained(
    cli: Cli, digits_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments, facts: tuple[str, ...]
):
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(digits_run.path, tmp_path / "run")
    code, out, err = cli("export", run, *arguments)
    assert (code, out) == (2, "")
    assert [fact for fact in facts if fact not in err] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_our_own_format_keeps_the_temperature(digits_run: Run, tmp_path: Path):
    network = resnetlab.load(digits_run)
    network.temperature = 0.7
    resnetlab.save(tmp_path / "a.safetensors", network)
    resnetlab.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert resnetlab.load(tmp_path / "b.safetensors").temperature == 0.7
