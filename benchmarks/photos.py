"""Claim: `resnetlab train photos/`, without options, is done in three minutes and beats a plain timm loop.

Five data sets of 200 to 2,000 photos in 3 to 10 classes are drawn from Imagenette's training photos. Each is trained

- by the command `resnetlab train FOLDER --out RUN`, with no other option. Its time is that of the whole command: start,
  decoding, training, evaluation and the page.
- by a plain timm loop of as many seconds, in a process of its own, on the same training photos: timm's ResNet of the
  same depth and width, from scratch, in float32; timm's training transforms (crops of 8 to 100 %, flips, color jitter
  of 0.4; its RandAugment fails with Pillow 13) in a loader with two workers; AdamW with a cosine of the time, label
  smoothing of 0.1. Its time starts with the process, as ours does; the evaluation at its end is not counted.

Accuracy is measured on all of Imagenette's validation photos of the classes, which neither has seen. The claim holds if
each command ends within three minutes with a complete page, and ours is at least as accurate on four of five.

The results of each data set are kept in `--out`, so that an interrupted run continues.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BEGAN = time.perf_counter()
DATA_SETS = {"200 in 3": (200, 3), "244 in 5": (244, 5), "500 in 6": (500, 6), "1000 in 8": (1000, 8),
             "2000 in 10": (2000, 10)}  # fmt: skip
SECONDS_BAR, WINS_BAR = 180.0, 4
PEER_LR, PEER_BATCH = 1e-3, 64
SECTIONS = ("result", "curves", "classes", "confusion", "reliability", "map", "mistakes", "residual", "provenance")


def draw_photos(images: Path, folder: Path, photos: int, classes: int, seed: int) -> None:
    """Copies photos of randomly drawn classes to `folder`/photos, and the validation photos to `folder`/held-out."""
    draw = random.Random(f"{seed} {photos} {classes}")
    names = sorted(draw.sample(sorted(path.name for path in (images / "train").iterdir() if path.is_dir()), classes))
    for number, name in enumerate(names):
        count = photos // classes + (number < photos % classes)
        for split, target in (("train", "photos"), ("val", "held-out")):
            files = sorted((images / split / name).iterdir())
            (folder / target / name).mkdir(parents=True)
            for file in draw.sample(files, count) if split == "train" else files:
                shutil.copy(file, folder / target / name)


def train_ours(folder: Path, more: list[str]) -> dict[str, Any]:
    """Trains by the command, and returns seconds, accuracy on the held-out photos, and what misses on the page."""
    import resnetlab

    run, command = folder / "run", [sys.executable, "-m", "resnetlab", "train", str(folder / "photos")]
    shutil.rmtree(run, ignore_errors=True)  # of an interrupted benchmark
    began = time.perf_counter()
    subprocess.run([*command, "--out", str(run), *more], check=True)
    seconds = time.perf_counter() - began
    page = (run / "report.html").read_text(encoding="utf-8")
    missing = [name for name in SECTIONS if not re.search(rf'<section[^>]*\bid="?{name}\b', page)]
    missing += re.findall(r'data-missing="?([\w-]*)', page)
    opened = resnetlab.Run(run)
    size = opened.settings["preprocessing"]["image_size"]
    held_out = resnetlab.load_data(folder / "held-out", image_size=size, test_fraction=1.0)
    top1 = resnetlab.evaluate(resnetlab.load(run), held_out).summary["top1"]
    return {"seconds": seconds, "top1": top1, "missing": missing, "images": sum(map(len, held_out.splits.values()))}


def train_peer(folder: Path, seconds: float) -> dict[str, Any]:
    """Trains with timm in a process of its own, as long as ours took, and returns what it measured."""
    command = [sys.executable, __file__, "--peer", str(folder), "--seconds", str(seconds)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def peer(folder: Path, seconds: float) -> dict[str, Any]:
    """Trains a network of timm on our training photos until the time is over, and measures its accuracy.

    The learning rate falls by the time that is used up, so that the last step has almost none.
    """
    import torch
    from timm.data.transforms_factory import create_transform
    from timm.models.resnet import BasicBlock, ResNet
    from torch.utils.data import DataLoader, Subset
    from torchvision.datasets import ImageFolder

    import resnetlab
    from resnetlab.data.load import list_data

    run = resnetlab.Run(folder / "run")
    config, size = run.settings["model"]["config"], run.settings["preprocessing"]["image_size"]
    augment: Any = create_transform(size, is_training=True)
    photos = ImageFolder(folder / "photos", augment)
    listing = list_data(folder / "photos")
    assert listing is not None
    ours = {entry.path for entry in listing.split("train")}
    chosen = [at for at, (path, _) in enumerate(photos.samples) if Path(path).resolve() in ours]
    assert len(chosen) == len(ours)
    torch.manual_seed(0)
    shape: dict[str, Any] = {"layers": tuple(config["depths"]), "channels": tuple(config["widths"])}
    block: Any = BasicBlock
    model = ResNet(block, num_classes=len(photos.classes), **shape)
    for number in range(len(config["depths"]) + 1, 5):
        setattr(model, f"layer{number}", torch.nn.Identity())  # its forward pass always calls four stages
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEER_LR, weight_decay=0.05)
    loss_function = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    loader = DataLoader(Subset(photos, chosen), PEER_BATCH, shuffle=True, num_workers=2, persistent_workers=True,
                        drop_last=len(chosen) > PEER_BATCH)  # fmt: skip
    model.train()
    started, epochs = time.perf_counter() - BEGAN, 0
    while (used := time.perf_counter() - BEGAN) < seconds:
        for batch, labels in loader:
            used = min(seconds, time.perf_counter() - BEGAN)
            warm = min(1.0, (used - started + 0.1) / (0.05 * seconds))
            for group in optimizer.param_groups:
                group["lr"] = PEER_LR * warm * (1 + math.cos(math.pi * used / seconds)) / 2
            optimizer.zero_grad()
            loss_function(model(batch), labels).backward()
            optimizer.step()
        epochs += 1
    model.eval()
    framed: Any = create_transform(size)
    held_out = ImageFolder(folder / "held-out", framed)
    correct = 0
    with torch.inference_mode():
        for batch, labels in DataLoader(held_out, 256, num_workers=2):
            correct += int((model(batch).argmax(1) == labels).sum())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"top1": correct / len(held_out), "epochs": epochs, "parameters": parameters}


def measure(name: str, options: argparse.Namespace, more: list[str]) -> dict[str, Any]:
    """Returns the results of both on one data set, from the file of an earlier call if there is one."""
    folder = options.out / name.replace(" ", "-")
    results = folder / "results.json"
    if results.is_file():
        return json.loads(results.read_text(encoding="utf-8"))
    if not (folder / "held-out").is_dir() or not (folder / "drawn").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        draw_photos(options.data_root / "imagenette2-160", folder, *DATA_SETS[name], options.seed)
        (folder / "drawn").touch()
    ours = train_ours(folder, more)
    found = {"ours": ours, "peer": train_peer(folder, ours["seconds"])}
    results.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def main() -> int:
    """Measures all data sets, and prints a line for each claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("RESNETLAB_DATA", "data")))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-photos"), help="folder of photos and results")
    parser.add_argument("--seed", type=int, default=0, help="seed of the classes and photos that are drawn")
    parser.add_argument("--quick", action="store_true", help="only try the script: one data set, one epoch, no bars")
    parser.add_argument("--peer", type=Path, help="only train timm's network on this data set")
    parser.add_argument("--seconds", type=float, help="how long, with --peer")
    options = parser.parse_args()
    if options.peer:
        print(json.dumps(peer(options.peer, options.seconds)))
        return 0
    from timing import judge, machine, on_known

    print(machine(), flush=True)
    if options.quick:
        options.out = options.out.with_name(f"{options.out.name}-quick")
        shutil.rmtree(options.out, ignore_errors=True)
    found = {}
    for name in list(DATA_SETS)[: 1 if options.quick else None]:
        found[name] = measure(name, options, ["--epochs", "1"] if options.quick else [])
        ours, theirs = found[name]["ours"], found[name]["peer"]
        lacking = f", the page lacks {', '.join(ours['missing'])}" if ours["missing"] else ""
        print(
            f"{name}: ours {ours['top1']:.1%} in {ours['seconds']:.0f} s{lacking}; timm {theirs['top1']:.1%} in "
            f"{theirs['epochs']} epochs; {ours['images']:,} held-out photos",
            flush=True,
        )
    slowest = max(row["ours"]["seconds"] for row in found.values())
    complete = sum(not row["ours"]["missing"] for row in found.values())
    wins = sum(row["ours"]["top1"] >= row["peer"]["top1"] for row in found.values())
    held = [
        judge("slowest", slowest, on_known(SECONDS_BAR), at_most=True, decimals=0, unit=" s"),
        judge("complete pages", complete, len(found), decimals=0, unit=""),
        judge("data sets at least as accurate as timm", wins, WINS_BAR, decimals=0, unit=""),
    ]
    return 0 if all(held) or options.quick else 1


if __name__ == "__main__":
    sys.exit(main())
