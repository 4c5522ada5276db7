"""Claim: our training step is at least 2.3 times as fast as the plain float32 torchvision loop, with AMX 2.9 times.

Both train the same network (ResNet-18, one channel, ten classes) on the same batch (64 images of 96x96) in one run on
the same machine, and take turns, so that changes of the machine's speed affect both. The peer is the loop of most
tutorials: torchvision's network in float32, SGD with momentum, normalized images. Ours is the step of `fit` with the
same optimizer, and it does more: it also shuffles, crops, flips and normalizes uint8 images. `--optimizer muon` uses
the optimizer of `quick`; its bars are 1.75, and 2.3 with AMX.

With SGD, our step must also reach 75 % of the speed of a large matrix product in the same precision, which takes turns
with the steps. The bars apply to processors with bfloat16 instructions; on others, only the results are printed.

`--profile` prints how our steps spend processor time, measured by torch's profiler; at least 85 % must be in the
kernels of convolution, normalization and pooling.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision
from torch.autograd.profiler_util import FunctionEvent

from resnetlab.core.environment import keep_freed_memory
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.data.batches import training_batches
from resnetlab.data.storage.store import Split
from resnetlab.training.machine import choose_machine
from resnetlab.training.optimizers import build_optimizer
from resnetlab.training.recipes import resolve_recipe
from resnetlab.training.step import training_step
from resnetlab.weights.load import create_model
from timing import AMX, BFLOAT16, Work, judge, medians, network_work, on_known

BARS = {"sgd": {AMX: 2.9, BFLOAT16: 2.3}, "muon": {AMX: 2.3, BFLOAT16: 1.75}}
LIMIT_SHARE, KERNEL_SHARE = 0.75, 0.85
KERNELS = {
    "convolution": ("convolution", "Convolution"),
    "normalization": ("batch_norm",),
    "pooling": ("max_pool", "avg_pool", "aten::mean"),
    "activation": ("clamp", "threshold", "relu"),
    "optimizer and clipping": ("sgd", "norm", "clip"),
    "copies and casts": ("copy", "to_copy", "fill", "zero"),
}
COUNTED = ("convolution", "normalization", "pooling")
CHANNELS, SIZE, CLASSES = 1, 96, 10


def plain_step(batch_size: int) -> Callable[[], None]:
    """Returns one step of the torchvision loop."""
    model = torchvision.models.resnet18(num_classes=CLASSES)
    model.conv1 = torch.nn.Conv2d(CHANNELS, 64, 7, stride=2, padding=3, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    images, labels = torch.randn(batch_size, CHANNELS, SIZE, SIZE), torch.randint(0, CLASSES, (batch_size,))

    def step() -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return step


def our_step(batch_size: int, steps: int, kind: str) -> tuple[Callable[[], None], str, Work]:
    """Returns one step of `fit` with the given optimizer, the machine settings that were chosen, and its work."""
    machine = choose_machine()
    recipe = resolve_recipe("quick", **{"batch_size": batch_size, "augment.flip": True, "optimizer": kind})
    preprocessing = Preprocessing(image_size=SIZE, channels=CHANNELS, mean=(0.5,), std=(0.5,))
    model = create_model("resnet18", in_channels=CHANNELS, num_classes=CLASSES, stem="auto", image_size=SIZE)
    machine.place(model).train()
    optimizer = build_optimizer(model, recipe)
    count = batch_size * 16
    split = Split(
        images=torch.randint(0, 256, (count, CHANNELS, SIZE, SIZE), dtype=torch.uint8),
        labels=torch.randint(0, CLASSES, (count,)),
        index=torch.arange(count),
    )
    batches = itertools.chain.from_iterable(
        training_batches(split, batch_size=batch_size, policy=recipe.augment, seed=0, epoch=epoch)
        for epoch in range(steps)
    )

    def step() -> None:
        batch = next(batches)
        training_step(model, optimizer, batch, preprocessing=preprocessing, recipe=recipe, machine=machine, lr=0.01)

    work = network_work(model, (CHANNELS, SIZE, SIZE), images=batch_size, precision=machine.precision, training=True)
    return step, str(machine), work


def _kind(event: FunctionEvent) -> str:
    """Returns the kind of an operation; products and copies within a convolution or pooling count as such."""
    names, above = [event.name], event.cpu_parent
    while above is not None:
        names.append(above.name)
        above = above.cpu_parent
    within = (kind for kind in COUNTED if any(kernel in name for kernel in KERNELS[kind] for name in names))
    itself = (kind for kind, names in KERNELS.items() if any(name in event.name for name in names))
    return next(within, None) or next(itself, "other")


def profile(step: Callable[[], None], count: int) -> float:
    """Prints the fraction of processor time by kind of kernel, and returns the sum of the three counted kinds."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(count):
            step()
    times = dict.fromkeys([*KERNELS, "other"], 0.0)
    for event in profiler.events() or ():
        times[_kind(event)] += event.self_cpu_time_total
    total = sum(times.values())
    for kind, value in times.items():
        print(f"profile: {kind} {value / total:.1%}")
    return sum(times[kind] for kind in COUNTED) / total


def main() -> int:
    """Runs both alternately and prints the ratio of their median speeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="steps to measure of each (default 20)")
    parser.add_argument("--warmup", type=int, default=4, help="steps of each before measuring (default 4)")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step (default 64)")
    parser.add_argument("--optimizer", choices=("sgd", "muon"), default="sgd", help="our optimizer (default sgd)")
    parser.add_argument("--profile", action="store_true", help="print how our steps spend time instead")
    options = parser.parse_args()

    torch.manual_seed(0)
    plain = plain_step(options.batch_size)
    ours, settings, work = our_step(options.batch_size, options.steps + options.warmup, options.optimizer)
    print(f"ResNet-18, {options.batch_size} images of {CHANNELS}x{SIZE}x{SIZE}; ours: {settings}")
    if options.profile:
        keep_freed_memory()  # as in `fit`; the peer does not, so the comparison does not either
        for _ in range(options.warmup):
            ours()
        share = profile(ours, options.steps)
        return 0 if judge("kernels", share, KERNEL_SHARE, decimals=3) else 1
    timing = medians(
        {"plain": plain, "ours": ours},
        images=options.batch_size,
        rounds=options.steps,
        warmup=options.warmup,
        work={"plain": dataclasses.replace(work, limit="float32"), "ours": work},
    )
    held = True
    if options.optimizer == "sgd":
        held = judge("share_of_limit", timing.shares["ours"], on_known(LIMIT_SHARE))
    ratio = timing.seconds["plain"] / timing.seconds["ours"]
    held &= judge("train_step", ratio, BARS[options.optimizer])
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
