"""`export --to hub:USER/NAME` and `hub:USER/NAME` as a source of weights, with a hub on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from PIL import Image
from tests.facts import refuses
from tests.hub_server import Hub, running_hub, use_hub
from tests.oracles import assert_same_logits, randomized
from timm.data.config import resolve_model_data_config

import resnetlab
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.runs import Run

Cli = Callable[..., tuple[int, str, str]]
NAME = "ada/digits"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub(monkeypatch, tmp_path / "cache") as hub:
        yield hub


def network(name: str, channels: int = 3, size: int = 32) -> resnetlab.ResNet:
    """A network with random weights that knows its classes and images."""
    torch.manual_seed(0)
    model = resnetlab.create_model(name, in_channels=channels, num_classes=3)
    randomized(model)
    model.class_names, model.temperature = ("ant", "bee", "cat"), 0.8
    model.preprocessing = Preprocessing(
        **{"image_size": size, "channels": channels, "mean": (0.4,) * channels, "std": (0.2,) * channels},
        **{"interpolation": "bicubic", "crop_pct": 0.875},
    )
    return model


def test_a_dry_run_writes_the_folder_and_uploads_nothing(cli: Cli, digits_run: Run, tmp_path: Path, hub: Hub):
    run = shutil.copytree(digits_run.path, tmp_path / "secret" / "run")
    code, out, err = cli("export", run, "--to", f"hub:{NAME}", "--license", "CC0-1.0")
    assert (code, out) == (0, ""), err
    folder = run / "export" / "hub"
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.safetensors", "config.json", "README.md"}
    assert [name for name in names if str(folder / name) not in err] == []
    assert "--publish" in err and f"hub:{NAME}" in err
    assert hub.repositories == {}
    content = b"".join(path.read_bytes() for path in folder.iterdir())
    assert str(tmp_path).encode() not in content and b"secret" not in content
    head, card = (folder / "README.md").read_text().removeprefix("---\n").split("\n---\n", 1)
    fields = yaml.safe_load(head)
    assert fields["license"] == "cc0-1.0" and fields["pipeline_tag"] == "image-classification"
    assert fields["library_name"] == "resnetlab" and "timm" not in fields["tags"]  # timm has no resnet20
    assert f'resnetlab.load("hub:{NAME}")' in card and "timm.create_model" not in card
    config = json.loads((folder / "config.json").read_text())
    assert config["label_names"] == list("0123456789") and config["pretrained_cfg"]["input_size"] == [1, 8, 8]
    again = resnetlab.load(folder / "model.safetensors")
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(again(images), resnetlab.load(run)(images))


def test_a_published_network_is_a_source_everywhere(cli: Cli, digits_run: Run, tmp_path: Path, hub: Hub):
    run = shutil.copytree(digits_run.path, tmp_path / "run")
    code, _, err = cli("export", run, "--to", f"hub:{NAME}", "--publish", "--out", tmp_path / "folder")
    assert code == 0 and f"/{NAME}" in err, err
    assert set(hub.repositories[NAME]) == {"model.safetensors", "config.json", "README.md"}
    assert len(hub.commits) == 1
    ours, theirs = resnetlab.load(run), resnetlab.load(f"hub:{NAME}")
    assert theirs.class_names == ours.class_names and theirs.preprocessing == ours.preprocessing
    assert theirs.temperature == ours.temperature
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(theirs(images), ours(images))
    fresh = resnetlab.create_model("resnet20", in_channels=1, num_classes=10)
    report = resnetlab.load_weights(fresh, f"hub:{NAME}")
    assert report.source == f"hub:{NAME}" and not report.reinitialized and not report.ignored
    Image.new("L", (8, 8), 200).save(tmp_path / "image.png")
    code, out, err = cli("predict", f"hub:{NAME}", tmp_path / "image.png")
    assert code == 0 and "image.png" in out, err
    code, out, err = cli("summary", f"hub:{NAME}")
    assert code == 0 and "cifar" in out, err
    few = resnetlab.load_data("digits", limit=40, limit_held_out=20)
    tuned = resnetlab.fit("resnet20", few, pretrained=f"hub:{NAME}", epochs=1, out=tmp_path / "tuned", quiet=True)
    assert tuned.settings["model"]["pretrained"] == f"hub:{NAME}"


@pytest.mark.parametrize(
    ("name", "channels", "extra"), [("resnet18", 3, False), ("seresnet18", 1, False), ("resnetv2_18", 3, True)]
)
def test_timm_loads_what_it_has(name: str, channels: int, extra: bool, tmp_path: Path, hub: Hub):
    ours = network(name, channels)
    written = resnetlab.export(ours, f"hub:ada/{name}", out=tmp_path / name)
    assert (written.path / "timm.safetensors").is_file() == extra
    hub.add(f"ada/{name}", written.path)
    theirs: Any = timm.create_model(f"hf-hub:ada/{name}", pretrained=True).eval()
    assert_same_logits(ours, theirs, (32, 32), channels=channels)
    data = resolve_model_data_config(theirs)
    assert tuple(data["input_size"]) == (channels, 32, 32) and data["crop_pct"] == 0.875
    assert (data["interpolation"], tuple(data["mean"])) == ("bicubic", (0.4,) * channels)
    assert theirs.pretrained_cfg["label_names"] == ["ant", "bee", "cat"]
    other: Any = timm.create_model(f"hf-hub:ada/{name}", pretrained=True, num_classes=5)  # the same encoder
    first = theirs.pretrained_cfg["first_conv"]
    assert torch.equal(other.get_submodule(first).weight, theirs.get_submodule(first).weight)
    back = resnetlab.load(f"hub:ada/{name}")
    assert_same_logits(back, ours, (32, 32), channels=channels)
    assert back.class_names == ours.class_names


def test_networks_of_timm_keep_their_name(tmp_path: Path, hub: Hub):
    data = resnetlab.load_data("digits", limit=40, image_size=32)
    run = resnetlab.fit("timm:test_resnet", data, out=tmp_path / "run", epochs=1, quiet=True)
    written = resnetlab.export(run, "hub:ada/tiny")
    assert written.path == run.path / "export" / "hub"
    hub.add("ada/tiny", written.path)
    theirs = timm.create_model("hf-hub:ada/tiny", pretrained=True).eval()
    assert_same_logits(resnetlab.load(run), theirs, (32, 32), channels=1)


def test_your_own_network_is_published_without_its_folder(tmp_path: Path, hub: Hub):
    (tmp_path / "secret").mkdir()
    file = tmp_path / "secret" / "mine.py"
    file.write_text(
        "from torch import nn\n\ndef net(in_channels, num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),"
        " nn.Linear(4, num_classes))\n"
    )
    data = resnetlab.load_data("digits", limit=40)
    run = resnetlab.fit(f"{file}:net", data, out=tmp_path / "run", epochs=1, quiet=True)
    written = resnetlab.export(run, "hub:ada/mine", model=f"{file}:net")
    assert b"secret" not in b"".join(path.read_bytes() for path in written.path.iterdir())
    hub.add("ada/mine", written.path)
    with refuses("mine.py:net", "--model"):
        resnetlab.load("hub:ada/mine")
    images = torch.rand(2, 1, 8, 8)
    ours, theirs = (resnetlab.load(source, model=f"{file}:net") for source in (run, "hub:ada/mine"))
    assert torch.equal(ours(images), theirs(images))


def test_what_the_hub_does_not_have_is_explained(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch):
    model = resnetlab.create_model("resnet20")
    hub.repositories["ada/pickles"] = {"pytorch_model.bin": b"", "README.md": b""}
    hub.repositories["ada/text"] = {"README.md": b""}
    with refuses("hub:ada/pickles", "pytorch_model.bin", "safetensors"):
        resnetlab.load_weights(model, "hub:ada/pickles")
    with refuses("hub:ada/text", "model.safetensors"):
        resnetlab.load("hub:ada/text")
    with refuses("hub:ada/nothing", "does not exist", "HF_TOKEN"):
        resnetlab.load_weights(model, "hub:ada/nothing")
    for name in ("hub:ada", "hub:a/b/c", "hub:../x", "hub:a b/c"):
        with refuses("hub:USER/NAME", name[4:]):
            resnetlab.load(name)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with refuses("hub:USER/NAME"):
        resnetlab.export("digits", "hub")
    assert not list(Path().iterdir())
    assert resnetlab.export("digits", "hub:ada/digits").path == Path("digits-hub")


def test_a_new_process_without_a_connection_gets_a_message(tmp_path: Path):
    command = [sys.executable, "-m", "resnetlab", "predict", "hub:ada/photos", str(tmp_path)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "hub:ada/photos" in ended.stderr and "no connection" in ended.stderr


def test_without_a_connection_what_is_cached_is_used(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch):
    written = resnetlab.export("digits", f"hub:{NAME}", out=tmp_path / "folder")
    hub.add(NAME, written.path)
    kept = resnetlab.load(f"hub:{NAME}").state_dict()
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    assert torch.equal(resnetlab.load(f"hub:{NAME}").state_dict()["fc.weight"], kept["fc.weight"])
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path / "empty", offline=True)
    with refuses("no connection", f"hub:{NAME}", "http://127.0.0.1:9", "model.safetensors"):
        resnetlab.load(f"hub:{NAME}")
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path / "empty")
    with refuses("upload failed", "127.0.0.1:9", str(tmp_path / "folder")):
        resnetlab.export("digits", f"hub:{NAME}", out=tmp_path / "folder", publish=True)


def test_an_upload_needs_a_login(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with refuses("HF_TOKEN", f"hub:{NAME}", "401"):
        resnetlab.export("digits", f"hub:{NAME}", out=tmp_path / "folder", publish=True)
    assert (tmp_path / "folder" / "config.json").is_file() and hub.repositories == {}


def test_weights_in_several_files_and_of_other_programs(tmp_path: Path, hub: Hub):
    theirs = randomized(timm.create_model("resnet18", num_classes=3))
    state = list(theirs.state_dict().items())
    from safetensors.torch import save_file

    folder, parts = tmp_path / "shards", ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    folder.mkdir()
    halves = (dict(state[: len(state) // 2]), dict(state[len(state) // 2 :]))
    for part, tensors in zip(parts, halves, strict=True):
        save_file(tensors, folder / part)
    names = {name: part for part, tensors in zip(parts, halves, strict=True) for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    cfg = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.25] * 3}
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": cfg}))
    hub.add("ada/shards", folder)
    ours = resnetlab.create_model("resnet18", num_classes=3, pretrained="hub:ada/shards").eval()
    assert_same_logits(ours, theirs, (32, 32))
    assert ours.preprocessing is not None and ours.preprocessing.mean == (0.5,) * 3
