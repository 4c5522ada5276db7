"""Claim: folding batch normalization into the convolutions makes inference faster.

ResNet-18 and ResNet-50 in float32 and evaluation mode, with batches of 16 images of 3x224x224, before and after
`fold_batch_norm`, in the memory format that evaluation uses (channels_last).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from resnetlab.models.surgery import fold_batch_norm
from resnetlab.weights.load import create_model
from timing import judge, medians, network_work, on_known

BAR = on_known(1.02)


def forward(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """Returns one forward pass without gradients."""
    model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = images.contiguous(memory_format=torch.channels_last)

    def run() -> Tensor:
        with torch.inference_mode():
            return model(images)

    return run


def main() -> int:
    """Runs each network in turn with its folded copy and prints the ratios of their median times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="timed passes of each (default 15)")
    parser.add_argument("--warmup", type=int, default=3, help="untimed passes of each before them (default 3)")
    parser.add_argument("--batch-size", type=int, default=16, help="images per pass (default 16)")
    options = parser.parse_args()
    torch.manual_seed(0)
    images = torch.randn(options.batch_size, 3, 224, 224)
    claims = []
    for name in ("resnet18", "resnet50"):
        model = create_model(name)
        runs = {name: forward(model, images), f"{name}, folded": forward(fold_batch_norm(model), images)}
        work = network_work(model, images.shape[1:], images=options.batch_size, precision="float32")
        times = medians(
            runs,
            images=options.batch_size,
            rounds=options.rounds,
            warmup=options.warmup,
            work=dict.fromkeys(runs, work),
        ).seconds
        claims.append((f"fold_{name}", times[name] / times[f"{name}, folded"]))
    held = [judge(claim, ratio, BAR) for claim, ratio in claims]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
