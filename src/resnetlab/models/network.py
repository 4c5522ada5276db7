"""What training and evaluation need of a network, whoever designed it."""

from __future__ import annotations

from typing import Self, TypeVar

from torch import nn

from resnetlab.core.errors import UserError
from resnetlab.core.preprocessing import Preprocessing


class Network(nn.Module):
    """A network that can be trained and evaluated: images in, logits out, and with `return_features` the embedding.

    Attributes:
        class_names: what the outputs mean, once the network was trained on data.
        preprocessing: what the images went through in training, likewise.
        frozen: what `freeze` froze; its normalization stays in evaluation mode whatever `train` says.
    """

    def __init__(self) -> None:
        super().__init__()
        self.class_names: tuple[str, ...] | None = None
        self.preprocessing: Preprocessing | None = None
        self.frozen: frozenset[str] = frozenset()

    def sections(self) -> dict[str, list[nn.Module]]:
        """Returns the parts that can be frozen and have learning rates of their own: all layers, the "head" last."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        """Sets training or evaluation mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        sections = self.sections()
        for name in self.frozen:
            for module in sections[name]:
                module.eval()
        return self

    def set_drop_progress(self, share: float) -> None:
        """Tells the network what share of the training is done, for rates that rise with it."""


AnyNetwork = TypeVar("AnyNetwork", bound=Network)


def sections_of(model: Network) -> dict[str, list[nn.Module]]:
    """Returns the parts of a network, or raises `UserError` for anything that is none of ours."""
    if not isinstance(model, Network):
        raise UserError(f"expected a network of create_model, got {type(model).__name__}.")
    return model.sections()
