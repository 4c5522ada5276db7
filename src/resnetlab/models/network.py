"""The protocol of a network: what training, evaluation, saving and the studies need of it.

Three classes implement it: `ResNet`, `TimmNetwork` for networks of timm, and `ModuleNetwork` for your own `nn.Module`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, Self, TypeVar

from torch import nn

from resnetlab.core.errors import UserError
from resnetlab.core.preprocessing import Preprocessing


class Architecture(Protocol):
    """How to build a network again: what run.toml and model.safetensors record of it.

    `ResNetConfig`, `TimmConfig` and `ModuleConfig` are the three kinds. The function `build` builds them, and
    `read_architecture` reads what `to_dict` returns.
    """

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Returns the record, ready for a file."""
        ...


class Network(nn.Module):
    """A network that can be trained, evaluated and saved.

    `forward(images)` returns logits (N, num_classes). `forward(images, return_features=True)` returns
    `(logits, embedding)` with an embedding (N, D); a network that has none returns the logits twice.

    Attributes:
        config: how to build the network again.
        class_names: what the outputs mean, once the network was trained on data.
        preprocessing: how the training images were prepared, once it was trained.
        temperature: divides the logits before softmax gives probabilities, so that these are calibrated; fitted on the
            validation images at the end of training, 1 before.
        frozen: names of the frozen sections; their normalization stays in evaluation mode.
        stopped_at: complete and planned epochs, if the training was stopped before its end; otherwise None.
        altered: why `config` no longer describes the network, or None. Such a network cannot be saved.
        channels_last: whether the network accepts images and weights in channels_last memory format.
    """

    config: Architecture
    channels_last: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.class_names: tuple[str, ...] | None = None
        self.preprocessing: Preprocessing | None = None
        self.temperature = 1.0
        self.frozen: frozenset[str] = frozenset()
        self.stopped_at: tuple[int, int] | None = None
        self.altered: str | None = None

    @property
    def saved_module(self) -> nn.Module:
        """The module whose tensors are saved, under the names that its own library gives them."""
        return self

    def sections(self) -> dict[str, list[nn.Module]]:
        """Returns all layers by section, from the images to the "head". A section can be frozen and have its own lr."""
        raise NotImplementedError

    def blocks(self) -> list[tuple[str, nn.Module]]:
        """Returns the residual blocks with their names, in order; an empty list if the network has none."""
        return []

    def rebuilt(self) -> Network:
        """Returns a freshly initialized network of the same architecture."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        """Sets training or evaluation mode; frozen sections stay in evaluation mode."""
        super().train(mode)
        sections = self.sections() if self.frozen else {}
        for name in self.frozen:
            for module in sections[name]:
                module.eval()
        return self

    def set_drop_progress(self, share: float) -> None:
        """Sets the fraction of the training that is done, for drop rates that rise with it."""


AnyNetwork = TypeVar("AnyNetwork", bound=Network)


def sections_of(model: Network) -> dict[str, list[nn.Module]]:
    """Returns the sections of a network; raises `UserError` for anything else."""
    if not isinstance(model, Network):
        raise UserError(f"expected a ResNetLab network, got {type(model).__name__}. Build one with create_model.")
    return model.sections()
