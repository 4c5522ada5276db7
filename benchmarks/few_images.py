"""Claim: `resnetlab train photos/` is twice as fast as plain loops of timm and torchvision, and more accurate.

Data sets of 200 to 2,000 photos in 3 to 10 classes are drawn from Imagenette's training photos. Each is trained

- by the command `resnetlab train FOLDER --out RUN`. Five data sets are trained without any other option, three with
  `--image-size`. Its time is that of the whole command: start, decoding, training, evaluation and the page.
- by a plain loop of each library for as many seconds, in a process of its own, on the same training photos: the same
  network from scratch, in float32, in batches of 64 from a loader with two workers, with label smoothing of 0.1 and a
  learning rate that falls as a cosine of the time. Its time starts with the process, as ours does; the evaluation at
  its end is not counted. timm: its training transforms (crops of 8 to 100 %, flips, color jitter of 0.4; its
  RandAugment fails with Pillow 13) and AdamW. torchvision: crops of 8 to 100 % and flips, SGD with momentum.

Images per second are those of the training steps, augmentation included. Accuracy is measured on all of Imagenette's
validation photos of the classes, which none has seen. The claim holds if ours trains at least twice as many images per
second as each loop on each data set, is at least as accurate as both on all data sets but one, and if each command
without options ends within three minutes with a complete page.

The results of each data set are kept in `--out`, so that an interrupted run continues. All take about two hours;
`--only "244 in 5 at 128"` takes about twelve minutes.
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
DATA_SETS = {
    "200 in 3": (200, 3, None),
    "244 in 5": (244, 5, None),
    "500 in 6": (500, 6, None),
    "1000 in 8": (1000, 8, None),
    "2000 in 10": (2000, 10, None),
    "244 in 5 at 128": (244, 5, 128),
    "500 in 6 at 160": (500, 6, 160),
    "1000 in 8 at 224": (1000, 8, 224),
}
"""Photos, classes, and the image size; None leaves it to ResNetLab."""
SECONDS_BAR, SPEED_BAR = 180.0, 2.0
PEERS, PEER_BATCH = {"timm": 1e-3, "torchvision": 0.05}, 64
"""The libraries with their learning rates: of AdamW, and of SGD with momentum."""
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
    epochs, photos = opened.history, len(listed(folder))
    speed = len(epochs) / (1 / epochs["images_per_second"]).sum()
    images = sum(map(len, held_out.splits.values()))
    return {"seconds": seconds, "top1": top1, "missing": missing, "images": images, "speed": speed,
            "epochs": len(epochs), "pixels": size, "photos": photos}  # fmt: skip


def listed(folder: Path) -> set[Path]:
    """Returns the paths of the photos that our command trains on."""
    from resnetlab.data.load import list_data

    listing = list_data(folder / "photos")
    assert listing is not None
    return {entry.path for entry in listing.split("train")}


def train_peer(library: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Trains with a library in a process of its own, as long as ours took, and returns what it measured."""
    command = [sys.executable, __file__, "--peer", library, "--folder", str(folder), "--seconds", str(seconds)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def peer_parts(library: str, config: dict[str, Any], size: int, classes: int) -> tuple[Any, Any, Any, Any]:
    """Returns a library's network, its transforms for training and for evaluation, and the optimizer."""
    import torch
    from torch import nn

    model: Any
    depths, widths, rate = config["depths"], config["widths"], PEERS[library]
    if library == "timm":
        from timm.data.transforms_factory import create_transform
        from timm.models.resnet import BasicBlock, ResNet

        block: Any = BasicBlock
        model = ResNet(block, num_classes=classes, layers=tuple(depths), channels=tuple(widths))
        augment, framed = create_transform(size, is_training=True), create_transform(size)
    else:
        from torchvision import transforms
        from torchvision.models.resnet import BasicBlock, ResNet

        assert list(widths) == [64, 128, 256, 512][: len(widths)], "torchvision's networks have these widths only"
        model = ResNet(BasicBlock, [*depths, *[1] * (4 - len(depths))], num_classes=classes)
        model.fc = nn.Linear(widths[-1], classes)
        bytes_to_floats = [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
        cropped = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
        augment = transforms.Compose([*cropped, *bytes_to_floats])
        framed = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size), *bytes_to_floats])
    for number in range(len(depths) + 1, 5):
        setattr(model, f"layer{number}", nn.Identity())  # the forward pass always calls four stages
    if library == "timm":
        optimizer: Any = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4)
    return model, augment, framed, optimizer


