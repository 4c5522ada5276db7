"""Export to ONNX: one folder with a file that runs without torch, its proof, its description and clients."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from resnetlab.core.console import notice
from resnetlab.core.errors import UserError
from resnetlab.core.files import exclusive_lock, make_folder, read_json, sync, write_json, write_text
from resnetlab.core.runs import Run
from resnetlab.exporting.benchmark import measure, variants, write_benchmark
from resnetlab.exporting.card import REQUIREMENTS, model_card
from resnetlab.exporting.export import Export
from resnetlab.exporting.fresh import fresh_answers
from resnetlab.exporting.gate import check_answers, check_any_size
from resnetlab.exporting.graph import prepared, to_onnx
from resnetlab.exporting.layouts import write_layout
from resnetlab.exporting.material import Material, gather
from resnetlab.exporting.options import ExportOptions
from resnetlab.exporting.origin import default_folder, describe, opened
from resnetlab.exporting.quantize import check_loss, compare, quantize, worst_layers
from resnetlab.exporting.session import MODEL, MODEL_INT8, RECORD, SELFTEST, open_exported
from resnetlab.models.network import Network

_TEMPLATES = Path(__file__).parent / "templates"
_CLIENTS = ("preprocess.py", "client.py", "client.mjs")
_TESTED = 16
_LOCK, _TEMPORARY = ".export.lock", ".export-"
_PACKAGES = ("resnetlab", "torch", "onnx", "onnxscript", "onnxruntime")


def write(
    source: str | Path | Run | Network, *, to: str = "onnx", out: Path | None = None, options: ExportOptions
) -> Export:
    """Writes the folder of an exported network; see `export`."""
    if not options.int8 and (options.accept_loss is not None or options.keep_float):
        raise UserError("accept_loss and keep_float are options of int8. Add int8=True (in the shell, --int8).")
    run, network = opened(source, options.model)
    folder = out or default_folder(source, run)
    with _claimed(folder):
        return _write_folder(folder, source, run, network, options)


def _write_folder(
    folder: Path, source: str | Path | Run | Network, run: Run | None, network: Network, options: ExportOptions
) -> Export:
    """Does the work of `write`, in a folder that is locked."""
    int8, accept_loss, keep_float = options.int8, options.accept_loss, options.keep_float
    final = prepared(network)
    description = describe(source, run, network, options.license, _PACKAGES)
    if options.any_size:
        description["any_size"] = True
    graph = to_onnx(final, description)
    reference = copy.deepcopy(network).cpu().float()
    try:
        material = gather(network, run, options.data, data_root=options.data_root, measured=int8 or options.benchmark)
    except UserError as error:
        if int8:
            raise
        notice(f"int8 is not measured: {error}")
        material = gather(network, run, options.data, data_root=options.data_root)
    with _replaced(folder) as new:
        (new / MODEL).write_bytes(graph.SerializeToString())
        gate, logits = check_answers(new / MODEL, reference, material.images)
        record: dict[str, Any] = {"outputs": {output.name: _shape(output) for output in graph.graph.output}}
        if options.any_size:
            gate["any_size_difference"] = check_any_size(new / MODEL, reference)
        record["gate"] = {**gate, "origin": material.origin}
        known = {"images": material.images[:_TESTED], "logits": logits[:_TESTED]}
        if material.held_out is not None:
            try:
                record["int8"], known["logits_int8"] = _write_int8(new, material, description, keep_float, accept_loss)
            except UserError as error:
                if int8:
                    raise
                notice(f"int8 is not measured: {error}")
                (new / MODEL_INT8).unlink(missing_ok=True)
        if not (new / MODEL_INT8).is_file():
            _keep_int8(folder, new, description, known, record)
        whole = _write_rest(new, run, description, known, record)
        lines = [_message(folder, whole)]
        if options.benchmark:
            rows = measure(variants(new, reference), material.images, material.held_out)
            lines += ["", write_benchmark(new, rows)]
    if options.layout is not None:
        lines.append(write_layout(options.layout, folder, whole))
    return Export(path=folder / MODEL, message="\n".join(lines), record=whole)


def _write_int8(
    folder: Path,
    material: Material,
    description: Mapping[str, Any],
    keep_float: Sequence[str],
    accept_loss: float | None,
) -> tuple[dict[str, Any], np.ndarray]:
    """Writes the file in int8; returns what export.json says about it, and its logits of the self-test's images."""
    assert material.calibration is not None and material.held_out is not None
    quantize(folder / MODEL, folder / MODEL_INT8, material.calibration, description, keep_float)
    images, labels = material.held_out
    result = compare(open_exported(folder / MODEL), open_exported(folder / MODEL_INT8), images, labels)
    check_loss(result, accept_loss, lambda: worst_layers(folder / MODEL, folder / MODEL_INT8, images))
    tested = material.images[:_TESTED]
    (answers,) = fresh_answers(folder / MODEL_INT8, tested, [len(tested)])
    record = {**result, "split": material.split, "calibration_images": len(material.calibration)}
    return {**record, "keep_float": list(keep_float), "accept_loss": accept_loss}, answers["logits"]


