"""Claim: `--recipe quick` reaches 93.5 % on Fashion-MNIST in a thirtieth of the time of d2l's ten epochs.

The peer is the training of *Dive into Deep Learning*, unchanged: its ResNet-18 (biased convolutions, batch
normalization) on images resized to 96x96, float32, batches of 128, SGD at 0.01, as a plain torch loop with
torchvision's data set and transforms in a DataLoader. Its time per step is measured over at least 100 steps and
extrapolated to ten epochs of 60,000 images; its evaluation is not counted.

Ours is the command `resnetlab train fashion_mnist --recipe quick`, once for each seed. Its time includes everything:
reading the images, training, evaluation on the test images and the report. The result is the median over the seeds, of
both time and test accuracy.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision.datasets import FashionMNIST
from torchvision.transforms import v2

from resnetlab import Recipe, Run, load
from resnetlab.weights.load import create_model
from timing import Work, describe_share, judge, limit_rate, machine, network_work, on_known

BATCH, EPOCHS, TRAINING_IMAGES = 128, 10, 60_000
ACCURACY_BAR, TIME_BAR = 0.935, on_known(30.0)


def peer_seconds(root: Path, steps: int, warmup: int = 5) -> float:
    """Returns the time of ten epochs of d2l-pytorch, from the mean time of its steps."""
    transforms = v2.Compose([v2.Resize(96), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    images = FashionMNIST(root, train=True, transform=transforms)
    loader = DataLoader(images, BATCH, shuffle=True, num_workers=torch.get_num_threads())
    model = create_model("d2l_resnet18", in_channels=1, num_classes=10).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    began = time.perf_counter()
    for step, (batch, labels) in enumerate(loader):
        if step == warmup:
            began = time.perf_counter()
        if step == warmup + steps:
            break
        optimizer.zero_grad()
        F.cross_entropy(model(batch), labels).backward()
        optimizer.step()
        if step > warmup and (step - warmup) % 20 == 0:
            speed = BATCH * (step - warmup) / (time.perf_counter() - began)
            print(f"d2l-pytorch: step {step - warmup}/{steps}, {speed:.0f} img/s", flush=True)
    seconds = (time.perf_counter() - began) / steps
    whole = seconds * EPOCHS * TRAINING_IMAGES / BATCH
    print(f"d2l-pytorch: {seconds:.3f} s a step, {whole / 60:.0f} minutes for {EPOCHS} epochs")
    return whole


def training_work(out: Path) -> Work:
    """Returns the work of all training steps of a run, whose images grow."""
    model, settings, history = load(out), Run(out).settings, pd.read_csv(out / "history.csv")
    recipe, precision = Recipe.from_dict(settings["recipe"]), settings["machine"]["precision"]
    final, amount = settings["preprocessing"]["image_size"], 0.0
    for epoch, steps in enumerate(history["step"].diff().fillna(history["step"])):
        size, images = recipe.image_size(epoch, final), int(steps) * recipe.batch_size
        amount += network_work(model, (1, size, size), images=images, precision=precision, training=True).amount
    return Work(amount=amount, limit=precision)


def our_run(root: Path, out: Path, seed: int, more: list[str]) -> tuple[float, float]:
    """Trains with the command line and returns seconds and test accuracy."""
    command = [sys.executable, "-m", "resnetlab", "train", "fashion_mnist", "--data-root", str(root)]
    began = time.perf_counter()
    subprocess.run([*command, "--recipe", "quick", "--seed", str(seed), "--out", str(out), *more], check=True)
    seconds = time.perf_counter() - began
    summary = json.loads((out / "evaluation" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["split"], summary["n"]) == ("test", 10_000)
    print(f"quick, seed {seed}: {seconds:.0f} s, test accuracy {summary['top1']:.2%}", flush=True)
    work = training_work(out)
    describe_share(f"quick, seed {seed}, all training steps in this time", work, seconds, limit_rate(work.limit))
    return seconds, summary["top1"]


def main() -> int:
    """Measures both in one run and prints one line per claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("RESNETLAB_DATA", "data")))
    parser.add_argument("--steps", type=int, default=100, help="steps of d2l-pytorch (default 100)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of our runs (default 0 1 2)")
    options, more = parser.parse_known_args()
    print(machine(), flush=True)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        # Half of the peer's steps run before and half after ours, so that changes of the machine affect both.
        before = peer_seconds(options.data_root, options.steps // 2)
        for seed in options.seeds:
            found.append(our_run(options.data_root, Path(folder) / str(seed), seed, more))
        after = peer_seconds(options.data_root, options.steps - options.steps // 2)
    seconds, accuracy = (statistics.median(values) for values in zip(*found, strict=True))
    ratio = (before + after) / 2 / seconds
    print(f"median of {len(found)} seeds: {seconds / 60:.1f} minutes, test accuracy {accuracy:.2%}")
    held = judge("accuracy", accuracy, ACCURACY_BAR, decimals=4, unit="")
    held &= judge("time", ratio, TIME_BAR)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
