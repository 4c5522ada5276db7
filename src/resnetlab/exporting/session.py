"""An exported network, opened with ONNX Runtime: what deployments, `serve`, `predict` and `evaluate` use.

This module imports NumPy, Pillow and ONNX Runtime, and neither torch nor pandas nor scikit-learn.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from PIL import Image

from resnetlab.core.checks import check_schema, from_mapping
from resnetlab.core.environment import import_extra
from resnetlab.core.errors import UserError, brief, unknown
from resnetlab.core.framing import Framing
from resnetlab.data.storage.reader import decode_content, decode_image, pixels_of

SCHEMA_VERSION = 1
METADATA_KEY = "resnetlab"
MODEL, MODEL_INT8, SELFTEST, RECORD = "model.onnx", "model-int8.onnx", "selftest.npz", "export.json"
"""The files of an export folder that programs read."""
FLOAT32, INT8 = "float32", "int8"
OUTPUTS = ("probabilities", "logits", "embedding", "top_classes", "top_scores", "attention")
"""The outputs of an exported file, in order; embedding and attention only where the network has them."""
SELFTEST_BOUNDS = {FLOAT32: 1e-3, INT8: 0.1}
"""The largest difference from the logits of the self-test, relative to the largest of them, by precision.

Processors round differently; int8 on a processor that saturates is off by far more.
"""
_OPENVINO = ".xml"
_NESTED: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
    "tensor": {},
}
"""The fields of ONNX's messages that lead to tensors, by number."""
_EXTERNAL_DATA = 13  # the field of a tensor that names another file
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types


@dataclass(frozen=True, kw_only=True, eq=False)
class Exported:
    """An exported network, ready to answer. Several threads may use it at the same time.

    Attributes:
        path: its file.
        metadata: what the file says about it: schema, name, class_names, preprocessing, temperature, precision and
            provenance.
        framing: how an image becomes the square that the network sees.
        outputs: the names of its outputs, some of `OUTPUTS`.
    """

    path: Path
    metadata: Mapping[str, Any]
    framing: Framing
    outputs: tuple[str, ...]
    _session: Any = field(repr=False)

    @property
    def name(self) -> str:
        """A short name, such as that of the run."""
        return self.metadata["name"]

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the logits mean."""
        return tuple(self.metadata["class_names"])

    @property
    def temperature(self) -> float:
        """The number that divides the logits before softmax gives the probabilities."""
        return self.metadata["temperature"]

    @property
    def precision(self) -> str:
        """The type of its numbers, "float32" or "int8"."""
        return self.metadata["precision"]

    @property
    def takes_any_size(self) -> bool:
        """Whether the file crops and resizes images itself; those of the network's size it takes unchanged."""
        return bool(self.metadata.get("any_size"))

    def run(self, images: np.ndarray, outputs: Sequence[str] = ("probabilities",)) -> dict[str, np.ndarray]:
        """Returns the requested outputs by name. ONNX Runtime computes all; the others take a few percent of the time.

        Args:
            images: uint8 (N, H, W, C), of the network's size, as `frame` returns them.
            outputs: probabilities float32 (N, classes), logits float32 (N, classes), embedding float32 (N, D),
                top_classes int64 (N, k), top_scores float32 (N, k), attention float32 (N, k, h, w): the class
                activation maps of the top classes.

        Raises:
            UserError: the images have another shape or type, or the network has no such output.
        """
        for name in outputs:
            if name not in self.outputs:
                raise unknown("output", name, self.outputs)
        size, channels = self.framing.image_size, self.framing.channels
        fits = isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 4 and len(images) > 0
        sizes = images.shape[1:3] if fits and self.takes_any_size else (size, size)
        if not fits or images.shape[1:] != (*sizes, channels):
            kind = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
            raise UserError(
                f"expected images as uint8 (N, {size}, {size}, {channels}), got {kind}. Frame each image first: "
                "numpy.stack([exported.frame(image) for image in images])."
            )
        values = self._session.run(list(outputs), {"images": images})
        return dict(zip(outputs, values, strict=True))

    def frame(self, image: Image.Image | np.ndarray | bytes | str | Path) -> np.ndarray:
        """Returns an image as the network sees it, uint8 (H, W, C): upright, opaque, cropped and resized.

        Args:
            image: an image of Pillow, its pixels as uint8 (H, W) or (H, W, C), the content of a file, or its path.

        Raises:
            UserError: the image cannot be read.
        """
        channels, resizing = self.framing.channels, self.framing.resizing
        if isinstance(image, (str, Path)):
            return decode_image(Path(image), channels, resizing=resizing)
        if isinstance(image, (bytes, bytearray)):
            return decode_content("the image", bytes(image), channels, resizing=resizing)
        if isinstance(image, Image.Image):
            return pixels_of(image, channels, resizing=resizing)
        if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
            pixels = image if image.ndim == 3 else image[:, :, None]
            if pixels.shape[2] == channels:
                return self.framing.square(pixels)
            plain = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
            return pixels_of(Image.fromarray(np.ascontiguousarray(plain)), channels, resizing=resizing)
        raise UserError(f"expected an image of Pillow, uint8 pixels, bytes or a path, got {brief(image)}.")

    def selftest(self) -> float:
        """Returns the largest difference from the known answers in selftest.npz, relative to the largest logit.

        Raises:
            UserError: the file is missing, or this machine computes other answers.
        """
        path = self.path.with_name(SELFTEST)
        if not path.is_file():
            raise UserError(f"{path} does not exist. Copy it from the export folder, next to {self.path.name}.")
        with np.load(path) as known:
            images, expected = known["images"], known["logits_int8" if self.precision == INT8 else "logits"]
        difference = relative_difference(self.run(images, ["logits"])["logits"], expected)
        bound = SELFTEST_BOUNDS[self.precision]
        if not difference <= bound:
            remedy = "Use model.onnx, the file in float32" if self.precision == INT8 else "Export the network again"
            raise UserError(
                f"{self.path} gives other answers on this machine than where it was exported: the logits "
                f"differ by {difference:.2g} times the largest logit, and at most {bound:g} times is expected. "
                f"{remedy}."
            )
        return difference


