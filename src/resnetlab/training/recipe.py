"""A recipe: everything that decides a training, apart from network, data and seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from resnetlab.core.checks import check_choice, check_flag, check_integer, check_number, from_mapping, set_checked
from resnetlab.core.errors import UserError
from resnetlab.data.augment import Augmentation

OPTIMIZERS = ("sgd", "scratch_sgd")
LOSSES = ("cross_entropy", "scratch_cross_entropy")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train.

    Attributes:
        name: what it is called in the run folder.
        epochs: passes over the training images.
        batch_size: images of one step.
        lr: the highest learning rate of the one-cycle schedule.
        warmup: share of all steps in which the learning rate rises.
        optimizer: "sgd", torch's stochastic gradient descent, or "scratch_sgd", that of `resnetlab.scratch`.
        momentum: of stochastic gradient descent.
        nesterov: whether momentum looks ahead (Sutskever et al. 2013).
        weight_decay: on weights of convolutions and linear layers; not on normalisation or biases.
        clip_norm: longest gradient, over all parameters together, that is taken as it is; a longer one is
            scaled down to it (Pascanu et al. 2013). 0 leaves every gradient as it is.
        loss: "cross_entropy", torch's, or "scratch_cross_entropy", that of `resnetlab.scratch`.
        label_smoothing: share of the target spread over all classes (Szegedy et al. 2016).
        augment: what happens to the training images.
        keep: the weights that the run ends with: "final", or those of the "best" validation top-1.

    Raises:
        UserError: a value is out of range.
    """

    name: str = "custom"
    epochs: int = 20
    batch_size: int = 128
    lr: float = 0.1
    warmup: float = 0.25
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    clip_norm: float = 0.0
    loss: str = "cross_entropy"
    label_smoothing: float = 0.0
    augment: Augmentation = field(default_factory=Augmentation)
    keep: str = "final"

    def __post_init__(self) -> None:
        set_checked(
            self,
            epochs=check_integer("epochs", self.epochs, 1),
            batch_size=check_integer("batch_size", self.batch_size, 2),
            lr=check_number("lr", self.lr, 0, above=True),
            warmup=check_number("warmup", self.warmup, 0, 1),
            optimizer=check_choice("optimizer", self.optimizer, OPTIMIZERS),
            loss=check_choice("loss", self.loss, LOSSES),
            momentum=check_number("momentum", self.momentum, 0, 1, below=True),
            nesterov=check_flag("nesterov", self.nesterov),
            weight_decay=check_number("weight_decay", self.weight_decay, 0),
            clip_norm=check_number("clip_norm", self.clip_norm, 0),
            label_smoothing=check_number("label_smoothing", self.label_smoothing, 0, 1, below=True),
            keep=check_choice("keep", self.keep, ("final", "best")),
        )
        if isinstance(self.augment, Mapping):
            set_checked(self, augment=from_mapping(Augmentation, self.augment, "augment"))
        if not isinstance(self.augment, Augmentation):
            raise UserError(f"augment must be an Augmentation, got {self.augment!r}.")
        if self.nesterov and self.momentum == 0:
            raise UserError("nesterov=True needs momentum above 0. Set nesterov=False, or give a momentum.")

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields, nested, ready for a file; what is None is left out."""
        values = dataclasses.asdict(self)
        values["augment"] = {key: value for key, value in values["augment"].items() if value is not None}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Makes a recipe of what `to_dict` gave; unknown keys are errors with the nearest known one."""
        return from_mapping(cls, values, "the recipe")

    def changed(self, /, **changes: Any) -> Recipe:
        """Returns the recipe with other values; "augment.flip" and the like name nested fields.

        Raises:
            UserError: there is no such field, with the nearest known one, or a value is out of range.
        """
        values = self.to_dict()
        for key, value in changes.items():
            outer, dot, inner = key.partition(".")
            if dot and isinstance(values.get(outer), dict):
                values[outer] = {**values[outer], inner: value}
            else:
                values[key] = value
        return Recipe.from_dict(values)
