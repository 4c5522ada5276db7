"""`resnetlab export RUN`: the folder that it writes, used as its readers use it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import resnetlab
from resnetlab.core.framing import Framing
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData
from resnetlab.exporting.card import REQUIREMENTS
from resnetlab.exporting.export import TARGETS, Export
from resnetlab.exporting.fresh import ABSENT
from resnetlab.exporting.quantize import layers_of, worst_layers
from resnetlab.exporting.session import OUTPUTS, open_exported

Cli = Callable[..., tuple[int, str, str]]
SOURCE = str(Path(resnetlab.__file__).parents[1])


@pytest.fixture(scope="module")
def run(digits_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(shutil.copytree(digits_run.path, tmp_path_factory.mktemp("exported") / "digits"))


@pytest.fixture(scope="module")
def export(run: Run) -> Export:
    return resnetlab.export(run, int8=True, accept_loss=5, license="CC0-1.0")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory, digits: ImageData) -> Path:
    path = tmp_path_factory.mktemp("photos") / "digit.png"
    Image.fromarray(digits.squares("test")[0, 0].numpy()).resize((20, 31)).save(path)
    return path


@pytest.mark.slow
def test_the_folder_is_complete(run: Run, export: Export):
    folder = run.path / "export"
    assert export.path == folder / "model.onnx"
    names = {path.name for path in folder.iterdir()}
    described = {"README.md", "export.json", "requirements.txt", "preprocess.py", "client.py", "client.mjs"}
    assert names == {"model.onnx", "model-int8.onnx", "selftest.npz", *described}
    record = json.loads((folder / "export.json").read_text())
    assert record["gate"]["passed"] and record["gate"]["batches"] == [1, 2, 7, 32]
    assert record["files"]["model.onnx"]["bytes"] == export.path.stat().st_size
    assert record["int8"]["proven"] is False and record["int8"]["images"] == record["int8"]["images"] > 100
    assert record["provenance"]["license"] == "CC0-1.0"
    card = (folder / "README.md").read_text()
    assert run.summary is not None
    facts = (f"{run.summary['top1']:.2%}", "CC0-1.0", "limits", "client.py", record["provenance"]["weights_sha256"])
    assert [fact for fact in facts if fact not in card] == []


@pytest.mark.slow
def test_another_export_keeps_int8_of_the_same_network_only(
    export: Export, run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    again = Run(shutil.copytree(run.path, tmp_path / "digits"))
    kept = resnetlab.export(again, license="CC0-1.0")
    assert kept.record is not None and export.record is not None
    assert kept.record["int8"] == export.record["int8"]
    assert open_exported(kept.path.with_name("model-int8.onnx")).selftest() < 1e-4
    network = resnetlab.load(again)
    with torch.no_grad():
        next(network.parameters()).mul_(1.1)
    resnetlab.save(tmp_path / "other.safetensors", network)
    resnetlab.export(tmp_path / "other.safetensors", out=again.path / "export")
    assert not kept.path.with_name("model-int8.onnx").exists()
    assert "--int8" in capfd.readouterr().err


def test_the_file_describes_itself(run: Run, export: Export):
    exported = open_exported(export.path)
    assert exported.outputs == OUTPUTS and exported.class_names == tuple("0123456789")
    assert exported.metadata["provenance"]["data"]["fingerprint"] == run.settings["data"]["fingerprint"]
    assert exported.framing == Framing(image_size=8, channels=1)
    assert (exported.precision, open_exported(export.path.with_name("model-int8.onnx")).precision) == (
        "float32",
        "int8",
    )
    assert str(run.path.parent) not in json.dumps(exported.metadata)
    model = onnx.load(export.path)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.key for entry in model.metadata_props] == ["resnetlab"]
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


@pytest.mark.parametrize("name", ["model.onnx", "model-int8.onnx"])
def test_the_self_test(export: Export, tmp_path: Path, name: str):
    assert open_exported(export.path.with_name(name)).selftest() < 1e-4
    shutil.copy(export.path.with_name(name), tmp_path)
    with pytest.raises(resnetlab.UserError, match=r"selftest\.npz"):
        open_exported(tmp_path / name).selftest()
    with np.load(export.path.with_name("selftest.npz")) as known:
        assert known["images"].shape == (16, 8, 8, 1)
        np.savez(tmp_path / "selftest.npz", **{key: -value for key, value in known.items()})
    with pytest.raises(resnetlab.UserError, match="differ"):
        open_exported(tmp_path / name).selftest()


def test_int8_multiplies_integers_and_names_its_layers(export: Export, digits: ImageData):
    int8 = export.path.with_name("model-int8.onnx")
    images = digits.squares("validation").permute(0, 2, 3, 1).numpy()
    worst = worst_layers(export.path, int8, images)
    layers = layers_of(onnx.load(export.path).graph)
    assert len(worst) == 3 and set(worst) < set(layers) and {"conv1", "fc", "layer3.2.conv2"} <= set(layers)
    weights = {entry.name: entry for entry in onnx.load(int8).graph.initializer}
    kinds = {entry.data_type for entry in weights.values() if len(entry.dims) == 4}
    assert kinds == {onnx.TensorProto.INT8}
    assert int8.stat().st_size < 0.45 * export.path.stat().st_size


def test_answers_equal_those_of_the_run(run: Run, export: Export, photo: Path):
    exported, framed = open_exported(export.path.parent), open_exported(export.path).frame(photo)
    assert all((exported.frame(image) == framed).all() for image in (Image.open(photo), photo.read_bytes()))
    ours, theirs = (resnetlab.predict(subject, photo, mirrored=True) for subject in (export.path, run))
    assert ours["prediction"].tolist() == theirs["prediction"].tolist()
    assert ours["confidence_2"].tolist() == pytest.approx(theirs["confidence_2"].tolist(), abs=1e-5)
    ours, theirs = (resnetlab.evaluate(subject, explore=False) for subject in (export.path.parent, run))
    assert (ours.folder, ours.summary["top1"], ours.summary["n"]) == (None, theirs.summary["top1"], theirs.summary["n"])
    assert ours.summary["ece"] == pytest.approx(theirs.summary["ece"], abs=1e-4)
    values = exported.run(framed[None], ["attention", "top_classes"])
    images = torch.from_numpy(framed.transpose(2, 0, 1))[None]
    network = resnetlab.load(run)
    assert isinstance(network, resnetlab.ResNet)
    maps = resnetlab.class_activation(network, images, values["top_classes"][:, 1].tolist()).maps.numpy()
    np.testing.assert_allclose(values["attention"][:, 1], maps, atol=1e-4)


def blocked(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs the program where torch, pandas and scikit-learn cannot be imported."""
    code = f"""
import sys
sys.modules.update(dict.fromkeys({ABSENT!r}))
from resnetlab.cli.main import main
main({[str(argument) for argument in arguments]!r})
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_predict_needs_no_torch(export: Export, photo: Path):
    done = blocked("predict", export.path, photo, "--out", "-")
    assert done.returncode == 0, done.stderr
    answer = resnetlab.predict(export.path, photo)
    assert done.stdout.splitlines()[1].split(",")[1] == answer["prediction"][0]


def test_the_client_needs_three_packages(export: Export, photo: Path, tmp_path: Path):
    site = Path(onnx.__file__).parents[1]
    for name in ("onnxruntime", "numpy", "PIL", "numpy.libs", "pillow.libs", "flatbuffers"):
        if (site / name).exists():
            (tmp_path / name).symlink_to(site / name)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-S", export.path.with_name("client.py"), photo]  # -S: nothing else is found
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = resnetlab.predict(export.path, photo)
    assert f": {answer['prediction'][0]} {answer['confidence'][0]:.1%}" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="the runtimes keep their identifiers elsewhere")
@pytest.mark.parametrize("program", ["client", "predict", "openvino"])
def test_the_runtimes_report_nothing_to_their_makers(export: Export, photo: Path, tmp_path: Path, program: str):
    if program == "openvino":
        pytest.importorskip("openvino")
    quiet = "from resnetlab.core.environment import import_extra as i; i('openvino', without='openvino_telemetry')"
    commands = {
        "client": [export.path.with_name("client.py"), photo],
        "predict": ["-m", "resnetlab", "predict", export.path, photo],
        "openvino": ["-c", quiet],
    }
    kept = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "CI")}
    places = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": SOURCE}
    command = [sys.executable, *commands[program]]
    done = subprocess.run(command, env={**kept, **places}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []  # they would keep an identifier


@pytest.mark.slow
def test_the_client_in_javascript(export: Export, photo: Path, tmp_path: Path):
    if shutil.which("npm") is None:
        pytest.skip("needs Node and npm")
    folder = shutil.copytree(export.path.parent, tmp_path / "export")
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "onnxruntime-node", "sharp"]
    if subprocess.run(install, cwd=folder, capture_output=True).returncode:
        pytest.skip("npm cannot install onnxruntime-node and sharp here")
    done = subprocess.run(["node", folder / "client.mjs", photo], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = resnetlab.predict(export.path, photo)
    assert f": {answer['prediction'][0]} {answer['confidence'][0]:.1%}" in done.stdout


def test_the_requirements_are_those_of_the_project():
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    needed = [line for line in REQUIREMENTS.splitlines() if not line.startswith("#")]
    assert [line for line in needed if f'"{line}"' not in project] == []


def test_the_verb_measures_and_predicts(cli: Cli, export: Export, photo: Path):
    code, out, err = cli("evaluate", export.path)
    assert code == 0 and "top-1" in out, err
    code, _, err = cli("evaluate", export.path, "--page-only")
    assert code == 2 and "--page-only" in err
    code, out, err = cli("predict", export.path.parent, photo)
    assert code == 0 and "digit.png" in out, err


def test_an_older_export_is_replaced_and_other_files_are_kept(cli: Cli, run: Run, export: Export, tmp_path: Path):
    folder = Path(shutil.copytree(export.path.parent, tmp_path / "export"))
    (folder / "notes.txt").write_text("mine")
    code, _, err = cli("export", run.path / "model.safetensors", "--out", folder)
    assert code == 0 and "scikit-learn" in err, err
    assert (folder / "notes.txt").read_text() == "mine"
    assert not list(folder.glob(".export-*"))
    (folder / "export.json").unlink()
    before = sorted(folder.iterdir())
    code, _, err = cli("export", run.path, "--out", folder)
    assert (code, sorted(folder.iterdir())) == (2, before) and "--out" in err


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (("--to", "onix"), ("'onix'", "'onnx'")),
        (("--to", "torchvision", "--int8"), ("torchvision", "int8")),
        (("--accept-loss", "1"), ("--int8",)),
        (("--int8", "--keep-float", "conv9"), ("'conv9'", "conv1")),
        (("--set", "stem=deep"), ("onnx", "overrides")),
        (("--out", "a-file"), ("a-file", "folder")),
    ],
)
def test_mistakes_are_explained(cli: Cli, run: Run, tmp_path: Path, monkeypatch, arguments, facts):
    monkeypatch.chdir(tmp_path)
    Path("a-file").touch()
    code, out, err = cli("export", run.path, "--out", "new", *arguments)
    assert (code, out) == (2, "")
    assert [fact for fact in facts if fact not in err] == []
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]


def test_other_files_are_refused(export: Export, tmp_path: Path):
    path = tmp_path / "model.onnx"
    content = export.path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(resnetlab.UserError, match="damaged"):
        open_exported(path)
    model = onnx.load_from_string(content)
    del model.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(resnetlab.UserError, match="another program"):
        open_exported(path)
    onnx.save(onnx.load_from_string(content), path, save_as_external_data=True, location="w", size_threshold=0)
    with pytest.raises(resnetlab.UserError, match="other files"):
        open_exported(path)
    with pytest.raises(resnetlab.UserError, match="resnetlab export"):
        open_exported(tmp_path / "gone.onnx")
    with pytest.raises(resnetlab.UserError, match=r"OpenVINO.*model\.onnx"):
        resnetlab.predict(tmp_path / "model.xml", [])
    (tmp_path / "model.xml").write_text("<net/>")
    for name in ("model.xml", "model.onnx"):
        with pytest.raises(resnetlab.UserError, match="Give the run"):
            resnetlab.load(tmp_path / name)


def test_a_missing_package_names_its_command(export: Export, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(resnetlab.UserError, match=r"pip install 'resnetlab\[export\]'"):
        open_exported(export.path)


def test_every_target_has_a_writer():
    import importlib

    assert all(callable(importlib.import_module(target.module).write) for target in TARGETS.values())
