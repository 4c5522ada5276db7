"""Claim: an exported file answers several times faster than torch on a CPU with VNNI, and int8 faster than float32.

ResNet-18 and ResNet-50 at 224 pixels, 1 and 16 images per pass. int8 is compared with float32 on all threads. Both are
compared with `predict` as it was in commit 4c79cac on one thread: float32, contiguous memory, batch normalization not
folded, and a table of the five most probable classes. With several threads, torch computes the convolutions of a single
image with another library (oneDNN) and is faster; these ratios are printed without a bar. The variants take turns in
one process. Accuracy is measured by `resnetlab export RUN --int8`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import resnetlab
from resnetlab.core.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from resnetlab.exporting.graph import prepared, to_onnx
from resnetlab.exporting.material import standard_images
from resnetlab.exporting.quantize import quantize
from resnetlab.exporting.session import FLOAT32, MODEL, MODEL_INT8, SCHEMA_VERSION, open_exported
from resnetlab.models.network import Network
from timing import judge, kind_of_processor, medians, network_work, on_known

INT8_TO_FLOAT32 = on_known(2.5)
TO_TORCH = {("resnet18", 1): {"float32": 2.0, "int8": 6.5}, ("resnet18", 16): {"float32": 1.15, "int8": 3.4}}
"""The bars of float32 and int8 against `predict`, on one thread."""
LARGEST_SIZE = 0.27
"""Of the int8 file, relative to the one in float32."""


def trained(name: str, channels: int = 3) -> Network:
    """Returns a network as training leaves it; speed does not depend on its weights."""
    torch.manual_seed(0)
    network = resnetlab.create_model(name, num_classes=10)
    network.preprocessing = Preprocessing(image_size=224, channels=channels, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    network.class_names = tuple(map(str, range(10)))
    return network.eval()


def export(network: Network, folder: Path, images: np.ndarray) -> None:
    """Writes the network in float32 and int8."""
    assert network.preprocessing is not None and network.class_names is not None
    metadata = {
        "schema": SCHEMA_VERSION, "name": "network", "class_names": list(network.class_names), "temperature": 1.0,
        "preprocessing": asdict(network.preprocessing), "precision": FLOAT32, "provenance": {},
    }  # fmt: skip
    (folder / MODEL).write_bytes(to_onnx(prepared(network), metadata).SerializeToString())
    quantize(folder / MODEL, folder / MODEL_INT8, images, metadata)


def predict(network: Network, images: np.ndarray) -> Callable[[], object]:
    """Returns what `predict` did in commit 4c79cac, from pixels to a table."""
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    preprocessing, names = network.preprocessing, network.class_names
    assert preprocessing is not None and names is not None

    def run() -> object:
        with torch.inference_mode():
            logits, _ = network(preprocessing.normalize(pixels), return_features=True)
        confidences, classes = logits.double().softmax(1).topk(5)
        table = pd.DataFrame({"index": list(range(len(images)))})
        for rank in range(classes.shape[1]):
            table[f"prediction_{rank + 1}"] = [names[label] for label in classes[:, rank].tolist()]
            table[f"confidence_{rank + 1}"] = confidences[:, rank].numpy()
        return table

    return run


def measured(
    network: Network, folder: Path, images: np.ndarray, threads: int, options: argparse.Namespace
) -> dict[str, float]:
    """Returns the median seconds of `predict` ("torch"), and of the file in float32 and in int8."""
    torch.set_num_threads(threads)
    runs: dict[str, Callable[[], object]] = {"torch": predict(network, images)}
    for exported in (open_exported(folder / file, threads=threads) for file in (MODEL, MODEL_INT8)):
        runs[exported.precision] = lambda exported=exported: exported.run(images, ["logits"])
    precisions = {"torch": "float32", "float32": "float32", "int8": "int8"}
    if kind_of_processor() is None:
        del precisions["int8"]  # torch may lack a fast product of int8 there
    shape = images.shape[3], *images.shape[1:3]
    work = {
        name: network_work(network, shape, images=len(images), precision=precision)
        for name, precision in precisions.items()
    }
    return medians(runs, images=len(images), rounds=options.rounds, warmup=options.warmup, work=work).seconds


def main() -> int:
    """Measures every network at every batch size and prints the ratios of the median times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50"], help="default: resnet18 resnet50")
    parser.add_argument("--rounds", type=int, default=15, help="timed passes of each (default 15)")
    parser.add_argument("--warmup", type=int, default=3, help="untimed passes of each before them (default 3)")
    options = parser.parse_args()
    claims: list[tuple[str, float, float | dict[str, float]]] = []
    threads = torch.get_num_threads()
    for name in options.models:
        network = trained(name)
        assert network.preprocessing is not None
        images = standard_images(network.preprocessing.framing)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            export(network, folder, images)
            sizes = [(folder / file).stat().st_size for file in (MODEL, MODEL_INT8)]
            for batch in (1, 16):
                place = f"{name}_batch{batch}"
                times = measured(network, folder, images[:batch], threads, options)
                claims.append((f"{place}_int8_to_float32", times["float32"] / times["int8"], INT8_TO_FLOAT32))
                if bars := TO_TORCH.get((name, batch)):
                    ratios = ", ".join(f"{kind} {times['torch'] / times[kind]:.2f}x" for kind in ("float32", "int8"))
                    print(f"{place}, relative to predict on {threads} threads: {ratios}")
                    times = measured(network, folder, images[:batch], 1, options)
                    for precision, bar in bars.items():
                        ratio = times["torch"] / times[precision]
                        claims.append((f"{place}_{precision}_to_torch", ratio, on_known(bar)))
        claims.append((f"{name}_float32_to_int8_size", sizes[0] / sizes[1], 1 / LARGEST_SIZE))
    held = [judge(claim, ratio, bar) for claim, ratio, bar in claims]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
