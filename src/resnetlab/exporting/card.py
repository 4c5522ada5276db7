"""The model card of an export: what the network is, how good it is, what it is for, and how to run it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from resnetlab.core.runs import Run

REQUIREMENTS = """\
# For preprocess.py and client.py:
numpy>=2.0
onnxruntime>=1.28.3
pillow>=13.0
# For the commands of resnetlab without torch, after: pip install --no-deps resnetlab
filelock>=3.16
rich>=13.7
tomli-w>=1.1
typer>=0.15
# For resnetlab serve:
segno>=1.6
starlette>=1.3.1
uvicorn>=0.35
"""
NOT_STATED = "not stated"
"""The license of weights whose license is not known."""
_HUB_LICENSES = frozenset(
    (
        *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "gpl-3.0", "lgpl-3.0", "unlicense"),
        *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0"),
    )
)
"""Licenses that the hub has a name for."""
_SHOWN = 20
_OUTPUTS = {
    "probabilities": "float32; softmax of the logits divided by the temperature {temperature:.4g}",
    "logits": "float32; the scores before softmax",
    "embedding": "float32; the pooled features, to compare images by cosine similarity",
    "top_classes": "int64; the most probable classes, the best first",
    "top_scores": "float32; their probabilities",
    "attention": "float32; class activation maps of these classes, where positive values are evidence for the class",
}
_FILES = {
    "model.onnx": "the network in float32",
    "model-int8.onnx": "the network with 8-bit integers, smaller and faster",
    "selftest.npz": "up to 16 images of the run and their logits, to check a machine",
    "preprocess.py": "crops and resizes a photo to the input",
    "client.py": "answers for photos, in Python",
    "client.mjs": "answers for photos, in JavaScript (Node)",
    "requirements.txt": "the Python packages that run it",
    "export.json": "sizes, checksums, checks and provenance",
}


def model_card(record: Mapping[str, Any], run: Run | None) -> str:
    """Returns README.md of an export.

    Args:
        record: the content of export.json.
        run: the network's run.
    """
    files = {name: text for name, text in _FILES.items() if not name.endswith(".onnx") or name in record["files"]}
    sections = (
        f"# {record['name']}",
        _summary(record),
        "## Accuracy\n\n" + _figures(record, run),
        "## Run it\n\n```sh\npip install -r requirements.txt\npython client.py photo.jpg\n```\n\n"
        "```sh\nnpm install onnxruntime-node sharp\nnode client.mjs photo.jpg\n```\n\n"
        "With ResNetLab, and without torch:\n\n"
        "```sh\npip install --no-deps resnetlab\nresnetlab predict model.onnx photo.jpg\n```",
        "## Input and outputs\n\n" + _signature(record),
        "## Intended use and limits\n\n" + _limits(record),
        "## Files\n\n" + _table([("file", "what it is"), *files.items()]),
        "## Origin\n\n" + _origin(record),
    )
    return "\n\n".join(sections) + "\n"


def hub_card(record: Mapping[str, Any], run: Run | None, repository: str, *, in_timm: bool) -> str:
    """Returns README.md of a repository on the hub, with the fields that the hub reads at its head.

    Args:
        record: what an export says about its network.
        run: the network's run.
        repository: USER/NAME.
        in_timm: whether timm has the network.
    """
    use = (
        "```sh\npip install 'resnetlab[hub]'\n"
        f"resnetlab predict hub:{repository} photo.jpg\n"
        f"resnetlab train photos/ --pretrained hub:{repository}\n```\n\n"
        f'```python\nimport resnetlab\n\nmodel = resnetlab.load("hub:{repository}")\n```'
    )
    if in_timm:
        use += (
            "\n\nWith timm:\n\n```python\nimport timm\n\n"
            f'model = timm.create_model("hf-hub:{repository}", pretrained=True).eval()\n'
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n```"
        )
    sections = (
        _front_matter(record, in_timm=in_timm),
        f"# {repository.partition('/')[2]}",
        _summary(record),
        "## Accuracy\n\n" + _figures(record, run),
        "## Use it\n\n" + use,
        "## Intended use and limits\n\n" + _limits(record),
        "## Origin\n\n" + _origin(record),
    )
    return "\n\n".join(sections) + "\n"


def _front_matter(record: Mapping[str, Any], *, in_timm: bool) -> str:
    license = record["provenance"]["license"]
    lines = [f"library_name: {'timm' if in_timm else 'resnetlab'}", "pipeline_tag: image-classification"]
    if license.lower() in _HUB_LICENSES:
        lines.append(f"license: {license.lower()}")
    elif license != NOT_STATED:
        lines += ["license: other", f"license_name: {json.dumps(license)}"]
    tags = ["image-classification", "resnet", "resnetlab", *(["timm"] if in_timm else [])]
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _summary(record: Mapping[str, Any]) -> str:
    names = record["class_names"]
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")
    data = record["provenance"].get("data")
    trained = f", trained on {data['name']}" if data else ""
    return f"A network that classifies images into {len(names):,} classes{trained}: {shown}."


def _figures(record: Mapping[str, Any], run: Run | None) -> str:
    rows = [("what", "value")]
    summary = None if run is None else run.summary
    if summary is not None:
        images = f"{summary['n']:,} {summary['split']} images"
        rows.append((f"accuracy on {images}", f"{summary['top1']:.2%}"))
        if "top1_low" in summary:
            rows.append(("its 95 % interval", f"{summary['top1_low']:.2%} to {summary['top1_high']:.2%}"))
        if "ece" in summary:
            rows.append(("expected calibration error", f"{summary['ece']:.2%}"))
    if gate := record.get("gate"):
        worst = max(gate["largest_differences"].values())
        rows.append((f"largest difference from the network, on {gate['images']} {gate['origin']}", f"{worst:.1g}"))
    if int8 := record.get("int8"):
        images = f"{int8['images']:,} {int8['split']} images"
        rows.append((f"int8: accuracy lost on {images}", f"{int8['loss']:.2f} points"))
        rows.append(("int8: images with the same answer", f"{int8['agreement']:.2%}"))
    text = _table(rows) if len(rows) > 1 else "Not recorded."
    if int8 and not int8["proven"]:
        text += "\n\nThe accuracy of int8 is not proven: it was measured with too few images."
    return text


def _signature(record: Mapping[str, Any]) -> str:
    size, channels = (record["preprocessing"][key] for key in ("image_size", "channels"))
    rows = [("name", "shape", "what it is")]
    shape = f"(N, H, W, {channels})" if record.get("any_size") else f"(N, {size}, {size}, {channels})"
    rows.append(("`images`", shape, "uint8; pixels, which the network normalizes"))
    for name, shape in record["outputs"].items():
        meaning = _OUTPUTS[name].format(temperature=record["temperature"])
        rows.append((f"`{name}`", f"({', '.join(map(str, shape))})", meaning))
    return _table(rows)


def _limits(record: Mapping[str, Any]) -> str:
    framing = record["preprocessing"]
    crop = "the largest square at the center of a photo" if framing["crop_mode"] == "crop" else "the whole photo"
    color = "color" if framing["channels"] == 3 else "gray"
    return (
        "Use it for images like those that it was trained on. It answers with one of its classes for every image, "
        "also for images that show none of them. Its accuracy on images from another camera, place or time is not "
        "known: measure it there before you rely on it. Do not let it decide about people on its own.\n\n"
        f"It sees {crop}, in {color}, at {framing['image_size']} pixels. What is smaller than a pixel at that size, or "
        "outside of that square, cannot change the answer."
    )


def _origin(record: Mapping[str, Any]) -> str:
    provenance = record["provenance"]
    rows = [("what", "value"), ("run", provenance["run"]), ("created", record["created"])]
    if "epochs" in provenance:
        rows.append(("training", f"stopped after epoch {provenance['epoch']} of {provenance['epochs']}"))
    rows.append(("weights, SHA-256", provenance["weights_sha256"]))
    if data := provenance.get("data"):
        rows.append(("data, fingerprint", data["fingerprint"]))
    rows.append(("versions", ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())))
    rows.append(("license of the weights", provenance["license"]))
    return _table(rows)


def _table(rows: list[tuple[str, ...]]) -> str:
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
