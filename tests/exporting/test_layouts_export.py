"""`export --layout`: what Triton, Ray Serve and Docker get, checked as far as that goes without them."""

from __future__ import annotations

import ast
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
from google.protobuf import text_format
from tests.facts import refuses

import resnetlab
from resnetlab.exporting.card import REQUIREMENTS
from resnetlab.exporting.export import Export
from resnetlab.exporting.layouts import triton_config, write_layout
from resnetlab.exporting.options import LAYOUTS

Cli = Callable[..., tuple[int, str, str]]
KINDS = {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """An export for Triton, next to which the other layouts are written too."""
    written = resnetlab.export("digits", out=tmp_path_factory.mktemp("layouts") / "digits", layout="triton")
    assert written.record is not None
    for layout in ("ray", "docker"):
        write_layout(layout, written.path.parent, written.record)
    return written


def parsed(text: str):
    """The message that Triton reads."""
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(text, model_config_pb2.ModelConfig())  # type: ignore[attr-defined]  # generated names


def test_tritons_schema_reads_the_config_and_it_fits_the_file(export: Export):
    assert export.record is not None
    (model,) = (export.path.parent / "triton").iterdir()
    config = parsed((model / "config.pbtxt").read_text())
    assert config.name == model.name == "digits"
    assert config.HasField("dynamic_batching") and config.max_batch_size == export.record["gate"]["batches"][-1]
    file = model / "1" / config.default_model_filename
    assert file.read_bytes() == export.path.read_bytes()
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    types = config.input[0].DESCRIPTOR.fields_by_name["data_type"].enum_type
    for stated, actual in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [one.name for one in stated] == [one.name for one in actual]
        assert [list(one.dims) for one in stated] == [one.shape[1:] for one in actual]
        assert [types.values_by_number[one.data_type].name for one in stated] == [KINDS[one.type] for one in actual]
        assert all(isinstance(one.shape[0], str) for one in actual)  # Triton batches along a dynamic dimension
    (labelled,) = [one for one in config.output if one.label_filename]
    assert labelled.name == "probabilities"
    assert (model / labelled.label_filename).read_text().split() == list("0123456789")


def test_images_of_any_size_and_names_with_quotes(export: Export):
    assert export.record is not None
    config = parsed(triton_config('a"b', {**export.record, "any_size": True}))
    assert (config.name, list(config.input[0].dims)) == ('a"b', [-1, -1, 1])


def test_int8_is_a_second_model_and_other_models_stay(export: Export, tmp_path: Path):
    (tmp_path / "triton" / "theirs").mkdir(parents=True)
    for name in ("model.onnx", "model-int8.onnx"):
        (tmp_path / name).write_bytes(export.path.read_bytes())
    assert export.record is not None
    write_layout("triton", tmp_path, export.record)
    write_layout("triton", tmp_path, export.record)
    assert {path.name for path in (tmp_path / "triton").iterdir()} == {"digits", "digits-int8", "theirs"}
    assert parsed((tmp_path / "triton/digits-int8/config.pbtxt").read_text()).name == "digits-int8"


def test_rays_file_uses_what_exists(export: Export):
    text = (export.path.parent / "serve_ray.py").read_text()
    assert f"resnetlab=={resnetlab.__version__}" in text
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("resnetlab"):
            module = __import__(node.module or "", fromlist=["x"])
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []


def test_the_dockerfile_starts_a_service_that_its_check_finds_healthy(export: Export, monkeypatch: pytest.MonkeyPatch):
    folder = export.path.parent
    text = (folder / "Dockerfile").read_text().replace("\\\n", " ")
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    assert [rest for step, rest in steps if step == "USER"] and dict(steps)["USER"].split(":")[0].isdecimal()
    assert f"resnetlab=={resnetlab.__version__}" in text and "torch" not in REQUIREMENTS.replace("without torch", "")
    copied = [word for step, rest in steps if step == "COPY" for word in rest.split()[:-1]]
    assert [word for word in copied if not list(folder.glob(word)) and word != "*.whl"] == []
    command = ast.literal_eval(dict(steps)["CMD"])
    assert command[:2] == ["resnetlab", "serve"]
    monkeypatch.chdir(folder)
    with resnetlab.serve(command[2], port=0, background=True, quiet=True) as service:
        health = dict(steps)["HEALTHCHECK"].partition("CMD ")[2].replace(":8000", f":{service.port}")
        words = ast.literal_eval(health)
        assert words[0] == "python"
        assert subprocess.run([sys.executable, *words[1:]], capture_output=True).returncode == 0
        broken = [sys.executable, *words[1:-1], words[-1].replace("readyz", "nothing")]
        assert subprocess.run(broken, capture_output=True).returncode != 0


def test_the_commands_that_are_printed_are_understood(export: Export):
    assert export.record is not None
    for layout, program in zip(LAYOUTS, ("tritonserver", "serve", "docker"), strict=True):
        line = write_layout(layout, export.path.parent, export.record).splitlines()[-1]
        assert program in shlex.split(line)


def test_mistakes_are_explained(cli: Cli, tmp_path: Path):
    code, _, err = cli("export", "digits", "--layout", "helm", "--out", tmp_path / "new")
    assert code == 2 and "'helm'" in err and "triton" in err
    with refuses("layout", "html"):
        resnetlab.export("digits", "html", layout="ray", out=tmp_path / "new")
    assert not (tmp_path / "new").exists()
