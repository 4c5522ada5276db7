"""Published weights by name: from a server of this machine and from the cache, as the real ones come."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants
from safetensors.torch import save_file
from tests.facts import refuses
from tests.oracles import assert_same_logits, randomized

import resnetlab
from resnetlab.core.errors import UserError
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.weights.tensors import DamagedFileError


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address that it is served at."""
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that torch keeps downloads in."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def _publish(folder: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """Puts random weights where torchvision will look for its own, under a name with their hash."""
    theirs = randomized(torchvision.models.resnet18())
    torch.save(theirs.state_dict(), folder / "file")
    digest = hashlib.sha256((folder / "file").read_bytes()).hexdigest()
    (folder / "file").rename(folder / f"resnet18-{digest[:8]}.pth")
    entry = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    url = f"{address}/resnet18-{digest[:8]}.pth"
    monkeypatch.setattr(entry, "_value_", dataclasses.replace(entry.value, url=url))
    return theirs


def test_torchvisions_weights_are_downloaded_checked_and_kept(
    served: tuple[Path, str], hub: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    theirs = _publish(*served, monkeypatch)
    ours = resnetlab.create_model("resnet18", pretrained="torchvision:IMAGENET1K_V1").eval()
    assert_same_logits(ours, theirs, (64, 64))
    assert ours.class_names is not None
    assert (len(ours.class_names), ours.class_names[0]) == (1000, "tench")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert ours.preprocessing == Preprocessing(image_size=224, channels=3, mean=mean, std=std, crop_pct=224 / 256)
    (file,) = hub.iterdir()
    next(served[0].iterdir()).unlink()
    again = resnetlab.create_model("resnet18")
    report = resnetlab.load_weights(again, "torchvision:DEFAULT")  # from what was kept
    assert report.source == "torchvision:DEFAULT"
    assert torch.equal(again.fc.weight, ours.fc.weight)
    content = bytearray(file.read_bytes())
    content[5000] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"SHA-256 .*\w{8}, .*\w{8}\. Delete"):
        resnetlab.load_weights(again, "torchvision:DEFAULT")


def test_without_a_network_torchvisions_file_is_named_and_where_to_put_it(
    tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "away").mkdir()
    _publish(tmp_path / "away", "http://127.0.0.1:9", monkeypatch)
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/resnet18-\w+.pth .*checkpoints"):
        resnetlab.create_model("resnet18", pretrained="torchvision:IMAGENET1K_V1")


def test_an_unknown_name_of_torchvisions_is_refused_with_the_known():
    with pytest.raises(UserError, match=r"resnet50 'IMAGENET1K_V3'. Did you mean 'IMAGENET1K_V2'\? Available: "):
        resnetlab.create_model("resnet50", pretrained="torchvision:IMAGENET1K_V3")


def _cache(folder: Path, name: str, files: dict[str, Path]):
    """Lays files out as the hub's own cache keeps them."""
    repository = folder / f"models--timm--{name}"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    for file, content in files.items():
        content.rename(snapshot / file)


def test_timms_weights_come_from_the_cache_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    theirs = randomized(timm.create_model("resnetv2_18"))
    save_file(theirs.state_dict(), tmp_path / "weights")
    cfg = {"input_size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"}
    description = {"architecture": "resnetv2_18", "num_classes": 1000, "pretrained_cfg": {**cfg, "crop_pct": 0.95}}
    (tmp_path / "config").write_text(json.dumps(description))
    files = {"model.safetensors": tmp_path / "weights", "config.json": tmp_path / "config"}
    _cache(tmp_path, "resnetv2_18.ra4_in1k", files)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    ours = resnetlab.create_model("resnetv2_18", pretrained="timm:resnetv2_18.ra4_in1k").eval()
    assert_same_logits(ours, theirs, (64, 64))
    assert ours.preprocessing == Preprocessing(
        image_size=224, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bicubic", crop_pct=0.95
    )
    with refuses("(resnetv2_18)"):
        resnetlab.create_model("resnet50", pretrained="timm:resnetv2_18.ra4_in1k")


def test_older_weights_of_timms_are_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    theirs = randomized(timm.create_model("resnet18d"))
    torch.save(theirs.state_dict(), tmp_path / "weights")
    (tmp_path / "config").write_text("{}")
    files = {"pytorch_model.bin": tmp_path / "weights", "config.json": tmp_path / "config"}
    _cache(tmp_path, "resnet18d.x", files)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    ours = resnetlab.create_model("resnet18d", pretrained="timm:resnet18d.x").eval()
    assert_same_logits(ours, theirs, (64, 64))
    assert ours.preprocessing is None


def test_without_a_network_timms_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    words = r"'timm:resnet50.a1_in1k' .* Download https://\S+/timm/resnet50.a1_in1k/resolve/main/model"
    with pytest.raises(UserError, match=words):
        resnetlab.create_model("resnet50", pretrained="timm:resnet50.a1_in1k")


def test_without_the_hubs_package_it_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'resnetlab\[hub\]'"):
        resnetlab.create_model("resnet50", pretrained="timm:resnet50.a1_in1k")
