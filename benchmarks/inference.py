"""Claim: the copy of a network that evaluation and prediction use on a CPU makes inference faster.

ResNet-18 and ResNet-50 in float32 and evaluation mode, with batches of 1 and 16 images of 3x224x224. The network as it
was built (contiguous memory, separate batch normalization) is compared with its `inference_copy`: in channels_last,
with folded batch normalization, and convolutions that include activation and sum and have packed kernels. Both must
predict the same class for every image.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from resnetlab.models.fused import inference_copy
from resnetlab.weights.load import create_model
from timing import judge, medians, network_work, on_known

BARS = {("resnet18", 1): 1.4, ("resnet18", 16): 1.4, ("resnet50", 1): 1.3, ("resnet50", 16): 1.6}


def forward(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """Returns one forward pass without gradients."""

    def run() -> Tensor:
        with torch.inference_mode():
            return model(images)

    return run


def main() -> int:
    """Runs each network in turn with its copy and prints the ratios of their median times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="timed passes of each (default 15)")
    parser.add_argument("--warmup", type=int, default=3, help="untimed passes of each before them (default 3)")
    options = parser.parse_args()
    torch.manual_seed(0)
    claims = []
    for (name, batch), bar in BARS.items():
        model, images = create_model(name).eval(), torch.randn(batch, 3, 224, 224)
        arranged = images.contiguous(memory_format=torch.channels_last)
        faster = inference_copy(model, arranged)
        runs = {name: forward(model, images), f"{name}, copy": forward(faster, arranged)}
        first, second = (run().argmax(1) for run in runs.values())
        if not torch.equal(first, second):
            print(f"{name}: the copy predicts other classes")
            return 1
        work = network_work(model, images.shape[1:], images=batch, precision="float32")
        times = medians(
            runs, images=batch, rounds=options.rounds, warmup=options.warmup, work=dict.fromkeys(runs, work)
        ).seconds
        claims.append((f"{name}_{batch}", times[name] / times[f"{name}, copy"], on_known(bar)))
    held = [judge(claim, ratio, bar) for claim, ratio, bar in claims]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
