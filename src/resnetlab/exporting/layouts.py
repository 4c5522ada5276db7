"""What other engines need to serve an exported network: Triton, Ray Serve, Docker."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from resnetlab.core.files import atomic, write_text
from resnetlab.exporting.session import MODEL, MODEL_INT8

_TEMPLATES = Path(__file__).parent / "templates"
_INTEGERS = "top_classes"


def write_layout(layout: str, folder: Path, record: Mapping[str, Any]) -> str:
    """Writes the files of a layout into an export folder.

    Args:
        layout: one of `LAYOUTS`.
        folder: the folder with model.onnx.
        record: the content of its export.json.

    Returns:
        What was written, and the command that uses it.
    """
    if layout == "triton":
        return _write_triton(folder, record)
    place = shlex.quote(str(folder))
    name, command = {
        "ray": ("serve_ray.py", f"cd {place} && serve run serve_ray:app"),
        "docker": ("Dockerfile", f"docker build -t {record['name'].lower()} {place}"),
    }[layout]
    text = (_TEMPLATES / name).read_text(encoding="utf-8")
    text = text.replace("{version}", version("resnetlab")).replace("{name}", record["name"].lower())
    path, done = folder / name, "written"
    if path.is_file() and path.read_text(encoding="utf-8", errors="replace") != text:
        done = "kept, because it was changed (remove it to get a new one):"
    else:
        write_text(path, text)
    return f"{done}  {path}\nstart it with  {command}"


def triton_config(name: str, record: Mapping[str, Any]) -> str:
    """Returns config.pbtxt, Triton's description of a model, as text of the message `ModelConfig`.

    Args:
        name: the model's name, which is also that of its folder.
        record: the content of export.json.
    """
    size, channels = (record["preprocessing"][key] for key in ("image_size", "channels"))
    height = width = -1 if record.get("any_size") else size
    outputs = [_output(output, shape[1:]) for output, shape in record["outputs"].items()]
    return "\n".join(
        [
            f"name: {json.dumps(name, ensure_ascii=False)}",
            'backend: "onnxruntime"',
            f'default_model_filename: "{MODEL}"',
            f"max_batch_size: {max(record['gate']['batches'])}",
            "input [",
            f'  {{ name: "images" data_type: TYPE_UINT8 dims: [ {height}, {width}, {channels} ] }}',
            "]",
            "output [",
            ",\n".join(outputs),
            "]",
            "# Without a delay, a batch is what has arrived while the previous one was computed.",
            "dynamic_batching { }",
            "",
        ]
    )


def _output(name: str, shape: list[int]) -> str:
    kind = "TYPE_INT64" if name == _INTEGERS else "TYPE_FP32"
    labels = ' label_filename: "labels.txt"' if name == "probabilities" else ""
    return f'  {{ name: "{name}" data_type: {kind} dims: [ {", ".join(map(str, shape))} ]{labels} }}'


def _write_triton(folder: Path, record: Mapping[str, Any]) -> str:
    """Writes triton/NAME, and NAME-int8 if there is such a file; other models in that folder are left alone."""
    repository, written = folder / "triton", []
    for file, name in ((MODEL, record["name"]), (MODEL_INT8, f"{record['name']}-int8")):
        model = repository / name
        if not (folder / file).is_file():
            for left in ("config.pbtxt", "labels.txt", f"1/{MODEL}"):  # of an earlier export
                (model / left).unlink(missing_ok=True)
            continue
        (model / "1").mkdir(parents=True, exist_ok=True)
        labels = [" ".join(label.split()) for label in record["class_names"]]
        write_text(model / "labels.txt", "\n".join(labels) + "\n")
        with atomic(model / "1" / MODEL) as temporary:
            shutil.copyfile(folder / file, temporary)
        write_text(model / "config.pbtxt", triton_config(name, record))
        written.append(f"written  {model}")
    return "\n".join(
        [*written, f"start it with  tritonserver --model-repository {shlex.quote(str(repository.resolve()))}"]
    )
