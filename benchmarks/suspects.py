"""Claim: most wrong labels are in the first tenth of the ranking of suspect labels.

5 % of the labels of Fashion-MNIST are replaced by another class, drawn uniformly, in the training split and in the
validation split. quick_resnet is trained on these labels for a few epochs. Then
`resnetlab.evaluation.suspects.suspect_labels` ranks each split, and the script counts the share of the replaced labels
in the first tenth of the ranking.

The training split matters most: its labels are those to be cleaned, and the network was fitted to them, errors
included. The validation split, to which the network was not fitted, has the same bar. Labels that are wrong in
Fashion-MNIST itself take places in the ranking and count as misses. Each seed draws its own errors and trains its own
network. On the command line, `resnetlab inspect DATA --model RUN --split train` prints the ranking.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import resnetlab
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.suspects import suspect_labels
from resnetlab.models.network import Network
from timing import judge, machine

BAR = 0.80
_FLIPPED = 0.05
_LOOKED_AT = 0.10
_SPLITS = ("train", "validation")


def with_errors(data: ImageData, seed: int) -> tuple[ImageData, dict[str, np.ndarray]]:
    """Returns the images with some labels replaced, and the positions of these labels in each split."""
    arrays = {name: (split.images, split.labels) for name, split in data.splits.items()}
    places = {}
    for number, name in enumerate(_SPLITS):
        draws = np.random.default_rng([seed, number])
        labels = data.split(name).labels.numpy().copy()
        flipped = draws.choice(len(labels), round(_FLIPPED * len(labels)), replace=False)
        labels[flipped] = (labels[flipped] + draws.integers(1, data.num_classes, len(flipped))) % data.num_classes
        arrays[name] = (data.split(name).images, torch.from_numpy(labels))
        places[name] = flipped
    return resnetlab.load_data(arrays, class_names=data.class_names), places


def share_found(model: Network, data: ImageData, split: str, flipped: np.ndarray) -> float:
    """Returns the share of the replaced labels that are in the first tenth of the ranking."""
    suspects = suspect_labels(model, data, split)  # its index is the position in the split
    looked_at = suspects.index[: round(_LOOKED_AT * len(data.split(split)))]
    return float(np.isin(flipped, looked_at).mean())


def main() -> int:
    """Trains and ranks with each seed, and prints the results and the claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("RESNETLAB_DATA", "data")))
    parser.add_argument("--limit", type=int, default=20_000, help="number of training images")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    print(machine(), flush=True)
    clean = resnetlab.load_data("fashion_mnist", data_root=options.data_root, limit=options.limit)
    found: dict[str, list[float]] = {name: [] for name in _SPLITS}
    for seed in options.seeds:
        began = time.perf_counter()
        data, places = with_errors(clean, seed)
        with tempfile.TemporaryDirectory() as folder:
            # Arrays do not say whether their images may be flipped; Fashion-MNIST does.
            settings = {"epochs": options.epochs, "augment.flip": clean.mirrors}
            run = resnetlab.fit("quick_resnet", data, out=Path(folder) / "run", seed=seed, quiet=True, **settings)
            model, summary = resnetlab.load(run), run.summary
        assert summary is not None
        for name, flipped in places.items():
            found[name].append(share_found(model, data, name, flipped))
        shares = ", ".join(f"{name} {values[-1]:.1%} of {len(places[name]):,}" for name, values in found.items())
        minutes = (time.perf_counter() - began) / 60
        print(f"seed {seed}: {shares}; test accuracy {summary['top1']:.1%}, {minutes:.1f} minutes", flush=True)
    held = [
        judge(f"wrong labels found in {name}", statistics.mean(values), BAR, decimals=3, unit="")
        for name, values in found.items()
    ]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