def peer(library: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Trains a library's network on our training photos until the time is over, and measures its accuracy.

    The learning rate falls by the time that is used up, so that the last step has almost none.
    """
    import torch
    from torch.utils.data import DataLoader, Subset
    from torchvision.datasets import ImageFolder

    import resnetlab

    run = resnetlab.Run(folder / "run")
    config, size = run.settings["model"]["config"], run.settings["preprocessing"]["image_size"]
    torch.manual_seed(0)
    model, augment, framed, optimizer = peer_parts(library, config, size, len(run.settings["data"]["class_names"]))
    photos, ours = ImageFolder(folder / "photos", augment), listed(folder)
    chosen = [at for at, (path, _) in enumerate(photos.samples) if Path(path).resolve() in ours]
    assert len(chosen) == len(ours)
    loss_function = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    loader = DataLoader(Subset(photos, chosen), PEER_BATCH, shuffle=True, num_workers=2, persistent_workers=True,
                        drop_last=len(chosen) > PEER_BATCH)  # fmt: skip
    model.train()
    started, used, epochs, seen = time.perf_counter() - BEGAN, 0.0, 0, 0
    while used < seconds:
        for batch, labels in loader:
            used = min(seconds, time.perf_counter() - BEGAN)
            warm = min(1.0, (used - started + 0.1) / (0.05 * seconds))
            for group in optimizer.param_groups:
                group["lr"] = PEERS[library] * warm * (1 + math.cos(math.pi * used / seconds)) / 2
            optimizer.zero_grad()
            loss_function(model(batch), labels).backward()
            optimizer.step()
            seen += len(labels)
        epochs += 1
    speed = seen / (time.perf_counter() - BEGAN - started)
    model.eval()
    held_out = ImageFolder(folder / "held-out", framed)
    correct = 0
    with torch.inference_mode():
        for batch, labels in DataLoader(held_out, 256, num_workers=2):
            correct += int((model(batch).argmax(1) == labels).sum())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"top1": correct / len(held_out), "epochs": epochs, "speed": speed, "parameters": parameters}


def measure(name: str, options: argparse.Namespace, more: list[str]) -> dict[str, Any]:
    """Returns the results of both on one data set, from the file of an earlier call if there is one."""
    photos, classes, pixels = DATA_SETS[name]
    folder = options.out / name.replace(" ", "-")
    results = folder / "results.json"
    if results.is_file():
        return json.loads(results.read_text(encoding="utf-8"))
    if not (folder / "held-out").is_dir() or not (folder / "drawn").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        draw_photos(options.data_root / "imagenette2-160", folder, photos, classes, options.seed)
        (folder / "drawn").touch()
    ours = train_ours(folder, [*more, *(["--image-size", str(pixels)] if pixels else [])])
    seconds = min(ours["seconds"], 20) if options.quick else ours["seconds"]
    found = {"ours": ours, **{library: train_peer(library, folder, seconds) for library in PEERS}}
    results.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def main() -> int:
    """Measures all data sets, and prints a line for each claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("RESNETLAB_DATA", "data")))
    parser.add_argument(
        "--out", type=Path, default=Path("runs/benchmark-few-images"), help="folder of photos and results"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the classes and photos that are drawn")
    parser.add_argument("--only", nargs="+", choices=DATA_SETS, default=list(DATA_SETS), help="only these data sets")
    parser.add_argument("--quick", action="store_true", help="only try the script: one data set, one epoch, no bars")
    parser.add_argument("--peer", choices=PEERS, help="only train this library's network")
    parser.add_argument("--folder", type=Path, help="the data set, with --peer")
    parser.add_argument("--seconds", type=float, help="how long, with --peer")
    options = parser.parse_args()
    if options.peer:
        print(json.dumps(peer(options.peer, options.folder, options.seconds)))
        return 0
    from timing import judge, machine, on_known

    print(machine(), flush=True)
    if options.quick:
        options.out = options.out.with_name(f"{options.out.name}-quick")
        shutil.rmtree(options.out, ignore_errors=True)
    found = {}
    for name in options.only[: 1 if options.quick else None]:
        found[name] = measure(name, options, ["--epochs", "1"] if options.quick else [])
        ours = found[name]["ours"]
        lacking = f", the page lacks {', '.join(ours['missing'])}" if ours["missing"] else ""
        print(f"{name}: {ours['photos']} training photos, {ours['pixels']} pixels, {ours['images']:,} held-out photos, "
              f"{ours['seconds']:.0f} s{lacking}")  # fmt: skip
        for who, row in found[name].items():
            words = f"{row['speed']:.0f} img/s, {row['epochs']} epochs, accuracy {row['top1']:.1%}"
            print(f"{name}: {who} {words}", flush=True)
    rows = list(found.values())
    speedups = [row["ours"]["speed"] / row[library]["speed"] for row in rows for library in PEERS]
    wins = sum(row["ours"]["top1"] >= max(row[library]["top1"] for library in PEERS) for row in rows)
    held = [
        judge("images per second, smallest ratio", min(speedups), on_known(SPEED_BAR)),
        judge("complete pages", sum(not row["ours"]["missing"] for row in rows), len(rows), decimals=0, unit=""),
        judge("data sets at least as accurate as both", wins, max(1, len(rows) - 1), decimals=0, unit=""),
    ]
    if timed := [row["ours"]["seconds"] for name, row in found.items() if DATA_SETS[name][2] is None]:
        held += [judge("slowest", max(timed), on_known(SECONDS_BAR), at_most=True, decimals=0, unit=" s")]
    return 0 if all(held) or options.quick else 1


if __name__ == "__main__":
    sys.exit(main())
