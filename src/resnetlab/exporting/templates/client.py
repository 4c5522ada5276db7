"""Prints the most probable classes of photos: python client.py [--model model-int8.onnx] PHOTO ..."""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from preprocess import preprocess  # type: ignore[import-not-found]  # the file next to this one

HERE = Path(__file__).parent
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before ONNX Runtime is imported, which reports to its maker


def main() -> None:
    """Runs the model on the photos that the command line names, all at once."""
    import onnxruntime

    parser = argparse.ArgumentParser(description="Prints the most probable classes of photos.")
    parser.add_argument("--model", default=HERE / "model.onnx")
    parser.add_argument("photos", nargs="+")
    arguments = parser.parse_args()

    session = onnxruntime.InferenceSession(str(arguments.model), providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["resnetlab"])
    try:
        images = np.stack([preprocess(Image.open(photo), about["preprocessing"]) for photo in arguments.photos])
    except (OSError, ValueError) as error:
        sys.exit(f"a photo cannot be used: {error}")
    classes, scores = map(np.asarray, session.run(["top_classes", "top_scores"], {"images": images}))
    for photo, best, values in zip(arguments.photos, classes, scores, strict=True):
        answers = [f"{about['class_names'][label]} {score:.1%}" for label, score in zip(best, values, strict=True)]
        print(f"{photo}: {', '.join(answers)}")


if __name__ == "__main__":
    main()
