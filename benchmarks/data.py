"""Claims on the way from files to batches, measured on Imagenette's 160 px files, in one run.

- `augmented`: the whole augmentation of the Imagenette tutorial at 224 px, batches of 64, ours from the pack against
  torchvision's v2 transforms in a DataLoader with the best number of workers: at least 5 times the images.
- `plain`: without augmentation, resized and normalized only: at least 3 times.
- `large`: photos of 12 megapixels (JPEG, quality 90), read once into memory at 224 px and made into batches, against an
  epoch of torchvision's loader, which resizes the shorter side to 256 and cuts the center: at least 3 times.
- `packing`: the time of building the pack over that of decoding all files once with as many processes:
  at most 1.3.
- `outside`: share of a training step of ResNet-18 at 128 px that is not the network's: at most 10 %.

Ours and the peer run turn by turn; medians are compared. Both end with a normalized float32 batch.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from resnetlab.core.environment import keep_freed_memory
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.data.augment import Augmentation
from resnetlab.data.batches import training_batches
from resnetlab.data.load import load_data, pack
from resnetlab.data.storage.store import ImageData
from resnetlab.training.machine import choose_machine
from resnetlab.training.optimizers import build_optimizer
from resnetlab.training.recipes import resolve_recipe
from resnetlab.training.step import training_step
from resnetlab.weights.load import create_model
from timing import Work, describe_share, judge, limit_rate, machine, on_known

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE, BATCH = 224, 64
WRITE_UP_C = Augmentation(
    crop_scale=(0.75, 1.0), crop_ratio=(0.9, 1.05), flip=True, rotation=10, perspective=0.15, perspective_p=0.3,
    brightness=0.15, contrast=0.15, saturation=0.1, hue=0.05, autocontrast_p=0.2, blur_p=0.3, blur_kernel=3,
    blur_sigma=(0.1, 1.0), sharpness=1.5, sharpness_p=0.3, erase_p=0.1, erase_area=(0.02, 0.08), erase_ratio=(0.3, 3.3),
)  # fmt: skip
PLAIN = Augmentation(crop_padding=0.0, flip=False)
LARGE, LARGE_BATCH = (4032, 3024), 8
"""Width and height of photos of 12 megapixels, and the photos in a batch."""
PEERS = ("augmented", "plain", "large")
CLAIMS = (*PEERS, "packing", "outside")


def write_large(source: Path, folder: Path, count: int) -> None:
    """Writes photos of 12 megapixels in two classes: photos of Imagenette, enlarged, with the noise of a camera."""
    noise = np.random.default_rng(0).normal(0, 4, (LARGE[1], LARGE[0], 3)).round().astype(np.int16)
    paths = sorted(source.glob("train/*/*.JPEG"))
    for number, path in enumerate(paths[:: len(paths) // count][:count]):
        with Image.open(path) as photo:
            pixels = np.asarray(photo.convert("RGB").resize(LARGE, Image.Resampling.BICUBIC), dtype=np.int16)
        target = folder / "train" / "ab"[number % 2] / f"{number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        pixels = pixels + np.roll(noise, 97 * number, (0, 1))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(target, quality=90)


def peer_transforms(name: str) -> v2.Compose:
    """Returns torchvision's own chain for a claim; "augmented" has the tutorial's order."""
    ending = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    if name == "large":
        return v2.Compose([v2.ToImage(), v2.Resize(256, antialias=True), v2.CenterCrop(SIZE), *ending])
    if name == "plain":
        return v2.Compose([v2.ToImage(), v2.Resize((SIZE, SIZE), antialias=True), *ending])
    return v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(SIZE, scale=(0.75, 1.0), ratio=(0.9, 1.05), antialias=True),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomRotation([-10, 10], interpolation=v2.InterpolationMode.BILINEAR),
            v2.ColorJitter(0.15, 0.15, 0.1, 0.05),
            v2.RandomAutocontrast(0.2),
            v2.RandomApply([v2.GaussianBlur(3, (0.1, 1.0))], 0.3),
            v2.RandomAdjustSharpness(1.5, 0.3),
            v2.RandomPerspective(0.15, 0.3),
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomErasing(0.1, (0.02, 0.08), (0.3, 3.3), 0),
            v2.Normalize(MEAN, STD),
        ]
    )


def peer_batches(folder: Path, name: str, workers: int) -> Iterator[torch.Tensor]:
    """Yields batches without end, as a user of torchvision makes them; workers stay from epoch to epoch."""
    images: Dataset = ImageFolder(folder / "train", peer_transforms(name))
    size = LARGE_BATCH if name == "large" else BATCH
    loader = DataLoader(images, size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0)
    while True:
        yield from (batch for batch, _ in loader)


def our_batches(data: ImageData, policy: Augmentation) -> Iterator[torch.Tensor]:
    """Yields batches without end from the pack."""
    ours = Preprocessing(image_size=SIZE, channels=3, crop_mode="squash", mean=MEAN, std=STD)
    for epoch in itertools.count():
        settings = {"framing": ours.framing, "preprocessing": ours}
        for batch in training_batches(
            data.split("train"), batch_size=BATCH, policy=policy, seed=0, epoch=epoch, **settings
        ):
            yield batch.images if batch.normalized else ours.normalize(batch.images)


def reading_rate(folder: Path) -> float:
    """Returns images a second of reading all photos of a folder into memory, and of one pass over their batches."""
    start = time.perf_counter()
    data, images = load_data(folder, image_size=SIZE, store="memory"), 0
    for split in data.splits:
        for batch, _ in data.loader(split, LARGE_BATCH):
            images += len(batch)
    return images / (time.perf_counter() - start)


def rate(batches: Iterator[torch.Tensor], count: int) -> float:
    """Returns images a second over `count` batches."""
    start, images = time.perf_counter(), 0
    for batch in itertools.islice(batches, count):
        images += len(batch)
    return images / (time.perf_counter() - start)


def peer_rate(name: str, folder: Path, workers: int, batches: int) -> float:
    """Returns the peer's images a second, measured in a process of its own.

    Its workers are forked, and every page that they share with ours would be copied when ours writes to it.
    """
    command = [sys.executable, __file__, "--peer", name, "--folder", str(folder)]
    command += ["--workers", str(workers), "--batches", str(batches)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(name: str, ours: Callable[[], float], folder: Path, options: argparse.Namespace) -> float:
    """Returns how many times the peer's images a second ours makes; `ours` measures them."""
    found = {workers: peer_rate(name, folder, workers, options.batches) for workers in options.workers}
    for workers, value in found.items():  # the peer chooses its best first
        print(f"{name}: torchvision with {workers} workers {value:.0f} img/s", flush=True)
    best = max(found, key=lambda workers: found[workers])
    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    for turn in range(options.rounds):
        rates["ours"].append(ours())
        rates["peer"].append(peer_rate(name, folder, best, options.batches))
        shown = ", ".join(f"{who} {values[-1]:.0f} img/s" for who, values in rates.items())
        print(f"{name}: round {turn + 1}/{options.rounds}: {shown}", flush=True)
    ratio = statistics.median(rates["ours"]) / statistics.median(rates["peer"])
    speed = statistics.median(rates["ours"])
    print(f"{name}: medians {speed:.0f} and {statistics.median(rates['peer']):.0f} img/s")
    if name == "large":  # limited by decoding
        return ratio
    pixels = 3 * SIZE**2  # read as bytes, written as float32
    describe_share(f"{name}, ours", Work(amount=5.0 * pixels, limit="memory"), 1 / speed, limit_rate("memory"))
    return ratio


