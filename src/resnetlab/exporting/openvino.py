"""Export to OpenVINO: the ONNX files in the form of OpenVINO's runtime, with the same answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from resnetlab.core.environment import import_extra
from resnetlab.core.errors import UserError
from resnetlab.core.runs import Run
from resnetlab.exporting import onnx
from resnetlab.exporting.export import Export
from resnetlab.exporting.gate import BOUND
from resnetlab.exporting.options import ExportOptions
from resnetlab.exporting.session import METADATA_KEY, MODEL, MODEL_INT8, SELFTEST, relative_difference
from resnetlab.models.network import Network


def write(
    source: str | Path | Run | Network, *, to: str = "openvino", out: Path | None = None, options: ExportOptions
) -> Export:
    """Writes what export to ONNX writes, and next to it model.xml and model.bin; see `export`.

    OpenVINO computes in bfloat16 on processors that have it, unless its option INFERENCE_PRECISION_HINT is "f32".

    Raises:
        UserError: as for ONNX, openvino is not installed, or its answers differ.
    """
    openvino = import_extra("openvino", without="openvino_telemetry")
    written = onnx.write(source, out=out, options=options)
    folder, lines = written.path.parent, [written.message]
    with np.load(folder / SELFTEST) as known:
        images, expected = known["images"], known["logits"]
    for file in (MODEL, MODEL_INT8):
        if not (folder / file).is_file():
            continue
        model = openvino.convert_model(str(folder / file))
        model.set_rt_info(json.dumps(written.record), METADATA_KEY)
        if file == MODEL:
            compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            difference = relative_difference(compiled({"images": images})[compiled.output("logits")], expected)
            if not difference <= BOUND:
                raise UserError(
                    f"OpenVINO gives other answers than the network: the logits differ by {difference:.2g} times the "
                    f"largest, and at most {BOUND:g} is allowed. Use {MODEL} with ONNX Runtime."
                )
            lines.append(f"checked  OpenVINO in float32: equal to the network within {difference:.1g}")
        path = (folder / file).with_suffix(".xml")
        openvino.save_model(model, str(path), compress_to_fp16=False)
        lines.append(f"written  {path}  and its .bin")
    return replace(written, path=folder / "model.xml", message="\n".join(lines))
