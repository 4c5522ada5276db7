"""Claim: a training step from scratch takes at most 1.5 times as long as one of torch's layers.

The network of the from-scratch notebook (ResNet-50, one channel, ten classes, batches of 32 images of 96x96) in float32
is built twice from the same configuration and seed: with torch's layers, cross-entropy and fused SGD, and with those of
`resnetlab.scratch`. torch is timed in both memory formats, and the faster one counts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F

from resnetlab import scratch
from resnetlab.weights.load import create_model
from timing import judge, medians, network_work, on_known

BAR = on_known(1.5)
CHANNELS, SIZE, CLASSES = 1, 96, 10


def training_step(parts: str, batch_size: int, memory_format: torch.memory_format) -> Callable[[], None]:
    """Returns one training step of a network with the given kit of layers."""
    torch.manual_seed(0)
    model = create_model("scratch_resnet50", parts=parts, in_channels=CHANNELS, num_classes=CLASSES).train()
    model.to(memory_format=memory_format)  # type: ignore[call-overload]
    images = torch.randn(batch_size, CHANNELS, SIZE, SIZE).contiguous(memory_format=memory_format)
    labels = torch.randint(0, CLASSES, (batch_size,))
    if parts == "scratch":
        optimizer = scratch.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        loss_of = scratch.losses.cross_entropy
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)
        loss_of = F.cross_entropy

    def step() -> None:
        optimizer.zero_grad()
        loss_of(model(images), labels).backward()
        optimizer.step()

    return step


def main() -> int:
    """Runs the steps in turn and prints the ratio of their median times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=9, help="timed steps of each (default 9)")
    parser.add_argument("--warmup", type=int, default=2, help="untimed steps of each before them (default 2)")
    parser.add_argument("--batch-size", type=int, default=32, help="images per step (default 32)")
    options = parser.parse_args()
    runs = {
        "torch, contiguous": training_step("torch", options.batch_size, torch.contiguous_format),
        "torch, channels_last": training_step("torch", options.batch_size, torch.channels_last),
        "from scratch": training_step("scratch", options.batch_size, torch.contiguous_format),
    }
    print(f"scratch_resnet50, {options.batch_size} images of {CHANNELS}x{SIZE}x{SIZE}, float32")
    work = network_work(
        create_model("scratch_resnet50", in_channels=CHANNELS, num_classes=CLASSES),
        (CHANNELS, SIZE, SIZE),
        images=options.batch_size,
        precision="float32",
        training=True,
    )
    times = medians(
        runs,
        images=options.batch_size,
        rounds=options.steps,
        warmup=options.warmup,
        work=dict.fromkeys(runs, work),
    ).seconds
    for name in ("torch, contiguous", "torch, channels_last"):
        print(f"time from scratch over {name}: {times['from scratch'] / times[name]:.2f}x")
    ratio = times["from scratch"] / min(times["torch, contiguous"], times["torch, channels_last"])
    return 0 if judge("scratch_step", ratio, BAR, at_most=True) else 1


if __name__ == "__main__":
    sys.exit(main())