_DECODE = """
import sys
from PIL import Image
for path in sys.stdin.read().split("\\n"):
    if path:
        with Image.open(path) as image:
            image.convert("RGB").tobytes()
"""


def decoding_seconds(folder: Path, processes: int) -> float:
    """Returns the time of decoding every file once, with Pillow in as many processes as the packer has."""
    paths = sorted(str(path) for path in folder.glob("*/*/*.JPEG"))
    start = time.perf_counter()
    running = [
        subprocess.Popen([sys.executable, "-c", _DECODE], stdin=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    for number, process in enumerate(running):
        assert process.stdin is not None
        process.stdin.write("\n".join(paths[number::processes]))
        process.stdin.close()
    for process in running:
        process.wait()
    return time.perf_counter() - start


def packing_ratio(folder: Path, options: argparse.Namespace) -> float:
    """Returns the packer's time over one pass of decoding, medians of turns."""
    processes, times = os.cpu_count() or 1, {"decoding": [], "packing": []}
    for turn in range(options.rounds):
        times["decoding"].append(decoding_seconds(folder, processes))
        with tempfile.TemporaryDirectory() as target:
            start = time.perf_counter()
            pack(folder, Path(target) / "pack", image_size=SIZE, crop_mode="squash")
            times["packing"].append(time.perf_counter() - start)
        shown = ", ".join(f"{what} {values[-1]:.1f} s" for what, values in times.items())
        print(f"packing: round {turn + 1}/{options.rounds}: {shown}", flush=True)
    return statistics.median(times["packing"]) / statistics.median(times["decoding"])


def outside_share(folder: Path, options: argparse.Namespace) -> float:
    """Returns the share of the steps' time that goes into making batches."""
    data = load_data(folder, image_size=128)
    machine, recipe = choose_machine(), resolve_recipe("quick", batch_size=BATCH)
    model = machine.place(create_model("resnet18", num_classes=10)).train()
    optimizer = build_optimizer(model, recipe)
    batches = training_batches(
        data.split("train"), batch_size=BATCH, policy=WRITE_UP_C, seed=0, epoch=0, framing=data.framing
    )
    outside, whole = [], []
    for number in range(options.batches + 2):
        start = time.perf_counter()
        batch = next(batches)
        made = time.perf_counter()
        training_step(
            model, optimizer, batch, preprocessing=data.preprocessing, recipe=recipe, machine=machine, lr=0.01
        )
        done = time.perf_counter()
        if number >= 2:
            outside.append(made - start)
            whole.append(done - start)
    share = statistics.median(outside) / statistics.median(whole)
    print(
        f"outside: {statistics.median(outside) * 1000:.0f} ms of {statistics.median(whole) * 1000:.0f} ms a step of "
        f"{BATCH} images, {machine}, all augmentation of imagenette-tutorial"
    )
    return share


def main() -> int:
    """Measures all, and prints a line for each claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("RESNETLAB_DATA", "data")))
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default 3)")
    parser.add_argument("--batches", type=int, default=12, help="batches of a turn (default 12)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 3], help="of the DataLoader, to try")
    parser.add_argument("--photos", type=int, default=64, help="photos of 12 megapixels, at least 8 (default 64)")
    parser.add_argument("--only", nargs="+", choices=CLAIMS)
    parser.add_argument("--peer", choices=PEERS, help="only print the peer's images a second")
    parser.add_argument("--folder", type=Path, help="the images of --peer")
    options = parser.parse_args()
    keep_freed_memory()  # as training does
    wanted = options.only or CLAIMS
    folder = options.data_root / "imagenette2-160"
    if options.peer:
        workers = options.workers[0]
        peer = peer_batches(options.folder, options.peer, workers)
        rate(peer, 2 * workers + 3)  # what the workers have fetched ahead is not counted
        print(rate(peer, options.batches))
        return 0
    print(machine(), flush=True)
    claims: list[tuple[str, float, float, bool]] = []
    with tempfile.TemporaryDirectory() as target:
        if {"augmented", "plain"} & set(wanted):
            data = pack(folder, Path(target) / "pack", image_size=SIZE, crop_mode="squash")
            if sys.platform != "win32":
                os.sync()  # else the system is still writing the pack to the disk while batches are timed
            for name, policy, bar in (("augmented", WRITE_UP_C, 5.0), ("plain", PLAIN, 3.0)):
                if name in wanted:
                    ours = our_batches(data, policy)
                    rate(ours, 5)
                    ratio = compare(name, lambda ours=ours: rate(ours, options.batches), folder, options)
                    claims.append((name, ratio, bar, False))
        if "large" in wanted:
            photos = Path(target) / "large"
            write_large(folder, photos, options.photos)
            claims.append(("large", compare("large", lambda: reading_rate(photos), photos, options), 3.0, False))
    if "packing" in wanted:
        ratio = packing_ratio(folder, options)
        claims.append(("packing", ratio, 1.3, True))
    if "outside" in wanted:
        share = outside_share(folder, options)
        claims.append(("outside", share, 0.1, True))
    held = [judge(name, ratio, on_known(bar), at_most=at_most, decimals=3) for name, ratio, bar, at_most in claims]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
