"""What DropPath and DropBlock really drop, beside what they are told to."""

from __future__ import annotations

from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn

from resnetlab.core.randomness import torch_seeded
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.models.stochastic import DropBlock, DropPath

_DRAWS = 20_000  # samples, or maps of one channel: what is dropped is then known to half a point
_POSITIONS = 2_000_000


def applied_drops(config: ResNetConfig, image_size: int) -> pd.DataFrame:
    """Returns a row a module that drops: its nominal rate, and the share that it drops in training mode.

    Each module of a network is shown maps of ones, of the height and width that it has there, at its full rate, which
    DropBlock reaches at the end of training. The share of ones that come back as 0 is counted.

    Args:
        config: the network.
        image_size: height and width of its images in pixels.

    Returns:
        The columns kind ("DropPath" or "DropBlock"), module, map (its height in positions), size (of a block in
        positions, 1 of a DropPath), nominal and applied (shares).
    """
    rows = []
    with torch_seeded(0, "applied drops"), torch.inference_mode():
        model = ResNet(config).eval()
        shapes = _map_shapes(model, torch.zeros(1, config.in_channels, image_size, image_size))
        for name, module in model.named_modules():
            if name in shapes:
                # A branch is dropped whole, whatever its size.
                height, width = shapes[name] if isinstance(module, DropBlock) else (1, 1)
                count = min(_DRAWS, _POSITIONS // (height * width))
                dropped = module.train()(torch.ones(count, 1, height, width)) == 0
                row = {
                    "kind": type(module).__name__,
                    "module": name,
                    "map": shapes[name][0],
                    "size": getattr(module, "size", 1),
                    "nominal": module.rate,
                    "applied": float(dropped.double().mean()),
                }
                rows.append(row)
    return pd.DataFrame(rows, columns=["kind", "module", "map", "size", "nominal", "applied"])


def _map_shapes(model: ResNet, images: Tensor) -> dict[str, tuple[int, int]]:
    """Returns height and width of the maps that each module that drops is given."""
    shapes: dict[str, tuple[int, int]] = {}

    def note(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes[name] = (inputs[0].shape[2], inputs[0].shape[3])

    for name, module in model.named_modules():
        if isinstance(module, (DropPath, DropBlock)):
            module.register_forward_pre_hook(partial(note, name))
    model(images)
    return shapes
