"""Claim: with 20 images per class, a network pretrained on other classes beats the same network from scratch.

A ResNet-18 is trained on all training images of five classes of Imagenette. Then it is fine-tuned on 20 images of each
of the other five classes in three ways: with a frozen backbone, with one learning rate per stage (the recipe
`finetune`), and with one rate for everything. The same network is also trained from scratch on the same images for the
same number of epochs. Accuracy is measured on all validation images of these five classes. Each seed draws 20 images
per class, the same for all four.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import resnetlab
from resnetlab.data.storage.store import ImageData
from timing import judge, machine

BAR = 10.0
_GROWING = {"start_size": 0.7, "grow_until": 0.6, "average": 0.998, "augment.crop_padding": 1 / 14}
PRETRAINING = {"recipe": "quick", "label_smoothing": 0.0, "augment.crop_scale": (0.35, 1.0), **_GROWING}
"""Features trained with label smoothing transfer less well (Kornblith et al. 2021)."""
_BACKBONE = ("stem", "stage1", "stage2", "stage3", "stage4")
WAYS: dict[str, dict[str, Any]] = {
    "from scratch": {"recipe": "quick", "lr": 0.05, **_GROWING},
    "frozen": {"recipe": "finetune", "rates": dict.fromkeys(_BACKBONE, 0), "unfreeze": 0},
    "a rate per stage": {"recipe": "finetune"},
    "full": {"recipe": "finetune", "rates": {}, "unfreeze": 0},
}


def write_table(path: Path, images: Path, classes: Sequence[str], per_class: int | None, seed: int) -> Path:
    """Writes a table with some or all training images of each class, and all validation images as test."""
    lines = ["path,label,split"]
    for name in classes:
        files = sorted((images / "train" / name).iterdir())
        chosen = files if per_class is None else random.Random(f"{seed} {name}").sample(files, per_class)
        lines += [f"{file.resolve()},{name},train" for file in chosen]
        lines += [f"{file.resolve()},{name},test" for file in sorted((images / "val" / name).iterdir())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def accuracy_of(run: resnetlab.Run) -> float:
    """Returns the accuracy on the test images in percent."""
    assert run.summary is not None
    return 100 * run.summary["top1"]


def main() -> int:
    """Pretrains once, fine-tunes in each way for each seed, and prints a table and the claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("RESNETLAB_DATA", "data")))
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--pretrain-epochs", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=60, help="epochs of fine-tuning and of training from scratch")
    parser.add_argument("--batch-size", type=int, default=20, help="batch size of both")
    parser.add_argument("--per-class", type=int, default=20, help="images per class for fine-tuning")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pretrained", type=Path, help="a run to use instead of pretraining")
    parser.add_argument("--keep", type=Path, help="keep the runs in this folder")
    options = parser.parse_args()
    print(machine(), flush=True)
    images = options.data_root / "imagenette2-160"
    classes = sorted(folder.name for folder in (images / "train").iterdir() if folder.is_dir())
    accuracy: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)

        def load(name: str, chosen: Sequence[str], per_class: int | None, seed: int) -> ImageData:
            table = write_table(folder / f"{name}.csv", images, chosen, per_class, seed)
            return resnetlab.load_data(table, image_size=options.image_size, validation_fraction=0.0)

        pretrained = options.pretrained
        if pretrained is None:
            began, data = time.perf_counter(), load("five-classes", classes[:5], None, 0)
            pretrained = folder / "pretrained"
            run = resnetlab.fit("resnet18", data, out=pretrained, epochs=options.pretrain_epochs, **PRETRAINING)
            print(f"pretrained: {accuracy_of(run):.1f} % of its five classes in {_minutes(began)}", flush=True)
        for seed in options.seeds:
            data = load(f"few-{seed}", classes[5:], options.per_class, seed)
            for way, settings in WAYS.items():
                began = time.perf_counter()
                weights = None if way == "from scratch" else pretrained
                out = folder / f"{way.replace(' ', '-')}-{seed}"
                length = {"epochs": options.epochs, "batch_size": options.batch_size}
                run = resnetlab.fit(
                    "resnet18", data, pretrained=weights, out=out, seed=seed, quiet=True, **length, **settings
                )
                accuracy[way].append(accuracy_of(run))
                print(f"seed {seed}, {way}: {accuracy[way][-1]:.1f} % in {_minutes(began)}", flush=True)
    for way, values in accuracy.items():
        deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
        print(f"{way}: {statistics.mean(values):.1f} % +- {deviation:.1f} ({len(values)} seeds)")
    means = {way: statistics.mean(values) for way, values in accuracy.items()}
    best = max(means.values())
    gain = best - means["from scratch"]
    return 0 if judge("best transfer above scratch", gain, BAR, decimals=1, unit=" points") else 1


def _minutes(began: float) -> str:
    return f"{(time.perf_counter() - began) / 60:.1f} minutes"


if __name__ == "__main__":
    sys.exit(main())
