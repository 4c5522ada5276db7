"""An exported file as a `Network`, so that it is evaluated like any other."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.runs import Run
from resnetlab.exporting.session import Exported, exported_file
from resnetlab.models.network import Network


class ExportedNetwork(Network):
    """The network of an exported file, in evaluation mode, on the CPU.

    Its preprocessing leaves pixel values unchanged, because the file normalizes them.
    """

    def __init__(self, exported: Exported) -> None:
        super().__init__()
        self.exported = exported
        channels = exported.framing.channels
        mean, std = (0.0,) * channels, (1 / 255,) * channels
        self.preprocessing = Preprocessing(**asdict(exported.framing), mean=mean, std=std)
        self.class_names, self.temperature = exported.class_names, exported.temperature
        self.nothing = nn.Parameter(torch.empty(0), requires_grad=False)  # says device and type
        self.eval()

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the logits of pixel values (N, C, H, W) from 0 to 255, and with `return_features` the embedding."""
        pixels = images.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        names = ["logits", "embedding"] if return_features and "embedding" in self.exported.outputs else ["logits"]
        values = [torch.from_numpy(value) for value in self.exported.run(pixels, names).values()]
        return (values[0], values[-1]) if return_features else values[0]


def home_of(path: str | Path) -> Run | None:
    """Returns the run whose export folder contains an exported file."""
    folder = exported_file(path).resolve().parent.parent
    return Run(folder) if (folder / "run.toml").is_file() else None