def open_exported(path: str | Path, *, threads: int | None = None) -> Exported:
    """Opens a file that `resnetlab export` wrote.

    Args:
        path: the .onnx file, or the folder that contains model.onnx.
        threads: threads of the processor that it uses; by default all, or OMP_NUM_THREADS if that is set.

    Raises:
        UserError: onnxruntime is not installed, or the file is damaged, not from `resnetlab export`, or refers to
            other files.
    """
    file = exported_file(path)
    onnxruntime = import_extra("onnxruntime", "export")
    refuse_external_data(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_threads()
    options.log_severity_level = 3  # errors only
    options.enable_mem_pattern = False  # it keeps memory for every size of batch, and saves no time
    # Waiting threads leave the processor to others: 1 % slower if nothing else runs, 1.38 times as fast otherwise.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has many kinds
        raise _damaged(file) from error
    metadata = _metadata(file, session.get_modelmeta().custom_metadata_map)
    known = {entry.name for entry in dataclasses.fields(Framing)}
    framing = {name: value for name, value in metadata["preprocessing"].items() if name in known}
    return Exported(
        path=file,
        metadata=metadata,
        framing=from_mapping(Framing, framing, f"the preprocessing in {file}"),
        outputs=tuple(output.name for output in session.get_outputs()),
        _session=session,
    )


def usable_threads() -> int:
    """Returns OMP_NUM_THREADS if it is set, or else the number of processors."""
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


def is_exported(path: object) -> TypeGuard[str | Path]:
    """Whether a path is a file that `export` wrote, also for OpenVINO, or a folder with an exported network."""
    return isinstance(path, (str, Path)) and (
        Path(path).suffix in (".onnx", _OPENVINO) or (Path(path) / MODEL).is_file()
    )


def exported_file(path: str | Path) -> Path:
    """Returns the .onnx file that a path means; raises `UserError` if it does not exist, or is another one."""
    file = Path(path) / MODEL if Path(path).is_dir() else Path(path)
    if file.suffix == _OPENVINO:
        other = file.with_suffix(".onnx")
        raise UserError(f"{file} is for OpenVINO, and ResNetLab runs .onnx files. The export has one too: {other}")
    if not file.is_file():
        raise UserError(f"{file} does not exist. Write it with: resnetlab export RUN")
    return file


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest absolute difference, relative to the largest absolute value that is expected.

    It is infinite for another shape and for values that are not finite.
    """
    if found.shape != expected.shape or not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return float("inf")
    if not expected.size:
        return 0.0
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(found.astype(np.float64) - expected).max()) / scale


def refuse_external_data(file: Path) -> None:
    """Raises `UserError` if a tensor of an ONNX file lies in another file, which could be any file of this machine."""
    try:
        is_external = _has_external_data(memoryview(file.read_bytes()), "model")
    except (IndexError, ValueError) as error:
        raise _damaged(file) from error
    if is_external:
        raise UserError(f"{file} refers to other files for its weights. Use a file that `resnetlab export` wrote.")


def _metadata(file: Path, entries: Mapping[str, str]) -> dict[str, Any]:
    if METADATA_KEY not in entries:
        raise UserError(
            f"{file} is an ONNX file of another program: it does not say which classes and images it is for. Use a "
            "file that `resnetlab export` wrote."
        )
    try:
        metadata = json.loads(entries[METADATA_KEY])
        check_schema(file, metadata["schema"], SCHEMA_VERSION)
        names, temperature, precision = (metadata[key] for key in ("class_names", "temperature", "precision"))
        if not (names and temperature > 0 and precision in SELFTEST_BOUNDS and metadata["preprocessing"]):
            raise ValueError("a value is out of range")
        return {**metadata, "name": str(metadata["name"])}
    except UserError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(file) from error


def _damaged(file: Path) -> UserError:
    return UserError(f"{file} is damaged, or not an ONNX file that this version of onnxruntime reads. Export it again.")


def _has_external_data(message: memoryview, kind: str) -> bool:
    """Whether a tensor in a protobuf message of ONNX names another file."""
    for number, value in _fields(message):
        if kind == "tensor" and number == _EXTERNAL_DATA:
            return True
        if number in _NESTED[kind] and value is not None and _has_external_data(value, _NESTED[kind][number]):
            return True
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | None]]:
    """Yields number and content of the fields of a protobuf message; of numbers None."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire, content = key & 7, None
        if wire == _VARINT:
            _, at = _varint(message, at)
        elif wire == _BYTES:
            length, at = _varint(message, at)
            content = message[at : at + length]
            at += length
        elif wire in (_FIXED32, _FIXED64):
            at += 4 if wire == _FIXED32 else 8
        else:
            raise ValueError("unknown wire type")
        yield key >> 3, content
    if at > len(message):
        raise ValueError("the message is cut off")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Returns a number of variable length, and the position after it."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if not byte & 128:
            return value, at
        if shift > 63:
            raise ValueError("the number is too long")