def _keep_int8(
    folder: Path, new: Path, description: Mapping[str, Any], known: dict[str, np.ndarray], record: dict[str, Any]
) -> None:
    """Takes the int8 file of an older export over, with its proof, if it is of the same network; otherwise it goes."""
    if not (folder / MODEL_INT8).is_file():
        return
    with suppress(UserError, OSError, KeyError, ValueError):
        older = read_json(folder / RECORD)
        ours = json.loads(json.dumps(description))
        is_same = older["provenance"]["weights_sha256"] == ours["provenance"]["weights_sha256"]
        is_same &= all(older.get(key) == ours.get(key) for key in ("preprocessing", "temperature", "any_size"))
        if is_same:
            answers = open_exported(folder / MODEL_INT8).run(known["images"], ["logits"])
            record["int8"], known["logits_int8"] = older["int8"], answers["logits"]
            shutil.copyfile(folder / MODEL_INT8, new / MODEL_INT8)
            return
    notice(f"{folder / MODEL_INT8} is of another network or export, and is removed. To write it again, add --int8.")


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Makes the folder of an export, or takes that of an older one, and locks it for this process.

    The lock marks an export that is not complete; what a killed process left of one is removed.

    Raises:
        UserError: the path is a file, or a folder with other files, or another process exports into it.
    """
    if folder.suffix == ".onnx" or (folder.exists() and not folder.is_dir()):
        raise UserError(f"--out expects a folder, in which the network is called {MODEL}; got the file {folder}.")
    lock = folder / _LOCK
    has_record = (folder / RECORD).is_file() or (lock.is_file() and not lock.is_symlink())
    is_ours = folder.is_dir() and (has_record or (folder.parent / "run.toml").is_file())
    if folder.is_dir() and not is_ours and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty, and an export replaces only an older export. Choose another --out.")
    made = make_folder(folder)
    with exclusive_lock(lock, f"{folder} is used by another process, which exports into it. Wait for it."):
        for left in folder.glob(f"{_TEMPORARY}????????"):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
        try:
            yield
        except BaseException:
            with suppress(OSError):
                if (folder / RECORD).exists() or all(path.name == _LOCK for path in folder.iterdir()):
                    lock.unlink()
                for each in made:
                    each.rmdir()
            raise
    lock.unlink(missing_ok=True)


@contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """Yields a new folder whose files replace those of an older export when the block ends without an error."""
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=folder) as temporary:
        yield Path(temporary)
        for path in Path(temporary).iterdir():
            sync(path)
        (folder / RECORD).unlink(missing_ok=True)  # until the files belong together again
        (folder / MODEL_INT8).unlink(missing_ok=True)
        for path in sorted(Path(temporary).iterdir(), key=lambda path: path.name == RECORD):
            path.replace(folder / path.name)
        sync(folder)


def _write_rest(
    folder: Path,
    run: Run | None,
    description: Mapping[str, Any],
    known: Mapping[str, np.ndarray],
    record: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the self-test, the clients, the model card, and last export.json, which marks a complete folder."""
    np.savez_compressed(folder / SELFTEST, **known)  # type: ignore[arg-type]  # numpy's annotation has other keywords
    for name in _CLIENTS:
        shutil.copyfile(_TEMPLATES / name, folder / name)
    write_text(folder / "requirements.txt", REQUIREMENTS)
    files = [path for path in (folder / MODEL, folder / MODEL_INT8, folder / SELFTEST) if path.is_file()]
    whole = {
        **description,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in files},
        **record,
    }
    write_text(folder / "README.md", model_card(whole, run))
    write_json(folder / RECORD, whole)
    return whole


def _shape(output: Any) -> list[Any]:
    """Returns the shape of an output of an ONNX graph; "N" stands for the batch."""
    return [place.dim_param or place.dim_value for place in output.type.tensor_type.shape.dim]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _message(folder: Path, record: Mapping[str, Any]) -> str:
    gate, files = record["gate"], record["files"]
    worst = max(gate["largest_differences"].values())
    lines = [
        f"checked  {gate['images']} {gate['origin']}, batches of {', '.join(map(str, gate['batches']))}: equal to the "
        f"network within {worst:.1g}",
        *_of_int8(record.get("int8")),
        *(f"written  {folder / name}  {values['bytes'] / 1e6:.2f} MB" for name, values in files.items()),
        f"how to run it  {folder / 'README.md'}",
    ]
    return "\n".join(lines)


def _of_int8(result: Mapping[str, Any] | None) -> list[str]:
    if result is None:
        return []
    low, high = result["loss_interval"]
    return [
        f"int8  {result['images']:,} {result['split']} images: accuracy {result['top1_int8']:.2%} instead of "
        f"{result['top1']:.2%}, lost {result['loss']:.2f} points ({low:.2f} to {high:.2f}), same answer for "
        f"{result['agreement']:.2%}"
    ]
